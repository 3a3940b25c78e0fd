"""The checks of data: every row is counted, and nothing is dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.data import Loaded, load_memory, load_pairs

from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.base.findings import Finding
from likelier.checks.summary import Kind, Tally, first_findings
from likelier.config.schema import DataConfig
from likelier.data.load import refuse


def row(prompt: Any = "질문", chosen: Any = "좋은 답", rejected: Any = "나쁜 답") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def codes(loaded: Loaded) -> list[tuple[str, str]]:
    return [(finding.code, finding.source) for finding in loaded.findings]


def test_a_clean_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row(f"질문 {n}"), ensure_ascii=False) for n in range(3)]
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = load_pairs(path, {})
    assert (len(loaded.pairs), loaded.findings, loaded.rows) == (3, (), 3)
    assert [pair.source for pair in loaded.pairs] == [f"{path}:{n}" for n in (1, 2, 3)]
    refuse(loaded.findings, "error")


def test_every_error_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ["{", json.dumps(row(chosen=None)), json.dumps(row("ok")), json.dumps(row(chosen=""))]
    path.write_text("\n".join(lines))
    loaded = load_pairs(path, {})
    assert codes(loaded) == [("json", f"{path}:1"), ("type", f"{path}:2"), ("empty", f"{path}:4")]
    assert (len(loaded.pairs), loaded.rows) == (1, 4)


def test_equal_answers_are_an_error() -> None:
    chat = [{"role": "user", "content": "가"}]
    same = [{"role": "assistant", "content": "나"}]
    spaced = [{"role": "assistant", "content": " 나\n"}]
    rows = [row(chosen="같다", rejected=" 같다\n"), row(chat, same, spaced)]
    loaded = load_memory(rows, {})
    assert codes(loaded) == [("identical", "train[0]"), ("identical", "train[1]")]
    assert not loaded.pairs


def test_duplicates_and_swapped_pairs_are_warned_of_with_both_places() -> None:
    rows = [row(), row(chosen="나쁜 답", rejected="좋은 답"), row(), row("다른 질문")]
    loaded = load_memory(rows, {}, "eval")
    assert len(loaded.pairs) == 4
    conflict, duplicate, swapped = loaded.findings
    assert (conflict.code, conflict.source) == ("conflict", "eval[1]")
    assert "eval[0]" in conflict.message
    assert (duplicate.code, duplicate.source) == ("duplicate", "eval[2]")
    assert "eval[0]" in duplicate.message
    assert (swapped.code, swapped.source) == ("conflict", "eval[2]")
    assert {finding.severity for finding in loaded.findings} == {"warning"}


def test_the_first_of_several_duplicates_is_named() -> None:
    findings = load_memory([row()] * 3, {}).findings
    assert [f.message for f in findings] == ["the same pair as train[0]"] * 2


def test_a_boundary_moved_between_fields_is_no_duplicate() -> None:
    loaded = load_memory([row("가", "나다", "라"), row("가나", "다", "라")], {})
    assert loaded.findings == ()


def test_decomposed_hangul_and_damaged_text_are_warned_of() -> None:
    loaded = load_memory([row("\u1112\u1161\u11ab"), row(chosen="깨진 \ufffd 글자")], {})
    assert [(f.code, f.field) for f in loaded.findings] == [
        ("decomposed", "prompt"),
        ("damaged", "chosen"),
    ]
    assert len(loaded.pairs) == 2


def test_odd_turns_are_warned_of_once() -> None:
    user, bot = {"role": "user", "content": "가"}, {"role": "assistant", "content": "나"}
    other, system = {"role": "assistant", "content": "다"}, {"role": "system", "content": "라"}
    rows = [
        row([user, user], [bot], [other]),
        row([user, bot], [other], [bot, user, other]),  # a turn that is continued
        row([user, system, user], [bot], [other]),
        row([system, user, bot, user], [bot], [other]),
    ]
    loaded = load_memory(rows, {})
    assert [(f.code, f.source, f.field) for f in loaded.findings] == [
        ("turns", "train[0]", "prompt"),
        ("turns", "train[2]", "prompt"),
    ]


def test_no_row_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n \n")
    with pytest.raises(DataError, match="no row"):
        load_pairs(path, {})
    with pytest.raises(DataError, match="no row"):
        load_memory([], {})
    with pytest.raises(InputMissing):
        load_pairs(tmp_path / "b.jsonl", {})


def test_a_columns_key_that_is_not_ours() -> None:
    with pytest.raises(ConfigError, match="promt") as caught:
        load_memory([row()], {"promt": "question"})
    assert 'did you mean "prompt"' in str(caught.value)
    assert caught.value.where == "data.columns"


def test_refuse_names_the_first_and_counts_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [row(chosen=None)] * 40 + [row(chosen=""), row(chosen="같다", rejected="같다")]
    path.write_text("\n".join(json.dumps(line) for line in [row(), *bad]))
    loaded = load_pairs(path, {})
    with pytest.raises(DataError) as caught:
        refuse(loaded.findings, "error")
    said = str(caught.value).splitlines()
    assert len(said) == 3
    assert said[0] == f"{path}:2 chosen: text expected, found null"
    assert said[2] == f"  and 41 more of 3 kinds; `likelier check {path}` lists them"
    assert caught.value.exit_code == 65


def test_what_is_dropped_is_not_refused() -> None:
    loaded = load_memory([row(), row(chosen=None), row(chosen=""), row(chosen=None), row()], {})
    refuse(loaded.findings, "drop", usable=len(loaded.pairs))
    assert [finding.code for finding in loaded.findings] == ["type", "empty", "type", "duplicate"]
    with pytest.raises(DataError, match=r"and 2 more of 2 kinds$"):
        refuse(loaded.findings, "error")


def test_dropping_every_row_is_refused() -> None:
    loaded = load_memory([row(chosen=None)], {})
    with pytest.raises(DataError, match="null"):
        refuse(loaded.findings, "drop", usable=0)


def test_warnings_are_not_refused() -> None:
    loaded = load_memory([row(), row()], {})
    refuse(loaded.findings, "error", usable=2)


def test_an_unknown_choice() -> None:
    with pytest.raises(ValidationError, match="on_bad_row"):
        DataConfig.model_validate({"train": "a.jsonl", "on_bad_row": "skip"})


def kinds_of(loaded: Loaded) -> tuple[Kind, ...]:
    tally = Tally()
    tally.add(loaded.findings)
    return tally.kinds()


def test_the_summary_is_in_file_order_and_the_same_every_time() -> None:
    rows = [row(f"질문 {n}", chosen=[None, "", "답", "답", 3][n % 5]) for n in range(100)]
    loaded = load_memory([*rows, row("질문 2", chosen="답")], {})
    assert (loaded.rows, loaded.rows - loaded.left_out) == (101, 41)
    kinds = kinds_of(loaded)
    assert [(k.code, k.severity, k.count) for k in kinds] == [
        ("type", "error", 40),
        ("empty", "error", 20),
        ("duplicate", "warning", 1),
    ]
    first = first_findings(kinds)
    assert len(first) == 20
    assert [finding.source for finding in first[:4]] == [f"train[{n}]" for n in (0, 1, 4, 5)]
    again = load_memory([*rows, row("질문 2", chosen="답")], {})
    assert kinds == kinds_of(again) and (loaded.rows, loaded.left_out) == (101, again.left_out)


def test_errors_come_before_warnings() -> None:
    first = first_findings(kinds_of(load_memory([row()] * 30 + [row(chosen="")], {})))
    assert first[0].code == "empty"
    assert first[1].source == "train[1]"


TEXTS = st.one_of(
    st.text(max_size=4), st.none(), st.integers(), st.sampled_from(["가", "나", " 가 ", "\ud800"])
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "bot"]), "content": TEXTS}
)
VALUES = st.one_of(TEXTS, st.lists(st.one_of(TURN, TEXTS), max_size=4))
RECORDS = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "chosn"]), VALUES)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.one_of(RECORDS, TEXTS), min_size=1, max_size=8))
def test_every_row_is_a_pair_or_an_error(rows: list[Any]) -> None:
    loaded = load_memory(rows, {})
    errors = [finding.source for finding in loaded.findings if finding.severity == "error"]
    assert loaded.rows == len(rows) == len(loaded.pairs) + len(errors)
    places = [pair.source for pair in loaded.pairs] + errors
    assert sorted(places) == sorted(f"train[{n}]" for n in range(len(rows)))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(min_size=1, max_size=60))
def test_the_same_for_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(content)
    try:
        loaded = load_pairs(path, {})
    except DataError as error:
        assert "no row" in str(error)
        return
    errors = {f.source for f in loaded.findings if f.severity == "error"}
    assert loaded.rows == len(loaded.pairs) + len(errors)
    assert all(isinstance(finding, Finding) for finding in loaded.findings)
