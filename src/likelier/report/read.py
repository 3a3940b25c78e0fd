"""A run folder as the report reads it: what is there, and a plain word for what is not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from likelier.base.errors import InputMissing
from likelier.base.files import read_json
from likelier.report.ledger import Ledger, read_ledger

LOST = {
    "config.yaml": "the settings of this run are",
    "metrics.jsonl": "losses and rewards are",
    "timing.jsonl": "its speed is",
}
LARGEST = 1e100  # beyond it nothing was measured, and sums and squares of it stay finite
Row = dict[str, float]  # one line of a log: "step" and the finite numbers that came with it


@dataclass(frozen=True)
class Share:
    """A share of ``n`` cases with its 95% interval; all three numbers lie in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RunFolder:
    """Everything the report may say about a run.

    ``record`` is run.json; ``train``, ``held_out`` and ``timing`` are rows in order of their
    step, one row a step; ``outcome`` holds the shares of outcome.json by name, and ``samples``
    the answers before and after as they were written. ``gaps`` are sentences on what could not
    be read.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    config_text: str | None
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    timing: tuple[Row, ...]
    ledger: Ledger | None
    outcome: dict[str, Share]
    samples: tuple[dict[str, Any], ...]
    gaps: tuple[str, ...]


def read_run(path: Path) -> RunFolder:
    """Read a run folder, finished or not.

    Raises:
        InputMissing: there is no such folder, or no complete run.json in it.
    """
    record = read_record(path)
    gaps: list[str] = []
    for name, lost in LOST.items():
        if not (path / name).exists():
            gaps.append(f"There is no {name}, so {lost} not known.")
    config, config_text = _read_config(path / "config.yaml", gaps)
    metrics = _read_rows(path / "metrics.jsonl", gaps)
    return RunFolder(
        path=path,
        record=record,
        config=config,
        config_text=config_text,
        train=_one_a_step(row for row in metrics if "loss" in row),
        held_out=_one_a_step(row for row in metrics if any(k.startswith("eval_") for k in row)),
        timing=_one_a_step(_read_rows(path / "timing.jsonl", gaps)),
        ledger=read_ledger(path / "ledger", gaps),
        outcome=_read_outcome(path / "outcome.json", gaps),
        samples=tuple(read_jsonl(path / "samples.jsonl", gaps)),
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


def read_jsonl(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] where it is missing. Unreadable lines are counted.

    A last line cut short is no gap: a run that is still going may be writing it.
    """
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        gaps.append(f"{path.name} could not be read ({error.strerror}).")
        return []
    parsed = [(line, _parse(line)) for line in lines if line.strip()]
    unfinished = lines[-1].strip() != ""
    broken = sum(not isinstance(value, dict) for _, value in parsed)
    if unfinished and not isinstance(parsed[-1][1], dict):
        broken -= 1
    if broken:
        gaps.append(f"{broken} of the {len(parsed)} lines of {path.name} could not be read.")
    return [value for _, value in parsed if isinstance(value, dict)]


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
    part = tree.get(name) if isinstance(tree, dict) else None
    return part if isinstance(part, dict) else {}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_rows(path: Path, gaps: list[str]) -> list[Row]:
    """Rows that have a step, with their finite numbers; what is not finite is counted."""
    rows, odd = [], 0
    for raw in read_jsonl(path, gaps):
        row = {name: found for name, value in raw.items() if (found := number(value)) is not None}
        odd += sum(isinstance(raw[name], float) for name in raw.keys() - row.keys())
        if "step" in row:
            rows.append(row)
    if odd:
        gaps.append(f"{odd} values in {path.name} are not finite and are left out of the curves.")
    return rows


def _one_a_step(rows: Any) -> tuple[Row, ...]:
    """Rows by step; where a step was written twice, the later row stands."""
    latest = {row["step"]: row for row in rows}
    return tuple(latest[step] for step in sorted(latest))


def _read_config(path: Path, gaps: list[str]) -> tuple[dict[str, Any], str | None]:
    text = config = None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        config = yaml.safe_load(text)
    except FileNotFoundError:
        return {}, None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        pass
    if isinstance(config, dict):
        return config, text
    gaps.append("config.yaml could not be read, so the settings of this run are not known.")
    return {}, text


def _read_outcome(path: Path, gaps: list[str]) -> dict[str, Share]:
    if not path.exists():
        return {}
    content = read_json(path)
    if content is None:
        gaps.append("outcome.json could not be read.")
        return {}
    shares = {name: share(value) for name, value in content.items()}
    return {name: found for name, found in shares.items() if found is not None}


def share(value: Any) -> Share | None:
    """A share written as {"value", "low", "high", "n"}, or None where it is no such thing."""
    if not isinstance(value, dict):
        return None
    middle, low, high = (number(value.get(key)) for key in ("value", "low", "high"))
    n = count(value.get("n"))
    if middle is None or low is None or high is None or not n:
        return None
    slack = 1e-9  # an end that should equal the value may miss it by a rounding
    ordered = low - slack <= middle <= high + slack and min(low, middle) >= 0
    return Share(middle, low, high, n) if ordered and max(middle, high) <= 1 else None
