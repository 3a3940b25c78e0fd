"""Files of a stopped run and of the caches damaged, and folders that two processes want.

The same command must then leave what a run leaves that nobody disturbed, or refuse with one error
and a listed exit code: never other bytes, and it must end.
"""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults import Options
from faults.lab import FEW_BITS, KINDS, Lab, Trial, every, make_lab
from faults.shim import LOCK
from faults.table import Row

REFUSALS = (1, 65, 73)
# A damaged checkpoint that no run needs may stay; rows that are lost, and said to be, are lost in
# what is made of them.
UNUSED = ("checkpoints/step-00000002/",)
SAID_LOST = "no checkpoint is left to make them again from"
LOST = (*UNUSED, "metrics.jsonl", "pair_log/", "held_out/", "run.json", *(
    f"{name} differs"
    for folder in ("checkpoints/step-00000004", "best/step-00000005", "model", "adapter")
    for name in (f"{folder}/MANIFEST.json", f"{folder}/README.md")
))  # fmt: skip
OFFSETS = 50  # of the start of a second process on the same folder
Damage = Callable[[Path], object]


def _flip(place: float | None, path: Path) -> None:
    """Change one bit: of a byte so far into the file, or anywhere, as the file's name draws it."""
    data = bytearray(path.read_bytes())
    draw = random.Random(path.name)
    at = draw.randrange(len(data)) if place is None else round(place * (len(data) - 1))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _instead(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


DAMAGES: dict[str, Damage] = {
    "a bit of the first byte": partial(_flip, 0.0),
    "a bit in the middle": partial(_flip, 0.5),
    "a bit of the last byte": partial(_flip, 1.0),
    "a bit anywhere": partial(_flip, None),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "a folder": partial(_instead, Path.mkdir),
    "a link to /dev/zero": partial(_instead, lambda path: path.symlink_to("/dev/zero")),
    "a FIFO": partial(_instead, os.mkfifo),
}
LOCKS: dict[str, Damage] = {
    "of a process that is gone": lambda path: path.write_text("process 999999 on elsewhere"),
    "empty": lambda path: path.write_text(""),
    "of zeros": lambda path: path.write_bytes(bytes(100)),
}


def run(options: Options) -> list[Row]:
    """Runs of every kind that were killed at their last step, with two checkpoints."""
    kinds = KINDS | FEW_BITS
    lab = make_lab(options, runs=kinds)
    rows = []
    for kind in kinds:
        stopped = _stopped(lab, kind)
        try_ = partial(_damaged, lab, stopped)
        files = sorted(path for path in stopped.work.rglob("*") if path.is_file())
        of_run, of_cache = (
            {
                f"{path.relative_to(stopped.work)}: {how}": partial(
                    _apply, damage, path.relative_to(stopped.work)
                )
                for path in files
                if path.is_relative_to(folder) and path.name != ".lock" and path.stat().st_size
                for how, damage in DAMAGES.items()
            }
            for folder in (stopped.out, stopped.cache)
        )
        rows += [
            every(f"files of a run, {kind}", of_run, try_, options),
            every(f"files of its cache, {kind}", of_cache, try_, options),
            every(f"swapped between checkpoints, {kind}", _swaps(stopped), try_, options),
        ]
    stopped = _stopped(lab, "LoRA")
    locks = {how: partial(_apply, damage, Path("out/.lock")) for how, damage in LOCKS.items()}
    offsets = {f"after {part / OFFSETS:.0%} of a run": part / OFFSETS for part in range(OFFSETS)}
    return [
        *rows,
        every("a lock that was left", locks, partial(_damaged, lab, stopped), options),
        every(
            "no locks on the file system",
            {k: k for k in kinds},
            partial(_without_flock, lab),
            options,
        ),
        every("two processes, one folder", offsets, partial(_two, lab), options),
    ]


def _stopped(lab: Lab, kind: str) -> Trial:
    """A run that was killed when its last step was in the log, with two checkpoints."""
    trial = lab.trial(kind, keep=2)
    trial.ended(trial.start_until_step(trial.steps))
    return trial


def _apply(damage: Damage, name: Path, work: Path) -> None:
    damage(work / name)


def _swaps(stopped: Trial) -> dict[str, Callable[[Path], None]]:
    """Each file of the two checkpoints exchanged for the other's, and the folders themselves."""
    one, other = sorted((stopped.out / "checkpoints").iterdir())
    pairs = [(one, other), *((one / path.name, other / path.name) for path in other.iterdir())]

    def swap(first: Path, second: Path, work: Path) -> None:
        aside = work / "aside"
        (work / first).rename(aside)
        (work / second).rename(work / first)
        aside.rename(work / second)

    named = [tuple(path.relative_to(stopped.work) for path in pair) for pair in pairs]
    return {f"{second}": partial(swap, first, second) for first, second in named}


def _damaged(lab: Lab, stopped: Trial, damage: Callable[[Path], None]) -> list[str]:
    trial = lab.trial(stopped.kind, keep=2)
    shutil.copytree(stopped.work, trial.work)
    damage(trial.work)
    code = trial.train()
    if code == 0:
        pardoned = LOST if SAID_LOST in trial.output else UNUSED
        wrong = [line for line in trial.wrong() if not line.startswith(pardoned)]
    else:
        wrong = [] if code in REFUSALS else [f"exit {code}: {trial.said()}"]
        wrong += trial.badly_said(code)
    trial.remove()
    return wrong


def _without_flock(lab: Lab, kind: str) -> list[str]:
    """What cannot be locked is said to be so, and is not taken for the work of another process."""
    trial = lab.trial(kind)
    how = {"number": 1, "kinds": LOCK, "code": errno.ENOLCK, "from_then_on": True}
    code = trial.train(trial.fault(**how))
    wrong = [] if trial.tally().hits else ["nothing was locked"]
    if code == 0:
        wrong += trial.wrong()
    else:
        wrong += trial.unless(73, code, "without locks")
    if "another process" in trial.output:
        wrong.append(f"taken for another process: {trial.said()}")
    trial.remove()
    return wrong


def _two(lab: Lab, part: float) -> list[str]:
    """A second start while the first works: refused, or done where the first is done already."""
    trial = lab.trial("LoRA")
    first = trial.start()
    time.sleep(part * lab.seconds)
    second = trial.start()
    codes = [trial.ended(child) for child in (first, second)]
    wrong = [] if sorted(codes) in ([0, 0], [0, 73]) else [f"exits {codes}: {trial.said()}"]
    if 73 in codes and "another process" not in trial.output + first.output:
        wrong.append(f"not said why: {trial.said()}")
    wrong += trial.wrong()
    trial.remove()
    return wrong
