"""What a careful reader would look for in the rows of a run: each check, its reason and its fix."""

import math
from statistics import fmean
from typing import Any

from likelier.evaluation.intervals import Z95, wilson
from likelier.evaluation.spikes import FACTOR, FEWEST, FLAT, WINDOW, Spikes
from likelier.pages.texts import percent, points, short, signed, text
from likelier.report.check import Check, fine, unknown, warning
from likelier.report.learned import (
    check_answers,
    check_lengths,
    check_moved,
    check_noise,
    check_overfitting,
    check_saturation,
)
from likelier.report.read import (
    Proportion,
    RunFiles,
    held_out_accuracy,
    last_quarter,
    newcombe,
    number,
    progress,
    section,
)
from likelier.report.summary import reads_reference

EARLY = 0.1  # of the steps planned
TOO_EASY = 0.95  # accuracy that early usually means a shortcut
OFTEN = 0.5  # of the steps clipped
DROPPED = 0.05  # of the rows
LITTLE = 0.1  # nats an answer: losing less is nothing to look at
DRIFT_ALARM = -0.1  # nats a token, chosen answers against the reference
# Of the accuracies of training and held-out pairs, where the whole 95% interval of their difference
# lies above it: chance alone then names a gap in fewer than 3 of 100 runs that have none, and a
# gap of less changes no decision.
GAP = 0.05
# Of the 95% interval of the held-out accuracy: where it is wider, 60%, a usual end on pairs that
# people judged, cannot be told from the 50% of moving at random.
WIDE = 0.2


def health(run: RunFiles) -> list[Check]:
    """All checks, warnings first."""
    last = run.held_out_log.last(reads_reference(run))
    checks = [
        check_learning(run),
        check_moved(run, last),
        check_noise(run, last),
        check_chosen(run),
        check_shortcut(run),
        check_lengths(last),
        check_saturation(run),
        check_clipping(run),
        check_spikes(run),
        check_overfitting(run),
        check_gap(run),
        check_answers(run),
        check_held_out(run),
        check_rows_used(run),
        check_side_effects(run),
    ]
    states = ["warning", "fine", "unknown"]
    return sorted(checks, key=lambda check: states.index(check.state))


def check_learning(run: RunFiles) -> Check:
    """Gradients that are all zero: nothing trainable is reached from the loss."""
    norms = [row["grad_norm"] for row in run.train if "grad_norm" in row]
    if not norms:
        return unknown("learning")
    if max(norms) > FLAT:
        return fine("learning", norm=short(max(norms)))
    return warning("learning", n=len(norms))


