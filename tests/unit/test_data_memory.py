"""Rows in memory: whatever form a program has them in, they become the pairs of the same file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.data import load_memory, load_pairs

from likelier.base.errors import DataError, InputMissing
from likelier.data.shapes import Format, recognised
from likelier.data.sources import rows_from_memory
from likelier.data.workers import Task, chunks


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS = [
    {
        "prompt": [turn("system", "짧게"), turn("user", f"{n}?")],
        "chosen": [turn("assistant", "예")],
        "rejected": [turn("assistant", "아니요")],
        "margin": None if n == 1 else n + 0.5,
        "source": None if n == 2 else "손으로",
        "unused": n,
    }
    for n in range(3)
]
EXPECTED = load_memory(ROWS, {}).pairs


def frame() -> Any:
    """As pandas reads it from Parquet: lists are arrays, a missing number is NaN."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame([numpy_row(row) for row in ROWS])


def numpy_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: np.array(value, dtype=object) if isinstance(value, list) else value
        for key, value in row.items()
    }


def dataset(form: str | None) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(ROWS).with_format(form)


HELD: dict[str, Callable[[], Any]] = {
    "generator": lambda: (row for row in ROWS),
    "numpy": lambda: [numpy_row({**row, "unused": np.int64(3)}) for row in ROWS],
    "missing numbers": lambda: [
        {**row, "margin": np.float32("nan") if row["margin"] is None else np.float32(row["margin"])}
        for row in ROWS
    ],
    "pandas": frame,
    "records of pandas": lambda: frame().to_dict("records"),
    "pyarrow": lambda: pa.Table.from_pylist(ROWS),
    "columns": lambda: {key: [row[key] for row in ROWS] for key in ROWS[0]},
    "columns of numpy": lambda: {key: np.array([row[key] for row in ROWS], object)
                                 for key in ("prompt", "chosen", "rejected", "margin", "source")},
    "datasets": lambda: dataset(None),
    "datasets as numpy": lambda: dataset("numpy"),
    "datasets as pandas": lambda: dataset("pandas"),
    "datasets as torch": lambda: dataset("torch"),
    "datasets as arrow": lambda: dataset("arrow"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_every_form_gives_the_pairs_of_the_list(name: str) -> None:
    loaded = load_memory(HELD[name](), {})
    assert loaded.findings == ()
    assert loaded.pairs == EXPECTED
    assert [pair.source for pair in loaded.pairs] == ["train[0]", "train[1]", "train[2]"]
    assert type(loaded.pairs[0].margin) is float


def test_a_polars_like_table() -> None:
    class Table:
        def to_dicts(self) -> list[dict[str, Any]]:
            return ROWS

        def __iter__(self) -> Any:  # polars iterates its columns
            return iter(())

    assert load_memory(Table(), {}).pairs == EXPECTED


def test_a_dataset_keeps_the_transform_of_its_user() -> None:
    made = dataset(None)
    made.set_transform(lambda batch: {**batch, "margin": [9.0 for _ in batch["margin"]]})
    assert [pair.margin for pair in load_memory(made, {}).pairs] == [9.0, 9.0, 9.0]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read_as_in_a_config(kind: Callable[[str], Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    loaded = load_memory(kind(str(path)), {})
    assert loaded == load_pairs(path, {})
    assert loaded.pairs[0].source == f"{path}:1"
    assert load_memory({str(path): 2}, {}).rows == 3  # a mixture: each row twice
    with pytest.raises(InputMissing, match="no such file"):
        load_memory(kind(str(tmp_path / "gone.jsonl")), {})


def test_a_missing_number_in_a_parquet_file_may_be_nan(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([{**row, "margin": float("nan")} for row in ROWS])
    pq.write_table(table, path)
    loaded = load_pairs(path, {})
    assert loaded.findings == () and [pair.margin for pair in loaded.pairs] == [None] * 3


def test_a_gap_of_pandas_is_null() -> None:
    pandas = pytest.importorskip("pandas")
    row = {"prompt": "가", "chosen": "나", "rejected": "다"}
    for gap in (pandas.NA, pandas.NaT, float("nan"), None):
        (pair,) = load_memory([{**row, "system": gap, "margin": gap}], {}).pairs
        assert (pair.prompt, pair.margin) == (({"role": "user", "content": "가"},), None)
        (found,) = load_memory([{**row, "chosen": gap}], {}).findings
        assert found.message == "text expected, found null"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"train": [ROWS[0]], "test": [ROWS[1]]}, "choose one of its splits: train, test"),
        ({"train": [], "test": []}, "choose one of its splits: train, test"),
        (ROWS[0] | {"prompt": "text"}, "pass a list of dicts"),
        ({"prompt": ["가", "나"], "chosen": ["a"], "rejected": ["b", "c"]}, "1, 2 values"),
        (b"bytes", "pass a list of dicts"),
        (None, "pass a list of dicts"),
        ({}, "pass a list of dicts"),
    ],
)
def test_what_is_no_list_of_rows(rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        rows_from_memory(rows)


def test_splits_are_named_and_one_can_be_chosen() -> None:
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict(train=dataset(None), test=dataset(None))
    with pytest.raises(DataError, match="choose one of its splits: train, test"):
        rows_from_memory(splits)
    assert load_memory(splits["train"], {}).pairs == EXPECTED


def test_a_frame_with_two_columns_of_one_name() -> None:
    table = frame()
    table.columns = ["prompt", "chosen", "chosen", "margin", "source", "unused"]
    with pytest.raises(DataError, match="two columns have the same name"):
        rows_from_memory(table)


def test_unused_columns_may_hold_anything() -> None:
    """Also where the rows go to other processes, into which not everything can be sent."""
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    rows = [
        {**ROWS[0], "prompt": f"{n}?", "chosen": "가", "rejected": "나", "deep": deep,
         "made": lambda: None, "lone": "\ud800", "open": object(), 3: float("inf")}
        for n in range(2100)
    ]  # fmt: skip
    task = Task(recognised(rows_from_memory(rows), Format())[0], keep_tokens=True)
    done = list(chunks(rows_from_memory(rows), task))
    assert sum(chunk.rows for chunk in done) == len(rows)
    assert sum(len(chunk.sources) for chunk in done) == len(rows)
    (found,) = load_memory([{**rows[0], "source": deep}], {}).findings
    assert (found.code, found.source, found.field) == ("json", "train[0]", "source")
