"""What changed, in one sentence that claims no more than its interval; and the key figures."""

from dataclasses import dataclass
from typing import Literal

from likelier.report.loss import reads_reference, reward_scale
from likelier.report.read import Row, RunFolder, Share, count, number, section, share
from likelier.report.words import (
    difference,
    duration,
    interval,
    percent,
    points,
    short,
    signed,
    wilson,
)

Tone = Literal["better", "same", "worse", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """``tone`` says which way the measured thing went; the sentence says it in full."""

    tone: Tone
    sentence: str
    status: str


@dataclass(frozen=True)
class Card:
    """One key figure: what it is, its value, and what stands beside it."""

    label: str
    value: str
    detail: str


def give_verdict(run: RunFolder) -> Verdict:
    """The best evidence the folder holds: sampled answers, else held-out pairs, else the loss."""
    tone, sentence = _from_samples(run) or _from_held_out(run) or _from_loss(run)
    return Verdict(tone, sentence, _status(run))


def held_out_accuracy(row: Row) -> Share | None:
    """The accuracy of an evaluation row with its interval (Wilson's where the row has none)."""
    value, n = row.get("eval_rewards/accuracies"), count(row.get("eval_pairs"))
    if value is None or not n or not 0 <= value <= 1:
        return None
    written = {
        "value": value,
        "low": row.get("eval_rewards/accuracies_low"),
        "high": row.get("eval_rewards/accuracies_high"),
        "n": n,
    }
    return share(written) or wilson(value, n)


def log_ratio(run: RunFolder, rewards: list[float]) -> float | None:
    """The last reward over beta: the change of log-prob from the reference, nats an answer."""
    scale = reward_scale(run) if reads_reference(run) else None
    return number(rewards[-1] / scale) if rewards and scale else None


def progress(run: RunFolder) -> tuple[int | None, int | None]:
    """Steps done and steps planned, as far as they are known."""
    done = count(run.record.get("step"))
    if run.train:
        done = max(done or 0, int(run.train[-1]["step"]))
    return done, count(run.record.get("steps"))


def _status(run: RunFolder) -> str:
    done, planned = progress(run)
    steps = "" if done is None else f" at step {done:,}" + (f" of {planned:,}" if planned else "")
    if run.record.get("status") == "finished":
        return f"Finished{steps}."
    if run.record.get("status") == "stopped":
        return f"Stopped early{steps}. Start the same command again and it goes on from there."
    if done is None:
        return "Not finished: no step has been logged yet."
    return (
        f"Not finished: these are the figures{steps}. "
        "If nothing is running, start the same command again and it goes on."
    )


def _from_samples(run: RunFolder) -> tuple[Tone, str] | None:
    before, after = run.outcome.get("preferred_before"), run.outcome.get("preferred_after")
    if before is None or after is None:
        return None
    change, low, high = difference(before, after)
    now = (
        f"After training, {percent(after.value)} of the sampled answers are in the preferred "
        f"manner (95% interval {interval(after)})"
    )
    then = f"{percent(before.value)} before ({interval(before)})"
    if low <= 0 <= high:
        return "same", f"{now}, against {then}: not distinguishable from the start."
    if change > 0:
        return "better", f"{now}, up from {then}."
    return "worse", f"{now}, down from {then}."


def _from_held_out(run: RunFolder) -> tuple[Tone, str] | None:
    accuracies = [found for row in run.held_out if (found := held_out_accuracy(row)) is not None]
    if not accuracies:
        return None
    last = accuracies[-1]
    figures = f"{percent(last.value)} (95% interval {interval(last)})"
    if last.low <= 0.5 <= last.high:
        return "same", (
            "On pairs it never trained on, the model is not distinguishable from the start: "
            f"it moved towards the chosen answer in {figures}, and moving at random gives 50%."
        )
    if last.value > 0.5:
        return "better", (
            "On pairs it never trained on, the model moved towards the chosen answer more than "
            f"the rejected one in {figures}; moving at random gives 50%."
        )
    return "worse", (
        "On pairs it never trained on, the model moved the wrong way: towards the chosen answer "
        f"more than the rejected one in only {figures}; moving at random gives 50%."
    )


def _from_loss(run: RunFolder) -> tuple[Tone, str]:
    if not run.train:
        return "unknown", "No step has been written yet, so there is nothing to judge."
    first, last = run.train[0], run.train[-1]
    if len(run.train) == 1:
        moved = f"The loss at the only step written was {short(first['loss'])}"
    else:
        moved = f"The training loss went from {short(first['loss'])} to {short(last['loss'])}"
    return "unknown", (
        f"{moved}. No held-out pairs were scored, so whether the model got better "
        "on anything it has not seen is not known."
    )


def key_figures(run: RunFolder) -> list[Card]:
    """The figures worth a glance, those that the folder holds and no others."""
    cards = [_before_after(run, "preferred", "In the preferred manner")]
    cards.append(_before_after(run, "named", "Naming the right topic"))
    cards += [_stopped(run), _accuracy(run), _loss(run), _chosen(run), _time(run), _sharing(run)]
    return [card for card in cards if card is not None]


def _before_after(run: RunFolder, name: str, label: str) -> Card | None:
    before, after = run.outcome.get(f"{name}_before"), run.outcome.get(f"{name}_after")
    if before is None or after is None:
        return None
    change, low, high = difference(before, after)
    detail = (
        f"{points(change)} points (95% interval {points(low)} to {points(high)}), "
        f"{after.n:,} sampled answers"
    )
    return Card(label, f"{percent(before.value)} → {percent(after.value)}", detail)


def _stopped(run: RunFolder) -> Card | None:
    found = run.outcome.get("stopped_after")
    if found is None:
        return None
    return Card("Answers that end by themselves", percent(found.value), interval(found))


def _accuracy(run: RunFolder) -> Card | None:
    found = run.outcome.get("heldout_accuracy")
    if found is None and run.held_out:
        found = held_out_accuracy(run.held_out[-1])
    if found is None:
        return None
    return Card("Held-out accuracy", percent(found.value), interval(found))


def _loss(run: RunFolder) -> Card | None:
    name, rows = ("Held-out loss", run.held_out) if run.held_out else ("Training loss", run.train)
    key = "eval_loss" if run.held_out else "loss"
    rows = tuple(row for row in rows if key in row)
    if not rows:
        return None
    first = f"{short(rows[0][key])} at step {rows[0]['step']:,.0f}" if len(rows) > 1 else ""
    return Card(name, short(rows[-1][key]), first)


def _chosen(run: RunFolder) -> Card | None:
    """How much likelier the chosen answers are than under the reference: the displacement."""
    rows, key = (run.held_out, "eval_rewards/chosen")
    if not any(key in row for row in rows):
        rows, key = (run.train, "rewards/chosen")
    change = log_ratio(run, [row[key] for row in rows if key in row])
    if change is None:
        return None
    where = "held-out" if key.startswith("eval_") else "training"
    detail = f"against the reference, {where} pairs"
    return Card("Chosen answers, log-prob", f"{signed(change)} nats", detail)


def _time(run: RunFolder) -> Card | None:
    seconds = sum(row.get("seconds", 0) for row in run.timing)
    if seconds <= 0:
        return None
    pairs = sum(row.get("pairs", 0) for row in run.timing)
    speed = f"{short(pairs / seconds)} pairs a second" if pairs else ""
    return Card("Time in training steps", duration(seconds), speed)


def _sharing(run: RunFolder) -> Card | None:
    tokens = section(run.record, "tokens")
    plain, tree = count(tokens.get("plain")), count(tokens.get("tree"))
    if not plain or not tree:
        return None
    detail = f"{tree:,} computed in place of {plain:,}"
    return Card("Tokens saved by sharing", percent(1 - tree / plain), detail)