def check_chosen(run: RunFiles) -> Check:
    """Likelihood displacement: the chosen answers themselves lose probability."""
    if not reads_reference(run):
        return unknown("chosen", "unknown_no_reference")
    rows, key, kept, fell = run.held_out, "eval_rewards/chosen", "fine", "fell"
    if sum(key in row for row in rows) < 2:
        rows, key, kept, fell = run.train, "rewards/chosen", "fine_training", "fell_training"
    values = [row[key] for row in rows if key in row]
    if len(values) < 2:
        return unknown("chosen")
    quarter = max(1, len(values) // 4)
    late, earlier = fmean(values[-quarter:]), fmean(values[-2 * quarter : -quarter])
    scale = number(section(run.record, "loss").get("reward_scale")) or 1.0
    if late >= 0 or late >= earlier or abs(late) < LITTLE * scale:
        return fine("chosen", kept, reward=signed(late, 3))
    ends = {"earlier": signed(earlier, 3), "late": signed(late, 3)}
    reason = text(f"report.health.chosen.{fell}", **ends)
    drift = _late_drift(run)
    if drift is None:
        return warning("chosen", fell=reason)
    how_much = "warning_large" if drift < DRIFT_ALARM else "warning_small"
    return warning("chosen", how_much, fell=reason, drift=signed(drift, 3))


def check_shortcut(run: RunFiles) -> Check:
    """Accuracy that is high almost at once: something simpler than the content tells them apart."""
    _, planned = progress(run)
    if not planned:
        return unknown("shortcut", "unknown_plan")
    early = [row for row in run.held_out if 0 < row["step"] <= EARLY * planned]
    found = [s.value for row in early if (s := held_out_accuracy(row)) is not None]
    steps = [r for r in run.train if r["step"] <= EARLY * planned and "rewards/accuracies" in r]
    if len(steps) >= 4:  # one step's few pairs say little, and the first is before any update
        found.append(fmean(row["rewards/accuracies"] for row in steps[len(steps) // 2 :]))
    if not found:
        return unknown("shortcut")
    result = fine if max(found) < TOO_EASY else warning
    return result("shortcut", accuracy=percent(max(found)))


def check_clipping(run: RunFiles) -> Check:
    """Most steps clipped: the step size is then set by the clip, not by the learning rate."""
    limit = number(section(run.config, "optim").get("max_grad_norm"))
    norms = [row["grad_norm"] for row in run.train if "grad_norm" in row]
    if limit is None or not norms:
        return unknown("clipping")
    clipped = sum(norm > limit for norm in norms) / len(norms)
    result = fine if clipped <= OFTEN else warning
    return result("clipping", share=percent(clipped), limit=short(limit))


def check_spikes(run: RunFiles) -> Check:
    """Steps with a gradient far above the others: often one bad pair, or too high a rate."""
    spikes, norms = Spikes(), [row for row in run.train if "grad_norm" in row]
    for row in norms:
        spikes.hear(row)
    usual: dict[str, Any] = {"factor": f"{FACTOR:.0f}", "window": WINDOW}
    if len(norms) <= FEWEST:
        return unknown("spikes", needed=FEWEST + 1)
    if not spikes.count:
        return fine("spikes", **usual)
    named = ", ".join(f"{step:,}" for step in spikes.steps)
    named += ", …" if spikes.count > len(spikes.steps) else ""
    worst: dict[str, Any] = {
        "step": spikes.largest["step"],
        "norm": short(spikes.largest["grad_norm"]),
    }
    return warning("spikes", n=spikes.count, steps=named, **worst, **usual)


def check_gap(run: RunFiles) -> Check:
    """Training pairs judged surely better than held-out ones: overfitting, where they were seen
    before. A pair counts before its step's update, so that the first visit to it is honest.
    """
    rows = [row["rewards/accuracies"] for row in run.train if "rewards/accuracies" in row]
    late = last_quarter(rows)
    a_step = number(section(run.config, "train").get("pairs_per_step"))
    pairs, (done, _) = number(run.record.get("pairs")), progress(run)
    held_out = _last_accuracy(run)
    if not late or not done or not a_step or not pairs or held_out is None:
        return unknown("gap")
    n = max(1, int(min(len(late) * a_step, pairs)))  # a pair seen twice is still one pair
    value = min(1.0, max(0.0, fmean(late)))
    training = Proportion(value, *wilson(value, n), n)
    gap, low, high = newcombe(held_out, training)
    shares = {"training": percent(training.value), "held_out": percent(held_out.value)}
    ends = {"gap": points(gap), "low": points(low), "high": points(high)}
    if low <= GAP:
        return fine("gap", **shares, **ends)
    case = "warning" if done * a_step > pairs else "warning_first_visits"
    return warning("gap", case, **shares, **ends, limit=points(GAP).lstrip("+"))


def check_held_out(run: RunFiles) -> Check:
    """Too few held-out pairs for their accuracy to say anything."""
    found = _last_accuracy(run)
    if found is None:
        return unknown("held_out")
    width = points(found.high - found.low).lstrip("+")
    enough = math.ceil((Z95 / WIDE) ** 2 - Z95**2)  # Wilson's interval at a half is then as wide
    ends = {"low": percent(found.low), "high": percent(found.high)}
    limit = points(WIDE).lstrip("+")
    result = fine if found.high - found.low <= WIDE else warning
    return result("held_out", width=width, limit=limit, enough=enough, n=found.n, **ends)


def check_rows_used(run: RunFiles) -> Check:
    """Rows that never reached training."""
    data = section(run.record, "data")
    rows, dropped = number(data.get("rows")), number(data.get("dropped"))
    if not rows or dropped is None:
        return unknown("rows_used")
    result = fine if dropped <= DROPPED * rows else warning
    return result("rows_used", dropped=dropped, rows=rows, share=percent(dropped / rows))


def check_side_effects(run: RunFiles) -> Check:
    """What the pairs did not teach should not have got worse (measured by the demo)."""
    before, after = run.outcome.get("named_before"), run.outcome.get("named_after")
    if before is None or after is None:
        return unknown("side_effects")
    change, low, high = newcombe(before, after)
    shares = {"after": percent(after.value), "before": percent(before.value)}
    changes = {"change": points(change), "low": points(low), "high": points(high)}
    result = fine if high >= 0 else warning
    return result("side_effects", **shares, **changes)


def _last_accuracy(run: RunFiles) -> Proportion | None:
    return held_out_accuracy(run.held_out[-1]) if run.held_out else None


def _late_drift(run: RunFiles) -> float | None:
    """Mean change of the chosen answers in the last quarter of the steps, nats a token."""
    if run.pair_log is None or not run.pair_log.drift:
        return None
    return fmean(row["chosen_change_token"] for row in last_quarter(run.pair_log.drift))
