"""Data read to its end and checked without a model, as `likelier check` and training do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder
from likelier.checks.inspector import PairInspector
from likelier.checks.summary import in_file_order
from likelier.data.encode import encode_pairs
from likelier.data.load import no_row
from likelier.data.records import Pair, Row, TokenPair
from likelier.data.shapes import Format, recognised
from likelier.data.sources import Data, read_data, rows_from_memory
from likelier.data.workers import Task, chunks


@dataclass(frozen=True)
class Loaded:
    """What data hold: pairs, unpaired examples, and every finding in the order of the file."""

    pairs: tuple[Pair, ...]
    labelled: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    rows: int
    left_out: int
    form: Format


def load_pairs(data: Data, columns: Mapping[str, str] | Format) -> Loaded:
    return _load(read_data(data), columns, str(data))


def load_memory(
    rows: Iterable[Any], columns: Mapping[str, str] | Format, name: str = "train"
) -> Loaded:
    return _load(rows_from_memory(rows, name), columns, name)


def _load(rows: Iterable[Row | Finding], columns: Mapping[str, str] | Format, name: str) -> Loaded:
    asked = columns if isinstance(columns, Format) else Format(columns)
    inspector = PairInspector()
    form, items = recognised(rows, asked)
    done = list(chunks(items, Task(form, keep_pairs=True, inspector=inspector)))
    no_row(sum(chunk.rows for chunk in done), name)
    found = [finding for chunk in done for finding in chunk.findings]
    pairs = [pair for chunk in done for pair in chunk.pairs]
    return Loaded(
        pairs=tuple(pair for pair in pairs if pair.label is None),
        labelled=tuple(pair for pair in pairs if pair.label is not None),
        findings=tuple(in_file_order([*inspector.across(done), *found])),
        rows=sum(chunk.rows for chunk in done),
        left_out=sum(chunk.left_out for chunk in done),
        form=form,
    )


def encode_pair(encoder: Encoder, pair: Pair) -> TokenPair:
    """One pair as tokens. Raises DataError where it cannot be encoded, located at its row."""
    encoded, findings = encode_pairs(encoder, [pair])
    if not encoded:
        first = next(finding for finding in findings if finding.severity == "error")
        raise DataError(first.message, where=first.where, hint=first.hint)
    return encoded[0]
