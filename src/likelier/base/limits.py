"""Limits for what strangers wrote: a chat template is a program, a tokenizer holds patterns.

Either can make one call endless, or gigabytes of one letter. Everything that runs them stands in
`bounded`. A signal ends what Python runs; in a child (`likelier.base.child`) the system also ends
one long call of C, which no handler interrupts.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any

from likelier.base.errors import DataError

# Of processor time, so that a machine that slept or is busy is no fault of a template.
MAX_SECONDS = 2.0  # for one chat; a real template takes less than a hundredth of it
MAX_MEAN_SECONDS = 0.05  # over all chats and texts so far, beyond the first
FREE_SECONDS = 10.0
MAX_MEGABYTES = 256  # of memory beyond what was there
KILLED_AFTER = 1.0  # seconds more, where the process hears no signal
TEMPLATE, TOKENIZER = "chat template", "tokenizer.json"
ADAPTER = "the patterns of adapter_config.json"
_CURES = {
    TEMPLATE: "fix chat_template in tokenizer_config.json (or chat_template.jinja)",
    TOKENIZER: "get the tokenizer again from who made it, or shorten the text",
    ADAPTER: "name the modules in adapter_config.json, such as [q_proj, v_proj]",
}
_SIZE = 1024  # bytes of what a child says of what it does


class _TooSlow(BaseException):
    """No Exception: what runs inside would catch it and continue."""


class Spent:
    """Processor time that templates and tokenizers took for all rows so far, in seconds.

    It bounds what a whole file can take: a little too long for each row is days for a million.
    """

    def __init__(self) -> None:
        self.times, self.seconds = 0, 0.0

    def add(self, what: str, times: int, seconds: float) -> None:
        """Count so many more times. Raises DataError where all together took too long."""
        self.times += times
        self.seconds += seconds
        if self.seconds > FREE_SECONDS + MAX_MEAN_SECONDS * self.times:
            raise refused(what, f"took {self.seconds:.0f} seconds for {self.times} texts")


class _Now:
    """What this process is doing: the row, and where a parent can read it, if it has one."""

    row = ""
    board: mmap | None = None


def work_as_child(board: mmap) -> None:
    """From now on say on ``board`` what is run, and let the system end it. For a forked child."""
    _Now.board = board


def is_child() -> bool:
    """Whether this process may be killed by what it runs."""
    return _Now.board is not None


def what_ran(board: mmap) -> tuple[str, str, float, int] | None:
    """What a child was running when it died: what, of which row, and its limits; None: ours."""
    written = board[:_SIZE]
    return tuple(json.loads(written.rstrip(b"\0"))) if written[0] else None


@contextmanager
def at_row(source: str) -> Iterator[None]:
    """Name the place of a row in the errors of what is run for it."""
    _Now.row = source
    try:
        yield
    finally:
        _Now.row = ""


@contextmanager
def bounded(
    what: str,
    spent: Spent | None = None,
    seconds: float | None = None,
    megabytes: int = MAX_MEGABYTES,
) -> Iterator[None]:
    """Run what a stranger wrote with so much processor time, and so much memory beyond what is
    there now. ``what`` is one of `_CURES`; None seconds are `MAX_SECONDS`.

    The time is watched in the main thread, where signals arrive; the memory where the system
    shows it (Linux).

    Raises DataError where it takes more, where ``spent`` is used up, and where it panics.
    """
    seconds = MAX_SECONDS if seconds is None else seconds
    began = time.thread_time()
    alarm = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    lowered = _lower_limits(what, seconds, megabytes)
    previous: Any = None
    if alarm:
        previous = signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    except _TooSlow:
        raise refused(what, f"takes longer than {seconds:g} seconds") from None
    except MemoryError as error:
        raise refused(what, f"takes more than {megabytes} MB of memory") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; no module has it for import
            raise
        raise refused(what, f"fails: {' '.join(str(error).split())[:160]}") from error
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        _raise_limits(lowered)
    if spent is not None:
        spent.add(what, 1, time.thread_time() - began)


def refusal_of(ran: tuple[str, str, float, int], of_time: bool) -> DataError:
    """The error of a child that died of what it ran, of time or else of memory."""
    what, row, seconds, megabytes = ran
    too_much = f"takes more than {megabytes} MB of memory, or is nested too deeply"
    return refused(what, f"takes longer than {seconds:g} seconds" if of_time else too_much, row)


def refused(what: str, why: str, row: str | None = None) -> DataError:
    """Why `TEMPLATE` or `TOKENIZER` cannot be used: the end at once, as the next row takes as long.

    Without ``row`` it is the row of `at_row`.
    """
    row = _Now.row if row is None else row
    return DataError(f"it {why}", where=f"{row} {what}".strip(), hint=_CURES[what])


def _too_slow(*_: object) -> None:
    raise _TooSlow


def _lower_limits(what: str, seconds: float, megabytes: int) -> list[tuple[int, tuple[int, int]]]:
    """Lower the limits of this process; which, and what each was."""
    try:
        memory = os.open("/proc/self/statm", os.O_RDONLY)  # a stream would take thrice the time
    except OSError:  # not on Linux; Windows has no module resource either
        return []
    pages = int(os.read(memory, 100).split()[0])
    os.close(memory)
    import resource

    wanted = {resource.RLIMIT_AS: pages * resource.getpagesize() + megabytes * 2**20}
    if _Now.board is not None:
        wanted[resource.RLIMIT_CPU] = math.ceil(time.process_time() + seconds + KILLED_AFTER)
        said = json.dumps([what, _Now.row[-_SIZE // 8 :], seconds, megabytes]).encode()
        _Now.board[:_SIZE] = said.ljust(_SIZE, b"\0")
    lowered = []
    for limit, value in wanted.items():
        before = resource.getrlimit(limit)
        if before[0] == resource.RLIM_INFINITY or before[0] > value:
            resource.setrlimit(limit, (value, before[1]))
            lowered.append((limit, before))
    return lowered


def _raise_limits(lowered: list[tuple[int, tuple[int, int]]]) -> None:
    if _Now.board is not None:
        _Now.board[:1] = b"\0"
    for limit, before in lowered:
        import resource

        resource.setrlimit(limit, before)
