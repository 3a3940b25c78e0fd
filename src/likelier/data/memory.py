"""Rows that are in memory already, in any of the forms in which programs hold tables."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.written import without_gaps
from likelier.data.read import MAX_NESTING
from likelier.data.records import Row
from likelier.data.sources import read_data
from likelier.data.tables import ROWS_OF_A_TABLE


def rows_from_memory(rows: Any, name: str = "train") -> Iterator[Row | Finding]:
    """Rows that a program holds; the fourth is ``train[3]``.

    A list of dicts, a dict of columns, a ``datasets.Dataset`` in any format, a table of pandas,
    polars or pyarrow; or a name of data, as a config may have it, as text, `Path` or dict of
    weights. Arrays become lists, numpy's numbers Python's, and a missing value (NaN) null.

    Raises:
        DataError: it is none of these, or its columns cannot be told apart or differ in length.
        InputMissing: a path leads nowhere.
    """
    if isinstance(rows, Mapping):
        if rows and all(type(weight) in (int, float) for weight in rows.values()):
            return read_data(rows)
        return _located(_of_columns(rows, name), name)
    if isinstance(rows, (str, Path)):
        return read_data(rows)
    return _located(_records_of(rows, name), name, _is_table(rows))


def _no_rows(rows: Any, name: str, hint: str) -> DataError:
    what = f"a list of rows is expected, found {type(rows).__name__}"
    return DataError(what, where=name, hint=hint)


def _of_columns(columns: Mapping[Any, Any], name: str) -> Iterable[dict[Any, Any]]:
    """The rows of a dict of columns. Raises DataError for a dict of anything else."""
    cells = [column for column in columns.values() if _is_column(column)]
    if len(cells) < len(columns) or all(isinstance(c[0], Mapping) for c in cells if len(c)):
        has_splits = columns and all(_is_column(c) or _is_dataset(c) for c in columns.values())
        splits = ", ".join(map(str, columns))[:80]
        hint = f"choose one of its splits: {splits}" if has_splits else "pass a list of dicts"
        raise _no_rows(columns, name, hint)
    lengths = sorted({len(column) for column in cells})
    if len(lengths) > 1:
        what = f"the columns differ in length: {', '.join(map(str, lengths))} values"
        raise DataError(what, where=name, hint="give every column one value a row")
    return (dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True))


def _is_column(value: Any) -> bool:
    """Whether this is a list or an array, and not a text, a number or a set of rows."""
    has_cells = isinstance(value, (list, tuple)) or hasattr(value, "tolist")
    return has_cells and hasattr(value, "__len__")


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "with_format")


def _is_table(value: Any) -> bool:
    """Whether one schema gives all objects of a column their keys."""
    return any(hasattr(value, name) for name in ("with_format", "iloc", "to_pylist", "to_dicts"))


def _records_of(rows: Any, name: str) -> Iterable[Any]:
    """What to iterate, by what the object can do: no library is imported to ask."""
    if _is_dataset(rows):
        made = (getattr(rows, "format", None) or {}).get("type") == "custom"  # by the user's code
        return rows if made else rows.with_format(None)
    if hasattr(rows, "iloc") and hasattr(rows, "to_dict"):  # pandas
        if not rows.columns.is_unique:
            raise DataError("two columns have the same name", where=name, hint="rename one")
        starts = range(0, len(rows), ROWS_OF_A_TABLE)
        parts = (rows.iloc[start : start + ROWS_OF_A_TABLE] for start in starts)
        return chain.from_iterable(part.to_dict("records") for part in parts)
    for method in ("to_pylist", "to_dicts"):  # pyarrow, polars
        if hasattr(rows, method):
            return getattr(rows, method)()
    if not isinstance(rows, Iterable) or isinstance(rows, bytes):
        raise _no_rows(rows, name, "pass a list of dicts")
    return rows


def _located(records: Iterable[Any], name: str, table: bool = False) -> Iterator[Row | Finding]:
    for number, record in enumerate(records):
        source = f"{name}[{number}]"
        if isinstance(record, Mapping):
            cells = {str(key): _cell(value) for key, value in record.items()}
            yield Row(source, without_gaps(cells) if table else cells)
        else:
            message = f"a dict is expected, found {type(record).__name__}"
            yield Finding("type", "error", source, None, message, "make each row a dict")


def _cell(value: Any) -> Any:
    """A cell as JSON would hold it, or what is wrong with it, which costs a row only if read."""
    try:
        return _plain(value)
    except RecursionError:
        message = "nested too deeply"
        return Finding("json", "error", "", None, message, "write it with fewer levels")


def _plain(value: Any, level: int = 0) -> Any:
    """Lists for arrays, Python's numbers, null for a gap."""
    if level > MAX_NESTING:
        raise RecursionError
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, level + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, level + 1) for inner in value]
    if hasattr(value, "tolist"):  # an array, a tensor, a number of numpy
        return _plain(value.tolist(), level + 1)
    if type(value).__name__ in ("NAType", "NaTType") or (
        isinstance(value, float) and value != value
    ):
        return None
    return value
