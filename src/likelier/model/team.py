"""The processes that train one model together, and what they tell each other.

A process alone is a team, too: to it nothing is sent, and each call gives what it was given. All
processes run the same program; what the first one decides, or only it can see, it tells the others.
"""

import faulthandler
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from likelier.base.environment import processes_started
from likelier.base.errors import ConfigError, LikelierError, RunFailed, describe_error
from likelier.base.model_files import first_line
from likelier.base.terminal import be_silent
from likelier.config.schema import ParallelConfig

Value = TypeVar("Value")

_PATIENCE = 5.0  # seconds in which the others say why they end
_CONNECTION = re.compile(r"gloo|NCCL|onnection|[Tt]imed out|[Tt]imeout|Socket", re.ASCII)
_meetings = itertools.count()  # of this process: a launcher's store keeps what earlier ones wrote
_START = "the start"
_phase = _START  # of this process, for the others and for itself


@dataclass(frozen=True)
class Team:
    """``size`` processes, of which this one is ``rank``; ``local_size`` are on this machine.

    ``store`` is where each says what it does, so that of one that is lost it is known.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    store: dist.Store | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks, and that writes the run's files."""
        return self.rank == 0

    def at(self, phase: str) -> None:
        """Note what this process does from here on."""
        global _phase
        _phase = phase
        if self.store is not None:
            self.store.set(f"at/{self.rank}", phase)

    def meet(self) -> None:
        """Wait until every process is here."""
        self.gathered(None)

    def gathered(self, value: Value) -> list[Value]:
        """The value of every process, on every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives the first process; the others do not call it.

        Raises on every process the LikelierError that it raises there.
        """
        if self.size == 1:
            return make()
        found: list[Any] = [None, None]
        if self.leads:
            try:
                found[0] = make()
            except LikelierError as error:
                found[1] = error
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def first_alone(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives, called on the first process before it is on the others: they find
        what it left in a cache. However long that takes, they wait.
        """
        if self.size == 1:
            return make()
        assert self.store is not None
        if self.leads:
            try:
                return make()
            finally:
                self.store.set("first/done", "")
        while not self.store.check(["first/done"]):
            time.sleep(0.05)
        return make()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one shape on every process by their sum over all of them."""
        if self.size > 1:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        return max(self.gathered(count))

    def must_agree(self, **facts: str) -> None:
        """Refuse processes that were started with different configs, data or weights.

        Raises RunFailed that names what differs and where.
        """
        of_all = self.gathered(facts)
        for name in facts:
            others = [rank for rank, one in enumerate(of_all) if one[name] != of_all[0][name]]
            if others:
                ranks = ", ".join(map(str, others[:8]))
                raise RunFailed(
                    f"process {ranks} has another {name} than process 0",
                    where="parallel",
                    hint="give all processes the same command, files and model",
                )


ALONE = Team()


def own_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor, in the same memory; of one that is not cut, all."""
    part: Tensor = tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor
    return part


@contextmanager
def joined_team(config: ParallelConfig) -> Iterator[Team]:
    """The team that this process was started in, from here on silent unless it is the first.

    Raises ConfigError where ``parallel.processes`` is not the number that was started; RunFailed
    where another process is lost, which it names, with what it did last.
    """
    started = processes_started()
    if config.processes not in ("auto", started):
        raise ConfigError(
            f"{started} were started",
            where=f"parallel.processes: {config.processes}",
            hint="start them with `likelier train`, or remove parallel.processes",
        )
    if started == 1:
        yield ALONE
        return
    team = _join(config.timeout)
    if not team.leads:
        be_silent()
    try:
        yield team
    except BaseException as error:
        raise _ended(team, error) from error
    finally:
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def _join(timeout: float) -> Team:
    """Meet the others at the address that the environment names."""
    waits = timedelta(seconds=timeout)
    local, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    on_gpu = torch.cuda.is_available()
    if dist.is_initialized():
        what, hint = "a process group is there already", "leave init_process_group to likelier"
        raise RunFailed(what, where="parallel", hint=hint)
    if on_gpu and local >= (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own: {gpus} are visible",
            where="parallel.processes",
            hint="start as many processes as there are GPUs",
        )
    if on_gpu:
        torch.cuda.set_device(local)
    elif "OMP_NUM_THREADS" not in os.environ:  # each process would take all cores
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=waits))
        store = dist.PrefixStore(f"likelier/{next(_meetings)}", store)
        team = Team(rank, size, local_size, store)
        team.at(_START)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        _show_stack_when_asked(team)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waits)
    except (RuntimeError, ValueError) as error:  # dist.DistError is a RuntimeError
        raise RunFailed(
            f"the other processes were not met within {timeout:g} seconds",
            where="parallel",
            hint=f"all of them must be started, and reach the first one ({first_line(error)})",
        ) from error
    return team


def _ended(team: Team, error: BaseException) -> BaseException:
    """The error as this process is to report it; the others are informed.

    What all of them found is said by the first, that one was lost by the first that is left.
    """
    if not _is_of_the_connection(error):
        reason = describe_error(error)[0] if isinstance(error, Exception) else repr(error)
        # Who has the same error as the first looks there whether it is said already.
        others = set(range(1, team.size)) if team.leads else {0}
        ends = _within(partial(_exchange, team, reason, others)) or {}
        if not team.leads:
            vars(error)["is_said"] = ends.get(0) == reason
        return error
    others = set(range(team.size)) - {team.rank}
    answers = _within(partial(_exchange, team, None, others))
    found = RunFailed(
        _what_was_lost(team, answers),
        where="parallel",
        hint="the same command resumes from the last checkpoint",
    )
    ends = answers or {}
    found.is_said = any(ends.values()) or team.rank > min([team.rank, *ends])
    return found


def _what_was_lost(team: Team, ends: dict[int, str | None] | None) -> str:
    """Another one's own error, or the processes that do not say why they end; None: nobody can be
    asked, because the first process is gone, which keeps what they say.
    """
    if ends is None:
        return f"lost process 0 (while process {team.rank} was at {_phase})"
    for rank, reason in ends.items():
        if reason:
            return f"process {rank} ended: {reason}"
    lost = [rank for rank in range(team.size) if rank != team.rank and rank not in ends]
    _within(partial(_ask_for_stacks, team, lost))
    seen = _within(lambda: {rank: _last_phase(team, rank) for rank in lost[:8]}) or {}
    named = ", ".join(f"process {rank} (last seen at {phase})" for rank, phase in seen.items())
    return f"lost {named or 'the connection between the processes'}"


def _within(ask: Callable[[], Value]) -> Value | None:
    """What others left in the store, or None where it cannot be asked: where a wire is cut, a
    question may wait for many minutes.
    """
    answers: list[Value] = []

    def keep() -> None:
        with suppress(RuntimeError, ValueError):
            answers.append(ask())

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE)
    return answers[0] if answers else None


def _is_of_the_connection(error: BaseException) -> bool:
    """Whether an error is about the other processes: torch has no one class for these."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_CONNECTION.search(str(error)))
    )


