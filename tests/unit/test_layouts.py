"""Layouts of other trainers, and layouts that could mean two things: read rightly, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.data import load_memory, load_pairs

from likelier.base.errors import DataError
from likelier.checks.summary import describe_example
from likelier.cli import main
from likelier.data.load import Dataset, format_of
from likelier.data.shapes import Format, format_with

Rows = list[dict[str, Any]]
ASK, GOOD, BAD = "우산은 왜 접히나요?", "뼈대가 관절로 이어져요.", "몰라."
ANSWERS = {"chosen": GOOD, "rejected": BAD}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CHAT = ((user(ASK),), (bot(GOOD),), (bot(BAD),))
TURNS = (user("안녕"), bot("네"), user(ASK))


def the_pair(row: dict[str, Any], asked: dict[str, str | None] | None = None) -> Any:
    loaded = load_memory([row], format_with(asked or {}))
    errors = [finding for finding in loaded.findings if finding.severity == "error"]
    assert not errors, errors
    (pair,) = (*loaded.pairs, *loaded.labelled)
    return pair


def the_error(row: dict[str, Any], asked: dict[str, str | None] | None = None) -> Any:
    loaded = load_memory([row], format_with(asked or {}))
    assert not loaded.pairs and not loaded.labelled
    (found,) = loaded.findings
    assert found.severity == "error" and found.source == "train[0]"
    return found


def sides(pair: Any) -> tuple[Any, Any, Any]:
    return pair.prompt, pair.chosen, pair.rejected


# ---- layouts of other trainers -----------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "날씨", "parameters": {}}}
HOSTED = {"preferred_output": [bot(GOOD)], "non_preferred_output": [bot(BAD)]}
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "alpaca": ({"instruction": "한 문장으로.", "input": ASK, **ANSWERS},
               (f"한 문장으로.\n{ASK}", GOOD, BAD)),
    "alpaca, empty input": ({"instruction": ASK, "input": "", **ANSWERS}, (ASK, GOOD, BAD)),
    "alpaca, null input": ({"instruction": ASK, "input": None, **ANSWERS}, (ASK, GOOD, BAD)),
    "alpaca, empty instruction": ({"instruction": "", "input": ASK, **ANSWERS}, (ASK, GOOD, BAD)),
    "alpaca, with a system text": (
        {"id": 3, "system": "짧게", "instruction": "한 문장으로.", "input": ASK, **ANSWERS},
        (({"role": "system", "content": "짧게"}, user(f"한 문장으로.\n{ASK}")), *CHAT[1:])),
    "alpaca, with a history": (
        {"instruction": ASK, "input": "", "history": [["안녕", "네"]], **ANSWERS},
        (TURNS, *CHAT[1:])),
    "alpaca, with an empty history": (
        {"instruction": ASK, "input": "", "history": [], **ANSWERS}, CHAT),
    "a history of messages": (
        {"prompt": ASK, "history": [user("안녕"), bot("네")], **ANSWERS}, (TURNS, *CHAT[1:])),
    "ms-swift, text": ({"messages": [user(ASK), bot(GOOD)], "rejected_response": BAD}, CHAT),
    "ms-swift, several turns": (
        {"messages": [*TURNS, bot(GOOD)], "rejected_response": BAD}, (TURNS, *CHAT[1:])),
    "ms-swift, messages": (
        {"messages": [user(ASK), bot(GOOD)], "rejected_messages": [user(ASK), bot(BAD)]}, CHAT),
    "ms-swift, one message": (
        {"messages": [*TURNS, bot(GOOD)], "rejected_messages": [bot(BAD)]}, (TURNS, *CHAT[1:])),
    "hosted": ({"input": {"messages": [user(ASK)], "tools": [], "parallel_tool_calls": True},
                **HOSTED}, CHAT),
    "hosted, with a system text": (
        {"input": {"messages": [{"role": "system", "content": "짧게"}, user(ASK)]}, **HOSTED},
        (({"role": "system", "content": "짧게"}, user(ASK)), *CHAT[1:])),
    "a prompt beside whole chats": (
        {"prompt": ASK, "messages": [user(ASK), bot(GOOD)], "chosen": [user(ASK), bot(GOOD)],
         "rejected": [user(ASK), bot(BAD)]}, CHAT),
    "the first turn as the prompt beside whole chats": (
        {"prompt": " 안녕\n", "question": "안녕", "chosen": [*TURNS, bot(GOOD)],
         "rejected": [*TURNS, bot(BAD)]}, (TURNS, *CHAT[1:])),
    "the last message as the prompt beside whole chats": (
        {"prompt": [user(ASK)], "chosen": [*TURNS, bot(GOOD)], "rejected": [*TURNS, bot(BAD)]},
        (TURNS, *CHAT[1:])),
    "conversations compared": (
        {"conversation_a": [user(ASK), bot(BAD)], "conversation_b": [user(ASK), bot(GOOD)],
         "winner": "model_b"}, CHAT),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_of_another_trainer(name: str) -> None:
    row, expected = LAYOUTS[name]
    assert sides(the_pair(row)) == expected


def test_tools_of_the_hosted_layout() -> None:
    row = {"input": {"messages": [user(ASK)], "tools": [TOOL]}, **HOSTED}
    assert the_pair(row).tools == (TOOL,)
    found = the_error({"input": {"messages": [user(ASK)], "tools": "{"}, **HOSTED})
    assert (found.code, found.field) == ("tools", "input.tools")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_whole_chats_with_a_label(column: str) -> None:
    pair = the_pair({column: [user(ASK), bot(GOOD)], "label": True})
    assert (pair.prompt, pair.chosen, pair.label) == ((user(ASK),), (bot(GOOD),), True)


def test_a_rejected_answer_of_several_turns_answers_the_last_question() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "날씨", "arguments": {}}}]}
    result = {"role": "tool", "content": "비"}
    worse = [call, result, bot(BAD)]
    pair = the_pair({"messages": [user(ASK), call, result, bot(GOOD)], "rejected_messages": worse})
    assert sides(pair) == ((user(ASK),), (call, result, bot(GOOD)), tuple(worse))


def test_naming_the_messages_as_chosen_works_too() -> None:
    """As the hint on such rows once said, without success."""
    row, expected = LAYOUTS["ms-swift, text"]
    assert sides(the_pair(row, {"chosen": "messages"})) == expected


def test_a_rejected_text_that_is_none_is_located() -> None:
    row = {"messages": [user(ASK), bot(GOOD)], "rejected_response": ""}
    found = the_error(row)
    assert (found.code, found.field) == ("empty", "rejected_response")


def test_the_input_of_every_row_reaches_its_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "Summarise.", "input": f"{n} {ASK}", **ANSWERS} for n in range(6)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [pair.prompt for pair in load_pairs(path, {}).pairs] == [
        f"Summarise.\n{n} {ASK}" for n in range(6)
    ]
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "6 pairs of 6 prompts" in out and "prompt = instruction + input" in out
    assert f"prompt (instruction + input): Summarise. 0 {ASK}" in out


# ---- two columns for one role ------------------------------------------------------------------

DISPUTED = {
    "prompt": {"prompt": "가", "question": "나", **ANSWERS},
    "a passage": {"question": "가", "context": "나", **ANSWERS},
    "an input of another prompt": {"prompt": "가", "input": "나", **ANSWERS},
    "a history as text": {"prompt": "가", "history": "나", **ANSWERS},
    "messages": {"prompt": "가", "messages": [user("나")], **ANSWERS},
    "chosen": {"prompt": ASK, "chosen_response": "또", **ANSWERS},
    "rejected": {"prompt": ASK, "rejected_response": "또", **ANSWERS},
    "system": {"prompt": ASK, "system": "가", "system_prompt": "나", **ANSWERS},
    "scores": {"prompt": ASK, "score_chosen": 1, "chosen_score": 2, "score_rejected": 0, **ANSWERS},
    "completion": {"prompt": ASK, "response": GOOD, "answer": BAD, "label": True},
    "label": {"prompt": ASK, "completion": GOOD, "label": True, "kto_tag": False},
    "completions": {"prompt": ASK, "responses": [GOOD, BAD], "answers": [BAD, GOOD],
                    "scores": [2, 1]},
    "ranks and scores": {"prompt": ASK, "responses": [GOOD, BAD], "ranks": [1, 2],
                         "scores": [1, 2]},
    "preference": {"prompt": ASK, "response_a": GOOD, "response_b": BAD, "winner": "a",
                   "preference": "b"},
}  # fmt: skip


@pytest.mark.parametrize("name", DISPUTED)
def test_two_columns_that_could_fill_one_role_are_refused(name: str) -> None:
    found = the_error(DISPUTED[name])
    assert found.code == "column" and "two columns could be the" in found.message
    ours, other = found.message.split('"')[1::2]
    assert found.field == other
    role = found.message.split(":")[0].rpartition(" ")[2]
    for column in (ours, other):  # the hint is followed, either way
        assert f"data.columns.{role}: {column}" in found.hint
        loaded = load_memory([DISPUTED[name]], format_with({role: column}))
        assert "column" not in [finding.code for finding in loaded.findings]


def test_a_question_and_its_passage_can_be_joined() -> None:
    found = the_error(DISPUTED["a passage"])
    assert "data.columns.input: context" in found.hint
    asked = {"prompt": "question", "input": "context"}
    assert the_pair(DISPUTED["a passage"], asked).prompt == "가\n나"
    assert "prompt = question + context" in format_described(DISPUTED["a passage"], asked)


def format_described(row: dict[str, Any], asked: dict[str, str | None]) -> str:
    return load_memory([row], format_with(asked)).form.describe()


def test_columns_that_say_the_same_are_no_dispute() -> None:
    assert the_pair({"prompt": ASK, "question": ASK, **ANSWERS}).prompt == ASK
    assert the_pair({"prompt": ASK, "question": "", "context": None, **ANSWERS}).prompt == ASK


def test_three_answers_are_no_comparison() -> None:
    row = {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "response_2": "또",
           "better_response_id": 0}  # fmt: skip
    found = the_error(row)
    assert found.code == "column" and '"response_2"' in found.message
    asked = {"first": "response_0", "second": "response_1"}
    for name, column in asked.items():
        assert f"data.columns.{name}: {column}" in found.hint
    assert sides(the_pair(row, dict(asked))) == (ASK, GOOD, BAD)


def test_a_column_that_only_later_rows_have_is_not_lost() -> None:
    rows: Rows = [{"prompt": f"{n} {ASK}", **ANSWERS} for n in range(203)]
    rows[201] = {**rows[201], "system": "짧게"}
    rows[202] = {**rows[202], "context": "아주 긴 글"}
    loaded = load_memory(rows, {})
    assert [(f.code, f.source, f.field) for f in loaded.findings if f.severity == "error"] == [
        ("column", "train[201]", "system"),
        ("column", "train[202]", "context"),
    ]
    assert (len(loaded.pairs), loaded.rows, loaded.left_out) == (201, 203, 2)
    assert (
        len(load_memory(rows, format_with({"system": "system", "prompt": "prompt"})).pairs) == 203
    )
    assert len(load_memory(rows, format_with({"system": None, "prompt": "prompt"})).pairs) == 203


def test_sources_that_are_mixed_may_have_names_of_their_own() -> None:
    rows = [
        {"prompt": ASK, **ANSWERS},
        {"question": ASK, **ANSWERS},
        {"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD},
        {"question": "", "chosen_response": GOOD, "rejected_response": BAD},
        {"question": ASK, "query": "또", **ANSWERS},
        {"instruction": ASK, "input": "글", **ANSWERS},
    ]
    loaded = load_memory(rows, {})
    assert [sides(pair) for pair in loaded.pairs] == [(ASK, GOOD, BAD)] * 3
    errors = [finding for finding in loaded.findings if finding.severity == "error"]
    assert [(f.code, f.source, f.field) for f in errors] == [
        ("empty", "train[3]", "question"),
        ("column", "train[4]", "prompt"),
        ("column", "train[5]", "prompt"),
    ]
    loaded = load_memory(rows, Format({"prompt": "prompt"}))  # the user's word wins
    assert len(loaded.pairs) == 1


def test_null_leaves_a_column_out() -> None:
    wrong = {"prompt": "딴 것", "chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]}
    found = the_error(wrong)
    assert found.code == "prompt" and "data.columns.prompt: null" in found.hint
    assert sides(the_pair(wrong, {"prompt": None})) == CHAT
    row = {"instruction": ASK, "input": "딴 것", "system": "짧게", **ANSWERS}
    assert the_pair(row, {"input": None, "system": None}).prompt == ASK
    assert the_error({"prompt": ASK, **ANSWERS}, {"prompt": None}).code == "column"


def test_null_from_a_config_and_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from likelier.config import config_from

    tree = {"model": {"path": "m"}, "out": "o",
            "data": {"train": "a", "columns": {"prompt": None, "chosen": "good"}}}  # fmt: skip
    assert format_of(config_from(tree).data) == Format({"chosen": "good"}, ignored=("prompt",))
    path = tmp_path / "a.jsonl"
    row = {"instruction": ASK, "input": "딴 것", **ANSWERS}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert main(["check", str(path), "--columns", "input=null"]) == 0
    assert f"prompt (instruction): {ASK}\n" in capsys.readouterr().out


# ---- which answer is better --------------------------------------------------------------------


def compared(preference: str, value: Any, **beside: Any) -> dict[str, Any]:
    return {"prompt": ASK, "response_a": GOOD, "response_b": BAD, preference: value, **beside}


@pytest.mark.parametrize(
    ("row", "best"),
    [
        (compared("winner", "model_a"), GOOD),
        (compared("winner", "B"), BAD),
        (compared("winner", "response_b"), BAD),
        (compared("preference", "Response_A"), GOOD),
        (compared("winner", "gpt-x", model_a="gpt-x", model_b="llama"), GOOD),
        (compared("winner", "llama", model_a="gpt-x", model_b="llama"), BAD),
        (compared("winner", "satie", model_a="satie", model_b="llama"), GOOD),
        (compared("better_response_id", 0), GOOD),
        (compared("better_response_id", "1"), BAD),
        (compared("labels", 1), GOOD),
        (compared("labels", 0), BAD),
        (compared("overall_preference", -3), GOOD),
        (compared("overall_preference", 3.0), BAD),
        ({"prompt": ASK, "response_1": BAD, "response_2": GOOD, "overall_preference": 3}, GOOD),
    ],
)
def test_which_answer_is_better(row: dict[str, Any], best: str) -> None:
    assert the_pair(row).chosen == best


@pytest.mark.parametrize("word", ["tie", "tie (bothbad)", "both", "Neither"])
def test_a_tie_is_noted(word: str) -> None:
    (found,) = load_memory([compared("winner", word)], {}).findings
    assert (found.code, found.severity) == ("tie", "note")


REFUSED = [
    compared("winner", 1),
    compared("winner", "0"),
    compared("preference", -2),
    compared("preference", 0.7),
    compared("preference", True),
    compared("better_response_id", 2),
    compared("better_response_id", -1),
    compared("labels", 0.7),
    compared("labels", 2),
    compared("winner", "gpt-x", model_a="gpt-x", model_b="gpt-x"),
    compared("winner", "nobody"),
    compared("winner", None),
]


@pytest.mark.parametrize("row", REFUSED)
def test_a_preference_with_more_than_one_reading_is_refused(row: dict[str, Any]) -> None:
    found = the_error(row)
    assert found.code == "score" and found.field in row
    assert "response_a" in found.hint or "name" in found.hint
    for word, best in (("response_a", GOOD), ("response_b", BAD)):  # the hint is followed
        assert the_pair({**row, found.field: word}).chosen == best


@pytest.mark.parametrize("values", [[0, 1], [1, 2], [1], [2, 2], ["0", "1"], [0, 1, 2]])
def test_signs_that_may_count_the_answers_are_refused(values: list[Any]) -> None:
    rows = [{**compared("overall_preference", v), "prompt": f"{n}"} for n, v in enumerate(values)]
    with pytest.raises(DataError, match="may be signs, or count the answers") as caught:
        load_memory(rows, {})
    for name in ("better_response_id", "labels"):
        assert name in str(caught.value)
    if set(map(int, values)) <= {0, 1}:  # the hint is followed
        for name, best in (("better_response_id", BAD), ("labels", GOOD)):
            renamed = [{**compared(name, 1), "prompt": "가"}]
            assert load_memory(renamed, {}).pairs[0].chosen == best
    assert len(load_memory([*rows, compared("overall_preference", -1)], {}).pairs) >= 1


@pytest.mark.parametrize("column", ["my_rank", "ranking_score"])
def test_a_name_between_ranks_and_scores_is_refused(column: str) -> None:
    row = {"prompt": ASK, "completions": [GOOD, BAD], column: [1, 2]}
    found = the_error(row, {"scores": column})
    assert (found.code, found.field) == ("score", column)
    for name, best in (("ranks", GOOD), ("scores", BAD)):  # the hint is followed
        assert name in found.hint
        assert the_pair({"prompt": ASK, "completions": [GOOD, BAD], name: [1, 2]}).chosen == best


# ---- messages written as text ------------------------------------------------------------------


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def test_json_text_that_is_messages_is_messages() -> None:
    row = {"prompt": written([user(ASK)]), "chosen": written([bot(GOOD)]), "rejected": [bot(BAD)]}
    assert sides(the_pair(row)) == CHAT
    whole = {"chosen": written([user(ASK), bot(GOOD)]), "rejected": written([user(ASK), bot(BAD)])}
    assert sides(the_pair(whole)) == CHAT
    turns = [{"from": "human", "value": ASK}]
    assert the_pair({**row, "prompt": written(turns)}).prompt == (user(ASK),)


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "우산"}',
        '["우산", "비"]',
        "[]",
        "[1, 2]",
        '[{"name": "우산"}]',
        '[{"role": "user"}]',
        '{"role": "user", "content": "가"}',
        '[{"role": "user", "content": "가"}',
        '[{"role": "user", "content": "가"}] 라고 쓴다',
        "[{'name': '우산'}]",
        "a list: [{'role': 'user'}]",
        "[대괄호]로 시작하는 글",
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_any_other_text_is_text(answer: str, kind: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / f"a.{kind}"
    row = {"prompt": ASK, "chosen": answer, "rejected": BAD}
    if kind == "jsonl":
        path.write_text(json.dumps(row), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([row, row.values()])
    (pair,) = load_pairs(path, {}).pairs
    assert sides(pair) == (ASK, answer, BAD)


@pytest.mark.parametrize(
    "cell",
    [
        str([user(ASK)]),
        str([user("it's"), bot("'")]),
        f"[{user(ASK)}\n {bot(GOOD)}]",
        f"array([{user(ASK)}], dtype=object)",
        "[{'content': \"it's\", 'role': 'user'}]",
    ],
)
def test_messages_as_python_prints_them_are_an_error(cell: str) -> None:
    found = the_error({"prompt": cell, "chosen": GOOD, "rejected": BAD})
    assert (found.code, found.field) == ("type", "prompt") and "json.dumps" in found.hint
    row = {"prompt": written([user(ASK)]), "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}
    assert sides(the_pair(row)) == CHAT  # the hint is followed


# ---- files of other programs -------------------------------------------------------------------

TABLE = [{"prompt": f"{n}, {ASK}", **ANSWERS} for n in range(3)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("before", "key", "after"),
    [
        ({}, "data", {}),
        ({"version": "1.0", "count": 3, "done": True}, "data", {}),
        ({}, "rows", {"total": 3, "next": None, "name": "표"}),
    ],
)
def test_rows_as_one_list_in_an_object(
    before: Any, key: str, after: Any, indent: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    tree = {**before, key: TABLE, **after}
    path.write_text(json.dumps(tree, indent=indent, ensure_ascii=False), encoding="utf-8")
    loaded = load_pairs(path, {})
    assert [pair.prompt for pair in loaded.pairs] == [row["prompt"] for row in TABLE]
    assert (loaded.findings, loaded.rows, loaded.left_out) == ((), 3, 0)
    assert len({pair.source for pair in loaded.pairs}) == 3


@pytest.mark.parametrize("beside", [{"test": TABLE}, {"info": {"a": 1}}])
def test_a_second_list_beside_the_rows_is_not_lost_in_silence(beside: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": TABLE, **beside}), encoding="utf-8")
    loaded = load_pairs(path, {})
    assert [f.code for f in loaded.findings] == ["json"] and len(loaded.pairs) == 3
    path.write_text(json.dumps(TABLE), encoding="utf-8")  # the hint is followed
    assert load_pairs(path, {}).findings == ()


def test_lines_that_begin_with_an_object_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"id": n, "input": {"messages": [user(f"{n}?")]}, **HOSTED} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert len(load_pairs(path, {}).pairs) == 3


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_is_cut_at_the_mark_of_its_header(mark: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, TABLE[0], delimiter=mark)
        writer.writeheader()
        writer.writerows(TABLE)
    assert [pair.prompt for pair in load_pairs(path, {}).pairs] == [row["prompt"] for row in TABLE]
    path.write_text(f"prompt{mark}chosen{mark}rejected\n가{mark}나\n", encoding="utf-8")
    (found,) = load_pairs(path, {}).findings
    assert (found.code, found.source) == ("csv", f"{path}:2")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("role", "content"), ("human", "gpt")),
        (("from", "value"), ("human", "gpt")),
        (("role", "value"), ("human", "gpt")),
        (("from", "content"), ("user", "model")),
        (("role", "value"), ("user", "assistant")),
    ],
)
def test_roles_and_keys_of_sharegpt(one: tuple[str, str], other: tuple[str, str]) -> None:
    def turn(role: str, content: str) -> dict[str, Any]:
        return dict(zip(one, (role, content), strict=True))

    row = {"prompt": [turn(other[0], ASK)], "chosen": [turn(other[1], GOOD)],
           "rejected": turn(other[1], BAD)}  # fmt: skip
    assert sides(the_pair(row)) == CHAT


def test_messages_stored_by_columns() -> None:
    """As a ``Sequence`` of messages is stored by `datasets`: an object of lists."""
    row = {"prompt": {"from": ["human"], "value": [ASK]},
           "chosen": {"role": ["assistant"], "content": [GOOD], "name": [None]},
           "rejected": {"role": ["assistant"], "content": [BAD], "name": [None]}}  # fmt: skip
    assert sides(the_pair(row)) == CHAT
    row["prompt"]["value"].append("또")
    assert the_error(row).field == "prompt[0].role"


def test_a_turn_of_sharegpt_keeps_its_further_keys() -> None:
    row = {"prompt": [{"from": "human", "value": ASK, "weight": 0}],
           "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}  # fmt: skip
    assert the_pair(row).prompt == ({**user(ASK), "weight": 0},)


# ---- messages are compared by what is said -----------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "날씨", "arguments": {}}}


def whole_chats(**ours: Any) -> dict[str, Any]:
    """Two conversations; in one of them the shared turns have further keys."""
    shared = [user(ASK), {**bot(""), "tool_calls": [CALL]},
              {"role": "tool", "content": "3", "tool_call_id": "call_1"}]  # fmt: skip
    theirs = [{**turn, **ours} for turn in shared]
    if "id" in ours:
        theirs[1]["tool_calls"] = [{**CALL, "id": "call_2"}]
        theirs[2]["tool_call_id"] = "call_2"
    return {"chosen": [*shared, bot(GOOD)], "rejected": [*theirs, bot(BAD)]}


@pytest.mark.parametrize(
    "keys", [{"id": 7}, {"timestamp": "2024"}, {"created_at": 3, "model": "x", "uuid": "y"}]
)
def test_ids_and_times_do_not_make_two_prompts(keys: dict[str, Any]) -> None:
    expected = sides(the_pair(whole_chats()))
    assert len(expected[0]) == 3
    assert sides(the_pair(whole_chats(**keys))) == expected
    prompt = [*whole_chats(**keys)["rejected"][:3]]
    assert the_pair({**whole_chats(), "prompt": prompt}).chosen == (bot(GOOD),)


@pytest.mark.parametrize("keys", [{"content": "또"}, {"name": "a"}, {"reasoning_content": "음"}])
def test_what_is_said_does(keys: dict[str, Any]) -> None:
    assert the_error(whole_chats(**keys)).code == "prompt"


def test_answers_that_differ_in_ids_alone_are_the_same() -> None:
    row = {"prompt": [user(ASK)], "chosen": [{**bot(GOOD), "id": 1}], "rejected": [bot(GOOD)]}
    assert the_error(row).code == "identical"
    row["chosen"] = [{**bot(GOOD), "reasoning_content": "음"}]
    assert the_pair(row)


# ---- an example is shown -----------------------------------------------------------------------


def test_an_example_is_shown_in_few_safe_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    long = "시작" + "가 " * 4000 + "끝"
    rows = [{"question": None}, {"question": f"{long}\x1b[2J\u202e", "system": "짧게\n\n",
             "chosen": "\n" + GOOD, "rejected": BAD}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["check", str(path)]) == 65
    lines = capsys.readouterr().out.splitlines()[1:5]
    assert lines[0] == f"an example, {path}:2:"
    assert lines[1].startswith("  prompt (system + question): system: 짧게 | user: 시작")
    assert "\\x1b[2J\\u202e" in lines[1] and " … " in lines[1] and len(lines[1]) < 150
    assert lines[2] == f"  chosen (chosen): assistant: {GOOD}"
    assert main(["check", str(path), "--json"]) == 65
    assert json.loads(capsys.readouterr().out)["format"]["example"][0] == lines[0]


def example_of(data: Dataset) -> list[str]:
    return describe_example(data.example, data.form)


def test_training_shows_an_example_first(tmp_path: Path) -> None:
    from tests.support.tokenizers import CHATML, byte_level

    from likelier.chat.tokenizer import build_encoder
    from likelier.config import config_from
    from likelier.data.load import load

    config = config_from({"model": {"path": "m"}, "data": {"train": "x", "eval": None}, "out": "o"})
    encoder = build_encoder(byte_level(CHATML, eos="<|im_end|>"))
    rows = [{"instruction": f"{n}", "input": ASK, **ANSWERS} for n in range(3)]
    shown = example_of(load(config.data, encoder, train=rows))
    assert "prompt = instruction + input" in shown[0]
    assert shown[1:3] == ["an example, train[0]:", f"  prompt (instruction + input): 0 {ASK}"]
    row = {"prompt": ASK, "response_a": BAD, "response_b": GOOD, "winner": "b"}
    shown = example_of(load(config.data, encoder, train=[row]))
    assert shown[3] == f"  chosen (response_a or response_b): {GOOD}"
