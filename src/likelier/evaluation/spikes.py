"""Spikes: steps whose gradient norm is far above what the run had before."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

FACTOR = 10.0  # times the median; a median does not follow the spikes themselves
WINDOW = 50  # norms before, of which the median is taken
FEWEST = 10  # of them: before, nothing is usual yet
MAX_STEPS = 20  # that are named
FLAT = 1e-12  # a gradient norm no larger than this is no gradient


class Spikes:
    """The spikes among the rows of a log, heard in their order: the same rows, the same spikes."""

    def __init__(self) -> None:
        self.count = 0
        self.steps: list[int] = []  # the first of them
        self.largest: dict[str, float] = {}  # its step, its grad_norm, and the median before
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def hear(self, row: Mapping[str, float]) -> bool:
        """Hear the next row of ``metrics.jsonl``; whether it is a spike."""
        norm, step = row.get("grad_norm"), row.get("step")
        if not isinstance(norm, float) or not isinstance(step, int | float):
            return False
        usual = median(self._norms) if len(self._norms) >= FEWEST else norm
        self._norms.append(norm)
        if not norm > FACTOR * max(usual, FLAT):
            return False
        self.count += 1
        self.steps = [*self.steps, int(step)][:MAX_STEPS]
        if norm > self.largest.get("grad_norm", 0.0):
            self.largest = {"step": int(step), "grad_norm": norm, "median": usual}
        return True

    def as_record(self) -> dict[str, Any]:
        """What ``run.json`` keeps."""
        return {"count": self.count, "steps": self.steps, "largest": self.largest}

    def in_words(self, row: Mapping[str, float]) -> str | None:
        """A line on a row that was a spike; None for most of many, so that none is drowned."""
        if self.count & (self.count - 1):  # said of the first, second, fourth, eighth
            return None
        return (
            f"step {row['step']}: the gradient norm is {row['grad_norm']:.3g}, over {FACTOR:.0f} "
            f"times the median of the steps before (spike {self.count})"
        )
