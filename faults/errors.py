"""An error at every file call of the run folder and the cache, then the same command again.

The run must end well or with exit code 73, with one error and no traceback; without the error, the
same command must leave what a run leaves that nobody disturbed.
"""

import errno

from tests.support.children import NO_HELPERS

from faults import Options
from faults.lab import Lab, at_every_call, make_lab
from faults.shim import CHANGES, READS
from faults.table import Row

# What may go wrong at each kind of call: the letters are those of shim.py.
ERRORS = {
    "o": ("ENOSPC", "EROFS", "EDQUOT", "EACCES", "EIO"),
    "w": ("ENOSPC", "EIO", "EDQUOT"),
    "n": ("EROFS", "EACCES", "ENOSPC", "EIO", "EDQUOT"),
    "d": ("EROFS", "EACCES", "EIO"),
    "m": ("ENOSPC", "EDQUOT", "EROFS", "EACCES"),
    "c": ("EROFS", "EACCES", "EIO"),
    "s": ("EIO", "ENOSPC", "EDQUOT"),
    "t": ("EIO", "EACCES", "ENOSPC"),
    "R": ("EACCES", "EIO"),
    "r": ("EIO",),
}
ENDS = (0, 73)


def run(options: Options) -> list[Row]:
    """Each kind of tuning, from an empty folder and an empty cache."""
    lab = make_lab(options, CHANGES + READS, patches=NO_HELPERS)
    return at_every_call(lab, _fails_at, options)


def _fails_at(lab: Lab, kind: str, number: int) -> list[str]:
    """The errors take turns; every second time around, later calls fail with the same error."""
    calls = lab.kinds[kind]
    names = ERRORS[calls[number - 1]]
    name, from_then_on = names[number % len(names)], bool(number // len(names) % 2)
    kinds = "".join(letter for letter in ERRORS if name in ERRORS[letter])
    if from_then_on:  # only at calls that may end so
        number = sum(call in kinds for call in calls[:number])
    else:
        kinds = CHANGES + READS
    trial = lab.trial(kind)
    how = {"number": number, "kinds": kinds, "code": getattr(errno, name)}
    code = trial.train(trial.fault(**how, from_then_on=from_then_on))
    tally = trial.tally()
    wrong = [] if tally.hits else ["no call failed"]
    if code not in ENDS:
        wrong.append(f"exit {code}: {trial.said()}")
    wrong += trial.badly_said(code)
    wrong += trial.unless(0, trial.train(), "the same command again")
    wrong += trial.wrong()
    trial.remove()
    how = f"{name} {'from then on' if from_then_on else 'once'} at {tally.call}"
    return [f"{how}: {'; '.join(wrong)}"] if wrong else []
