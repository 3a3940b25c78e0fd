"""Rows of every format, disturbed at random: each is used or reported, and no label is flipped."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests.support.data import Loaded, load_memory, load_pairs

from likelier.base.errors import DataError
from likelier.cli import main
from likelier.data import records
from likelier.data.formats import SCORE_KEYS, TEXT_KEYS, read_row
from likelier.data.shapes import COLUMN_ALIASES, Format, recognised, without_unused
from likelier.data.sources import rows_from_memory

Row = dict[str, Any]
GOOD, BAD = "⊕", "⊖"  # the better answer has the one in it, the worse the other


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def bot(text: str) -> Row:
    return {"role": "assistant", "content": text}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


def transcript(ask: str, answer: str) -> str:
    return f"\n\nHuman: {ask}\n\nAssistant: {answer}"


# Of a prompt, a better and a worse answer, and whether the better one comes first.
LAYOUTS: dict[str, Callable[[str, str, str, bool], Row]] = {
    "texts": lambda p, c, r, _: {"prompt": p, "chosen": c, "rejected": r},
    "alpaca": lambda p, c, r, _: {"instruction": p, "input": "글", "history": [["가", "나"]],
                                  "chosen": c, "rejected": r},
    "orca": lambda p, c, r, _: {"system": "짧게", "question": p, "chosen": c, "rejected": r},
    "argilla": lambda p, c, r, _: {"instruction": p, "chosen_response": c,
                                   "rejected_response": r},
    "chats": lambda p, c, r, _: {"prompt": [user(p)], "chosen": [bot(c)], "rejected": [bot(r)]},
    "chats as text": lambda p, c, r, _: {"prompt": json.dumps([user(p)]),
                                         "chosen": json.dumps([bot(c)]),
                                         "rejected": json.dumps([bot(r)])},
    "whole chats": lambda p, c, r, _: {"chosen": [user(p), bot(c)], "rejected": [user(p), bot(r)]},
    "sharegpt": lambda p, c, r, _: {"conversations": [human(p)], "chosen": gpt(c),
                                    "rejected": gpt(r)},
    "transcripts": lambda p, c, r, _: {"chosen": transcript(p, c), "rejected": transcript(p, r)},
    "swift": lambda p, c, r, _: {"messages": [user(p), bot(c)], "rejected_response": r},
    "swift messages": lambda p, c, r, _: {"messages": [user(p), bot(c)],
                                          "rejected_messages": [user(p), bot(r)]},
    "hosted": lambda p, c, r, _: {"input": {"messages": [user(p)]}, "preferred_output": [bot(c)],
                                  "non_preferred_output": [bot(r)]},
    "ranked": lambda p, c, r, first: {"prompt": p, "answers": [c, r] if first else [r, c],
                                      "ranks": [1, 2] if first else [2, 1]},
    "scores inside": lambda p, c, r, first: {"instruction": p, "completions": [
        {"response": one, "overall_score": score}
        for one, score in ([(c, 9), (r, 2)] if first else [(r, 2), (c, 9)])]},
    "signed": lambda p, c, r, first: {"context": [user(p)], "response1": c if first else r,
                                      "response2": r if first else c,
                                      "overall_preference": -2 if first else 3},
    "numbered": lambda p, c, r, first: {"prompt": p, "response_0": c if first else r,
                                        "response_1": r if first else c,
                                        "better_response_id": 0 if first else 1},
    "shp": lambda p, c, r, first: {"history": p, "human_ref_A": c if first else r,
                                   "human_ref_B": r if first else c, "labels": int(first)},
    "winner": lambda p, c, r, first: {"prompt": p, "response_a": c if first else r,
                                      "response_b": r if first else c, "model_a": "x",
                                      "model_b": "y", "winner": "x" if first else "y"},
    "labelled": lambda p, c, r, first: {"prompt": p, "completion": c if first else r,
                                        "label": first},
    "labelled chats": lambda p, c, r, first: {"messages": [user(p), bot(c if first else r)],
                                              "label": first},
    "scored": lambda p, c, r, first: {"prompt": "하나", "response": c if first else r,
                                      "helpfulness": 4 if first else 1},
}  # fmt: skip
DECIDES = {"ranks", "overall_preference", "better_response_id", "labels", "winner", "model_a",
           "model_b", "label", "helpfulness"}  # fmt: skip
NAMES = sorted({alias for aliases in COLUMN_ALIASES.values() for alias in aliases} | {
    "id", "model", "원문", "", "answer_key", *SCORE_KEYS, *TEXT_KEYS, "rank"})  # fmt: skip
NUMBERS = st.one_of(st.booleans(), st.integers(-3, 10), st.floats(), st.sampled_from(["0", "1"]))
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=6),
    st.sampled_from(["", " ", "[]", "{}", "tie", "[{'role': 'user', 'content': 'a'}]",
                     '[{"role": "user", "content": "a"}]', "Human: a", "model_a", "x"]),
    st.lists(NUMBERS, max_size=3),
    st.just([user("a"), bot("b")]),
    st.just([user("a")]),
    st.just(bot("b")),
    st.just({"messages": [user("a")]}),
    st.recursive(st.none() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
                 | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=4),
)  # fmt: skip


@st.composite
def disturbed(draw: st.DrawFn) -> list[Row]:
    """A few rows of one format or two: keys added, emptied, dropped, of another type, reordered."""
    kinds = draw(st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=2))
    common = draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2))
    rows = []
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        marked = draw(st.booleans())  # else what says which answer is better may be disturbed, too
        good, bad = (GOOD, BAD) if marked else ("", "")
        sides = (f"{number}?", f"답 {number} {good}", f"답또 {number} {bad}")
        row = LAYOUTS[kind](*sides, draw(st.booleans()))
        kept = DECIDES & row.keys() if marked else set()
        beside = {**common, **draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=1))}
        if kind == "scored" and marked:  # a label beside a score is a label
            beside = {key: cell for key, cell in beside.items() if key not in ("label", "kto_tag")}
        row = {**beside, **row}
        for key in draw(st.lists(st.sampled_from(sorted(row)), max_size=1)):
            row[key] = row[key] if key in kept else draw(VALUES)
        for key in draw(st.lists(st.sampled_from(sorted(row)), max_size=1)):
            row.pop(None if key in kept else key, None)
        rows.append(dict(draw(st.permutations(list(row.items())))))
    return rows


def all_accounted_for(loaded: Loaded, count: int) -> None:
    """Rows used and rows reported are the rows; a better answer is never on the worse side."""
    assert loaded.rows == count
    kept = {pair.source.partition("#")[0] for pair in (*loaded.pairs, *loaded.labelled)}
    reported = {f.source.partition("#")[0] for f in loaded.findings if f.code == "tie"}
    reported |= {f.source.partition("#")[0] for f in loaded.findings if f.severity == "error"}
    assert not kept & reported
    if loaded.form.shape == "scored":  # several rows are one list
        assert len(kept | reported) <= count and loaded.left_out <= count
        assert bool(loaded.left_out) == bool(reported)
    else:
        assert (len(kept), len(reported), loaded.left_out) == (
            count - len(reported), count - len(kept), len(reported)
        )  # fmt: skip
    for pair in loaded.pairs:
        assert BAD not in str(pair.chosen) and GOOD not in str(pair.rejected), pair
        assert not {GOOD, BAD} & set(str(pair.prompt)), pair
    for one in loaded.labelled:
        assert (GOOD if one.label is False else BAD) not in str(one.chosen), one


def as_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def as_array(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def as_table(path: Path, rows: list[Row]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=";")
        writer.writeheader()
        for row in rows:
            cells = {key: cell if isinstance(cell, str) else json.dumps(cell)
                     for key, cell in row.items() if cell is not None}  # fmt: skip
            writer.writerow(cells)


WRITERS = {"a.jsonl": as_jsonl, "a.json": as_array, "a.csv": as_table}


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(rows=disturbed(), name=st.sampled_from([None, *WRITERS]))
def test_every_row_is_used_or_reported_and_no_label_flips(
    rows: list[Row], name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        if name is None:
            loaded = load_memory(rows, {})
        else:
            path = tmp_path / name
            WRITERS[name](path, rows)
            assert main(["check", str(path)]) in (0, 65)
            assert "Traceback" not in "".join(capsys.readouterr())
            loaded = load_pairs(path, {})
    except DataError:
        return  # refused as a whole
    count = len([row for row in rows if row or name != "a.csv"])
    all_accounted_for(loaded, count)
    event(f"{loaded.form.shape}: {bool(loaded.pairs or loaded.labelled)}")


# What a cell of a table cannot hold: an object is text there.
NOT_IN_TABLES = ("hosted", "sharegpt")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [None, *WRITERS])
def test_undisturbed_rows_are_all_used(layout: str, name: str | None, tmp_path: Path) -> None:
    rows = [LAYOUTS[layout](f"{n}?", f"{n} {GOOD}", f"{n} {BAD}", n % 2 == 0) for n in range(4)]
    if name == "a.csv" and layout in NOT_IN_TABLES:
        return
    if name is None:
        loaded = load_memory(rows, {})
    else:
        WRITERS[name](tmp_path / name, rows)
        loaded = load_pairs(tmp_path / name, {})
    assert not [finding for finding in loaded.findings if finding.severity == "error"]
    all_accounted_for(loaded, 4)
    assert len(loaded.pairs) + len(loaded.labelled) == (1 if layout == "scored" else 4)
    assert loaded.left_out == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_rows_in_other_processes_are_read_alike(layout: str) -> None:
    """The rows are sent without what their format does not read."""
    rows = [LAYOUTS[layout](f"{n}?", f"{n} {GOOD}", f"{n} {BAD}", n % 2 == 0) for n in range(40)]
    form, items = recognised(rows_from_memory(rows), Format())
    sent = list(items)
    for row in sent:
        assert isinstance(row, records.Row)
        assert read_row(without_unused(row, form), form) == read_row(row, form)
