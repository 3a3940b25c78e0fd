"""The curves of a run, each with one sentence on how to read it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from likelier.report.loss import reads_reference, starts_at_ln2
from likelier.report.plot import Series, add_level, figure, in_words, series, table
from likelier.report.read import RunFolder, number, section
from likelier.report.verdict import held_out_accuracy, log_ratio
from likelier.report.words import short, signed


@dataclass(frozen=True)
class Chart:
    """``reading`` says how to read the curve, ``alt`` what it shows; header and rows repeat it."""

    id: str
    title: str
    reading: str
    alt: str
    figure: dict[str, Any]
    header: list[str]
    rows: list[list[str]]


def draw_charts(run: RunFolder) -> list[Chart]:
    """The charts that the rows allow, in reading order."""
    return [chart for draw in CHARTS if (chart := draw(run)) is not None]


def draw_loss(run: RunFolder) -> Chart | None:
    """The loss on training and held-out pairs, against ln 2."""
    lines = [
        series("training", "train", run.train, "loss"),
        series("held-out", "held-out", run.held_out, "eval_loss"),
    ]
    chart = _chart(
        "loss",
        "Loss",
        "How far the model is from the preferences. Lower is better; the held-out line is the one "
        "to trust. If it rises while the training line falls, the run learns its pairs by heart.",
        lines,
        "nats a pair",
    )
    if chart is not None and starts_at_ln2(run):
        add_level(chart.figure, math.log(2), "ln 2 = 0.693: no preference learned")
    return chart


def draw_accuracy(run: RunFolder) -> Chart | None:
    """The share of pairs moved the right way, with intervals on held-out pairs."""
    found = [(row["step"], s) for row in run.held_out if (s := held_out_accuracy(row)) is not None]
    held_out = Series(
        "held-out, 95% interval",
        "held-out",
        tuple(step for step, _ in found),
        tuple(share.value for _, share in found),
        tuple(share.low for _, share in found),
        tuple(share.high for _, share in found),
    )
    chart = _chart(
        "accuracy",
        "Accuracy",
        "The share of pairs where the model moved towards the chosen answer more than towards the "
        "rejected one. It starts at a half; on pairs that people judged, 60 to 75% is a usual end.",
        [series("training", "train", run.train, "rewards/accuracies"), held_out],
        "share of pairs",
        range=[-0.02, 1.02],
        tickformat=".0%",
    )
    if chart is not None:
        add_level(chart.figure, 0.5, "moving at random")
    return chart


def draw_rewards(run: RunFolder) -> Chart | None:
    """Rewards of both answers and the margin, with what they say about displacement."""
    held_out = any("eval_rewards/chosen" in row for row in run.held_out)
    rows, prefix = (run.held_out, "eval_") if held_out else (run.train, "")
    kind = "held-out" if held_out else "training"
    chart = _chart(
        "rewards",
        f"Rewards, {kind} pairs",
        f"{_meaning(run)} The margin (chosen less rejected) should grow. "
        f"{_displacement(run, rows, prefix)}",
        [
            series("chosen", "chosen", rows, f"{prefix}rewards/chosen"),
            series("rejected", "rejected", rows, f"{prefix}rewards/rejected"),
            series("margin", "margin", rows, f"{prefix}rewards/margins"),
        ],
        "reward",
    )
    if chart is not None and reads_reference(run):
        add_level(chart.figure, 0.0, "the reference")
    return chart


def _meaning(run: RunFolder) -> str:
    if reads_reference(run):
        return "Beta times how much likelier an answer became since the start."
    return "Beta times the log-prob of an answer: this loss reads no reference."


def _displacement(run: RunFolder, rows: Any, prefix: str) -> str:
    """What the last chosen reward means in nats, where beta is known."""
    rewards = [row[f"{prefix}rewards/chosen"] for row in rows if f"{prefix}rewards/chosen" in row]
    change = log_ratio(run, rewards)
    if not reads_reference(run):
        return "A chosen line that falls means that even the chosen answers became less likely."
    if change is None:
        return "A chosen line below zero means that even the chosen answers became less likely."
    told = f"At the end a chosen answer's log-prob is {signed(change)} nats against the reference"
    if change < 0:
        return f"{told}: even the chosen answers became less likely."
    return f"{told}: the chosen answers did not lose probability."


def draw_drift(run: RunFolder) -> Chart | None:
    """The change of log-prob per token, from the ledger: the displacement plot."""
    rows = run.ledger.drift if run.ledger else ()
    chart = _chart(
        "drift",
        "Likelihood per token",
        "How much likelier each token of an answer became since the start, averaged over the pairs "
        "of a step. Rejected should fall; a chosen line that sinks below −0.1 and keeps falling "
        "means that probability goes to answers nobody asked for.",
        [
            series("chosen", "chosen", rows, "chosen_change_token"),
            series("rejected", "rejected", rows, "rejected_change_token"),
        ],
        "nats a token",
    )
    if chart is not None:
        add_level(chart.figure, 0.0, "the reference")
    return chart


def draw_gradient(run: RunFolder) -> Chart | None:
    """The norm of the gradient before clipping, and the limit."""
    lines = [series("gradient norm", "plain", run.train, "grad_norm")]
    chart = _chart(
        "gradient",
        "Gradient norm",
        "How hard each step pulls, before clipping. Single spikes are normal; mostly above the "
        "limit means that the learning rate or beta is too large, and 0 that nothing is learned.",
        lines,
        "norm",
        rangemode="tozero",
    )
    limit = number(section(run.config, "optim").get("max_grad_norm"))
    if chart is not None and limit and limit <= 3 * max(lines[0].y):  # else it flattens the curve
        add_level(chart.figure, limit, f"clipped above {short(limit)}")
    return chart


def draw_learning_rate(run: RunFolder) -> Chart | None:
    """The learning rate by step."""
    return _chart(
        "learning-rate",
        "Learning rate",
        "How far a step may go: it climbs while the run warms up and then follows its schedule.",
        [series("learning rate", "plain", run.train, "learning_rate")],
        "learning rate",
        rangemode="tozero",
        exponentformat="e",
    )


def draw_speed(run: RunFolder) -> Chart | None:
    """Tokens per second by step."""
    timed = [row for row in run.timing if row.get("seconds", 0) > 0 and "tokens" in row]
    speeds = [(row["step"], number(row["tokens"] / row["seconds"])) for row in timed]
    rows = tuple({"step": step, "speed": speed} for step, speed in speeds if speed is not None)
    return _chart(
        "speed",
        "Speed",
        "Tokens computed a second. It should be level: a slow slide hints at memory or heat, and "
        "steps differ where their answers differ in length.",
        [series("tokens a second", "plain", rows, "speed")],
        "tokens a second",
        rangemode="tozero",
    )


def _chart(
    id: str, title: str, reading: str, lines: list[Series], y_title: str, **y_axis: Any
) -> Chart | None:
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    header, rows = table(lines)
    return Chart(
        id, title, reading, in_words(lines), figure(lines, y_title, **y_axis), header, rows
    )


CHARTS: tuple[Callable[[RunFolder], Chart | None], ...] = (
    draw_loss,
    draw_accuracy,
    draw_rewards,
    draw_drift,
    draw_gradient,
    draw_learning_rate,
    draw_speed,
)
