"""What a careful reader would look for in the rows of a run: each check, its reason and its fix."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from likelier.report.loss import reads_reference
from likelier.report.read import Row, RunFolder, number, section
from likelier.report.verdict import held_out_accuracy, progress
from likelier.report.words import difference, percent, points, short, signed

EARLY = 0.1  # of the steps planned
TOO_EASY = 0.95  # accuracy that early usually means a shortcut
OFTEN = 0.5  # of the steps clipped
RISES = 3  # evaluations in a row with a higher held-out loss than the one before
DROPPED = 0.05  # of the rows
DRIFT_ALARM = -0.1  # nats a token, chosen answers against the reference
FLAT = 1e-12  # a gradient norm no larger than this is no gradient


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``look``: something is there; ``unknown``: the rows do not say."""

    state: Literal["look", "fine", "unknown"]
    title: str
    reason: str
    fix: str = ""


def health(run: RunFolder) -> list[Check]:
    """All checks, what needs a look first."""
    order = {"look": 0, "fine": 1, "unknown": 2}
    return sorted((check(run) for check in CHECKS), key=lambda check: order[check.state])


def check_learning(run: RunFolder) -> Check:
    """Gradients that are all zero: nothing trainable is reached from the loss."""
    title = "The gradients reach the weights"
    norms = [row["grad_norm"] for row in run.train if "grad_norm" in row]
    if not norms:
        return Check("unknown", title, "No gradient norms were written.")
    if max(norms) > FLAT:
        return Check("fine", title, f"The largest gradient norm was {short(max(norms))}.")
    return Check(
        "look",
        "Nothing is being learned",
        f"The gradient norm was 0 in all {len(norms):,} steps written.",
        "Check that the adapter or the weights are trainable, and that chosen and rejected differ.",
    )


