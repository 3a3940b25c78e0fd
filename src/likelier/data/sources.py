"""What data stand for: a file, a folder, a Hub id, several with weights, or rows in memory."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.base.files import MAX_RECORD_BYTES, read_bytes
from likelier.base.findings import Finding
from likelier.base.foreign import without_secrets
from likelier.chat.written import without_gaps
from likelier.data.read import MAX_NESTING, READERS, kind_of, read_rows
from likelier.data.records import Row
from likelier.data.shapes import COLUMN_ALIASES
from likelier.data.tables import ROWS_OF_A_TABLE

Data = str | Path | Mapping[str, float]  # a name of data, or several with their weights
RECORDS_OF_A_SET = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # not of rows
MAX_METADATA_BYTES = 2**20
MAX_NAMED = 6  # files of a folder
_ANSWERS = {alias for name in ("chosen", "completion", "completions", "first")
            for alias in COLUMN_ALIASES[name]}  # fmt: skip
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)")


def files_of(name: str | Path) -> list[Path]:
    """The files that a name stands for, in the order of their names.

    A path of a file; a folder, which ``:split`` may follow; or a Hub id ``owner/name``, which a
    folder of the repository and ``:split`` may follow. A Hub id is downloaded once and then read
    from the Hub cache; ``HF_HUB_OFFLINE`` is honoured. Without a split, the files of ``train``
    are read, or all where no file is named after a split.

    Raises:
        InputMissing: there is no such thing, or no data file in it.
    """
    text = str(name)
    path = Path(text)
    if _is_folder(path):
        return _in_folder(path, None)
    if os.path.lexists(path):
        return [path]
    start, colon, split = text.rpartition(":")
    if colon and _is_folder(Path(start)):
        return _in_folder(Path(start), split)
    hub = _on_hub(text)
    if hub is None:
        return [path]  # the reader says what is wrong with it
    return _in_folder(_download(hub["id"]) / hub["folder"].lstrip("/"), split or None)


def must_be_there(name: str | Path) -> None:
    """Look at the files of a name of data, not into them; a Hub id is believed.

    Raises InputMissing where they are not there, DataError where one is empty or of no kind known.
    """
    if hub_id(str(name)) is None:
        for file in files_of(name):
            read_rows(file)


def hub_id(name: str) -> str | None:
    """The Hub id ``owner/name`` in a name of data; None where it stands for files here."""
    start, colon, _ = name.rpartition(":")
    is_here = os.path.lexists(name) or (colon and _is_folder(Path(start)))
    found = None if is_here else _on_hub(name)
    return found and found["id"]


def _on_hub(name: str) -> re.Match[str] | None:
    """A name of data as a Hub id; None where it cannot be one, for it is named like a file."""
    start, colon, _ = name.rpartition(":")
    return _HUB.fullmatch(start if colon else name) if kind_of(Path(name)) is None else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_data(data: Data) -> Iterator[Row | Finding]:
    """The rows of a name of data, or of several with weights.

    Raises as `files_of` and `read_rows`; ConfigError for a number that is no weight.
    """
    if isinstance(data, Mapping):
        yield from _read_mixture(data)
    else:
        for file in files_of(data):
            yield from read_rows(file)


def _read_mixture(weights: Mapping[str, float]) -> Iterator[Row | Finding]:
    """The rows of several sources, each row as often as the weight of its source says.

    ``0.25`` takes a quarter of the rows, chosen by their content; ``2`` takes each twice; ``1.5``
    takes each once and half of them again. A row that is not taken comes as a ``weight`` note,
    a second copy with ``#2`` behind its place.
    """
    for name, weight in weights.items():
        if not 0 < weight <= 100:
            hint = "write how often each row counts: over 0, at most 100"
            raise ConfigError(f"{weight} is not a weight", where=f"data.train.{name}", hint=hint)
        for row in read_data(name):
            copies = _copies(row, weight) if isinstance(row, Row) else 1
            if copies == 0:
                message = f"left out: the weight of {name} is {weight}"
                hint = "raise the weight to use more rows"
                yield Finding("weight", "note", row.source, None, message, hint)
            for number in range(1, copies + 1):
                yield row if number == 1 else replace(row, source=f"{row.source}#{number}")


def _copies(row: Row, weight: float) -> int:
    digest = blake2b(repr(row.record).encode(errors="surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return int(weight) + (place < weight - int(weight))


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    data = sorted(_data_files(folder, ()))
    if not data:
        what = "this is a folder that holds no data file"
        hint = f"name a folder with {', '.join(READERS)} files"
        if not folder.is_dir():
            what, hint = "there is no such folder", "check the name"
        raise InputMissing(what, where=str(folder), hint=hint)
    if split is None:
        return [path for path in data if _belongs(path, folder, "train")] or data
    chosen = [path for path in data if _belongs(path, folder, split)]
    if not chosen:
        names = sorted({re.split(r"[-.]", path.name)[0] for path in data})
        hint = f"the files are called {', '.join(names[:8])}"
        raise InputMissing(f'no file of a split "{split}"', where=str(folder), hint=hint)
    return chosen


def _data_files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """The data files in a folder and below; linked folders are entered, but not in a circle.

    Of a folder that ``datasets`` saved, its tables; what else lies there are records of it, and
    the tables of its own cache.
    """
    real = os.path.realpath(folder)
    try:
        inside = sorted(folder.iterdir()) if real not in above else []
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputMissing(reason, where=str(folder), hint="check the folder") from error
    saved = _saved_tables(folder)
    for path in inside:
        if path.name.startswith(".") or path.name in RECORDS_OF_A_SET:
            continue
        if path.is_dir():
            yield from _data_files(path, (*above, real))
        elif path.is_symlink() and not path.exists() and (kind_of(path) or not path.suffix):
            raise InputMissing(
                "the link leads nowhere", where=str(path), hint="delete it, or link it anew"
            )
        elif kind_of(path) and path.exists() and not path.is_file():
            raise InputMissing("this is no regular file", where=str(path), hint="move it away")
        elif kind_of(path) and (saved is None or path.name in saved):
            yield from () if _is_metadata(path) else (path,)


def _is_metadata(path: Path) -> bool:
    """Whether a JSON file in a folder is one object that is no row: a record about the data."""
    try:
        if path.suffix != ".json" or path.stat().st_size > MAX_METADATA_BYTES:
            return False
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # lines, or broken: the reader says so
        return False
    if not isinstance(content, dict) or not _ANSWERS.isdisjoint(content):
        return False
    lists = [content[name] for name in ("data", "rows", "examples", "train") if name in content]
    return not any(isinstance(rows, list) for rows in lists)


def names_of(data: Data) -> list[str | Path]:
    """The name of data, or the several, without their weights."""
    return list(data) if isinstance(data, Mapping) else [data]


def describe_folders(data: Data) -> Iterator[str]:
    """Of each folder of a name of data, in one line: the files that are read, and the others."""
    for name in names_of(data):
        start, _, _ = str(name).rpartition(":")
        folder = next((path for path in (Path(name), Path(start)) if _is_folder(path)), None)
        if folder is None or not str(folder).strip("."):
            continue
        read = [str(path.relative_to(folder)) for path in files_of(name)]
        inside = sorted(path for path in folder.rglob("*") if path.is_file())
        others = [str(path.relative_to(folder)) for path in inside]
        others = [other for other in others if other not in read]
        aside = f", not {_few(others)}" if others else ""
        yield f"{folder}: reading {_few(read)}{aside}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _saved_tables(folder: Path) -> list[str] | None:
    """The names of the tables of a folder that ``datasets.Dataset.save_to_disk`` wrote; else None.

    Raises DataError where one of them is not there.
    """
    try:
        record = json.loads(read_bytes(folder / "state.json", MAX_RECORD_BYTES))
        names = [str(table["filename"]) for table in record["_data_files"]]
        is_selection = bool(record.get("_indices_data_files"))  # as datasets before 2.0 saved
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if is_selection:
        hint = "load it with datasets, and save it again"
        raise DataError("the saved set is a selection of its rows", where=str(folder), hint=hint)
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        hint = "save the set again, or copy the whole folder"
        raise DataError(f"the saved set lacks {lost[0][:80]}", where=str(folder), hint=hint)
    return names


def _belongs(path: Path, folder: Path, split: str) -> bool:
    """``train.jsonl``, ``train-00000-of-00002.parquet`` and anything in a folder ``train``."""
    return split in path.relative_to(folder).parts[:-1] or bool(
        re.match(rf"{re.escape(split)}[-.]", path.name)
    )


def _download(repository: str) -> Path:
    """The data files of a repository of the Hub, in its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [f"*{kind}{packed}" for kind in READERS for packed in ("", ".gz")]
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        what = "there is no such file or folder, and the Hub cannot be reached"
        hint = "check the path; for a Hub id, download it where there is a network"
        raise InputMissing(what, where=repository, hint=hint) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = without_secrets(" ".join(str(error).split()))[:120]
        what = f"there is no such file or folder, and the Hub says: {reason}"
        raise InputMissing(what, where=repository, hint="check the name") from error


# ---- rows that are in memory already -------------------------------------------------------------


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
