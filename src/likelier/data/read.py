"""The rows of a file, each with its place: JSON Lines, a JSON array, CSV, Parquet or Arrow.

A file may be gzipped.
"""

import codecs
import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from likelier.base.errors import DataError, InputMissing
from likelier.base.findings import Finding
from likelier.base.foreign import harmless
from likelier.chat.messages import odd_character
from likelier.data.records import Row, bytes_held
from likelier.data.tables import (
    MAX_COLUMNS,
    MAX_ROW_MEMORY,
    MAX_VALUES,
    huge_row,
    read_arrow,
    read_parquet,
)

MAX_LINE_BYTES = 32 * 2**20  # bytes; a longer line is a mistake, and is not kept in memory
MAX_NESTING = 100  # levels of nesting; real rows have a handful
ONE_OBJECT = "write one JSON object on each line"
CHARACTERS_AT_ONCE = 2**20  # of a JSON array
MANY_VALUES = f"more than {MAX_VALUES:,} values"
# Of a gzipped file. Text shrinks to a tenth; what shrinks more than this repeats one thing.
UNPACKED_FREELY = 64 * 2**20  # bytes
MAX_RATIO = 200
MAX_RATIO_OF_TABLES = 20  # they are unpacked to the disk, whole
# The rows of a JSON file as one list in an object, behind nothing but texts and numbers.
_WRAPPED = re.compile(
    rb'\{\s*("\w+"\s*:\s*("[^"\\]*"|[-\w.+]+)\s*,\s*)*"(data|rows|examples|train)"\s*:\s*\[\s*[{\]]'
)

_PIECE = re.compile(rb"[^\r\n]*(\r\n|\r|\n)|[^\r\n]+")  # a line, ended as any system ends it