def _last_phase(team: Team, rank: int) -> str:
    assert team.store is not None
    return str(team.store.get(f"at/{rank}").decode())


def _show_stack_when_asked(team: Team) -> None:
    """Have this process print what its threads are at when another one gives it up: it may stand
    still anywhere. Nothing is asked of it where this cannot be had, off Linux for one.
    """
    assert team.store is not None
    with suppress(AttributeError, OSError, RuntimeError, ValueError):
        faulthandler.register(signal.SIGUSR2, file=2)
        team.store.set(f"process/{team.rank}", json.dumps(_process(os.getpid())))


def _ask_for_stacks(team: Team, ranks: Sequence[int]) -> None:
    """Each once, by one that runs on its machine."""
    assert team.store is not None
    for name in (f"process/{rank}" for rank in ranks):
        if not team.store.check([name]):
            continue
        known = json.loads(team.store.get(name))
        with suppress(OSError):
            # To another process of this number the signal would be fatal.
            if known == _process(known[1]) and team.store.add(f"asked/{name}", 1) == 1:
                os.kill(known[1], signal.SIGUSR2)


def _process(number: int) -> list[Any]:
    """A process by its machine, its number and the time of its start."""
    stat = Path(f"/proc/{number}/stat").read_text("utf-8")
    return [socket.gethostname(), number, stat.rpartition(")")[2].split()[19]]


def _exchange(team: Team, reason: str | None, ranks: set[int]) -> dict[int, str | None]:
    """Say why this process ends, None where another is lost; give what ``ranks`` say of
    themselves, as far as they do in time.

    The first process keeps what all of them say: it stays until those that answered have read it.
    """
    assert team.store is not None
    team.store.set_timeout(timedelta(seconds=_PATIENCE))
    team.store.set(f"end/{team.rank}", json.dumps(reason))
    ends = dict[int, str | None]()
    until = time.monotonic() + _PATIENCE
    while ranks - ends.keys() and time.monotonic() < until:
        for rank in sorted(ranks - ends.keys()):
            if team.store.check([f"end/{rank}"]):
                ends[rank] = json.loads(team.store.get(f"end/{rank}"))
        time.sleep(0.05)
    team.store.set(f"read/{team.rank}", "")
    read = [f"read/{rank}" for rank in ends]
    until += _PATIENCE / 2
    while team.leads and not team.store.check(read) and time.monotonic() < until:
        time.sleep(0.05)
    return ends
