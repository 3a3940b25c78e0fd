"""Rows of Parquet and Arrow files, decoded by a process that may take little memory.

A file of two kilobytes can say that it holds gigabytes, and what decodes it believes it. So the
system bounds what that may take, in a process whose end costs the file and nothing else.
"""

import atexit
import mmap
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

from likelier.base.findings import Finding
from likelier.chat.written import without_gaps
from likelier.data.records import Row, bytes_held

MAX_MEMORY = 768 * 2**20  # bytes of the process, Python and pyarrow included
MAX_ROW_MEMORY = 64 * 2**20  # bytes of one row as Python objects
MAX_COLUMNS = 10_000
MAX_VALUES = 2_000_000  # of a batch or a row, those inside lists counted
# A dictionary of one text makes a million rows of a few bytes; honest files repeat themselves less.
DECODED_FREELY = 2**30  # bytes of a file's rows as Python objects
MAX_TIMES = 1000  # what they may take beyond that, in sizes of the file
ROWS_OF_A_TABLE = 1000  # that are Python objects at a time
END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream
_BATCH_BYTES = 32 * 2**20  # of a batch, as the file itself says how large its rows are
_SENT_AT_ONCE = 8 * 2**20  # bytes of rows as Python objects
_IDLE_SECONDS = 10  # that the process waits for another file
_SERVE = "from likelier.data.tables import serve_tables; serve_tables()"

Slices = Callable[[int, int], Iterator[Any]]  # batches of at most n rows, from a row on
Part = list[Any] | tuple[str, str] | None  # rows, or why there are no more, or the end


# ---- the side that asks ------------------------------------------------------------------------


def read_parquet(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of a Parquet file, counted from 1."""
    return _rows(file, name, "parquet")


def read_arrow(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of an Arrow file, counted from 1: a stream, as ``datasets`` saves them, or a file."""
    return _rows(file, name, "arrow")


def _rows(file: BinaryIO, name: str, kind: str) -> Iterator[Row | Finding]:
    number, is_done, decoder = 0, False, _begun(file, kind)
    try:
        while isinstance(part := decoder.part(), list):
            for cells in part:
                number += 1
                source = f"{name}:{number}"
                is_bad = isinstance(cells, Finding)
                yield replace(cells, source=source) if is_bad else Row(source, cells)
        is_done = True
    finally:
        if is_done and decoder.process.poll() is None:
            _idle.append(decoder)
        else:
            decoder.end()
    if part is not None:
        yield Finding(kind, "error", f"{name}:{number + 1}", None, *part)


class _Decoder:
    """The process and the way to it; one that is done with a file can be given another."""

    def __init__(self) -> None:
        self.owner = os.getpid()  # a process that was forked from it must not use it
        self.socket, theirs = socket.socketpair()
        self.stream = self.socket.makefile("rb")
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )

    def begin(self, file: BinaryIO, kind: str) -> bool:
        """Hand an open file over; whether the process still lives to take it."""
        try:
            socket.send_fds(self.socket, [kind.encode()], [file.fileno()])
            return self.stream.read(1) == b"y"
        except OSError:
            return False

    def part(self) -> Part:
        try:
            part: Part = pickle.load(self.stream)  # of our own code, beyond the socket
            return part
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.process.wait()
            how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
            return f"the file is damaged: what decodes it crashed ({how})", "write it again"

    def end(self) -> None:
        self.stream.close()
        self.socket.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_idle: list[_Decoder] = []


def _begun(file: BinaryIO, kind: str) -> _Decoder:
    """A process that has begun to decode a file."""
    file.seek(0)
    while _idle:
        decoder = _idle.pop()
        if decoder.owner == os.getpid() and decoder.begin(file, kind):
            return decoder
        decoder.end()
    decoder = _Decoder()
    decoder.begin(file, kind)  # where it has not even started, `part` says so
    return decoder


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


# ---- the side that decodes ---------------------------------------------------------------------


class _TooMuch(Exception):
    """A whole file that is larger than any honest one."""


