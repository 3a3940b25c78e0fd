"""The shapes a preference may come in, and every way to miss them."""

from typing import Any

import pytest

from likelier.base.findings import Finding
from likelier.chat.messages import nearest
from likelier.data.formats import read_row
from likelier.data.records import Pair, Row
from likelier.data.shapes import Format

TEXT = {"prompt": "파이썬이 뭐야?", "chosen": "언어입니다.", "rejected": "뱀이지~"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def bot(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "공손하게 답하세요."}


def read(record: dict[str, Any], columns: dict[str, str] | None) -> Pair | Finding:
    (found,) = read_row(Row("a.jsonl:7", record), Format(columns or {}))
    return found


def pair_of(record: dict[str, Any], columns: dict[str, str] | None = None) -> Pair:
    pair = read(record, columns)
    assert isinstance(pair, Pair), pair
    assert pair.source == "a.jsonl:7"
    return pair


def finding_of(record: dict[str, Any], columns: dict[str, str] | None = None) -> Finding:
    found = read(record, columns)
    assert isinstance(found, Finding), found
    assert found.source == "a.jsonl:7" and found.severity == "error"
    assert "\n" not in found.message + found.hint
    assert len(found.message) < 250
    return found


def test_text() -> None:
    pair = pair_of({**TEXT, "score": 3})
    assert (pair.prompt, pair.chosen, pair.rejected) == tuple(TEXT.values())


def test_text_is_kept_as_it_is() -> None:
    assert pair_of({**TEXT, "chosen": "  언어 \n"}).chosen == "  언어 \n"


def test_messages() -> None:
    pair = pair_of(
        {"prompt": [SYSTEM, user("뭐야?")], "chosen": [bot("언어")], "rejected": [bot("뱀")]}
    )
    assert pair.prompt == (SYSTEM, user("뭐야?"))
    assert (pair.chosen, pair.rejected) == ((bot("언어"),), (bot("뱀"),))


def test_null_keys_of_messages_go() -> None:
    pair = pair_of(
        {
            "prompt": [{**user("뭐야?"), "name": None, "tool_calls": None}],
            "chosen": [bot("언어")],
            "rejected": [bot("뱀")],
        }
    )
    assert pair.prompt == (user("뭐야?"),)


def test_an_empty_system_turn_is_common() -> None:
    empty = {"role": "system", "content": ""}
    pair = pair_of(
        {"prompt": [empty, user("뭐야?")], "chosen": [bot("언어")], "rejected": [bot("뱀")]}
    )
    assert pair.prompt[0] == empty


def test_a_tool_call_needs_no_content() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "3"}
    pair = pair_of(
        {
            "prompt": [user("셋?")],
            "chosen": [call, result, bot("셋")],
            "rejected": [bot("몰라")],
        }
    )
    assert pair.chosen == (call, result, bot("셋"))


def test_conversations_share_their_prompt() -> None:
    start = [SYSTEM, user("안녕"), bot("안녕하세요"), user("뭐야?")]
    pair = pair_of({"chosen": [*start, bot("언어")], "rejected": [*start, bot("뱀")]})
    assert pair.prompt == tuple(start)
    assert (pair.chosen, pair.rejected) == ((bot("언어"),), (bot("뱀"),))


def test_the_prompt_is_whole_messages() -> None:
    """The answers begin alike; that belongs to them."""
    pair = pair_of(
        {
            "chosen": [user("뭐야?"), bot("파이썬은 언어")],
            "rejected": [user("뭐야?"), bot("파이썬은 뱀")],
        }
    )
    assert pair.prompt == (user("뭐야?"),)
    assert pair.chosen == (bot("파이썬은 언어"),)


def test_answers_of_several_messages() -> None:
    pair = pair_of(
        {
            "chosen": [user("뭐야?"), bot("언어"), user("더"), bot("쉬워요")],
            "rejected": [user("뭐야?"), bot("뱀"), user("더"), bot("길어요")],
        }
    )
    assert pair.prompt == (user("뭐야?"),)
    assert pair.chosen == (bot("언어"), user("더"), bot("쉬워요"))


def test_an_answer_that_begins_the_other() -> None:
    short = [user("뭐야?"), bot("언어")]
    pair = pair_of({"chosen": short, "rejected": [*short, user("더"), bot("쉬워요")]})
    assert pair.prompt == (user("뭐야?"),)
    assert pair.chosen == (bot("언어"),)
    assert pair.rejected == (bot("언어"), user("더"), bot("쉬워요"))


def test_conversations_that_repeat_the_prompt_column() -> None:
    whole = {"chosen": [user("뭐야?"), bot("언어")], "rejected": [user("뭐야?"), bot("뱀")]}
    expected = pair_of(whole)
    assert pair_of({**whole, "prompt": "뭐야?"}) == expected
    assert pair_of({**whole, "prompt": [user("뭐야?")]}) == expected
    assert finding_of({**whole, "prompt": "다른 질문"}).code == "prompt"
    assert finding_of({**whole, "prompt": [user("다른 질문")]}).code == "prompt"
    one_side = {**whole, "rejected": [user("다른 질문"), bot("뱀")]}
    found = finding_of({**one_side, "prompt": [user("뭐야?")]})
    assert (found.code, found.field) == ("prompt", None)


