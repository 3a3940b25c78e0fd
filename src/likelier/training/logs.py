"""The logs of a run: rows are added, sealed where a checkpoint is taken, and cut back to one.

The seal of a log, its count of rows and their hash, stands in the manifest of the checkpoint. A run
resumes from the newest checkpoint whose logs are as they were; what no checkpoint can make again is
said to be lost.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from likelier.base.files import append_lines, output_errors, read_lines, sync, write_lines

Seal = dict[str, Any]
_ACCURACY = tuple(f"rewards/accuracies{end}" for end in ("", "_low", "_high"))


class Sealed(Protocol):
    """What grows with a run and is sealed at its checkpoints."""

    name: str

    def seal(self) -> Seal:
        """What stands there now; the same steps give the same seal."""

    def lost(self, seal: Seal, step: int) -> str | None:
        """What is not there any more of what was sealed after a step, in words."""

    def cut_back(self, step: int, seal: Seal) -> None:
        """Forget what came after a step, where this was the seal; no step is the beginning."""

    def sync(self) -> None:
        """Have it on disk."""


class Log:
    """A JSONL file with a row ``every`` so many steps, and others between them. ``clock`` names
    figures that time gives, not the run: they are no part of the seal.
    """

    def __init__(self, path: Path, every: int = 1, clock: Iterable[str] = ()):
        self.path, self.name = path, path.name
        self._every, self._clock = every, frozenset(clock)
        self._count, self._digest = 0, hashlib.sha256()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to the end. Raises OutputError where the disk refuses."""
        append_lines(self.path, [row])
        self._take(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in row.items() if name not in self._clock}
        self._count += 1
        self._digest.update(json.dumps(kept).encode() + b"\n")

    def seal(self) -> Seal:
        """The number of rows, and a hash of all that the clock did not give."""
        return {"rows": self._count, "sha256": self._digest.hexdigest()}

    def lost(self, seal: Seal, step: int) -> str | None:
        """How many rows up to a step are not there, and of which steps; or that they changed."""
        there = Log(self.path, self._every, self._clock)
        rows = self._until(step)
        for row in rows:
            there._take(row)
        if there.seal() == seal:
            return None
        written, steps = seal.get("rows"), {row["step"] for row in rows}
        gone = written - len(rows) if isinstance(written, int) else 0
        if gone <= 0:
            return f"{self.name}: rows up to step {step} are not as they were written"
        without = [s for s in range(self._every, step + 1, self._every) if s not in steps]
        what = f"{self.name}: {gone} of the {written} rows up to step {step} are lost"
        return f"{what}; nothing is left of step {in_words(without)}" if without else what

    def _until(self, step: int) -> list[dict[str, Any]]:
        rows = (row for row in read_lines(self.path) if isinstance(row.get("step"), int))
        return [row for row in rows if step and row["step"] <= step]

    def cut_back(self, step: int, seal: Seal) -> None:
        """Forget what was logged after a step."""
        rows = self._until(step)
        write_lines(self.path, rows)
        self._count, self._digest = 0, hashlib.sha256()
        for row in rows:
            self._take(row)

    def sync(self) -> None:
        """Have the rows on disk."""
        with output_errors(self.path):
            sync(self.path)


def held_out_rows(run: Path) -> list[dict[str, float]]:
    """The rows of evaluations in a run's log; one that is damaged is left out."""
    names = [f"eval_{name}" for name in ("loss", *_ACCURACY)]
    return [
        row
        for row in read_lines(run / "metrics.jsonl")
        if all(isinstance(row.get(name), int | float) for name in names)
    ]


def seals_of(logs: Iterable[Sealed]) -> dict[str, Seal]:
    """The seals of some logs as they stand; they are on disk before a checkpoint says so."""
    logs = list(logs)
    for log in logs:
        log.sync()
    return {log.name: log.seal() for log in logs}


def lost_rows(logs: Iterable[Sealed], seals: Mapping[str, Seal], step: int) -> list[str]:
    """What of some logs is not there any more of what was sealed after a step, a line each."""
    return [line for log in logs if (line := log.lost(seals.get(log.name, {}), step))]


def in_words(steps: Sequence[int]) -> str:
    """Steps in their order, those that follow each other as one: ``1, 4 to 9``."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][-1] + 1:
            spans[-1][1:] = [step]
        else:
            spans.append([step])
    return ", ".join(" to ".join(map(str, span)) for span in spans)
