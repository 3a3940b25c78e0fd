"""Batches of rows worked on in several processes, in order, and remembered by their content."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, islice
from queue import SimpleQueue

from likelier.base.errors import RunFailed
from likelier.data.memory import Memory
from likelier.data.part import Counted, Part, Task, work
from likelier.data.worker import receive, send

BATCH = 500  # rows of one piece of work
FEW = 4  # batches that are not worth starting processes for
MOST = 8  # processes; reading one file feeds no more


def parts(rows: Iterable[Counted], task: Task, processes: int | None = None) -> Iterator[Part]:
    """What comes of rows, batch by batch, in their order.

    A few rows are worked on here. Many are worked on in ``processes`` others (None: one for each
    core), and what comes of them is kept in the cache, so that the same rows, wherever they
    stand, are worked on once.
    """
    batches = _batches(rows)
    first = list(islice(batches, FEW))
    if len(first) < FEW or task.keep_pairs:
        yield from (work(task, batch) for batch in chain(first, batches))
        return
    count = min(processes or len(os.sched_getaffinity(0)), MOST)
    memory = Memory(task)
    with ExitStack() as stack:
        pool = _Pool(task, count, stack)
        waiting: deque[Part | Future[Part]] = deque()
        for batch in chain(first, batches):
            known = memory.get(batch)
            waiting.append(known or pool.submit(batch, memory))
            if len(waiting) > 2 * count:
                yield _done(waiting.popleft())
        while waiting:
            yield _done(waiting.popleft())


def _batches(rows: Iterable[Counted]) -> Iterator[list[Counted]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _done(item: Part | Future[Part]) -> Part:
    return item.result() if isinstance(item, Future) else item


class _Pool:
    """Processes of our own, each spoken to through a pipe by a thread.

    Not ``multiprocessing``: it runs the user's script again in each of them.
    """

    def __init__(self, task: Task, count: int, stack: ExitStack):
        self._task, self._stack = task, stack
        self._threads = stack.enter_context(ThreadPoolExecutor(count))
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)  # started when it is needed

    def submit(self, batch: Sequence[Counted], memory: Memory) -> Future[Part]:
        return self._threads.submit(self._work, batch, memory)

    def _work(self, batch: Sequence[Counted], memory: Memory) -> Part:
        process = self._idle.get() or self._start()
        try:
            assert process.stdin is not None and process.stdout is not None
            send(process.stdin, batch)
            answer = receive(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            what = f"a process that reads the data ended with {process.wait()}"
            raise RunFailed(what, hint="there may be too little memory") from error
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        memory.put(batch, answer)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "likelier.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        self._stack.callback(_end, process)
        send(process.stdin, self._task)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