def test_columns_are_renamed() -> None:
    record = {"question": "뭐야?", "good": "언어", "bad": "뱀"}
    pair = pair_of(record, {"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("뭐야?", "언어", "뱀")


def test_a_misspelt_column_is_named() -> None:
    record = {"prompt": "뭐야?", "choosen": "언어", "rejected": "뱀"}
    found = finding_of(record)
    assert found.code == "column" and found.field == "chosen"
    assert '"choosen"' in found.message and 'did you mean "chosen"' in found.message
    assert "data.columns.chosen: choosen" in found.hint
    assert pair_of(record, {"chosen": "choosen"}).chosen == "언어"
    assert "Chosen" in finding_of({"prompt": "a", "Chosen": "b", "rejected": "c"}).message


def test_a_missing_column_lists_the_others() -> None:
    found = finding_of({"chosen": "a", "rejected": "b", "질문": "c", "n": 1})
    assert found.code == "column" and found.field == "prompt"
    assert '"질문"' in found.hint


def test_a_mapped_column_that_the_file_lacks() -> None:
    found = finding_of({**TEXT, "question": "c"}, {"prompt": "qestion"})
    assert found.code == "column" and "data.columns.prompt" in found.message
    assert 'did you mean "question"' in found.hint
    chat = {"chosen": [user("가"), bot("나")], "rejected": [user("가"), bot("다")]}
    assert finding_of(chat, {"prompt": "question"}).code == "column"


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        (None, "type", "null"),
        (3, "type", "a number"),
        (2.5, "type", "a number"),
        (True, "type", "true or false"),
        ({"text": "a"}, "type", "an object"),
        (b"bytes", "type", "bytes"),
        ("", "empty", "empty"),
        (" \n\t\u3000", "empty", "only spaces"),
        ("a\0b", "text", "NUL"),
        ("a\ud800", "text", "U+D800"),
        ("a\ufdd0", "text", "U+FDD0"),
    ],
)
def test_a_text_that_is_none(name: str, value: Any, code: str, says: str) -> None:
    found = finding_of({**TEXT, name: value})
    assert (found.code, found.field) == (code, name)
    assert says in found.message


def test_the_field_is_the_column_of_the_file() -> None:
    record = {"question": None, "chosen": "a", "rejected": "b"}
    assert finding_of(record, {"prompt": "question"}).where == "a.jsonl:7 question"


@pytest.mark.parametrize(
    ("chosen", "code", "field", "says"),
    [
        ([], "empty", "chosen", "empty"),
        (["언어"], "type", "chosen[0]", "a message expected"),
        ([{"content": "언어"}], "role", "chosen[0]", "no role"),
        ([{"who": "gpt", "value": "언어"}], "role", "chosen[0]", '"who", "value"'),
        ([{"role": "asistant", "content": "a"}], "role", "chosen[0].role", "asistant"),
        ([{"role": ["x"], "content": "a"}], "role", "chosen[0].role", "unknown role"),
        ([bot(None)], "type", "chosen[0].content", "null"),
        ([bot("")], "empty", "chosen[0].content", "empty"),
        ([bot([{"type": "image"}])], "type", "chosen[0].content[0]", '"image"'),
        ([bot("언어"), user("더")], "role", "chosen", "the user's"),
        ([user("더"), bot("언어")], "role", "chosen", "does not start"),
        ([bot("언어"), {"role": "tool", "content": 3}], "type", "chosen[1].content", "a number"),
    ],
)
def test_messages_that_are_none(chosen: Any, code: str, field: str, says: str) -> None:
    found = finding_of({"prompt": [user("뭐야?")], "chosen": chosen, "rejected": [bot("뱀")]})
    assert (found.code, found.field) == (code, field)
    assert says in found.message


def test_a_misspelt_role_is_named() -> None:
    chosen = [{"role": "asistant", "content": "a"}]
    found = finding_of({"prompt": [user("가")], "chosen": chosen, "rejected": [bot("뱀")]})
    assert 'did you mean "assistant"' in found.hint


@pytest.mark.parametrize(
    "record",
    [
        {**TEXT, "chosen": [bot("a")]},
        {**TEXT, "prompt": [user("a")]},
        {**TEXT, "chosen": [bot("a")], "rejected": [bot("b")]},
        {"chosen": "a", "rejected": [bot("b")], "prompt": [user("c")]},
    ],
)
def test_text_and_messages_do_not_mix(record: dict[str, Any]) -> None:
    assert finding_of(record).code == "mixed"


@pytest.mark.parametrize(
    ("chosen", "rejected", "code"),
    [
        ([user("가"), bot("나")], [user("다"), bot("나")], "prompt"),
        ([user("가"), bot("나"), user("다"), bot("라")],
         [user("가"), bot("나"), user("마"), bot("라")], "prompt"),
        ([user("가"), bot("나")], [user("가"), user("다"), bot("라")], "prompt"),
        ([bot("나")], [bot("라")], "column"),
        ([bot("나")], [user("가"), bot("라")], "column"),
    ],
)  # fmt: skip
def test_conversations_without_one_prompt(chosen: Any, rejected: Any, code: str) -> None:
    assert finding_of({"chosen": chosen, "rejected": rejected}).code == code


def test_a_message_never_shows_much_of_the_row() -> None:
    long = "비밀" * 1000
    for record in (
        {long: "a"},
        {"prompt": long, "chosen": long},
        {"prompt": long, "chosen": long, "rejected": 3},
        {
            "prompt": [{"role": long, "content": long}],
            "chosen": [bot(long)],
            "rejected": [bot("a")],
        },
        {"chosen": [user(long), bot("a")], "rejected": [user("b"), bot("a")]},
    ):
        found = finding_of(record)
        assert (found.message + found.hint).count("비밀") <= 40


def test_nearest() -> None:
    assert nearest("Promt", ["prompt", "chosen"]) == "prompt"
    assert nearest("완전히", ["prompt", "chosen"]) is None