def serve_tables() -> None:
    """Be the process: files come in, their rows go out, until nobody asks any more."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with socket.socket(fileno=0) as asker, suppress(OSError, KeyboardInterrupt):
        while True:
            asker.settimeout(_IDLE_SECONDS)
            kind, descriptors, _, _ = socket.recv_fds(asker, 16, 1)
            if not descriptors:
                return
            asker.settimeout(None)
            asker.sendall(b"y")
            with open(descriptors[0], "rb") as file, asker.makefile("wb") as out:
                for part in _parts(file, kind.decode()):
                    pickle.dump(part, out, pickle.HIGHEST_PROTOCOL)
                    out.flush()


def _parts(file: BinaryIO, kind: str) -> Iterator[Part]:
    import pyarrow as pa

    number = 0
    try:
        slices = (_slices_of_parquet if kind == "parquet" else _slices_of_arrow)(file)
        packed = os.fstat(file.fileno()).st_size
        most = decoded = max(DECODED_FREELY, MAX_TIMES * packed)
        for rows in _records(slices):
            few: list[Any] = []
            sent = decoded
            for row in rows:
                few.append(row)
                decoded -= bytes_held(row)
                if sent - decoded > _SENT_AT_ONCE:
                    yield few
                    few, sent = [], decoded
            yield few
            number += len(rows)
            if decoded < 0:
                what = (
                    f"its {packed:,} bytes became more than {most // 2**20:,} MiB by row {number:,}"
                )
                raise _TooMuch(f"{what}: it repeats itself")
        yield None
    except MemoryError:
        message = f"what follows row {number} takes more than {MAX_MEMORY // 2**20} MiB to decode"
        yield message, "write it with smaller values, pages and record batches, or as JSON Lines"
        raise  # a process that is full is not used again
    except _TooMuch as error:
        yield str(error), "write it with less in it, or as JSON Lines"
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "unreadable"
        yield f"the file is damaged after row {number}: {reason}", "write it again"


def _records(slices: Slices) -> Iterator[list[Any]]:
    """The rows of a table, many at once; fewer from where they take too much memory together."""
    done, size = 0, ROWS_OF_A_TABLE
    rows: list[Any] = []
    while True:
        try:
            for batch in slices(done, size):
                rows = _plain_rows(batch)
                done += batch.num_rows
                yield rows
            return
        except MemoryError:
            if size == 1:
                raise
            size = max(1, size // 10)
        batch, rows = None, []


def _plain_rows(batch: Any) -> list[Any]:
    """The batch's rows as dicts; a row or a cell of which Python can make nothing is a Finding.

    Raises MemoryError where the rows are better taken a few at a time.
    """
    count = sum(map(_count_values, batch.columns))
    if count > MAX_VALUES and batch.num_rows > 1:
        raise MemoryError
    if count > MAX_VALUES:
        return [huge_row(f"{count:,} values")]
    rows = map(without_gaps, _as_dicts(batch))
    return [
        huge_row(f"{size // 2**20} MiB") if (size := bytes_held(row)) > MAX_ROW_MEMORY else row
        for row in rows
    ]


def huge_row(what: str) -> Finding:
    """A row that takes more than any row of text."""
    message = f"a row of {what}; at most {MAX_VALUES:,} values and {MAX_ROW_MEMORY // 2**20} MiB"
    return Finding("huge", "error", "", None, message, "split it, or delete the row")


def _count_values(array: Any) -> int:
    """How many Python objects an array would become, those inside lists and objects counted."""
    import pyarrow as pa

    if isinstance(array, pa.ExtensionArray):
        return _count_values(array.storage)
    inner: list[Any] = []
    if isinstance(array, pa.StructArray):
        inner = array.flatten()
    elif hasattr(array, "flatten") and hasattr(array, "values"):  # every kind of list
        inner = [array.flatten()]
    return len(array) + sum(map(_count_values, inner))


def _as_dicts(batch: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    def cell(column: Any) -> Any:
        try:
            return column.to_pylist()[0]
        except UnicodeDecodeError:
            message = "the cell holds bytes that are not UTF-8"
            return Finding("utf8", "error", "", None, message, "store text as UTF-8")
        except (ValueError, OverflowError, pa.ArrowException) as error:
            message = f"the cell cannot be read: {str(error).strip()[:120]}"
            return Finding("type", "error", "", None, message, "store it as text or a number")

    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except MemoryError:
        raise
    except (ValueError, OverflowError, pa.ArrowException):
        each = (batch.slice(number, 1) for number in range(batch.num_rows))
        names = batch.schema.names
        return [{name: cell(row.column(at)) for at, name in enumerate(names)} for row in each]


def _mapped(file: BinaryIO) -> mmap.mmap:
    """A file as memory that the system can take back: however large a column or a batch is, only
    what is decoded of it takes memory.
    """
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_columns(count: int) -> None:
    if count > MAX_COLUMNS:
        raise _TooMuch(f"{count:,} columns; at most {MAX_COLUMNS:,} are read")


def _slices_of_parquet(file: BinaryIO) -> Slices:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mapped = _mapped(file)
    table = pq.ParquetFile(pa.py_buffer(mapped), page_checksum_verification=True)
    metadata = table.metadata
    _check_columns(metadata.num_columns)
    groups = range(metadata.num_row_groups)

    def slices(start: int, size: int) -> Iterator[Any]:
        at, number = 0, start
        while at < len(groups) and number >= (rows := metadata.row_group(at).num_rows):
            at, number = at + 1, number - rows
        said = metadata.row_group(at) if at < len(groups) else None
        if said is not None and said.num_rows > 0:  # what it says is believed where that helps
            row_bytes = max(1, said.total_byte_size // said.num_rows)
            size = max(1, min(size, _BATCH_BYTES // row_bytes))
        for batch in table.iter_batches(size, row_groups=groups[at:], use_threads=False):
            if number < batch.num_rows:
                start += batch.num_rows - number
                yield batch.slice(number)
            number = max(0, number - batch.num_rows)
            mapped.madvise(mmap.MADV_DONTNEED)
        if (claimed := metadata.num_rows) != start:
            raise ValueError(f"it says that it holds {claimed:,} rows, and it holds {start:,}")

    return slices


def _slices_of_arrow(file: BinaryIO) -> Slices:
    import pyarrow as pa

    mapped = _mapped(file)
    is_stream = mapped[:6] != b"ARROW1"
    if is_stream and mapped[-len(END_OF_ARROW) :] != END_OF_ARROW:  # pyarrow takes it for whole
        raise ValueError("it is cut short")

    def slices(start: int, size: int) -> Iterator[Any]:
        buffer = pa.py_buffer(mapped)
        with pa.ipc.open_stream(buffer) if is_stream else pa.ipc.open_file(buffer) as table:
            _check_columns(len(table.schema))
            batches = table if is_stream else map(table.get_batch, range(table.num_record_batches))
            for batch in batches:
                for first in range(start, batch.num_rows, size):
                    yield batch.slice(first, size)
                    mapped.madvise(mmap.MADV_DONTNEED)
                start = max(0, start - batch.num_rows)

    return slices
