"""Runs in processes of their own, that are killed at a chosen moment.

They are forked from a server that has imported everything, so that each starts in milliseconds.
"""

import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.warm"])
PATIENCE = 300  # seconds, on a machine that is busy with other work
KILLED = -signal.SIGKILL


@dataclass
class Child:
    """A process that was started, and the file that its output goes to."""

    process: ForkServerProcess
    log: Path

    def wait(self) -> int:
        """Its exit code; a signal that ended it counts as negative."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"it does not end: {self.output}"
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it printed so far, on either stream."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, path: Path) -> None:
        """Wait until it has made a file."""
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert self.process.is_alive(), f"it ended early: {self.output}"
            assert time.monotonic() < end, self.output
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start(work: Callable[..., Any], *arguments: Any, log: Path, **named: Any) -> Child:
    """Call a function of this module in a new process."""
    setting = {key: os.environ[key] for key in ("LIKELIER_CACHE", "HF_HUB_OFFLINE")}
    process = _FORKS.Process(target=_main, args=(work, arguments, named, setting, str(log)))
    process.start()
    return Child(process, log)


def _main(
    work: Callable[..., Any],
    arguments: Sequence[Any],
    named: Mapping[str, Any],
    setting: Mapping[str, str],
    log: str,
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(setting)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs behind & are born deaf
    work(*arguments, **named)


def command(*words: str, patches: Mapping[str, Callable[..., Any]] | None = None) -> None:
    """The command line, as `python -m likelier` runs it; ends the process."""
    _patch(patches or {})
    from likelier.cli import entry

    sys.argv = ["likelier", *words]
    entry()


def run(config: Mapping[str, Any], patches: Mapping[str, Callable[..., Any]] | None = None) -> None:
    """One run, without its report."""
    from likelier.run import train

    _patch({"likelier.run._write_report": no_report} | dict(patches or {}))
    train(config)


def run_until_step(config: Mapping[str, Any], step: int) -> None:
    """A run that is killed as soon as a step is in the log."""

    from likelier.run import train

    _patch({"likelier.run._write_report": no_report})

    def kill(row: Mapping[str, float]) -> None:
        if row["step"] == step and "loss" in row:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, on_step=kill)


def limited(size: int, *words: str) -> None:
    """A command that can make no file larger than so many bytes: a disk that is nearly full."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    command(*words)


def slowly(seconds: float, original: str, *arguments: Any, **named: Any) -> Any:
    """Stand in for a function: say that it was reached, wait, then do as it does."""
    reached().touch()
    time.sleep(seconds)
    return pkgutil.resolve_name(original)(*arguments, **named)


def reached() -> Path:
    """The file that says so."""
    return Path(os.environ["LIKELIER_CACHE"]) / "reached"


def save_a_checkpoint(folder: str, step: int) -> None:
    """A checkpoint of two numbers in training, of which the newest two are kept."""
    import torch

    from likelier.config.schema import OptimConfig
    from likelier.training.checkpoint import save_checkpoint
    from likelier.training.optimizer import MasterAdamW

    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = MasterAdamW([("weight", weight)], OptimConfig())
    for number in range(1, step + 1):
        weight.grad = torch.tensor([0.1, -0.2]) * number
        optimizer.step(0.01)
    save_checkpoint(Path(folder), step, optimizer, {"data": "abc"}, keep=2)


def until_file_call(number: int, folder: str, work: Callable[..., Any], *arguments: Any) -> None:
    """Do some work, killed just before its n-th call that touches a folder (the first is 1).

    Counted are opening, renaming, deleting, making and syncing anything whose path begins so. Work
    with fewer such calls is done to its end, and their number printed.
    """
    done = 0

    def touch(*names: Any) -> None:
        nonlocal done
        if any(folder in str(name) for name in names):
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            touch(*arguments[:2])

    synced = os.fsync

    def fsync(descriptor: int) -> None:
        touch(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync
    work(*arguments)
    print(f"file calls: {done}", flush=True)


def no_report(out: Path) -> None:
    """Reports take longer than these runs."""


def _patch(patches: Mapping[str, Callable[..., Any]]) -> None:
    for name, replacement in patches.items():
        path, _, attribute = name.rpartition(".")
        holder = pkgutil.resolve_name(path)
        getattr(holder, attribute)  # a function that is gone would be replaced in silence
        setattr(holder, attribute, replacement)
