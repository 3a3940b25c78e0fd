"""Rows from a file or from memory, each with the place it came from."""

import gzip
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from likelier.base.errors import DataError, InputMissing
from likelier.data.lines import read_array, read_lines
from likelier.data.records import Finding, Row
from likelier.data.tables import read_csv, read_parquet

__all__ = ["KINDS", "Row", "kind_of", "read_rows", "rows_from_memory"]

Reader = Callable[[BinaryIO, str], Iterator[Row | Finding]]


def _read_json(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """An array of objects, or lines that only carry the wrong name."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return read_array(file, name) if start.startswith(b"[") else read_lines(file, name)


KINDS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": _read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def kind_of(path: Path) -> str | None:
    """Which of `KINDS` a file is by its name (``.gz`` behind it is looked through), or None."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in KINDS else None


def read_rows(path: Path) -> Iterator[Row | Finding]:
    """Read a JSONL, JSON, CSV or Parquet file, plain or gzipped.

    One `Row`, or one error `Finding`, a record. Nothing beyond a few rows is kept in memory.

    Raises:
        InputMissing: there is no such file, or it is no regular file that can be read.
        DataError: the file is empty, or its name ends in something else; later, that the file
            has changed while it was read.
    """
    before = _check_file(path)
    return _read(path, before)


def _read(path: Path, before: os.stat_result) -> Iterator[Row | Finding]:
    kind = kind_of(path)
    assert kind is not None  # checked
    reader = KINDS[kind]
    if path.suffix == ".gz":
        yield from _read_gzip(path, reader)
    else:
        with open(path, "rb") as file:
            yield from reader(file, str(path))
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        hint = "wait until nobody writes to it, then run again"
        raise DataError("the file changed while it was read", where=str(path), hint=hint)


def _read_gzip(path: Path, reader: Reader) -> Iterator[Row | Finding]:
    last = f"{path}:1"
    try:
        with gzip.open(path, "rb") as packed, tempfile.TemporaryFile() as whole:
            file = cast(BinaryIO, packed)
            if reader is read_parquet:  # read from its end, which gzip cannot do
                shutil.copyfileobj(packed, whole)
                file = cast(BinaryIO, whole)
            for row in reader(file, str(path)):
                last = row.source
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip file is damaged or cut short behind here: {error}"
        yield Finding("gzip", "error", last, None, message, "write or download it again")


def rows_from_memory(rows: Iterable[Any], name: str = "train") -> Iterator[Row | Finding]:
    """Rows of a list of dicts or of a ``datasets.Dataset``; the fourth is ``train[3]``."""
    if isinstance(rows, (Mapping, str, bytes)) or not isinstance(rows, Iterable):
        splits = ", ".join(map(str, rows)) if isinstance(rows, Mapping) else ""
        raise DataError(
            f"a list of rows is expected, found {type(rows).__name__}",
            where=name,
            hint=f"choose one of its splits: {splits[:80]}" if splits else "pass a list of dicts",
        )
    return _memory(rows, name)


def _memory(rows: Iterable[Any], name: str) -> Iterator[Row | Finding]:
    for number, record in enumerate(rows):
        source = f"{name}[{number}]"
        if isinstance(record, Mapping):
            yield Row(source, dict(record))
        else:
            message = f"a dict is expected, found {type(record).__name__}"
            yield Finding("type", "error", source, None, message, "make each row a dict")


def _check_file(path: Path) -> os.stat_result:
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        reason = "the link leads nowhere" if path.is_symlink() else "there is no such file"
        raise InputMissing(reason, where=str(path), hint="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputMissing(reason, where=str(path)[:200], hint="check the path") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputMissing("this is a folder", where=str(path), hint="name a file inside it")
    if not stat.S_ISREG(found.st_mode):
        hint = "write the rows to a regular file first"
        raise InputMissing("this is no regular file", where=str(path), hint=hint)
    if kind_of(path) is None:
        hint = f"the name must end in {', '.join(KINDS)}, or one of these and .gz"
        raise DataError(f'cannot read "{path.suffix}" files', where=str(path), hint=hint)
    if found.st_size == 0:
        raise DataError("the file is empty", where=str(path), hint="put at least one row in it")
    if not os.access(path, os.R_OK):
        hint = "give yourself the right to read it"
        raise InputMissing("the file is not readable", where=str(path), hint=hint)
    return found
