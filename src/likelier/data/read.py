"""Rows from a file or from memory, each with the place it came from."""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from likelier.data.records import Finding
from likelier.errors import DataError, InputMissing

LONGEST_LINE = 64 * 2**20  # bytes; a longer line is a mistake, and is not kept in memory
DEEPEST = 100  # levels of nesting; real rows have a handful
ROWS_AT_ONCE = 1000
ONE_OBJECT = "write one JSON object on each line"


@dataclass(frozen=True)
class Row:
    """One record as it was read; ``source`` is ``file:line``, or ``train[3]`` in memory."""

    source: str
    record: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row | Finding]:
    """Read a ``.jsonl`` or ``.parquet`` file, one `Row` (or one error `Finding`) a record.

    Blank lines are skipped but counted as lines. Nothing beyond a few rows is kept in memory.

    Raises:
        InputMissing: there is no such file, or it is no regular file that can be read.
        DataError: the file is empty, or its name ends in something else.
    """
    _check_file(path)
    return _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)


def rows_from_memory(rows: Iterable[Any], name: str = "train") -> Iterator[Row | Finding]:
    """Rows of a list of dicts or of a ``datasets.Dataset``; the fourth is ``train[3]``."""
    if isinstance(rows, (Mapping, str, bytes)) or not isinstance(rows, Iterable):
        splits = ", ".join(map(str, rows)) if isinstance(rows, Mapping) else ""
        raise DataError(
            f"a list of rows is expected, found {type(rows).__name__}",
            where=name,
            mend=f"choose one of its splits: {splits[:80]}" if splits else "pass a list of dicts",
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


def _check_file(path: Path) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        reason = "the link leads nowhere" if path.is_symlink() else "there is no such file"
        raise InputMissing(reason, where=str(path), mend="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputMissing(reason, where=str(path)[:200], mend="check the path") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputMissing("this is a folder", where=str(path), mend="name a file inside it")
    if not stat.S_ISREG(found.st_mode):
        mend = "write the rows to a regular file first"
        raise InputMissing("this is no regular file", where=str(path), mend=mend)
    if path.suffix not in (".jsonl", ".parquet"):
        mend = "the name must end in .jsonl (one JSON object a line) or .parquet"
        raise DataError(f'cannot read "{path.suffix}" files', where=str(path), mend=mend)
    if found.st_size == 0:
        raise DataError("the file is empty", where=str(path), mend="put at least one row in it")
    if not os.access(path, os.R_OK):
        mend = "give yourself the right to read it"
        raise InputMissing("the file is not readable", where=str(path), mend=mend)


def _read_jsonl(path: Path) -> Iterator[Row | Finding]:
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            source = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of UTF-8
            if len(line) > LONGEST_LINE:
                message = f"a line longer than {LONGEST_LINE // 2**20} MiB"
                yield Finding("json", "error", source, None, message, ONE_OBJECT)
            elif line.strip():
                yield _parse(line, source)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines ended by ``\\n``; of a line that is too long only the beginning."""
    while line := file.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield line


def _parse(line: bytes, source: str) -> Row | Finding:
    def refuse(code: str, message: str, mend: str) -> Finding:
        return Finding(code, "error", source, None, message, mend)

    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8"
        return refuse("utf8", message, _guess_encoding(line))
    if "\0" in text:
        return refuse("utf8", "the line holds NUL bytes", "save the file as UTF-8, not UTF-16")
    try:
        record = _DECODER.decode(text)
        _inspect(record)
    except json.JSONDecodeError as error:
        return refuse("json", *_explain(error, text))
    except RecursionError:
        return refuse("json", "nested too deeply", ONE_OBJECT)
    except ValueError as error:  # ours, or a number of too many digits
        return refuse("json", str(error)[:120], "mend or delete this line")
    if not isinstance(record, dict):
        kind = "an array" if isinstance(record, list) else "a bare value"
        return refuse("json", f"the line is {kind}, not an object", ONE_OBJECT)
    return Row(source, record)


def _guess_encoding(line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "this looks like UTF-16; save the file as UTF-8"
    try:
        line.decode("cp949")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    return "this looks like CP949 (Korean); convert it: iconv -f cp949 -t utf-8 FILE"


def _explain(error: json.JSONDecodeError, text: str) -> tuple[str, str]:
    if "\r" in text:
        return "the lines end in CR alone", "save the file with LF line ends"
    if error.msg == "Extra data":
        return f"something follows the object, at column {error.colno}", ONE_OBJECT
    return f"broken JSON at column {error.colno}: {error.msg}", ONE_OBJECT


def odd_character(text: str) -> str | None:
    """The name of a character that no tokenizer or template can take, if ``text`` holds one."""
    if "\0" in text:
        return "a NUL character"
    if "\ufdd0" in text:
        return "the noncharacter U+FDD0"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair, U+{ord(text[error.start]):04X}"
    return None


def _inspect(record: Any) -> None:
    """Refuse what is JSON but would only fail later: odd characters and deep nesting."""
    level = [record]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and (odd := odd_character(value)):
                raise ValueError(f"the text holds {odd}")
        if not inner:
            return
        level = inner
    raise RecursionError


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice[:40]}" stands twice')
    return record


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_no_constant
)


def _read_parquet(path: Path) -> Iterator[Row | Finding]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for record in _records(batch):
                    number += 1
                    source = f"{path}:{number}"
                    yield (
                        Row(source, record)
                        if isinstance(record, dict)
                        else Finding("utf8", "error", source, None, record, "store text as UTF-8")
                    )
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "unreadable"
        message = f"the file is damaged after row {number}: {reason}"
        yield Finding("parquet", "error", f"{path}:{number + 1}", None, message, "write it again")


def _records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The batch's rows as dicts; where the bytes of one are not UTF-8, what is wrong with it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield "the row holds bytes that are not UTF-8"
