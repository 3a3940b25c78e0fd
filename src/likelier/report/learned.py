"""Checks of what was learned: held-out pairs one by one, the weights left, the answers written.

Axis letters: P pairs, C prompts, N answers.
"""

import math
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from likelier.evaluation.compare import HeldOut
from likelier.evaluation.intervals import mean_of_clusters, wilson
from likelier.pages.texts import percent, points, short, signed
from likelier.report.check import Check, fine, unknown, warning
from likelier.report.read import (
    Proportion,
    RunFiles,
    count,
    last_quarter,
    newcombe,
    number,
    section,
)
from likelier.report.summary import in_a_line, reads_reference

RISES = 3  # evaluations in a row with a higher held-out loss than the one before
# Nats a pair: the held-out loss at the end above its lowest, by the whole 99% interval of the
# pairs' own differences. The lowest of many evaluations is a little too low by chance alone.
WORSE, SURE = 0.01, 0.99
# Of the accuracies on pairs whose chosen answer is longer and is shorter, by the whole interval.
BY_LENGTH = 0.2
FEWEST_SHORTER = 10  # pairs, below which the accuracy on them says little
MOST_SATURATED, LEAST_EFFECTIVE = 0.5, 0.25  # shares of the training pairs, late in the run
MOVED = 1e-3  # nats a token, of answers on average: less is hardly a change
NOISE = 3.0  # times what rounding does to an answer
MUCH_LONGER, MUCH_SHORTER = 1.3, 0.7  # times as long as before, by the whole interval


def check_overfitting(run: RunFiles) -> Check:
    """A held-out loss that is surely above its lowest, or keeps rising: pairs known by heart."""
    found = list(run.held_out_log.evaluations(reads_reference(run)))
    if len(found) >= 3 and len({len(one.pair_P) for one in found}) == 1:
        losses = [float(one.loss_P.mean()) for one in found]
        best = found[int(np.argmin(losses))]
        last: dict[str, Any] = {
            "loss": short(min(losses)),
            "step": best.step,
            "last": short(losses[-1]),
        }
        apart_P = found[-1].loss_P - best.loss_P
        _, low, high = mean_of_clusters(apart_P, best.prompt_P.tolist(), level=SURE)
        if low > WORSE:
            gap = signed(losses[-1] - min(losses), 3)
            ends = {"gap": gap, "low": signed(low, 3), "high": signed(high, 3)}
            case = "warning_at_once" if best.step == 0 else "warning_gap"
            return warning("overfitting", case, **last, **ends)
        return fine("overfitting", "fine_gap", **last)
    rows = [row for row in run.held_out if "eval_loss" in row]
    if len(rows) <= RISES:
        return unknown("overfitting", needed=RISES + 1)
    rose = [after["eval_loss"] > before["eval_loss"] for before, after in pairwise(rows)]
    if not any(all(rose[i : i + RISES]) for i in range(len(rose) - RISES + 1)):
        return fine("overfitting", loss=short(rows[-1]["eval_loss"]))
    lowest = min(rows, key=lambda row: row["eval_loss"])
    return warning("overfitting", rises=RISES, loss=short(lowest["eval_loss"]), step=lowest["step"])


def check_lengths(last: HeldOut | None) -> Check:
    """Right where the chosen answer is longer, wrong where it is shorter: length was learned."""
    if last is None:
        return unknown("length", needed=FEWEST_SHORTER)
    longer_P = last.tokens_P2[:, 0] - last.tokens_P2[:, 1]
    longer, shorter = (_accuracy(last, which_P) for which_P in (longer_P > 0, longer_P < 0))
    if longer is None or shorter is None or min(longer.n, shorter.n) < FEWEST_SHORTER:
        return unknown("length", needed=FEWEST_SHORTER)
    shares = {"longer": percent(longer.value), "shorter": percent(shorter.value)}
    apart, low, high = newcombe(shorter, longer)
    ends = {"apart": points(apart), "low": points(low), "high": points(high)}
    if low > BY_LENGTH:
        return warning("length", **shares, **ends)
    if high < -BY_LENGTH:
        return warning("length", "warning_shorter", **shares, **ends)
    return fine("length", **shares)


def _accuracy(pairs: HeldOut, which_P: np.ndarray) -> Proportion | None:
    """The accuracy on some of the pairs, with prompts as the trials."""
    if not which_P.any():
        return None
    prompts = len(set(pairs.prompt_P[which_P].tolist()))
    value = float(pairs.columns["accuracy"][which_P].mean())
    return Proportion(value, *wilson(value, prompts), int(which_P.sum()))


def check_moved(run: RunFiles, last: HeldOut | None) -> Check:
    """The model hardly moved; or it did, and is no better than chance on held-out pairs."""
    if last is None or last.step == 0:
        return unknown("moved")
    everything = _accuracy(last, np.ones(len(last.pair_P), dtype=bool))
    assert everything is not None  # an evaluation has pairs
    drift = float(np.nanmean(last.columns["drift"]))
    values: dict[str, Any] = {
        "accuracy": percent(everything.value),
        "low": percent(everything.low),
        "high": percent(everything.high),
        "drift": short(drift),
        "rate": in_a_line(section(run.config, "optim").get("lr")),
        "steps": last.step,
    }
    if drift < MOVED:
        return warning("moved", "warning_still", **values)
    if not everything.low <= 0.5 <= everything.high:
        return fine("moved", **values)
    if everything.high - everything.low > 2 * BY_LENGTH:
        return unknown("moved", "unknown_few", **values)
    return warning("moved", "warning_nowhere", **values)


def check_noise(run: RunFiles, last: HeldOut | None) -> Check:
    """Margins within what rounding does to an answer, as the preflight measured it on the pairs."""
    noise = number(section(run.record, "preflight").get("noise"))
    if last is None or last.step == 0 or noise is None:
        return unknown("noise")
    margin = float(np.median(np.abs(last.columns["margin"])))
    values = {"margin": short(margin), "noise": short(noise), "times": short(NOISE)}
    return (fine if margin > NOISE * noise else warning)("noise", **values)


def check_saturation(run: RunFiles) -> Check:
    """Most training pairs have no weight left in the gradient."""
    rows = [row for row in run.train if "weights/saturated" in row]
    if not rows:
        return unknown("saturation")
    saturated = fmean(row["weights/saturated"] for row in last_quarter(rows))
    effective = fmean(row["weights/effective"] for row in last_quarter(rows))
    values = {"saturated": percent(saturated), "effective": percent(effective)}
    is_fine = saturated <= MOST_SATURATED and effective >= LEAST_EFFECTIVE
    return (fine if is_fine else warning)("saturation", **values)


def check_answers(run: RunFiles) -> Check:
    """The model's own answers became much longer or shorter; one that was cut counts as it is."""
    rows = [
        (row.get("prompt"), before, after)
        for row in run.samples
        if (before := count(row.get("tokens_before"))) and (after := count(row.get("tokens_after")))
    ]
    if len({prompt for prompt, *_ in rows}) < 4:
        return unknown("answers")
    ratio_N = [math.log(after / before) for _, before, after in rows]
    found = mean_of_clusters(ratio_N, [str(prompt) for prompt, *_ in rows])
    times, low, high = map(math.exp, found)
    values: dict[str, Any] = {
        "times": short(times),
        "low": short(low),
        "high": short(high),
        "n": len(rows),
    }
    if low > MUCH_LONGER:
        return warning("answers", "warning_longer", **values)
    if high < MUCH_SHORTER:
        return warning("answers", "warning_shorter", **values)
    return fine("answers", **values)
