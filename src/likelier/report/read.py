"""A run folder as the report reads it: what is there, and a sentence for what is missing."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from likelier.base.errors import InputMissing
from likelier.base.files import MAX_RECORD_BYTES, read_bytes, read_json, read_table
from likelier.evaluation.compare import HeldOutLog, read_held_out
from likelier.evaluation.intervals import wilson
from likelier.pages.texts import known_languages, text

LOGPS = ("chosen_logp", "rejected_logp", "reference_chosen_logp", "reference_rejected_logp")
VISIT = pa.schema(  # what is read of a row of the pair log
    {"source": pa.string()}
    | dict.fromkeys(("step", "chosen_tokens", "rejected_tokens"), pa.int64())
    | dict.fromkeys((*LOGPS, "margin"), pa.float64())
)
PAIR_TEXTS = "pair_texts.jsonl"  # the file of the pairs' texts
PAIR_TOKENS = "pair_tokens.jsonl"  # the file of some pairs token by token
SHOWN_PAIRS = 6  # at either end of the margins
LARGEST = 1e100  # beyond it nothing was measured, and sums and squares of it stay finite
Element = TypeVar("Element")
LogRow = dict[str, float]  # one line of a log: "step" and the finite numbers that came with it


@dataclass(frozen=True)
class Proportion:
    """A share of ``n`` cases with its 95% interval; all three numbers lie in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ExtremePairs:
    """The pairs last seen in the second half of the steps: those of smallest and largest margin,
    and those that changed most, by the sum of both changes without their signs.

    Each is a pair at its last visit: its ``source``, ``step``, reward ``margin``, and
    ``chosen_change`` and ``rejected_change``, an answer's log-prob less the reference's in nats.
    ``drift`` has a row a step: the mean change of log-prob, nats a token.
    """

    pairs: int
    visits: int
    smallest: list[dict[str, Any]]
    largest: list[dict[str, Any]]
    most_changed: list[dict[str, Any]]
    drift: list[LogRow]


@dataclass(frozen=True)
class FoundKind:
    """One kind of finding in the data: how often it was found, why it matters, what to do.

    ``located`` are the first of them, each with ``source``, ``field`` and ``message``.
    """

    code: str
    severity: str
    why: str
    cure: str
    count: int
    located: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class RunFiles:
    """Everything the report may say about a run.

    ``record`` is run.json; ``train``, ``held_out`` and ``timing`` are rows in order of their
    step, one row a step; ``outcome`` holds the shares of outcome.json by name, and ``samples``
    the answers before and after as they were written. ``findings`` are the kinds of findings in
    the data, and ``texts`` by source what pairs that are named say: their prompt and completions.
    ``gaps`` are sentences on what could not be read.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    config_text: str | None
    train: tuple[LogRow, ...]
    held_out: tuple[LogRow, ...]
    timing: tuple[LogRow, ...]
    pair_log: ExtremePairs | None
    outcome: dict[str, Proportion]
    samples: tuple[dict[str, Any], ...]
    findings: tuple[FoundKind, ...]
    texts: dict[str, dict[str, str]]
    gaps: tuple[str, ...]

    @cached_property
    def held_out_log(self) -> HeldOutLog:
        """The held-out pairs one by one, read when they are first asked for."""
        return read_held_out(self.path)


def read_run(path: Path) -> RunFiles:
    """Read a run folder, finished or not.

    Raises:
        InputMissing: there is no such folder, or no complete run.json in it.
    """
    record = read_record(path)
    sentences = {
        "config.yaml": text("report.gaps.no_config"),
        "metrics.jsonl": text("report.gaps.no_metrics"),
        "timing.jsonl": text("report.gaps.no_timing"),
    }
    gaps = [sentence for name, sentence in sentences.items() if not (path / name).exists()]
    config, config_text = _read_config(path / "config.yaml", gaps)
    lost = record.get("lost")
    gaps += [f"{line}." for line in lost] if isinstance(lost, list) else []
    metrics = _read_rows(path / "metrics.jsonl", gaps)
    if metrics and "loss" not in record:
        gaps.append(text("report.gaps.no_loss"))
    return RunFiles(
        path=path,
        record=record,
        config=config,
        config_text=config_text,
        train=_one_a_step(row for row in metrics if "loss" in row),
        held_out=_one_a_step(row for row in metrics if any(k.startswith("eval_") for k in row)),
        timing=_one_a_step(_read_rows(path / "timing.jsonl", gaps)),
        pair_log=read_pair_log(pair_log_folder(path), gaps),
        outcome=_read_outcome(path / "outcome.json", gaps),
        samples=tuple(read_jsonl(path / "samples.jsonl", gaps)),
        findings=tuple(_read_findings(record.get("findings"))),
        texts={
            str(row.pop("source")): _texts(row)
            for row in read_jsonl(path / PAIR_TEXTS, gaps)
            if "source" in row
        },
        gaps=tuple(gaps),
    )


def read_record(path: Path) -> dict[str, Any]:
    """run.json of a run folder. Raises InputMissing where there is none that is complete."""
    hint = "Give the folder that `likelier train` or `likelier demo` wrote (its `out`)."
    if not path.is_dir():
        raise InputMissing("there is no such run folder", where=str(path), hint=hint)
    file = path / "run.json"
    if not file.is_file():
        raise InputMissing("no run.json here, so this is no run folder", where=str(path), hint=hint)
    record = read_json(file)
    if record is None:
        raise InputMissing("not a complete JSON object", where=str(file), hint=hint)
    return record


def configured_language(path: Path) -> str | None:
    """``lang`` of a run's config, where that names a language that there are texts in."""
    found = _read_config(path / "config.yaml", [])[0].get("lang")
    return found if isinstance(found, str) and found in known_languages() else None


