"""Tables as rows: CSV with a header line, and Parquet."""

import csv
import json
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, BinaryIO

from likelier.data.lines import guess_encoding
from likelier.data.records import Finding, Row

ROWS_AT_ONCE = 1000
LONGEST_CELL = 16 * 2**20  # characters, of a CSV cell and of a line


def read_csv(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """Rows of a CSV file; the place is the line on which a row begins.

    A cell that holds a JSON list or object is read as one, so that chats fit into a table.
    """
    csv.field_size_limit(LONGEST_CELL)
    with TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(_lines(text), strict=True)
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
            hint = guess_encoding(error.object[error.start : error.start + 2])
            yield Finding("utf8", "error", f"{name}:{line}", None, message, hint)


def _lines(text: TextIOWrapper) -> Iterator[str]:
    """The lines of a text, none of them kept that is too long to be one."""
    while line := text.readline(LONGEST_CELL):
        if len(line) == LONGEST_CELL and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line longer than {LONGEST_CELL // 2**20} million characters")
        yield line


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
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
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
