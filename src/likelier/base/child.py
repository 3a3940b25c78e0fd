"""A copy of this process for work that may have to be killed, and for work on every core.

It is forked: no other interpreter starts, so nothing of the current folder is imported and no
script of a user runs again, and what this process holds need not be sent. Where there is no such
fork (not on Linux) the work is done here, within what limits a process can set itself.
"""

import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from mmap import PAGESIZE, mmap
from types import FrameType
from typing import IO, Any

from likelier.base.errors import LikelierError, RunFailed
from likelier.base.limits import is_child, refusal_of, what_ran, work_as_child

CAN_FORK = sys.platform == "linux"


class Child:
    """A process that answers questions, one after the other, until it is closed."""

    def __init__(self, answer: Callable[[Any], Any]):
        self._board = mmap(-1, PAGESIZE)  # shared: what it does is known when it is dead
        inbox, to_child = os.pipe()
        from_child, outbox = os.pipe()
        with warnings.catch_warnings(), signals_wait():
            # Python warns of threads: nothing here waits for one of theirs, or for a lock of it.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            os.close(to_child)
            os.close(from_child)
            _serve(answer, self._board, inbox, outbox)  # does not return
        os.close(inbox)
        os.close(outbox)
        self._end: LikelierError | None = None
        self._ask, self._hear = os.fdopen(to_child, "wb"), os.fdopen(from_child, "rb")

    def ask(self, question: Any) -> Any:
        """What it answers; what it raises is raised here.

        Raises DataError where a template or tokenizer killed it, RunFailed where something else.
        """
        if self._end is not None:
            raise self._end
        try:
            _send(self._ask, question)
            failed, value = _receive(self._hear)
        except (EOFError, BrokenPipeError) as error:
            self._end = self._why_dead()
            raise self._end from error
        if failed:
            raise value
        return value

    def close(self) -> None:
        """End it; it holds nothing that would be lost."""
        for pipe in (self._ask, self._hear):
            with suppress(BrokenPipeError):
                pipe.close()
        if self._end is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def _why_dead(self) -> LikelierError:
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        ran = what_ran(self._board)
        if ran is None or code == -signal.SIGKILL:
            what = f"a process that reads the data ended with {code}"
            return RunFailed(what, hint="there may be too little memory")
        return refusal_of(ran, of_time=code == -signal.SIGXCPU)


@contextmanager
def signals_wait() -> Iterator[None]:
    """What signals raise is raised behind this, not inside.

    A hook that runs at a fork would lose it, and C++ that calls Python back may end the process.
    """
    heard: list[tuple[int, FrameType | None]] = []
    here = threading.current_thread() is threading.main_thread()  # others hear no signals
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if here else ()
    before = {n: old for n in numbers if callable(old := signal.getsignal(n))}
    for number in before:
        signal.signal(number, lambda *signals: heard.append(signals))
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    for signals in heard:
        before[signal.Signals(signals[0])](*signals)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a child; what it raises is raised here.

    Raises as `Child.ask`.
    """
    if is_child() or not CAN_FORK:
        return function(*arguments)
    with closing(Child(lambda _: function(*arguments))) as child:
        return child.ask(None)


@contextmanager
def asking(function: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    """A function to be called many times in one child, where it may keep what it learned.

    Raises as `Child.ask` where it is called.
    """
    if is_child() or not CAN_FORK:
        yield function
        return
    with closing(Child(function)) as child:
        yield child.ask


def survive(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in a child, so that it may be called here: it must not kill.

    Raises as `Child.ask` where it does, and the function's own errors of ours.
    """

    def attempt() -> None:
        try:
            function(*arguments)
        except LikelierError:
            raise
        except Exception:
            return  # it will be raised again, with all that hangs on it

    if CAN_FORK:
        in_child(attempt)


def _serve(answer: Callable[[Any], Any], board: mmap, inbox: int, outbox: int) -> None:
    """Be the child, until the pipe closes. What fails is handed back, not shown."""
    try:
        _be_silent()
        work_as_child(board)
        with os.fdopen(inbox, "rb") as questions, os.fdopen(outbox, "wb") as answers:
            while True:
                question = _receive(questions)
                try:
                    reply = (False, answer(question))
                except BaseException as error:
                    reply = (True, _sendable(error))
                _send(answers, reply)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        os._exit(0)


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _be_silent() -> None:
    """Nothing of this process shows, stays, or is shared out to threads; Ctrl-C is the parent's."""
    import resource

    faulthandler.disable()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = open(nowhere, "w", closefd=False)  # noqa: SIM115  # for good
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _send(pipe: IO[bytes], item: Any) -> None:
    content = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(len(content).to_bytes(8, "little") + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(head, "little")))
