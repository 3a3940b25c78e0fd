"""Notes of a run: what its health checks find, once while it trains, and all of it at its end."""

from collections.abc import Collection
from pathlib import Path

from likelier.base.terminal import say
from likelier.report.check import Check
from likelier.report.health import health
from likelier.report.read import read_run

SHARES = 10  # of the steps: a run is looked at so often, since all its rows are read each time
FEWEST_STEPS = 20  # of a run that is looked at before its end, and half of them before a look
# What only the end can tell; spikes are said when they come.
_AT_THE_END = {"held_out", "moved", "noise", "rows_used", "side_effects", "answers", "spikes"}


class Notes:
    """Looks at the folder of a run of ``steps`` steps while it trains."""

    def __init__(self, run: Path, steps: int):
        self.run, self.steps = run, steps
        self._said, self._share = set(_AT_THE_END), 0

    def __call__(self, step: int) -> None:
        """Say what is found new, where a tenth of the steps went by since the last look."""
        share = step * SHARES // self.steps
        if share in (self._share, SHARES) or self.steps < FEWEST_STEPS or step < FEWEST_STEPS // 2:
            return
        self._share = share
        for check in _warnings(self.run, self._said):
            self._said.add(check.name)
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
