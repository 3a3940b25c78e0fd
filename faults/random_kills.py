"""SIGKILL at random instants, up to five in a row, until the run is done."""

import random
import shutil
from dataclasses import replace
from itertools import count
from threading import Lock

from faults import Options
from faults.lab import KINDS, Lab, every, make_lab
from faults.table import Row

KILLS, MOST_IN_A_ROW = 200, 5
CACHES = ("shared", "own", "new each time")


class _Runs:
    """Runs that are killed, and how often that was."""

    def __init__(self, lab: Lab, seed: int):
        self.lab, self.seed = lab, seed
        self.kills, self._turn = 0, Lock()

    def __call__(self, number: int) -> list[str]:
        """Kill one run some times, and let it end; what it does follows from the seed."""
        draw = random.Random(f"{self.seed}-{number}")
        trial = self.lab.trial(draw.choice(list(KINDS)))
        cache = draw.choice(CACHES)
        if cache == "shared":
            trial.cache = self.lab.folder / f"shared-{trial.kind}"
        wrong = []
        for _ in range(draw.randint(1, MOST_IN_A_ROW)):
            child = trial.start()
            # A run that resumes is shorter: short waits are drawn more often than long ones.
            wait = draw.random() * draw.random() * 1.5 * self.lab.seconds
            code = child.code_within(wait)
            if code is not None:
                wrong += trial.unless(0, trial.ended(child), "a run that was not killed in time")
                break
            child.send(9)
            trial.ended(child)
            with self._turn:
                self.kills += 1
            if cache == "new each time":
                shutil.rmtree(trial.cache, ignore_errors=True)
        wrong += trial.unless(0, trial.train(), "the last start") + trial.wrong()
        trial.remove()
        return [f"{trial.kind}, cache {cache}: {'; '.join(wrong)}"] if wrong else []


def run(options: Options) -> list[Row]:
    """Runs of either kind, with a cache of their own, a shared one, or a new one at each start."""
    lab = make_lab(options)
    runs = _Runs(lab, options.seed)
    print(f"  seed {options.seed}", flush=True)
    tried, failed = 0, []
    for first in count(0, 10):
        cases = {f"run {number}": number for number in range(first, first + 10)}
        row = every("", cases, runs, replace(options, stride=1))
        tried, failed = tried + row.tried, failed + row.failed
        if runs.kills >= KILLS // options.stride:
            break
    what = f"runs with {runs.kills} kills in all"
    return [Row(what, tried, tried - len(failed), failed)]
