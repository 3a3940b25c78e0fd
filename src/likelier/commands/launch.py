"""Starting one command as several processes of this machine, which train together.

They find each other by what torchrun, too, sets in their environment. Where one fails, the others
end: by themselves, so that they can say whom they lost, or by this process.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from likelier.base.terminal import say
from likelier.config import Config
from likelier.training.signals import handled_by

GRACE = 20.0  # seconds in which processes that lost another may end by themselves
_DRIVER = Path("/proc/driver/nvidia/gpus")
_PR_SET_PDEATHSIG = 1  # of Linux


def processes_of(config: Config) -> int:
    """How many processes a config asks for; ``auto`` is one for each GPU that is visible here."""
    if config.parallel.processes != "auto":
        return config.parallel.processes
    if not _DRIVER.exists():
        return 1
    import torch  # not above: it takes seconds

    return max(1, torch.cuda.device_count())


def launch(number: int, words: Sequence[str]) -> int:
    """Run ``likelier`` with some words as so many processes; the exit code of the run.

    Signals are passed on, and where this process is killed the others are asked to stop. Raises
    nothing: what goes wrong, the processes say.
    """
    say(f"starting {number} processes")
    shared = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    children: list[subprocess.Popen[bytes]] = []

    def forward(sent: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(sent)

    command, stops = [sys.executable, "-m", "likelier", *words], partial(stop_with, os.getpid())
    with handled_by(forward):
        try:
            for rank in range(number):
                setting = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen(command, env=setting, preexec_fn=stops))
            return code_of(children)
        finally:
            _kill(children)


def stop_with(launcher: int) -> None:
    """In a process that was just forked: have the system send it SIGTERM where that one is gone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)


def code_of(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; after the first that failed, not long."""
    until: float | None = None
    while any(child.poll() is None for child in children):
        failed = any(child.poll() for child in children)
        if failed and until is None:
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            _kill(children)
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    # 1 is that of a process that lost another: what that one ended with says more.
    return next((code for code in codes if code > 1), int(any(codes)))


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