def read_jsonl(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] where it is missing. Unreadable lines are counted.

    A last line cut short is no gap: a run that has not ended may be writing it.
    """
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        gaps.append(text("report.gaps.file", name=path.name, error=error.strerror))
        return []
    parsed = [_parse(line) for line in lines if line.strip()]
    found = [value for value in parsed if isinstance(value, dict)]
    broken = len(parsed) - len(found)
    if lines[-1].strip() and not isinstance(parsed[-1], dict):
        broken -= 1
    if broken:
        gaps.append(text("report.gaps.lines", n=broken, total=len(parsed), name=path.name))
    return found


def number(value: Any) -> float | None:
    """``value`` as a finite float, or None where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= LARGEST else None  # False for NaN too


def count(value: Any) -> int | None:
    """``value`` as a whole number of things, or None where it is anything else."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def section(tree: Any, name: str) -> dict[str, Any]:
    """A nested section of a config or record; {} where it is missing or no mapping."""
    found = tree.get(name) if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}


def read_proportion(value: Any) -> Proportion | None:
    """A share written as {"value", "low", "high", "n"}, or None where it is no such thing."""
    if not isinstance(value, dict):
        return None
    middle, low, high = (number(value.get(key)) for key in ("value", "low", "high"))
    n = count(value.get("n"))
    if middle is None or low is None or high is None or not n:
        return None
    slack = 1e-9  # an end that should equal the value may miss it by a rounding
    ordered = low - slack <= middle <= high + slack and min(low, middle) >= 0
    return Proportion(middle, low, high, n) if ordered and max(middle, high) <= 1 else None


def newcombe(before: Proportion, after: Proportion) -> tuple[float, float, float]:
    """``after - before`` and its 95% interval, for two shares measured on separate samples.

    Newcombe's hybrid: each side of the interval joins the two distances that matter for it.
    """
    change = after.value - before.value
    low = math.hypot(after.value - after.low, before.high - before.value)
    high = math.hypot(after.high - after.value, before.value - before.low)
    return change, change - low, change + high


def last_quarter(rows: Sequence[Element]) -> Sequence[Element]:
    """The end of some rows, at least one of them where there are any: late in the run."""
    return rows[-max(1, len(rows) // 4) :]


def held_out_accuracy(row: LogRow) -> Proportion | None:
    """The accuracy of an evaluation row with its interval (Wilson's where the row has none)."""
    value, n = row.get("eval_rewards/accuracies"), count(row.get("eval_pairs"))
    if value is None or not n or not 0 <= value <= 1:
        return None
    low, high = row.get("eval_rewards/accuracies_low"), row.get("eval_rewards/accuracies_high")
    written = read_proportion({"value": value, "low": low, "high": high, "n": n})
    return written or Proportion(value, *wilson(value, n), n)


def progress(run: RunFiles) -> tuple[int | None, int | None]:
    """Steps done and steps planned, as far as they are known."""
    done = count(run.record.get("step"))
    if run.train:
        done = max(done or 0, int(run.train[-1]["step"]))
    return done, count(run.record.get("steps"))


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read_rows(path: Path, gaps: list[str]) -> list[LogRow]:
    """Rows that have a step, with their finite numbers; what is not finite is counted."""
    rows, odd = [], 0
    for raw in read_jsonl(path, gaps):
        row = {name: found for name, value in raw.items() if (found := number(value)) is not None}
        odd += sum(isinstance(raw[name], float) for name in raw.keys() - row.keys())
        if "step" in row:
            rows.append(row)
    if odd:
        gaps.append(text("report.gaps.not_finite", n=odd, name=path.name))
    return rows


def _one_a_step(rows: Iterable[LogRow]) -> tuple[LogRow, ...]:
    """Rows by step; where a step was written twice, the later row stands."""
    latest = {row["step"]: row for row in rows}
    return tuple(latest[step] for step in sorted(latest))


def _read_config(path: Path, gaps: list[str]) -> tuple[dict[str, Any], str | None]:
    written = config = None
    try:
        written = read_bytes(path, MAX_RECORD_BYTES).decode("utf-8", errors="replace")
        config = yaml.safe_load(written)
    except FileNotFoundError:
        return {}, None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        pass
    if isinstance(config, dict):
        return config, written
    gaps.append(text("report.gaps.config"))
    return {}, written


def _read_outcome(path: Path, gaps: list[str]) -> dict[str, Proportion]:
    if not path.exists():
        return {}
    content = read_json(path)
    if content is None:
        gaps.append(text("report.gaps.outcome"))
        return {}
    shares = {name: read_proportion(value) for name, value in content.items()}
    return {name: found for name, found in shares.items() if found is not None}


def _read_findings(written: Any) -> Iterator[FoundKind]:
    for kind in written if isinstance(written, list) else []:
        found = count(kind.get("count")) if isinstance(kind, dict) else None
        if not found:
            continue
        code, severity, why, cure = (
            _texts(kind).get(name, "") for name in ("code", "severity", "why", "cure")
        )
        listed = kind.get("places") if isinstance(kind.get("places"), list) else []
        rows = ({"field": "", "message": "", **_texts(row)} for row in listed or ())
        places = tuple(row for row in rows if "source" in row)
        yield FoundKind(code, severity, why, cure, found, places)


def _texts(row: Any) -> dict[str, str]:
    """Those of the values of a JSON object that are texts."""
    values = row.items() if isinstance(row, dict) else ()
    return {name: value for name, value in values if isinstance(value, str)}


def pair_log_folder(run: Path) -> Path:
    """``pair_log``, which runs of version 0.1 called ``ledger``."""
    return run / "pair_log" if (run / "pair_log").is_dir() else run / "ledger"


def read_pair_log(folder: Path, gaps: list[str]) -> ExtremePairs | None:
    """Read the Parquet files of the pair log; None, with a sentence in ``gaps``, if it fails."""
    files = sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("."))
    tables = [table for file in files if (table := _read_visits(file, gaps)) is not None]
    if not tables:
        return None
    visits = _with_changes(pa.concat_tables(tables))
    if visits.num_rows == 0:
        return None
    pairs = _last_visits(visits)
    # A pair last seen early had no time to learn: its margin says nothing about the pair.
    middle = pc.max(visits["step"]).as_py() / 2
    last = pairs.filter(pc.greater(pairs["step_last"], middle))
    most = min(SHOWN_PAIRS, last.num_rows // 2)
    least = min(SHOWN_PAIRS, last.num_rows - most)
    return ExtremePairs(
        pairs=pairs.num_rows,
        visits=visits.num_rows,
        smallest=_rows(last.slice(0, least)),
        largest=_rows(last.slice(last.num_rows - most))[::-1],
        most_changed=_rows(_by_change(last).slice(0, SHOWN_PAIRS)),
        drift=_drift(visits),
    )


def _read_visits(file: Path, gaps: list[str]) -> pa.Table | None:
    name = f"{file.parent.name}/{file.name}"
    try:
        found = read_table(file, VISIT.names)
        lacking = [name for name in VISIT.names if name not in found.column_names]
        if lacking:
            gaps.append(text("report.gaps.pair_log_column", file=name, column=lacking[0]))
            return None
        return found.select(VISIT.names).cast(VISIT, safe=False)
    except (OSError, pa.ArrowException):
        gaps.append(text("report.gaps.pair_log", file=name))
        return None


def _with_changes(table: pa.Table) -> pa.Table:
    """The visits whose numbers are finite, with the changes from the reference, by step."""
    finite = pc.is_finite(table["margin"])
    kept = ["step", "source", "margin"]
    for side in ("chosen", "rejected"):
        change = pc.subtract(table[f"{side}_logp"], table[f"reference_{side}_logp"])
        tokens = pc.max_element_wise(table[f"{side}_tokens"], 1)
        table = table.append_column(f"{side}_change", change)
        table = table.append_column(f"{side}_change_token", pc.divide(change, tokens))
        finite = pc.and_(finite, pc.is_finite(change))
        kept += [f"{side}_change", f"{side}_change_token"]
    return table.select(kept).filter(finite).sort_by([("step", "ascending")])


def _last_visits(visits: pa.Table) -> pa.Table:
    """One row a pair, its last visit, from the smallest margin to the largest."""
    kept = ["step", "margin", "chosen_change", "rejected_change"]
    # In one thread: only then does "last" follow the order of the rows.
    grouped = visits.group_by("source", use_threads=False).aggregate([(c, "last") for c in kept])
    return grouped.sort_by([("margin_last", "ascending"), ("source", "ascending")])


def _by_change(pairs: pa.Table) -> pa.Table:
    """Rows of pairs, those whose answers changed most first."""
    both = (pc.abs(pairs[f"{side}_change_last"]) for side in ("chosen", "rejected"))
    changed = pairs.append_column("changed", pc.add(*both))
    order = [("changed", "descending"), ("source", "ascending")]
    return changed.sort_by(order).drop_columns("changed")


def _drift(visits: pa.Table) -> list[LogRow]:
    names = ("chosen_change_token", "rejected_change_token")
    means = visits.group_by("step").aggregate([(name, "mean") for name in names])
    return _rows(means.sort_by("step"))


def _rows(grouped: pa.Table) -> list[dict[str, Any]]:
    """The rows of an aggregate, under the names of the columns that it was made of."""
    names = [name.removesuffix("_last").removesuffix("_mean") for name in grouped.column_names]
    return list(grouped.rename_columns(names).to_pylist())
