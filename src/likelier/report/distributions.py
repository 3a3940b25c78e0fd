"""Held-out pairs one by one: how far they moved, how sure the model is of them, and of which."""

from dataclasses import dataclass

import numpy as np

from likelier.evaluation.compare import HeldOut, HeldOutLog
from likelier.evaluation.held_out import FEWEST_PROMPTS, by_length, figures_of, hits_of
from likelier.pages.stills import Still, draw_histogram, draw_shares
from likelier.pages.texts import percent, text
from likelier.report.read import RunFiles, number, section
from likelier.report.summary import reads_reference

RELIABILITY_BINS = 5  # of pairs, by how sure the model is of them
FEWEST_PAIRS = 50  # below which bins hold too few to say anything


@dataclass(frozen=True)
class ByLength:
    """The accuracy where one answer is longer: shares of 1, and over how many pairs."""

    name: str
    value: float
    low: float
    high: float
    pairs: int

    @property
    def words(self) -> str:
        interval = {"low": percent(self.low), "high": percent(self.high)}
        return text("report.held_out.accuracy", value=percent(self.value), **interval)


def draw_distributions(run: RunFiles) -> tuple[list[Still], list[ByLength]]:
    """The charts of the last evaluation, and its accuracies by which answer is longer."""
    log = run.held_out_log
    last = log.last(reads_reference(run))
    if last is None or last.step == 0 or not np.isfinite(last.policy_P2).all():
        return [], []  # nothing was trained, or examples stand alone
    charts = [_margins(log, last), _drift(last), _reliability(run, last)]
    return [chart for chart in charts if chart is not None], _by_length(last)


def _words(name: str) -> dict[str, str]:
    title, reading = text(f"report.held_out.{name}.title"), text(f"report.held_out.{name}.reading")
    return {"id": f"held-out-{name}", "title": title, "reading": reading}


def _gap(pairs: HeldOut) -> np.ndarray:
    """How much likelier the chosen answer is than the rejected one, in nats; shape (P,)."""
    gap_P: np.ndarray = pairs.policy_P2[:, 0] - pairs.policy_P2[:, 1]
    return gap_P


def _margins(log: HeldOutLog, last: HeldOut) -> Still | None:
    """The gap of the log-probs before and after, of the pairs that both evaluations hold."""
    first = log.at(log.steps[0])
    if first.step != 0 or not np.array_equal(first.pair_P, last.pair_P):
        return None
    sides = {
        ("train", text("report.held_out.before")): _gap(first),
        ("plain", text("report.held_out.after")): _gap(last),
    }
    return draw_histogram(_words("gaps"), text("report.held_out.gaps.axis"), sides)


def _drift(last: HeldOut) -> Still:
    sides = {
        (side, text(f"report.curves.lines.{side}")): last.columns[side]
        for side in ("chosen", "rejected")
    }
    return draw_histogram(_words("drift"), text("report.held_out.drift.axis"), sides)


def _reliability(run: RunFiles, last: HeldOut) -> Still | None:
    """How often the model is right against how sure it says it is.

    By the model of Bradley and Terry, sigmoid(reward margin) is the chance that the chosen answer
    is the better one. All labels say "chosen", so the pairs are sorted by the chance of whichever
    answer the model prefers: a half or more, and right where that is the chosen one.
    """
    scale = number(section(run.record, "loss").get("reward_scale"))
    if not scale or len(last.pair_P) < FEWEST_PAIRS:
        return None
    margin_P = last.columns["margin"]
    sure_P = 1 / (1 + np.exp(-np.minimum(scale * np.abs(margin_P), 500)))
    order = np.argsort(sure_P, kind="stable")
    points = []
    for part in np.array_split(order, RELIABILITY_BINS):
        figure = figures_of({"accuracy": hits_of(margin_P[part])}, last.prompt_P[part].tolist())
        found = figure["accuracy"]
        points.append((float(sure_P[part].mean()), found.mean, found.low, found.high, len(part)))
    titles = text("report.held_out.reliability.sure"), text("report.held_out.reliability.right")
    return draw_shares(_words("reliability"), titles, points)


def _by_length(last: HeldOut) -> list[ByLength]:
    longer_P = last.tokens_P2[:, 0] - last.tokens_P2[:, 1]
    split = by_length(longer_P, last.columns["accuracy"])
    columns = {f"accuracy {name}": column for name, column in split.items()}
    columns["accuracy longer_wins"] = hits_of(longer_P)
    found = figures_of(columns, last.prompt_P.tolist())
    return [
        ByLength(text(f"report.held_out.length.{name.split()[1]}"), one.mean, one.low, one.high,
                 one.pairs)
        for name, one in found.items()
        if one.prompts >= FEWEST_PROMPTS
    ]  # fmt: skip
