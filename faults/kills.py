"""SIGKILL at every file call that changes the run folder or the cache, then the same command again.

At a write, half of the bytes get there. What the second run leaves must be what a run leaves that
nobody disturbed, and nothing else.
"""

from faults import Options
from faults.lab import Lab, at_every_call, make_lab
from faults.table import Row


def run(options: Options) -> list[Row]:
    """Each kind of tuning, from an empty folder and an empty cache."""
    return at_every_call(make_lab(options), _killed_at, options)


def _killed_at(lab: Lab, kind: str, number: int) -> list[str]:
    trial = lab.trial(kind)
    wrong = trial.unless(-9, trial.train(trial.fault(number=number)), "the run to be killed")
    call = trial.tally().call
    wrong += trial.unless(0, trial.train(), f"after {call}")
    wrong += [f"{found} after {call}" for found in trial.wrong()]
    trial.remove()
    return wrong
