"""A measured process tells of every step on standard output, and waits to be given its next turn.

It imports nothing of likelier: the other trainer's environment runs it, too.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

MARK = "@bench "  # other lines on standard output are a library's own


def tell(**event: Any) -> None:
    """One event for the process that measures."""
    print(MARK + json.dumps({**event, "at": time.time()}), flush=True)


def hash_ids(pairs: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> str:
    """A digest of (prompt, chosen, rejected) token ids in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([list(map(int, ids)) for ids in pair]).encode())
    return digest.hexdigest()


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, telling when it began and how long it took."""

    @wraps(call)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        began, at = time.perf_counter(), time.time()
        result = call(*arguments, **keywords)
        tell(event=name, began=at, seconds=time.perf_counter() - began)
        return result

    return wrapped


class Steps:
    """The end of every step: how long it took, its loss, and a wait for the next turn.

    A step is what lies between two ends, so everything that a trainer does is in it. Peaks of
    memory are told for the time up to the end of the first step and for the time after it.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def begin(self) -> None:
        """Start-up and reference are done; the first step begins."""
        wait_for_device()
        tell(event="begin", mib=held_mib())
        self.began = time.perf_counter()

    def beginning(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, before which the steps begin."""

        @wraps(call)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.begin()
            return call(*arguments, **keywords)

        return wrapped

    def end(self, step: int, loss: float, **more: Any) -> None:
        """A step is over."""
        wait_for_device()
        seconds = time.perf_counter() - self.began
        if step == 1:
            tell(event="peak", until="first step", mib=peak_mib())
            reset_peak()
        tell(event="step", step=step, seconds=seconds, loss=loss, **more)
        if not sys.stdin.readline():
            sys.exit("nobody measures any more")
        self.began = time.perf_counter()


def wait_for_device() -> None:
    """A GPU computes behind the program's back; wait for it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Peak memory since `reset_peak`: resident size, or what torch held on the GPU. In MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _status("VmHWM")


def held_mib() -> float:
    """Memory held now, counted likewise."""
    import torch

    return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmRSS")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def reset_peak() -> None:
    """Let the peak begin anew from what is held now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
