"""Chats that are too long lose whole turns, as messages, and are rendered anew."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.chat_families import families, generation_of, tokenizer_of
from tests.support.data import encode_pair
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.config.schema import DataConfig
from likelier.data.fit import _later_starts, trim_each
from likelier.data.load import load
from likelier.data.records import Pair, TokenPair

CHAT = build_encoder(byte_level(CHATML, eos="<|im_end|>"))
SYSTEM = {"role": "system", "content": "공손하게 답하세요."}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def bot(content: str, **further: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **further}


def call(name: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": name}}
    return bot("", tool_calls=[{"id": name, "type": "function", "function": function}])


def result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "name": "weather", "content": f"{name} 맑음"}


def chat(*prompt: dict[str, Any]) -> Pair:
    return Pair(prompt, (bot("언어입니다."),), (bot("뱀이지~"),), "a:1")


def limit_for(prompt: int) -> int:
    """The smallest max_length that leaves a prompt of this length alone."""
    return next(limit for limit in range(10_000) if limit - limit // 4 == prompt)


def trim(
    encoder: Encoder, pair: Pair, room: int
) -> tuple[TokenPair | None, list[Finding], TokenPair]:
    """The pair with a prompt of at most ``room`` tokens, what was found, and the whole pair."""
    whole = encode_pair(encoder, pair)
    kept, findings = trim_each([pair], [whole], limit_for(room) + 1000 * 4, encoder)
    assert kept == [whole] and not findings
    kept, findings = trim_each([pair], [whole], limit_for(room), encoder)
    return (kept[0] if kept else None), findings, whole


NAMES = (
    "gpt-oss",
    "Zephyr",
    "Phi-3",
    "Phi-4-mini",
    "Gemma 3",
    "Llama 3.1",
    "Mistral Nemo",
    "Qwen3",
)


@cache
def encoder_of(name: str) -> Encoder:
    (family,) = [family for family in families() if family.family == name]
    tokenizer = tokenizer_of(family)
    return build_encoder(tokenizer, generation_of(family, tokenizer))


def rendered(encoder: Encoder, messages: list[dict[str, Any]]) -> list[int]:
    """What the tokenizer alone makes of a prompt, on the day of the encoder."""
    frozen = {"chat_template": encoder.frozen} if encoder.frozen else {}
    text = encoder.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **frozen
    )
    return list(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_the_system_turn_and_the_last_turns_stay(name: str) -> None:
    encoder = encoder_of(name)
    turns = [
        SYSTEM,
        user("옛날 질문 " * 3),
        bot("옛날 답"),
        user("둘째"),
        bot("둘째 답"),
        user("끝"),
    ]
    for start in (3, 5):
        expected = rendered(encoder, [SYSTEM, *turns[start:]])
        for room in (len(expected), len(expected) + 1):
            cut, findings, whole = trim(encoder, chat(*turns), room)
            assert cut is not None and list(cut.prompt) == expected
            assert (cut.chosen, cut.rejected) == (whole.chosen, whole.rejected)
            (finding,) = findings
            assert (finding.code, finding.source) == ("trimmed", "a:1")
            assert finding.message == (
                f"trimmed: prompt {len(whole.prompt)} to {len(expected)} tokens"
            )
    cut, (finding,), _ = trim(encoder, chat(*turns), len(expected) - 1)
    assert cut is None and finding.code == "overlong"


def test_one_question_that_is_too_long_is_never_cut_in_two() -> None:
    encoder = encoder_of("Mistral, single turn")
    cut, (finding,), whole = trim(encoder, chat(user("긴 질문입니다. " * 9)), 20)
    assert cut is None and finding.code == "overlong" and len(whole.prompt) > 20


@pytest.mark.parametrize("name", ["gpt-oss", "Llama 3.1", "Qwen3"])
def test_no_result_is_left_without_its_call(name: str) -> None:
    encoder = encoder_of(name)
    turns = [
        *(SYSTEM, user("날씨?"), call("서울"), result("서울"), bot("맑아요.")),
        *(user("부산은?"), call("부산"), result("부산"), bot("거기도요."), user("고마워요.")),
    ]
    whole = rendered(encoder, turns)
    for room in range(20, len(whole)):
        cut, _, _ = trim(encoder, chat(*turns), room)
        if cut is not None:
            ways = [rendered(encoder, [SYSTEM, *turns[start:]]) for start in (5, 9)]
            assert list(cut.prompt) in [way for way in ways if len(way) <= room]


def test_a_question_between_a_call_and_its_result_begins_nothing() -> None:
    turns = [
        user("날씨?"),
        call("서울"),
        user("빨리요."),
        result("서울"),
        bot("맑아요."),
        user("네"),
    ]
    only = rendered(CHAT, turns[5:])
    cut, _, whole = trim(CHAT, chat(*turns), len(encode_pair(CHAT, chat(*turns)).prompt) - 1)
    assert cut is not None and list(cut.prompt) == only
    plain = [{key: value for key, value in turn.items() if key != "tool_call_id"} for turn in turns]
    assert trim(CHAT, chat(*plain), len(whole.prompt) - 1)[0] == cut


ROLES = st.lists(st.sampled_from("uacr"), max_size=9)


@settings(max_examples=60, deadline=None)
@given(roles=ROLES, system=st.booleans(), room=st.integers(5, 120))
def test_whatever_the_turns_are(roles: list[str], system: bool, room: int) -> None:
    """What is left is the system turn and an end of the chat that begins with a user's turn."""
    kinds: dict[str, Any] = {
        "u": user("질문"),
        "a": bot("답"),
        "c": call("서울"),
        "r": result("서울"),
    }
    turns = [*([SYSTEM] if system else []), *(kinds[role] for role in roles), user("끝")]
    cut, _, whole = trim(CHAT, chat(*turns), room)
    if len(whole.prompt) <= room:
        assert cut == whole
    elif cut is not None:
        starts = [n for n, turn in enumerate(turns) if turn["role"] == "user" and n > system]
        ends = [rendered(CHAT, [*turns[:system], *turns[start:]]) for start in starts]
        assert list(cut.prompt) == max((end for end in ends if len(end) <= room), key=len) or (
            "r" in roles and list(cut.prompt) in ends
        )
        assert len(cut.prompt) <= room


