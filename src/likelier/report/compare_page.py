"""The page of a comparison: runs over each other in the same charts, differences as intervals."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from likelier.evaluation.held_out import Figure
from likelier.pages import render_page
from likelier.pages.charts import Chart, Series, draw_chart, page_scripts, thinned
from likelier.pages.texts import percent, points, short, signed, text
from likelier.report.compare import COMPARED_FIGURES, ComparedRun, Comparison
from likelier.report.read import held_out_accuracy, progress
from likelier.report.summary import reads_reference

DIGITS = {"margin": 2, "chosen": 3, "rejected": 3, "drift": 3}


def write_steps(run: ComparedRun) -> str:
    """The step of the evaluation, of how many: ``60 of 60, finished``."""
    _, planned = progress(run.files)
    step = "–" if run.evaluated is None else f"{run.evaluated:,}"
    of = "?" if planned is None else f"{planned:,}"
    return text("compare.steps", step=step, planned=of, status=text(f"compare.status.{run.status}"))


def write_figure(name: str, figure: Figure | None) -> str:
    """A figure with its interval, or a dash."""
    if figure is None:
        return "–"
    mean, low, high = (_number(name, value) for value in (figure.mean, figure.low, figure.high))
    if not math.isfinite(figure.low):
        return mean
    return text("compare.interval", mean=mean, low=low.removesuffix("%"), high=high)


def write_change(name: str, figure: Figure) -> str:
    """A paired difference with its interval, and that it shows nothing where so."""
    write, key = (points, "points") if name == "accuracy" else (_signed, "interval")
    mean, low, high = (write(end) for end in (figure.mean, figure.low, figure.high))
    change = text(f"compare.{key}", mean=mean, low=low, high=high)
    return change if figure.is_clear else text("compare.nothing", change=change)


def write_title(name: str) -> str:
    """The name of a figure with its unit."""
    unit = text(f"compare.axes.{name}")
    return text("compare.titled", figure=text(f"compare.figures.{name}"), unit=unit)


def _signed(value: float) -> str:
    return "+" * (value > 0) + short(value)


def _number(name: str, value: float) -> str:
    if name == "accuracy":
        return percent(value)
    return short(value) if name == "loss" else signed(value, DIGITS[name])


# ---- curves ------------------------------------------------------------------------------------


def draw_runs(runs: Sequence[ComparedRun], one_loss: bool) -> list[Chart]:
    """The held-out figures of all runs by step, on the same axes; the loss where it is one."""
    curves = [_curve(run) for run in runs]
    charts = []
    for name in COMPARED_FIGURES:
        if name == "loss" and not one_loss:
            continue
        lines = [
            _line(run.name, at, curve, name)
            for at, (run, curve) in enumerate(zip(runs, curves, strict=True))
        ]
        chart = draw_chart(
            name,
            text(f"compare.figures.{name}"),
            text(f"compare.readings.{name}"),
            lines,
            text(f"compare.axes.{name}"),
            "share" if name == "accuracy" else "any",
        )
        charts += [chart] if chart else []
    return charts


def _curve(run: ComparedRun) -> dict[float, dict[str, float]]:
    """The means of a run's held-out figures after each evaluation."""
    found: dict[float, dict[str, float]] = {}
    for row in run.files.held_out:
        accuracy = held_out_accuracy(row) if reads_reference(run.files) else None
        means = {"accuracy": accuracy.value if accuracy else None, "loss": row.get("eval_loss")}
        found[row["step"]] = {name: mean for name, mean in means.items() if mean is not None}
    for one in run.log.evaluations(reads_reference(run.files)):
        found.setdefault(one.step, {}).update(one.means())
    return dict(sorted(found.items()))


def _line(run: str, at: int, curve: dict[float, dict[str, float]], name: str) -> Series:
    points = [(step, means[name]) for step, means in curve.items() if name in means]
    steps, values = tuple(step for step, _ in points), tuple(mean for _, mean in points)
    return thinned(Series(run, f"run{at % 16}", steps, values))


# ---- the page ----------------------------------------------------------------------------------


def render_comparison(found: Comparison) -> str:
    """The page as text: a function of the runs' folders alone, the same at any time."""
    one_loss = not any(key.startswith("loss.") for key, _ in found.settings)
    scripts, drawn = page_scripts(draw_runs(found.runs, one_loss))
    table = [
        (run, write_steps(run), [write_figure(n, run.figures.get(n)) for n in COMPARED_FIGURES])
        for run in found.runs
    ]
    return render_page(
        "compare.html",
        ["report.css", "charts.css", "compare.css"],
        scripts,
        **drawn,
        found=found,
        table=table,
        heads=[write_title(name) for name in COMPARED_FIGURES],
        intervals=list(_intervals(found)),
    )


def _intervals(found: Comparison) -> Iterator[dict[str, Any]]:
    """The paired differences by figure: each at its place on a line from -100 to 100."""
    for name in COMPARED_FIGURES:
        rows = [(one.name, one.figures[name]) for one in found.differences if name in one.figures]
        widest = max((abs(end) for _, one in rows for end in (one.low, one.high)), default=0.0)
        if rows:
            yield {
                "title": write_title(name),
                "rows": [
                    {
                        "name": run,
                        "words": write_change(name, one),
                        "is_clear": one.is_clear,
                        "at": [
                            f"{95 * end / (widest or 1.0):.2f}"
                            for end in (one.low, one.mean, one.high)
                        ],
                    }
                    for run, one in rows
                ],
            }
