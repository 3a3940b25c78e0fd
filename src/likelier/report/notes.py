"""Notes of a run: what its health checks find, once while it trains, and all of it at its end."""

from collections.abc import Collection
from pathlib import Path

from likelier.base.terminal import say
from likelier.report.check import Check
from likelier.report.health import health
from likelier.report.read import read_run

# What only the end can tell; spikes are said when they come.
_AT_THE_END = {"held_out", "moved", "noise", "rows_used", "side_effects", "answers", "spikes"}


def say_new_notes(run: Path, step: int, said: set[str]) -> None:
    """Say of a run that is ``step`` steps far what was not ``said`` before, and add it there."""
    for check in _warnings(run, said | _AT_THE_END):
        said.add(check.name)
        say(f"note after step {step}: {_in_words(check)}")


def say_notes(run: Path) -> None:
    """Say all that there is to look at of a run that has ended."""
    for check in _warnings(run, ()):
        say(f"note: {_in_words(check)}")


def _warnings(run: Path, known: Collection[str]) -> list[Check]:
    """What was found but for what is ``known``. What fails here is said, and fails no run."""
    try:
        found = health(read_run(run))
    except Exception as error:
        say(f"no notes on this run: {type(error).__name__}: {error}")
        return []
    return [one for one in found if one.state == "warning" and one.name not in known]


def _in_words(check: Check) -> str:
    return f"{check.title}. {check.reason} {check.fix}"
