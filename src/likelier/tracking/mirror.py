"""A run's rows handed to a tracker by a thread, so that no tracker stops or slows the run."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from queue import Full, Queue

from likelier.base.terminal import say
from likelier.tracking.trackers import Figures, Tracker, open_tracker
from likelier.training.run_folder import RunFolder

MAX_WAITING = 10_000  # additions that a tracker may be behind
SECONDS_AT_THE_END = 20.0  # in which it may catch up


class Mirror:
    """A tracker that is opened, written and closed by a thread of its own.

    Whatever goes wrong is said in one line, once; from then on rows are not handed on.
    """

    def __init__(self, name: str, opened: Callable[[], Tracker]):
        self._name, self._open = name, opened
        self._waiting: Queue[Sequence[Figures] | None] = Queue(MAX_WAITING)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._hand_on, name=name, daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[Figures]) -> None:
        """Hand rows on, in the order of their steps. Never waits, never raises."""
        if self._given_up.is_set():
            return
        try:
            self._waiting.put_nowait(rows)
        except Full:
            self._give_up(f"it is {MAX_WAITING:,} rows behind")

    def close(self) -> None:
        """Wait until everything is handed on, but not long."""
        if not self._given_up.is_set():
            try:
                self._waiting.put_nowait(None)
            except Full:
                self._give_up(f"it is {MAX_WAITING:,} rows behind")
                return
            self._thread.join(SECONDS_AT_THE_END)
            if self._thread.is_alive():
                self._give_up(f"it took over {SECONDS_AT_THE_END:g} seconds to end")

    def _hand_on(self) -> None:
        try:
            with closing(self._open()) as tracker:
                for steps in self._whole_steps():
                    if self._given_up.is_set():
                        break
                    tracker.write(steps)
        except BaseException as error:  # a library may also raise SystemExit
            self._give_up(f"{type(error).__name__}: {error}".partition("\n")[0])

    def _whole_steps(self) -> Iterator[list[Figures]]:
        """Everything of a step as one row, once another step follows or nothing does: a tracker
        then has all of a step or nothing, and its last step says how far it got.
        """
        held: Figures = {}
        while (rows := self._waiting.get()) is not None:
            whole = []
            for row in rows:
                if held and row["step"] != held["step"]:
                    whole.append(held)
                    held = {}
                held = {**held, **row}
            if whole:
                yield whole
        if held:
            yield [held]

    def _give_up(self, reason: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            say(f"{self._name} shows no more of this run: {reason}; metrics.jsonl has every row")


@contextmanager
def mirrored(folder: RunFolder) -> Iterator[None]:
    """Have the rows of a run in the tracker that ``track`` names, while steps are taken.

    The tracker knows a run by a key that stays in ``run.json``, so that a run that resumes is the
    same one there.
    """
    name = folder.config.track
    if name == "none" or not folder.writes:
        yield
        return
    key = folder.record.get("tracked_as")
    if not isinstance(key, str) or not key.isalnum():
        key = uuid.uuid4().hex[:12]
        folder.write_record(tracked_as=key)
    settings = folder.record["resolved"]
    mirror = Mirror(name, lambda: open_tracker(name, folder.path, key, settings))
    folder.mirror = mirror.add
    try:
        yield
    except KeyboardInterrupt:  # the second Ctrl-C: no patience left
        raise
    except BaseException:
        mirror.close()
        raise
    mirror.close()
