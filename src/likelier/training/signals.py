"""Ctrl-C, SIGTERM, a lost terminal: finish the step, save, leave. A second one leaves at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from likelier.base.errors import Interrupted, StoppedEarly

# Windows has no SIGHUP.
STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

_ONE_SIGNAL = 0.5  # seconds: a launcher passes on what the terminal has sent to all already


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def error(self, step: int, out: str) -> StoppedEarly:
        """What to raise once the checkpoint is written."""
        kind = Interrupted if self.signal == signal.SIGINT else StoppedEarly
        return kind(
            f"stopped after step {step}",
            where=out,
            hint="the same command resumes from there",
        )


@contextmanager
def listening(numbers: Sequence[int] = STOPS, of_many: bool = False) -> Iterator[StopRequest]:
    """Listen for the signals that stop a run; the handlers that were there before come back.

    Outside the main thread, where Python allows no handlers, nothing is listened for; nor is a
    signal that whoever started the process wants ignored, as shells do for jobs behind ``&``.
    ``of_many`` processes each may get the same signal twice at once.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not request:
            request.signal, request.since = number, now
        elif not of_many or now - request.since > _ONE_SIGNAL:
            raise KeyboardInterrupt  # the second time: no patience left

    with handled_by(ask, numbers):
        yield request


@contextmanager
def handled_by(
    ask: Callable[[int, FrameType | None], None], numbers: Sequence[int] = STOPS
) -> Iterator[None]:
    """Inside, signals go to ``ask``, but for those that are to be ignored; then as before."""
    heard = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
