"""What the ledger says about single pairs: which were learned best and least, and the drift."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LOGPS = ("chosen_logp", "rejected_logp", "reference_chosen_logp", "reference_rejected_logp")
COLUMNS = ("step", "source", *LOGPS, "chosen_tokens", "rejected_tokens", "margin")
SHOWN = 6  # pairs at either end


@dataclass(frozen=True)
class PairRow:
    """One pair at its last visit.

    ``margin`` is the reward margin; the changes are the answer's log-prob less the reference's,
    in nats an answer.
    """

    source: str
    step: int
    margin: float
    chosen_change: float
    rejected_change: float


@dataclass(frozen=True)
class Ledger:
    """``smallest`` and ``largest`` are of the pairs last seen in the second half of the steps.

    ``drift`` has a row a step: mean change of log-prob from the reference, nats a token.
    """

    pairs: int
    visits: int
    smallest: tuple[PairRow, ...]
    largest: tuple[PairRow, ...]
    drift: tuple[dict[str, float], ...]


def read_ledger(folder: Path, gaps: list[str]) -> Ledger | None:
    """Read ``ledger/*.parquet``; None, with a sentence added to ``gaps``, where it cannot be."""
    files = sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("."))
    tables = [table for file in files if (table := _read_part(file, gaps)) is not None]
    if not tables:
        return None
    visits = _with_changes(pa.concat_tables(tables))
    if visits.num_rows == 0:
        return None
    pairs = _last_visits(visits)
    # A pair last seen early had no time to learn: its margin says nothing about the pair.
    middle = pc.max(visits["step"]).as_py() / 2
    last = pairs.filter(pc.greater(pairs["step_last"], middle))
    most = min(SHOWN, last.num_rows // 2)
    least = min(SHOWN, last.num_rows - most)
    return Ledger(
        pairs=pairs.num_rows,
        visits=visits.num_rows,
        smallest=_pair_rows(last.slice(0, least)),
        largest=tuple(reversed(_pair_rows(last.slice(last.num_rows - most)))),
        drift=_drift(visits),
    )


def _read_part(file: Path, gaps: list[str]) -> pa.Table | None:
    try:
        with pq.ParquetFile(file) as part:
            lacking = [name for name in COLUMNS if name not in part.schema_arrow.names]
            if lacking:
                gaps.append(f"ledger/{file.name} lacks the column {lacking[0]} and is left out.")
                return None
            return part.read(columns=list(COLUMNS)).cast(_schema(), safe=False)
    except (OSError, pa.ArrowException):
        gaps.append(f"ledger/{file.name} could not be read and is left out.")
        return None


def _schema() -> pa.Schema:
    whole = {"step", "chosen_tokens", "rejected_tokens"}
    kinds = [pa.int64() if c in whole else pa.float64() for c in COLUMNS]
    kinds[COLUMNS.index("source")] = pa.string()
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def _with_changes(table: pa.Table) -> pa.Table:
    """The visits whose numbers are finite, with the changes from the reference, by step."""
    for side in ("chosen", "rejected"):
        change = pc.subtract(table[f"{side}_logp"], table[f"reference_{side}_logp"])
        tokens = pc.max_element_wise(table[f"{side}_tokens"], 1)
        table = table.append_column(f"{side}_change", change)
        table = table.append_column(f"{side}_change_token", pc.divide(change, tokens))
    finite = pc.is_finite(table["margin"])
    for side in ("chosen", "rejected"):
        finite = pc.and_(finite, pc.is_finite(table[f"{side}_change"]))
    kept = ["step", "source", "margin", *(name for name in table.column_names if "change" in name)]
    return table.select(kept).filter(finite).sort_by([("step", "ascending")])


def _last_visits(visits: pa.Table) -> pa.Table:
    """One row a pair, its last visit, from the smallest margin to the largest."""
    kept = ["step", "margin", "chosen_change", "rejected_change"]
    # In one thread: only then does "last" follow the order of the rows.
    grouped = visits.group_by("source", use_threads=False).aggregate([(c, "last") for c in kept])
    return grouped.sort_by([("margin_last", "ascending"), ("source", "ascending")])


def _pair_rows(table: pa.Table) -> tuple[PairRow, ...]:
    return tuple(_pair_row(row) for row in table.to_pylist())


def _pair_row(row: dict[str, Any]) -> PairRow:
    return PairRow(
        source=row["source"],
        step=row["step_last"],
        margin=row["margin_last"],
        chosen_change=row["chosen_change_last"],
        rejected_change=row["rejected_change_last"],
    )


def _drift(visits: pa.Table) -> tuple[dict[str, float], ...]:
    names = ("chosen_change_token", "rejected_change_token")
    means = visits.group_by("step").aggregate([(name, "mean") for name in names])
    rows = means.sort_by("step").to_pylist()
    return tuple(
        {"step": row["step"], **{name: row[f"{name}_mean"] for name in names}} for row in rows
    )
