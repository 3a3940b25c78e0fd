"""Rows from a name of data or from memory, each with the place it came from.

A name stands for a file, a folder, a Hub id, or several of them with weights; a file holds JSON
Lines, a JSON array, CSV or Parquet, and may be gzipped.
"""

import codecs
import csv
import gzip
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.base.findings import Finding
from likelier.chat.messages import odd_character
from likelier.data.records import Row

Data = str | Path | Mapping[str, float]  # a name of data, or several with their weights
MAX_LINE_BYTES = 32 * 2**20  # bytes; a longer line is a mistake, and is not kept in memory
MAX_NESTING = 100  # levels of nesting; real rows have a handful
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)")
ONE_OBJECT = "write one JSON object on each line"
CHARACTERS_AT_ONCE = 2**20  # of a JSON array


def read_json_lines(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """JSON Lines; blank lines are skipped but counted."""
    for number, line in enumerate(_byte_lines(file), start=1):
        source = f"{name}:{number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE_BYTES:
            message = f"a line longer than {MAX_LINE_BYTES // 2**20} MiB"
            yield Finding("json", "error", source, None, message, ONE_OBJECT)
        elif line.strip():
            yield parse_line(line, source)


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
        record = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _refused(error, text, source)
    return _object(record, source)


def _object(record: Any, source: str) -> Row | Finding:
    try:
        _inspect(record)
    except (ValueError, RecursionError) as error:
        return _refused(error, "", source)
    if not isinstance(record, dict):
        kind = "an array" if isinstance(record, list) else "a bare value"
        message = f"the line is {kind}, not an object"
        return Finding("json", "error", source, None, message, ONE_OBJECT)
    return Row(source, record)


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
    """The objects of one JSON array, a few in memory at a time.

    Nothing behind broken JSON can be read any more: one finding, and the end.
    """
    text = _Text(file)
    source = f"{name}:1"
    try:
        text.take("[")
        while not text.take("]"):
            source = f"{name}:{text.line}"
            yield _object(text.value(), source)
            if not text.take(",") and text.peek() != "]":
                raise json.JSONDecodeError("a comma or ] is missing", "", 0)
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
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def value(self) -> Any:
        """The next JSON value. Raises ValueError or RecursionError."""
        needed = CHARACTERS_AT_ONCE
        while True:
            try:
                record, end = _DECODER.raw_decode(self.buffer, self.at)
                if end == len(self.buffer) and not self.ended and not self.buffer.endswith("}"):
                    self._more(CHARACTERS_AT_ONCE)  # the number may have further digits
                    continue
                self._go_to(end)
                return record
            except json.JSONDecodeError:
                if self.ended or len(self.buffer) - self.at > MAX_LINE_BYTES:
                    raise
                self._more(needed)
                needed *= 2  # so that a long element is not parsed again and again

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


def _inspect(record: Any) -> None:
    """Refuse what is JSON but would only fail later: odd characters and deep nesting."""
    level = [record]
    for _ in range(MAX_NESTING):
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


def read_csv(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of a CSV file; the place is the line on which a row begins.

    A cell that holds a JSON list or object is read as one, so that chats fit into a table.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(_text_lines(file), strict=True)
    line = 1
    header: list[str] = []
    try:
        for cells in reader:
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


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a CSV file, which may end in CR alone."""
    for number, line in enumerate(_byte_lines(file), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise csv.Error(f"a line longer than {MAX_LINE_BYTES // 2**20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        for piece in line.splitlines(keepends=True):
            yield piece.decode()


def _csv_row(cells: list[str], header: list[str], source: str) -> Row | Finding:
    if len(cells) != len(header):
        message = f"{len(cells)} cells, but the header has {len(header)}"
        hint = 'put a cell that holds a comma or a line break in "…"'
        return Finding("csv", "error", source, None, message, hint)
    return Row(source, dict(zip(header, map(_cell, cells), strict=True)))


def _cell(text: str) -> Any:
    if text.startswith(("[{", '["', "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def read_parquet(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of a Parquet file, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            for batch in table.iter_batches(batch_size=1000):
                for record in _records(batch):
                    number += 1
                    source = f"{name}:{number}"
                    yield (
                        Row(source, record)
                        if isinstance(record, dict)
                        else Finding("utf8", "error", source, None, record, "store text as UTF-8")
                    )
            if (claimed := table.metadata.num_rows) != number:
                message = f"the file says that it holds {claimed:,} rows, and it holds {number:,}"
                yield Finding(
                    "parquet", "error", f"{name}:{number + 1}", None, message, "write it again"
                )
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "unreadable"
        message = f"the file is damaged after row {number}: {reason}"
        yield Finding("parquet", "error", f"{name}:{number + 1}", None, message, "write it again")


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


Reader = Callable[[BinaryIO, str], Iterator[Row | Finding]]


def _read_json(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """An array of objects, or lines that only carry the wrong name."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return read_json_array(file, name) if start.startswith(b"[") else read_json_lines(file, name)


READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": _read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def kind_of(path: Path) -> str | None:
    """Which of `READERS` a file is by its name (``.gz`` behind it is looked through), or None."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in READERS else None


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
    reader = READERS[kind]
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
        message = f"the gzip file is damaged or cut short after this row: {error}"
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
    return _from_memory(rows, name)


def _from_memory(rows: Iterable[Any], name: str) -> Iterator[Row | Finding]:
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
        hint = f"the name must end in {', '.join(READERS)}, or one of these and .gz"
        raise DataError(f'cannot read "{path.suffix}" files', where=str(path), hint=hint)
    if found.st_size == 0:
        raise DataError("the file is empty", where=str(path), hint="put at least one row in it")
    if not os.access(path, os.R_OK):
        hint = "give yourself the right to read it"
        raise InputMissing("the file is not readable", where=str(path), hint=hint)
    return found


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
    hub = _HUB.fullmatch(start if colon else text)
    if hub is None or kind_of(path) is not None:
        return [path]  # the reader says what is wrong with it
    return _in_folder(_download(hub["id"]) / hub["folder"].lstrip("/"), split or None)


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
    files = sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    data = [path for path in files if path.name not in ("dataset_infos.json", "dataset_dict.json")]
    if not data:
        what = "this is a folder that holds no data file"
        hint = "name a folder with .jsonl, .json, .csv or .parquet files"
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
        reason = " ".join(str(error).split())[:120]
        what = f"there is no such file or folder, and the Hub says: {reason}"
        raise InputMissing(what, where=repository, hint="check the name") from error
