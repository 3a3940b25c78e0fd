"""The verdict in three sentences: what changed, how sure that is, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from likelier.pages.texts import percent, points, short, text
from likelier.report.check import Check
from likelier.report.read import RunFiles, held_out_accuracy, newcombe
from likelier.report.summary import interval_in_words

# Which way the measured thing went; "mixed": better, and a warning stands against it.
Tone = Literal["better", "mixed", "same", "worse", "unknown"]
# Warnings that stand against a change for the better, the gravest first.
AGAINST = ("learning", "moved", "noise", "overfitting", "gap", "side_effects", "chosen", "answers")
# Others, in the order in which they are worth a look.
BESIDE = ("length", "shortcut", "held_out", "saturation", "clipping", "spikes", "rows_used")


@dataclass(frozen=True)
class Verdict:
    """``changed`` and ``sure`` are of the best evidence in the folder: sampled answers, else
    held-out pairs, else the training loss. ``to_do`` follows from them and from the health checks.
    """

    tone: Tone
    changed: str
    sure: str
    to_do: str

    @property
    def sentences(self) -> tuple[str, str, str]:
        return (self.changed, self.sure, self.to_do)


def give_verdict(run: RunFiles, checks: Sequence[Check]) -> Verdict:
    """The verdict; ``checks`` are those of `health`, and none of them says the opposite."""
    found = _from_samples(run) or _from_held_out(run, checks) or _from_loss(run)
    names = [check.name for check in checks if check.state == "warning"]
    if found.tone == "better" and not set(AGAINST).isdisjoint(names):
        found = replace(found, tone="mixed")
    return replace(found, to_do=_to_do(run, found.tone, checks))


def _from_samples(run: RunFiles) -> Verdict | None:
    before, after = run.outcome.get("preferred_before"), run.outcome.get("preferred_after")
    if before is None or after is None:
        return None
    change, low, high = newcombe(before, after)
    tone = _tone(low, high, 0)
    shares = {"before": percent(before.value), "after": percent(after.value)}
    changed = text(f"report.verdict.samples_{tone}", **shares)
    ends: dict[str, Any] = {"change": points(change), "low": points(low), "high": points(high)}
    return Verdict(
        tone, changed, text(f"report.verdict.samples_sure_{tone}", **ends, n=after.n), ""
    )


def _from_held_out(run: RunFiles, checks: Sequence[Check]) -> Verdict | None:
    """Of the last evaluation. Its interval may know less of prompts than a check does: where the
    check cannot tell the accuracy from chance, the verdict does not either.
    """
    accuracies = [found for row in run.held_out if (found := held_out_accuracy(row)) is not None]
    if not accuracies:
        return None
    last = accuracies[-1]
    tone = _tone(last.low, last.high, 0.5)
    moved = next((check.state for check in checks if check.name == "moved"), "unknown")
    changed = text(f"report.verdict.held_out_{tone}", share=percent(last.value))
    sure = text(f"report.verdict.held_out_sure_{tone}", interval=interval_in_words(last))
    if moved == "warning" and tone != "same":
        tone, changed = "same", text("report.verdict.held_out_same", share=percent(last.value))
        sure = text("report.verdict.held_out_sure_prompts", interval=interval_in_words(last))
    return Verdict(tone, changed, sure, "")


def _from_loss(run: RunFiles) -> Verdict:
    if not run.train:
        return Verdict("unknown", text("report.verdict.nothing_yet"), "", "")
    first, last = short(run.train[0]["loss"]), short(run.train[-1]["loss"])
    changed = text("report.verdict.losses", first=first, last=last)
    if len(run.train) == 1:
        changed = text("report.verdict.one_loss", loss=first)
    return Verdict("unknown", changed, text("report.verdict.not_held_out"), "")


def _tone(low: float, high: float, nothing: float) -> Literal["better", "same", "worse"]:
    """Which way a figure went whose interval is ``low`` to ``high``."""
    if low <= nothing <= high:
        return "same"
    return "better" if low > nothing else "worse"


def _to_do(run: RunFiles, tone: Tone, checks: Sequence[Check]) -> str:
    """The next thing to do. A warning comes first: what it says to do stands under Health."""
    warnings = {check.name: check for check in checks if check.state == "warning"}
    order = [name for name in (*AGAINST, *BESIDE, *warnings) if name in warnings]
    if order:
        more = len(warnings) - 1
        title = warnings[order[0]].title
        if not more:
            return text("report.verdict.look", title=title)
        return text("report.verdict.look_more", title=title, n=more)
    if run.record.get("status") not in ("finished", "stopped"):
        return text("report.verdict.wait")
    if run.record.get("status") == "stopped":
        return text("report.verdict.resume")
    return text(f"report.verdict.next_{tone}")
