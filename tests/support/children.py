"""Runs in processes of their own, that are killed at a chosen moment.

They are forked from a server that has imported everything, so that each starts in milliseconds.
"""

import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from faults.native import has_compiler
from faults.shim import Fault, loaded

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.warm"])
_TURN = threading.RLock()  # processes are started and looked after by one thread at a time
PATIENCE = 300  # seconds, on a machine that is busy with other work
KILLED = -signal.SIGKILL


@dataclass
class Child:
    """A process that was started, and the file that its output goes to."""

    process: ForkServerProcess
    log: Path

    def wait(self) -> int:
        """Its exit code; a signal that ended it counts as negative."""
        code = self.code_within(PATIENCE)
        assert code is not None, f"it does not end: {self.output}"
        return code

    def code_within(self, seconds: float) -> int | None:
        """Its exit code, or None where it does not end so soon."""
        end = time.monotonic() + seconds
        while True:
            with _TURN:
                code = self.process.exitcode
            if code is not None or time.monotonic() > end:
                return code
            time.sleep(0.002)

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
        """Send it a signal; it may have ended just now."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


def start(
    work: Callable[..., Any], *arguments: Any, log: Path, cache: Path | None = None, **named: Any
) -> Child:
    """Call a function of this module in a new process, whose file calls can be made to fail."""
    used = str(cache) if cache is not None else os.environ["LIKELIER_CACHE"]
    setting = {"LIKELIER_CACHE": used, "HF_HUB_OFFLINE": os.environ["HF_HUB_OFFLINE"]}
    process = _FORKS.Process(target=_main, args=(work, arguments, named, setting, str(log)))
    with _TURN, loaded() if has_compiler() else nullcontext():
        process.start()  # the first starts the server
    return Child(process, log)


def _main(
    work: Callable[..., Any],
    arguments: Sequence[Any],
    named: Mapping[str, Any],
    setting: Mapping[str, str],
    log: str,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs behind & are born deaf
    for number in (signal.SIGTERM, signal.SIGHUP):  # and those of nohup
        signal.signal(number, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(setting)
    work(*arguments, **named)


# What a run does in helpers that it forks, it does itself: they take a third of so short a run.
NO_HELPERS = {"likelier.base.child.CAN_FORK": False, "likelier.data.workers.CAN_FORK": False}


def command(*words: str, patches: Mapping[str, Any] | None = None) -> None:
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
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)  # a signal just before a long sleep would wait for its end
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


def with_fault(fault: Fault, work: Callable[..., Any], *arguments: Any) -> None:
    """Do some work, of whose file calls one kills it or fails."""
    fault.arm()
    work(*arguments)


def no_report(out: Path) -> None:
    """Reports take longer than these runs."""


_ORIGINALS: dict[str, Callable[..., Any]] = {}  # what stood where `_patch` put something else


def _patch(patches: Mapping[str, Any]) -> None:
    for name, replacement in patches.items():
        path, _, attribute = name.rpartition(".")
        holder = pkgutil.resolve_name(path)
        # A function that is gone would be replaced in silence, were it not asked for.
        _ORIGINALS[name] = getattr(holder, attribute)
        setattr(holder, attribute, replacement)


class Forked:
    """A process of a command that is forked from this one, in the place of one that is started:
    it has all imported, and all that was patched here is patched there."""

    def __init__(self, words: Sequence[str]):
        from likelier.cli import main
        from likelier.commands.launch import stop_with

        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            stop_with(parent)
            sys.argv = ["likelier", *words]
            os._exit(main(list(words)))

    def send_signal(self, number: int) -> None:
        """Send it a signal; it may have ended just now."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; a signal that ended it counts as negative."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def forked(words: Sequence[str], lock: int) -> Forked:
    """Stand in for `likelier.commands.sweep.start_run`."""
    return Forked(words)


_CALLS: dict[str, int] = {}


def killed_once(
    called: str, at: int, run: str, marker: str, *arguments: Any, parent: bool = False, **named: Any
) -> Any:
    """Stand in for a function: kill this process, or its ``parent``, at a call, the first time.

    Where a ``run`` is named only the process of such a run is meant, else only that of the sweep.
    """
    words = sys.argv[1:]
    if ("--run" in words) == bool(run) and run in words[-1]:
        _CALLS[called] = _CALLS.get(called, 0) + 1
        if _CALLS[called] == at and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
    if called == "likelier.commands.sweep.start_run":
        return forked(*arguments)
    return _ORIGINALS[called](*arguments, **named)