def test_trimming_is_done_where_rows_are_read(tmp_path: Path) -> None:
    """The counts add up, and a file of which nothing fits is answered with its first row."""
    turns = [user("옛날 질문 " * 9), bot("옛날 답"), user("질문")]
    answers = {"chosen": [bot("언어입니다.")], "rejected": [bot("뱀이지~")]}
    rows = [
        {"prompt": turns[2:], **answers},
        {"prompt": turns, **answers},
        {"prompt": turns[:1], **answers},
        {"prompt": turns[2:], "chosen": [bot("가" * 50 + "나")], "rejected": [bot("가" * 50)]},
    ]
    asked = {"train": "train.jsonl", "max_length": 60, "overlong": "trim", "eval": None}
    data = DataConfig.model_validate({**asked, "on_bad_row": "drop"})
    found = load(data, CHAT, train=rows)
    short = encode_pair(CHAT, chat(user("질문")))
    assert [pair.prompt for pair in found.train] == [short.prompt] * 2
    codes = [(finding.code, finding.source) for finding in found.findings]
    assert codes == [("trimmed", "train[1]"), ("overlong", "train[2]"), ("truncated", "train[3]")]
    assert (found.counts["used"], found.counts["dropped"], found.counts["trimmed"]) == (2, 2, 1)
    with pytest.raises(DataError, match="no pair is left, all 2 are too long") as caught:
        load(data, CHAT, train=[rows[2], rows[2]])
    assert caught.value.where == "train[0]"
    strict = DataConfig.model_validate(asked)
    with pytest.raises(DataError, match="same or empty once cut"):
        load(strict, CHAT, train=rows)


class Counting(dict[str, Any]):
    """A turn that counts how often it is read."""

    reads = 0

    def get(self, *key: Any) -> Any:
        Counting.reads += 1
        return super().get(*key)

    def __getitem__(self, key: str) -> Any:
        Counting.reads += 1
        return super().__getitem__(key)


def test_where_a_chat_may_begin_is_found_in_one_reading() -> None:
    """Reads are counted, not seconds."""

    def reads(count: int) -> int:
        three = ((user("날씨?"), call(f"{n}"), result(f"{n}")) for n in range(count))
        turns = [turn for turns in three for turn in turns]
        Counting.reads = 0
        starts = _later_starts(tuple(map(Counting, turns)), 0)
        assert starts == list(range(3, 3 * count, 3))
        return Counting.reads

    assert reads(2000) <= 2.1 * reads(1000) < 100_000


@given(
    st.lists(
        st.sampled_from([user("?"), call("a"), call("b"), result("a"), result("b"), bot("a"),
                         {"role": "tool", "content": "c"}, bot("", function_call={"name": "f"})]),
        max_size=12,
    )
)  # fmt: skip
def test_a_chat_begins_where_no_result_is_left_without_its_call(turns: list[Any]) -> None:
    def complete(chat: list[Any]) -> bool:
        called: set[Any] = set()
        for turn in chat:
            for one in (*(turn.get("tool_calls") or ()), turn.get("function_call")):
                called |= {one.get("id")} if one else set()
            asked = turn.get("tool_call_id")
            if turn["role"] == "tool" and not (
                asked in called or None in called or (asked is None and called)
            ):
                return False
        return True

    assert _later_starts(tuple(turns), 0) == [
        start
        for start in range(1, len(turns))
        if turns[start]["role"] == "user" and complete(turns[start:])
    ]
