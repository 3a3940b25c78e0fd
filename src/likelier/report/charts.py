"""The curves of a run, each with one sentence on how to read it."""

import math
from collections.abc import Sequence

from likelier.pages.charts import Chart, Series, draw_chart, thinned, with_means
from likelier.pages.texts import short, signed, text
from likelier.report.read import LogRow, RunFiles, held_out_accuracy, number, section
from likelier.report.summary import log_ratio, reads_reference, starts_at_ln2


def draw_charts(run: RunFiles) -> list[Chart]:
    """The charts that the rows allow, in reading order."""
    charts = [
        draw_loss(run),
        draw_accuracy(run),
        draw_rewards(run),
        draw_drift(run),
        draw_gradient(run),
        draw_learning_rate(run),
        draw_speed(run),
    ]
    return [chart for chart in charts if chart is not None]


def draw_loss(run: RunFiles) -> Chart | None:
    """The loss on training and held-out pairs, against ln 2."""
    training = with_means(_line("training", "train", run.train, "loss"))
    held_out = thinned(_line("held_out", "held-out", run.held_out, "eval_loss"))
    ln2 = [(math.log(2), text("report.curves.levels.ln2"))] if starts_at_ln2(run) else []
    return _chart("loss", [*training, held_out], levels=ln2)


def draw_accuracy(run: RunFiles) -> Chart | None:
    """The share of pairs moved the right way, with intervals on held-out pairs."""
    training = with_means(_line("training", "train", run.train, "rewards/accuracies"))
    found = [(row["step"], s) for row in run.held_out if (s := held_out_accuracy(row)) is not None]
    held_out = Series(
        text("report.curves.lines.held_out_interval"),
        "held-out",
        tuple(step for step, _ in found),
        tuple(share.value for _, share in found),
        tuple(share.low for _, share in found),
        tuple(share.high for _, share in found),
    )
    at_random = [(0.5, text("report.curves.levels.at_random"))]
    return _chart("accuracy", [*training, held_out], scale="share", levels=at_random)


def draw_rewards(run: RunFiles) -> Chart | None:
    """Rewards of both answers and the margin, with what they say about displacement."""
    if any("eval_rewards/chosen" in row for row in run.held_out):
        rows, prefix, title = run.held_out, "eval_rewards", "title"
    else:
        rows, prefix, title = run.train, "rewards", "title_training"
    lines = [
        _line("chosen", "chosen", rows, f"{prefix}/chosen"),
        _line("rejected", "rejected", rows, f"{prefix}/rejected"),
        _line("margin", "margin", rows, f"{prefix}/margins"),
    ]
    if rows is run.train:
        lines = [part for line in lines for part in with_means(line)]
    else:  # each point is a mean over all held-out pairs
        lines = [thinned(line) for line in lines]
    end = _displacement(run, [row[key] for row in rows if (key := f"{prefix}/chosen") in row])
    if reads_reference(run):
        meaning = text("report.curves.rewards.against_reference")
        levels = [(0.0, text("report.curves.levels.reference"))]
    else:
        meaning, levels = text("report.curves.rewards.no_reference"), []
    return _chart("rewards", lines, title=title, levels=levels, meaning=meaning, end=end)


def _displacement(run: RunFiles, rewards: list[float]) -> str:
    """What the last chosen reward means in nats, where beta is known."""
    if not reads_reference(run):
        return text("report.curves.rewards.falls")
    change = log_ratio(run, rewards)
    if change is None:
        return text("report.curves.rewards.below_zero")
    which = "lost" if change < 0 else "kept"
    return text(f"report.curves.rewards.{which}", change=signed(change))


def draw_drift(run: RunFiles) -> Chart | None:
    """The change of log-prob per token, from the pair log: the displacement plot."""
    rows = run.pair_log.drift if run.pair_log else []
    chosen = with_means(_line("chosen", "chosen", rows, "chosen_change_token"))
    rejected = with_means(_line("rejected", "rejected", rows, "rejected_change_token"))
    reference = [(0.0, text("report.curves.levels.reference"))]
    return _chart("drift", [*chosen, *rejected], levels=reference)


def draw_gradient(run: RunFiles) -> Chart | None:
    """The norm of the gradient before clipping, and the limit."""
    norms = _line("gradient", "plain", run.train, "grad_norm")
    limit = number(section(run.config, "optim").get("max_grad_norm"))
    levels = []
    if limit and norms.y and limit <= 3 * max(norms.y):  # else it flattens the curve
        levels = [(limit, text("report.curves.levels.clipped", limit=short(limit)))]
    return _chart("gradient", with_means(norms), scale="from zero", levels=levels)


def draw_learning_rate(run: RunFiles) -> Chart | None:
    """The learning rate by step."""
    rates = thinned(_line("learning_rate", "plain", run.train, "learning_rate"))
    return _chart("learning-rate", [rates], scale="from zero")


def draw_speed(run: RunFiles) -> Chart | None:
    """Tokens per second by step."""
    timed = [row for row in run.timing if row.get("seconds", 0) > 0 and "tokens" in row]
    speeds = [(row["step"], number(row["tokens"] / row["seconds"])) for row in timed]
    rows = tuple({"step": step, "speed": speed} for step, speed in speeds if speed is not None)
    return _chart("speed", with_means(_line("speed", "plain", rows, "speed")), scale="from zero")


def _line(name: str, style: str, rows: Sequence[LogRow], key: str) -> Series:
    """The values of ``key`` by step, from the rows that have it."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = tuple(x for x, _ in points), tuple(y for _, y in points)
    return Series(text(f"report.curves.lines.{name}"), style, steps, values)


def _chart(
    id: str,
    lines: list[Series],
    *,
    title: str = "title",
    scale: str = "any",
    levels: Sequence[tuple[float, str]] = (),
    **reading: str,
) -> Chart | None:
    return draw_chart(
        id,
        text(f"report.curves.{id}.{title}"),
        text(f"report.curves.{id}.reading", **reading),
        lines,
        text(f"report.curves.{id}.axis"),
        scale,
        levels,
    )
