"""How time and memory of likelier grow: with pairs, length, vocabulary and answers a prompt.

    python bench/scaling.py            prints a table, writes bench/results/scaling.json
    python bench/scaling.py --smoke    fewer points

Every point is a process of its own on a small EXAONE-4 shape. The exponent is the slope of the
least-squares line through the logarithms. Memory is the peak of the steps above what the process
held before the first one.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
import workloads
from race import Runner, make_case
from workloads import Lengths, Workload

SHAPE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One run: pairs of equal lengths, cut into steps."""

    prompt: int = 128
    answer: int = 64
    answers: int = 2
    pairs_per_step: int = 8
    steps: int = 4
    vocabulary: int = 4096


@dataclass(frozen=True)
class Axis:
    """What grows, at which values, and whether the time is that of the whole run or of a step."""

    name: str
    values: tuple[int, ...]
    point: Callable[[int], Point]
    whole_run: bool = False


AXES = (
    Axis("pairs", (32, 64, 128, 256), lambda n: Point(steps=n // 8), whole_run=True),
    Axis("length", (256, 512, 1024, 2048),
         lambda n: Point(prompt=n // 2, answer=n // 2, pairs_per_step=2)),
    Axis("vocabulary", (4096, 8192, 16384, 32768), lambda n: Point(vocabulary=n)),
    Axis("answers", (2, 4, 8, 16),
         lambda n: Point(answers=n, pairs_per_step=n * (n - 1) // 2)),
)  # fmt: skip


def measure(work: Path, name: str, point: Point, whole_run: bool, seed: int) -> dict[str, float]:
    """Seconds (of a median step, or of reference and all steps) and MiB of one run."""
    shape = {**SHAPE, "vocab_size": point.vocabulary}
    model = work / f"model-{point.vocabulary}"
    if not model.exists():
        workloads.save_model(model, shape, seed)
    drawn = Workload(
        Lengths(point.prompt, 0, 1, 10**6), Lengths(point.answer, 0, 1, 10**6), point.answers
    )
    rows = workloads.draw(drawn, point.steps * point.pairs_per_step, point.vocabulary, seed)
    case = make_case(
        work / name, model, rows, "float32", point.steps, point.pairs_per_step, max_length=8192
    )
    runner = Runner(case, "likelier", None, "run")
    try:
        while runner.step():
            pass
    finally:
        runner.stop()
    told = runner.told
    whole = told.reference + sum(told.steps)
    return {
        "seconds": whole if whole_run else statistics.median(told.steps[1:]),
        "mib": max(told.peaks.values()) - told.held,
    }


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def main() -> None:
    """Every axis, every value, some repeats."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [axis.name for axis in AXES]
    parser.add_argument("--axis", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each point, in turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two points an axis; leaves no file")
    options = parser.parse_args()
    repeats = 1 if options.smoke else options.repeats
    work = Path(tempfile.mkdtemp(prefix="scaling-"))
    rows: list[dict[str, Any]] = []
    try:
        for axis in (axis for axis in AXES if axis.name in options.axis):
            values = axis.values[:2] if options.smoke else axis.values
            found: dict[int, list[dict[str, float]]] = {value: [] for value in values}
            for repeat in range(repeats):
                for value in values:
                    name = f"{axis.name}-{value}-{repeat}"
                    point = axis.point(value)
                    found[value].append(measure(work, name, point, axis.whole_run, options.seed))
            rows.append(_row(axis, found))
            if not options.smoke:
                record.write("scaling", {"shape": SHAPE, "rows": rows})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([_line(row) for row in rows])


def _row(axis: Axis, found: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "axis": axis.name,
        "time_of": "reference and all steps" if axis.whole_run else "a step",
        "values": list(found),
    }
    for what in ("seconds", "mib"):
        spreads = [record.spread([run[what] for run in runs]) for runs in found.values()]
        row[what] = spreads
        row[f"{what}_exponent"] = exponent(
            [float(value) for value in found], [one["median"] for one in spreads]
        )
    return row


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "axis": row["axis"],
        "values": " ".join(map(str, row["values"])),
        "seconds": " ".join(f"{one['median']:.2f}" for one in row["seconds"]),
        "time exponent": f"{row['seconds_exponent']:.3f}",
        "MiB": " ".join(f"{one['median']:.0f}" for one in row["mib"]),
        "memory exponent": f"{row['mib_exponent']:.3f}",
    }


if __name__ == "__main__":
    main()
