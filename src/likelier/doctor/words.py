"""What was examined, in words and as plain data."""

from dataclasses import asdict
from typing import Any

from likelier.data.probe import Share
from likelier.data.rules import cure, why
from likelier.doctor.examine import Examination
from likelier.doctor.seen import Statistics


def as_data(found: Examination) -> dict[str, Any]:
    """An examination as plain data, every kind with why it matters and what to do."""
    kinds = [
        {**asdict(kind), "why": why(kind.code), "cure": cure(kind.code)}
        for kind in found.summary.kinds
    ]
    form = {**asdict(found.form), "told": found.form.told}
    statistics = asdict(found.statistics)
    told = {**asdict(found.summary), "kinds": kinds, "format": form, "statistics": statistics}
    return told | {"reference": asdict(found.reference) if found.reference else None}


def reference_lines(found: Examination) -> list[str]:
    """What the model makes of the pairs, in words."""
    view = found.reference
    if view is None:
        return []
    lines = [
        f"the model finds the chosen answer likelier in {share(view.prefers_chosen)} of "
        f"{view.pairs} pairs, by the mean of the tokens",
        f"log-prob a token: chosen {view.chosen:.2f}, rejected {view.rejected:.2f}"
        + (f", its own answers {view.own:.2f} nats" if view.own is not None else " nats"),
    ]
    if view.suspects:
        told = ", ".join(f"{name} {count}" for name, count in view.suspects.items())
        lines.append(f"labels to look at, by source: {told}")
    return lines


def statistics_lines(statistics: Statistics) -> list[str]:
    """The statistics in words, one figure a line."""
    lines = []
    if statistics.labels:
        labels = ", ".join(f"{count} {name}" for name, count in statistics.labels.items())
        lines.append(
            f"{counted(statistics.pairs, 'answer')} to {counted(statistics.prompts, 'prompt')}: "
            f"{labels}"
        )
    elif statistics.pairs:
        pairs, prompts = counted(statistics.pairs, "pair"), counted(statistics.prompts, "prompt")
        lines.append(f"{pairs} of {prompts}")
    if (skew := statistics.lengths) and statistics.pairs > 1:
        lines.append(
            f"chosen is longer in {share(skew.chosen_longer)}; median {skew.median_chosen:.0f} "
            f"and {skew.median_rejected:.0f} {skew.unit}"
        )
    if len(statistics.scripts) > 1:
        total = sum(statistics.scripts.values())
        shares = (f"{name} {count / total:.0%}" for name, count in statistics.scripts.items())
        lines.append(f"answers by letters: {', '.join(shares)}")
    if found := statistics.probe:
        lines.append(
            f"trivial features alone tell chosen from rejected for {share(found.accuracy)} "
            f"of held-out pairs"
        )
        lines += [
            f"  {clue.feature}: {clue.says} in {share(clue.right)} of {clue.differ} pairs"
            for clue in found.clues[:3]
            if clue.right.low > 0.55
        ]
    if len(statistics.origins) > 1:
        told = (f"{name} {count}" for name, count in statistics.origins.items())
        lines.append(f"sources: {', '.join(told)}")
    return lines


def share(figure: Share) -> str:
    """A share with its interval."""
    return f"{figure.value:.0%} ({figure.low:.0%} to {figure.high:.0%})"


def counted(number: int, word: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{number} {word}{'' if number == 1 else 's'}"
