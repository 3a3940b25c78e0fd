"""Foreign code kept on a short lead: a limit of time and of memory around a call."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    _HAS_RESOURCE = False
else:
    _HAS_RESOURCE = True

SECONDS = 2.0  # for one chat; a real template takes less than a thousandth of it
MEGABYTES = 256  # of memory while it is rendered
_PAGE = 4096


class TooSlow(Exception):
    """The call took longer than it may."""


@contextmanager
def limited(seconds: float, megabytes: int) -> Iterator[None]:
    """Raise TooSlow after ``seconds``, and MemoryError at ``megabytes`` more than now.

    The time is watched in the main thread, where signals arrive; the memory where the system
    tells it (Linux).
    """
    alarm = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    before = _narrow(megabytes)
    previous: Any = None
    if alarm:
        previous = signal.signal(signal.SIGALRM, _too_slow)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _too_slow(*_: object) -> None:
    raise TooSlow


def _narrow(megabytes: int) -> tuple[int, int] | None:
    """Lower the limit of the address space; what it was, where it was lowered."""
    if not _HAS_RESOURCE:
        return None
    try:
        with open("/proc/self/statm", "rb") as told:
            now = int(told.read().split()[0]) * _PAGE
    except OSError:
        return None
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + megabytes * 2**20
    if before[0] != resource.RLIM_INFINITY and before[0] <= wanted:
        return None
    resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    return before
