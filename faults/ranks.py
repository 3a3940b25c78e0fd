"""Runs of two processes: at every phase one is killed, stands still, or is asked to stop."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.children import KILLED
from tests.support.ranks import run_ranks, start_ranks
from tests.support.runs import Place, bytes_of, differing, make_place

from faults import Options
from faults.lab import KINDS, every
from faults.table import Row

MODES = ("replicate", "shard")
PHASES = (
    "the reference", "the preflight", "step 0, held-out pairs",
    *(f"step {step}, gradients" for step in range(1, 6)),
    *(f"step {step}, {what}" for step in (2, 4) for what in ("held-out pairs", "saving")),
    "step 5, held-out pairs", "saving the model",
)  # fmt: skip
TIMEOUT = 5  # seconds that a process waits for one that stands still


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


@dataclass(frozen=True)
class Case:
    """What happens to one of two processes, and when."""

    kind: str
    mode: str
    rank: int
    phase: str
    number: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.kind}, {self.mode}, process {self.rank} at {self.phase}"


@dataclass
class _Ranks:
    """A place, and the files of runs that nobody disturbed, by kind and mode."""

    place: Place
    whole: dict[tuple[str, str], dict[str, bytes]]

    def __call__(self, case: Case) -> list[str]:
        """What is wrong after one case."""
        folder = self.place.folder / f"{case.name}, {case.number}".replace(" ", "-")
        config = self.config(case.kind, case.mode, folder / "out")
        event: Callable[[], Any] = partial(_send, case.number)
        children = start_ranks(2, config, folder / "logs", events={case.rank: (case.phase, event)})
        other, hit = children[1 - case.rank], children[case.rank]
        code = other.wait()
        if case.number == signal.SIGSTOP:
            hit.send(signal.SIGKILL)
        ended = hit.wait()
        wrong = ["a traceback"] if "Traceback" in other.output else []
        if case.number == signal.SIGTERM:
            # Where there is no step to finish yet, or none any more, the signal ends it.
            fine = {code, ended} <= {0, 75} or (code, ended) == (1, -15)
            wrong += [] if fine else [f"exits {code} and {ended}"]
        else:
            wrong += [] if (code, ended) == (1, KILLED) else [f"exits {code} and {ended}"]
            named = f"lost process {case.rank}" in other.output
            wrong += [] if named else [f"no name: {other.output[-200:]}"]
        again = start_ranks(2, config, folder / "logs")
        codes = [child.wait() for child in again]
        wrong += [] if codes == [0, 0] else [f"the next start: {again[0].output[-200:]}"]
        wrong += differing(*map(self.compared, (bytes_of(folder / "out"), self.of(case))))
        shutil.rmtree(folder)
        return wrong

    def of(self, case: Case) -> dict[str, bytes]:
        """The files of the run that nobody disturbed."""
        return self.whole[case.kind, case.mode]

    def compared(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """What is the same to the byte: a stop takes a checkpoint more, where pair logs are cut,
        and safetensors writes the notes of a part in an order of its own.
        """
        varies = ("checkpoints/", "pair_log/", "held_out/")
        return {n: b for n, b in files.items() if not n.startswith(varies)}

    def config(self, kind: str, mode: str, out: Path) -> dict[str, Any]:
        """A run of two processes."""
        return self.place.config(out, **KINDS[kind], parallel={"mode": mode, "timeout": TIMEOUT})


def run(options: Options) -> list[Row]:
    """Every phase, both processes, both kinds of tuning, both ways to share a model."""
    place = make_place(options.folder / "place", rows=18)
    ranks = _Ranks(place, {})
    for kind, mode in itertools.product(KINDS, MODES):
        out = place.folder / f"whole-{kind}-{mode}"
        run_ranks(2, ranks.config(kind, mode, out), out.with_suffix(".logs"))
        ranks.whole[kind, mode] = bytes_of(out)
    rows = []
    for what, number in (
        ("a process is killed", signal.SIGKILL),
        ("a process stands still", signal.SIGSTOP),
        ("a process is asked to stop", signal.SIGTERM),
    ):
        all_of = itertools.product(KINDS, MODES, (0, 1), PHASES)
        cases = [Case(kind, mode, rank, phase, number) for kind, mode, rank, phase in all_of]
        rows.append(every(what, {case.name: case for case in cases}, ranks, options))
    return rows