def read_json_lines(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """JSON Lines; blank lines are skipped but counted."""
    for number, line in enumerate(_byte_lines(file), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE_BYTES:
            message = f"a line longer than {MAX_LINE_BYTES // 2**20} MiB"
            yield Finding("json", "error", f"{name}:{number}", None, message, ONE_OBJECT)
        elif line and not line.isspace():
            yield parse_line(line, f"{name}:{number}")


def _byte_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines ended by ``\\n``; of a line that is too long only the beginning."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def parse_line(line: bytes, source: str) -> Row | Finding:
    """One line of JSON Lines as a row, or what is wrong with it."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8"
        return Finding("utf8", "error", source, None, message, guess_encoding(line))
    if "\0" in text:
        message, hint = "the line holds NUL bytes", "save the file as UTF-8, not UTF-16"
        return Finding("utf8", "error", source, None, message, hint)
    try:
        _check_count(text)
        record = _decoded(text)
    except (ValueError, RecursionError) as error:
        return _refused(error, text, source)
    return _object(record, source, len(text))


def _check_count(text: str, start: int = 0) -> None:
    """Refuse a text of so many values that they would take far more memory than it does."""
    most = MAX_VALUES
    if len(text) - start > most and sum(text.count(mark, start) for mark in ",[{") > most:
        raise ValueError(MANY_VALUES)


def _object(record: Any, source: str, characters: int) -> Row | Finding:
    if characters > MAX_VALUES and (size := bytes_held(record)) > MAX_ROW_MEMORY:
        return replace(huge_row(f"{size // 2**20} MiB"), source=source)
    if not isinstance(record, dict):
        kind = "an array" if isinstance(record, list) else "a bare value"
        message = f"the line is {kind}, not an object"
        return Finding("json", "error", source, None, message, ONE_OBJECT)
    try:
        _inspect(list(record.items()))
        return Row(source, record)
    except (ValueError, RecursionError):
        return Row(source, dict(_cell(key, value) for key, value in record.items()))


def _cell(key: str, value: Any) -> tuple[str, Any]:
    """A cell as it is, or what is wrong with it: it costs the row only where it is read."""
    try:
        _inspect([(key, value)])
        return key, value
    except (ValueError, RecursionError) as error:
        return key.encode("unicode_escape").decode(), _refused(error, "", "")


def _refused(error: Exception, text: str, source: str) -> Finding:
    if isinstance(error, json.JSONDecodeError):
        message, hint = _explain(error, text)
    elif isinstance(error, RecursionError):
        message, hint = "nested too deeply", ONE_OBJECT
    else:  # ours, or a number of too many digits
        message, hint = str(error)[:120], "fix or delete this line"
    return Finding("json", "error", source, None, message, hint)


def _explain(error: json.JSONDecodeError, text: str) -> tuple[str, str]:
    if "\r" in text:
        return "the lines end in CR alone", "save the file with LF line ends"
    if error.msg == "Extra data":
        return f"something follows the object, at column {error.colno}", ONE_OBJECT
    return f"broken JSON at column {error.colno}: {error.msg}", ONE_OBJECT


def guess_encoding(line: bytes) -> str:
    """What to do about text that is not UTF-8."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "this looks like UTF-16; save the file as UTF-8"
    try:
        line.decode("cp949")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    return "this looks like CP949 (Korean); convert it: iconv -f cp949 -t utf-8 FILE"


def read_json_array(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """The objects of one JSON array, also as ``{"data": […]}``, a few in memory at a time.

    Nothing behind broken JSON can be read any more: one finding, and the end.
    """
    text = _Text(file)
    source, line, number = f"{name}:1", 0, 0
    try:
        wrapped = text.take("{")
        while wrapped and text.member() != "[":
            text.value()
            text.take(",")
        text.take("[")
        while not text.take("]"):
            several = text.line == line  # begin on this line
            line = text.line
            source = f"{name}:{line}[{number}]" if several else f"{name}:{line}"
            number += 1
            value = text.value()
            yield _object(value, source, text.characters)
            if not text.take(",") and text.peek() != "]":
                raise json.JSONDecodeError("a comma or ] is missing", "", 0)
        while wrapped and text.take(","):
            if text.member() in "[{":
                raise json.JSONDecodeError("more than one list or object stands in it", "", 0)
            text.value()
        if wrapped:
            text.take("}")
        if text.peek():
            message, hint = "something follows the array", "keep one array in the file"
            yield Finding("json", "error", f"{name}:{text.line}", None, message, hint)
    except UnicodeDecodeError as error:
        message = "not UTF-8; the rest of the file is not read"
        hint = guess_encoding(error.object[error.start : error.start + 2])
        yield Finding("utf8", "error", f"{name}:{text.line}", None, message, hint)
    except json.JSONDecodeError as error:
        message = f"broken JSON: {error.msg}; the rest of the file is not read"
        hint = "fix this element of the array"
        yield Finding("json", "error", source, None, message, hint)
    except (ValueError, RecursionError) as error:
        yield _refused(error, "", source)


class _Text:
    """A file as text, decoded and parsed from the front; ``line`` is where the front is."""

    def __init__(self, file: BinaryIO):
        self.file, self.buffer, self.at, self.line, self.ended = file, "", 0, 1, False
        self.characters = 0  # of the value that was read last
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def value(self) -> Any:
        """The next JSON value. Raises ValueError or RecursionError."""
        needed = CHARACTERS_AT_ONCE
        while True:
            try:
                record, end = _decoded(self.buffer, self.at)
                if end == len(self.buffer) and not self.ended and not self.buffer.endswith("}"):
                    self._more(CHARACTERS_AT_ONCE)  # the number may have further digits
                    continue
                self.characters = end - self.at
                self._go_to(end)
                return record
            except json.JSONDecodeError:
                if self.ended or len(self.buffer) - self.at > MAX_LINE_BYTES:
                    raise
                _check_count(self.buffer, self.at)
                self._more(needed)
                needed *= 2  # so that a long element is not parsed again and again

    def member(self) -> str:
        """Go over a key of an object and return the character with which its value begins."""
        self.peek()
        self.value()
        if not self.take(":"):
            raise json.JSONDecodeError("a colon is missing", "", 0)
        return self.peek()

    def take(self, mark: str) -> bool:
        """Go over spaces and ``mark``, if it comes next."""
        found = self.peek() == mark
        self.at += found
        return found

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            end = self.at
            while end < len(self.buffer) and self.buffer[end] in " \t\r\n":
                end += 1
            self._go_to(end)
            if end < len(self.buffer) or self.ended:
                return self.buffer[end : end + 1]
            self._more(CHARACTERS_AT_ONCE)

    def _go_to(self, end: int) -> None:
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def _more(self, size: int) -> None:
        raw = self.file.read(size)
        self.ended = not raw
        self.buffer = self.buffer[self.at :] + self.decoder.decode(raw, final=not raw)
        self.at = 0


def _inspect(cells: list[tuple[str, Any]]) -> None:
    """Refuse what is JSON but would only fail later: odd characters, deep nesting, odd numbers.

    NaN alone in a cell stays, as tables write a missing number.
    """
    level = [inner for key, cell in cells for inner in (key, None if cell != cell else cell)]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and (odd := odd_character(value)):
                raise ValueError(f"the text holds {odd}")
            elif isinstance(value, Finding):
                raise ValueError(value.message)
            elif value != value:
                raise ValueError("NaN is not JSON")
        if not inner:
            return
        level = inner
    raise RecursionError


def _decoded(text: str, start: int | None = None) -> Any:
    """The value of a text, or the value that starts at a place and where it ends.

    What is odd in a value, such as a key that stands twice, is a Finding in its place.
    """
    for decoder in (_DECODER, _LENIENT):
        try:
            return decoder.decode(text) if start is None else decoder.raw_decode(text, start)
        except ValueError as error:
            if decoder is _LENIENT or isinstance(error, json.JSONDecodeError):
                raise
    raise AssertionError


def _odd(message: str) -> Finding:
    return Finding("json", "error", "", None, message, "fix or delete this line")


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        raise ValueError
    return record


def _with_odd_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    count = Counter(key for key, _ in items)
    twice = {key: _odd(f'the key "{key[:40]}" stands twice') for key, n in count.items() if n > 1}
    return {**dict(items), **twice}


def _finite(text: str) -> Any:
    number = float(text)
    return number if abs(number) != float("inf") else _odd(f"the number {text[:20]} is too large")


def _whole(text: str) -> Any:
    try:
        return int(text)
    except ValueError:  # of more digits than Python reads
        return _odd(f"the number {text[:20]} is too large")


def _constant(name: str) -> Any:
    return float(name) if name == "NaN" else _odd(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_constant
)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=_with_odd_keys, parse_float=_finite, parse_constant=_constant,
    parse_int=_whole,
)  # fmt: skip


def read_csv(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of a CSV file, all cells text; the place is the line on which a row begins."""
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _TextLines(file)
    line = 1
    header: list[str] = []
    try:
        first = next(lines, "")
        if (count := max(map(first.count, ",;\t"))) >= MAX_COLUMNS:
            raise csv.Error(f"{count + 1:,} columns; at most {MAX_COLUMNS:,} are read")
        reader = csv.reader(chain([first], lines), strict=True, delimiter=_delimiter(first))
        for cells in reader:
            lines.characters = 0  # of the row that is read next
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    message = "two columns have the same name"
                    yield Finding("csv", "error", f"{name}:1", None, message, "rename one")
                    return
            elif cells:
                yield _csv_row(cells, header, f"{name}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        message = f"broken CSV: {error}; the rest of the file is not read"
        hint = 'write " inside a cell as ""'
        yield Finding("csv", "error", f"{name}:{line}", None, message, hint)
    except UnicodeDecodeError as error:
        message = "not UTF-8; the rest of the file is not read"
        hint = guess_encoding(error.object)
        yield Finding("utf8", "error", f"{name}:{line}", None, message, hint)


def _delimiter(header: str) -> str:
    """What is between the cells: a comma, or what else cuts the header where no comma does."""
    cuts = (mark for mark in ",;\t" if len(next(csv.reader([header], delimiter=mark), ())) > 1)
    return next(cuts, ",")


class _TextLines:
    """The lines of a CSV file, which may end in CR alone; ``characters`` of them were read."""

    def __init__(self, file: BinaryIO):
        self.characters, self._pieces = 0, _pieces(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces).decode()
        self.characters += len(piece)
        if self.characters > MAX_LINE_BYTES:
            raise csv.Error(f"a row longer than {MAX_LINE_BYTES // 2**20} MiB")
        return piece


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(_byte_lines(file), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise csv.Error(f"a line longer than {MAX_LINE_BYTES // 2**20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield from (found[0] for found in _PIECE.finditer(line))


def _csv_row(cells: list[str], header: list[str], source: str) -> Row | Finding:
    if len(cells) != len(header):
        message = f"{len(cells)} cells, but the header has {len(header)}"
        hint = 'put a cell that holds a comma or a line break in "…"'
        return Finding("csv", "error", source, None, message, hint)
    return Row(source, dict(zip(header, cells, strict=True)))


Reader = Callable[[BinaryIO, str], Iterator[Row | Finding]]


def _read_json(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """An array of objects, or lines that only carry the wrong name."""
    start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    is_array = start.startswith(b"[") or _WRAPPED.match(start)
    return read_json_array(file, name) if is_array else read_json_lines(file, name)


READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": _read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def kind_of(path: Path) -> str | None:
    """Which of `READERS` a file is by its name (``.gz`` behind it is looked through), or None."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in READERS else None


def read_rows(path: Path) -> Iterator[Row | Finding]:
    """Read a JSONL, JSON, CSV, Parquet or Arrow file, plain or gzipped.

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
    reader = READERS[kind]
    if path.suffix == ".gz":
        yield from _read_gzip(path, reader)
    else:
        with open(path, "rb") as file:
            yield from reader(file, harmless(str(path)))
    after = os.stat(path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        hint = "wait until nobody writes to it, then run again"
        raise DataError("the file changed while it was read", where=str(path), hint=hint)


def _read_gzip(path: Path, reader: Reader) -> Iterator[Row | Finding]:
    name, is_table = harmless(str(path)), reader in (read_parquet, read_arrow)
    last = f"{name}:1"
    try:
        with (
            open(path, "rb") as packed,
            io.BufferedReader(_Unpacked(packed, is_table)) as unpacked,
            tempfile.TemporaryFile() as whole,
        ):
            file: Any = unpacked
            if is_table:  # read from the end, which gzip cannot do
                shutil.copyfileobj(unpacked, whole)
                whole.flush()
                file = whole
            for row in reader(file, name):
                last = row.source
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip file is damaged or cut short after this row: {error}"
        yield Finding("gzip", "error", last, None, message, "write or download it again")
    except _Unlike as error:
        hint = f"unpack it, if it is meant so: gunzip {shlex.quote(harmless(path.name))}"
        yield Finding("gzip", "error", last, None, f"after this row {error}", hint)


class _Unlike(Exception):
    """A gzip file that becomes much larger than data do."""


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, as long as it grows no more than data do."""

    def __init__(self, packed: BinaryIO, is_table: bool):
        self._packed, self._file, self._size = packed, gzip.GzipFile(fileobj=packed), 0
        self._ratio = MAX_RATIO_OF_TABLES if is_table else MAX_RATIO

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._size = self._file.seek(offset, whence)
        return self._size

    def readinto(self, buffer: Any) -> int:
        found = self._file.read1(len(buffer))  # what stands before damage comes first
        buffer[: len(found)] = found
        self._size += len(found)
        packed = self._packed.tell()
        if self._size > max(UNPACKED_FREELY, self._ratio * packed):
            raise _Unlike(f"{packed:,} bytes became {self._size:,}, which no text does")
        return len(found)


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
        hint = f"the name must end in {', '.join(READERS)}, or one of these and .gz"
        raise DataError(f'cannot read "{path.suffix}" files', where=str(path), hint=hint)
    if found.st_size == 0:
        raise DataError("the file is empty", where=str(path), hint="put at least one row in it")
    if not os.access(path, os.R_OK):
        hint = "give yourself the right to read it"
        raise InputMissing("the file is not readable", where=str(path), hint=hint)
    return found
