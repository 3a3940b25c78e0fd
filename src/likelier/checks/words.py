"""What was examined, in words and as plain data."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from likelier.base.terminal import visible
from likelier.checks.examine import Examination
from likelier.checks.rules import cure, why
from likelier.checks.seen import Statistics
from likelier.checks.shortcuts import Share
from likelier.data.check import Summary
from likelier.data.records import Finding


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


_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_summary(summary: Summary) -> None:
    """Print a table of the kinds of findings, then the first places of each."""
    console = Console(highlight=False, markup=False, emoji=False)
    if summary.kinds:
        table = Table("code", "severity", "count", "why it matters", title_justify="left")
        table.columns[2].justify = "right"
        for kind in summary.kinds:
            table.add_row(visible(kind.code), kind.severity, str(kind.count), why(kind.code))
        console.print(table)
    for kind in summary.kinds:
        for number, place in enumerate(kind.places):
            _print_place(console, place)
            following = kind.places[number + 1 : number + 2]
            if place.hint and all(other.hint != place.hint for other in following):
                console.print(visible(f"  {place.hint}"), style="dim", soft_wrap=True)
        hidden = kind.count - len(kind.places)
        if hidden:
            console.print(f"  and {hidden} more {visible(kind.code)}", soft_wrap=True)
    console.print(f"{summary.usable} of {summary.rows} rows can be used")


def _print_place(console: Console, place: Finding) -> None:
    # Not wrapped: a place must stay one piece, for editors and grep.
    colour = _COLOURS[place.severity]
    console.print(place.severity, style=colour, end=" ", soft_wrap=True)
    console.print(visible(f"{place.where}: {place.message}"), soft_wrap=True)