def check_chosen(run: RunFolder) -> Check:
    """Likelihood displacement: the chosen answers themselves lose probability."""
    title = "The chosen answers keep their probability"
    if not reads_reference(run):
        return Check("unknown", title, "This loss reads no reference to compare them with.")
    rows, key = run.held_out, "eval_rewards/chosen"
    if sum(key in row for row in rows) < 2:
        rows, key = run.train, "rewards/chosen"
    values = [row[key] for row in rows if key in row]
    if len(values) < 2:
        return Check("unknown", title, "Too few rows with rewards of chosen answers.")
    kind = "held-out" if key.startswith("eval_") else "training"
    quarter = max(1, len(values) // 4)
    late, earlier = _mean(values[-quarter:]), _mean(values[-2 * quarter : -quarter])
    if late >= 0 or late >= earlier:
        return Check("fine", title, f"Their reward ends at {signed(late, 3)} on {kind} pairs.")
    drift = _late_drift(run)
    reason = (
        f"On {kind} pairs their reward fell from {signed(earlier, 3)} to {signed(late, 3)} late in "
        "the run: the answers that the model should like became less likely than at the start."
    )
    if drift is None or drift >= DRIFT_ALARM:
        told = "" if drift is None else f" That is {signed(drift, 3)} nats a training token."
        return Check(
            "look",
            "The chosen answers lose probability",
            f"{reason}{told} This is common and often harmless: the loss looks at the difference "
            "only.",
            "Read the samples. If they got worse, use a larger loss.beta or a smaller optim.lr.",
        )
    return Check(
        "look",
        "The chosen answers lose much of their probability",
        f"{reason} At {signed(drift, 3)} nats a token that is more than usual, and the "
        "probability goes to answers that stand in no pair.",
        "Read the samples; use a larger loss.beta or a smaller optim.lr, and look for pairs whose "
        "two answers are nearly the same.",
    )


def check_shortcut(run: RunFolder) -> Check:
    """Accuracy that is high almost at once: something simpler than the content tells them apart."""
    title = "The pairs are not told apart at once"
    _, planned = progress(run)
    if not planned:
        return Check("unknown", title, "How many steps were planned is not known.")
    early = [row for row in run.held_out if 0 < row["step"] <= EARLY * planned]
    found = [s.value for row in early if (s := held_out_accuracy(row)) is not None]
    steps = [r for r in run.train if r["step"] <= EARLY * planned and "rewards/accuracies" in r]
    if len(steps) >= 4:  # one step's few pairs say little, and the first is before any update
        found.append(_mean([row["rewards/accuracies"] for row in steps[len(steps) // 2 :]]))
    if not found:
        return Check("unknown", title, "Too few rows in the first tenth of the steps.")
    if max(found) < TOO_EASY:
        return Check("fine", title, f"Accuracy in the first tenth: {percent(max(found))} at most.")
    return Check(
        "look",
        "The pairs were told apart almost at once",
        f"Accuracy was {percent(max(found))} within the first tenth of the steps. The answers "
        "usually differ in something simple then: length, format, language, a missing end.",
        "Fine where that is what you want to teach. Otherwise compare a few pairs by eye with "
        "`likelier show`.",
    )


def check_clipping(run: RunFolder) -> Check:
    """Most steps clipped: the step size is then set by the clip, not by the learning rate."""
    title = "The gradients are seldom clipped"
    limit = number(section(run.config, "optim").get("max_grad_norm"))
    norms = [row["grad_norm"] for row in run.train if "grad_norm" in row]
    if limit is None or not norms:
        return Check("unknown", title, "No gradient norms were written, or nothing clips them.")
    clipped = sum(norm > limit for norm in norms) / len(norms)
    found = f"{percent(clipped)} of the steps were above optim.max_grad_norm ({short(limit)})"
    if clipped <= OFTEN:
        return Check("fine", title, f"{found}.")
    return Check(
        "look",
        "The gradients are clipped most of the time",
        f"{found}: the clip, more than the learning rate, decides how far a step goes.",
        "Use a smaller optim.lr or loss.beta, more pairs a step, or a higher limit.",
    )


def check_overfitting(run: RunFolder) -> Check:
    """Held-out loss that keeps rising: the run learns its own pairs by heart."""
    title = "The held-out loss does not keep rising"
    rows = [row for row in run.held_out if "eval_loss" in row]
    if len(rows) <= RISES:
        return Check("unknown", title, f"Fewer than {RISES + 1} evaluations were written.")
    rising = 0
    for before, after in pairwise(rows):
        rising = rising + 1 if after["eval_loss"] > before["eval_loss"] else 0
        if rising == RISES:
            break
    else:
        return Check("fine", title, f"It ends at {short(rows[-1]['eval_loss'])}.")
    best = min(rows, key=lambda row: row["eval_loss"])
    return Check(
        "look",
        "The held-out loss kept rising",
        f"It rose {RISES} evaluations in a row, after {short(best['eval_loss'])} at step "
        f"{best['step']:,.0f}: the model learns the training pairs by heart.",
        f"Train for fewer steps (about {best['step']:,.0f}), use a smaller optim.lr, or more data.",
    )


def check_rows_used(run: RunFolder) -> Check:
    """Rows that never reached training."""
    title = "Most rows of the data were used"
    data = section(run.record, "data")
    rows, dropped = number(data.get("rows")), number(data.get("dropped"))
    if not rows or dropped is None:
        return Check("unknown", title, "The counts of the data are not in run.json.")
    found = f"{dropped:,.0f} of {rows:,.0f} rows were dropped"
    if dropped <= DROPPED * rows:
        return Check("fine", title, f"{found}.")
    return Check(
        "look",
        "Many rows of the data were dropped",
        f"{found} ({percent(dropped / rows)}): the run saw another set than the one you gave.",
        "`likelier check` says which rows and why.",
    )


def check_side_effects(run: RunFolder) -> Check:
    """What the pairs did not teach should not have got worse (measured by the demo)."""
    title = "Nothing else got measurably worse"
    before, after = run.outcome.get("named_before"), run.outcome.get("named_after")
    if before is None or after is None:
        return Check("unknown", title, "This run measured nothing but what its pairs teach.")
    change, low, high = difference(before, after)
    found = (
        f"The right topic is named in {percent(after.value)} of the answers, "
        f"{percent(before.value)} before ({points(change)} points, 95% interval "
        f"{points(low)} to {points(high)})."
    )
    if high >= 0:
        return Check("fine", title, found)
    fix = "Use fewer steps, a smaller optim.lr or a larger loss.beta."
    return Check("look", "Something else got worse", found, fix)


CHECKS: tuple[Callable[[RunFolder], Check], ...] = (
    check_learning,
    check_chosen,
    check_shortcut,
    check_clipping,
    check_overfitting,
    check_rows_used,
    check_side_effects,
)


def _late_drift(run: RunFolder) -> float | None:
    """Mean change of the chosen answers in the last quarter of the steps, nats a token."""
    if run.ledger is None or not run.ledger.drift:
        return None
    rows: tuple[Row, ...] = run.ledger.drift
    return _mean([row["chosen_change_token"] for row in rows[-max(1, len(rows) // 4) :]])


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
