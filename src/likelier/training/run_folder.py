"""The run folder: whose it is, how far it got, and its logs. It stores and decides nothing."""

import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likelier import __version__
from likelier.base.environment import packages
from likelier.base.errors import OutputError
from likelier.base.files import (
    append_lines,
    read_json,
    read_lines,
    sweep,
    sync,
    write_json,
    write_lines,
    write_text,
)
from likelier.base.terminal import say
from likelier.config import Config, difference, dump, live
from likelier.data.records import TokenPair

if TYPE_CHECKING:
    from likelier.batching.batch import Batch  # imports torch

OnRow = Callable[[dict[str, float]], None]
_FILES_OF_MODELS = ("config.json", "adapter_config.json", "tokenizer.json")
_LOGS = ("metrics.jsonl", "timing.jsonl")


def asked(config: Config) -> dict[str, Any]:
    """The live keys of a config; where a run lies is no part of what it is."""
    return {key: value for key, value in live(config).items() if key != "out"}


class RunFolder:
    """The files of the run of a config. ``record`` is the content of ``run.json``, or empty.

    ``inputs`` are hashes of the content behind the run, which every checkpoint must agree with.
    ``on_row`` hears every row of the log.
    """

    def __init__(self, config: Config, on_row: OnRow | None = None):
        self.config, self.path, self.on_row = config, config.out, on_row
        self.record: dict[str, Any] = read_json(self.path / "run.json") or {}
        self.inputs: dict[str, str] = {}

    @property
    def resumes(self) -> bool:
        """Whether a run began here before."""
        return bool(self.record)

    def finished(self) -> bool:
        """Whether the run reached its last step here and its model is saved.

        Raises OutputError where the folder holds a run of another config, or something else.
        """
        if self.resumes:
            changed = difference(self.record.get("asked", {}), asked(self.config))
            if changed:
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                raise OutputError(
                    f"this folder holds another run: {changed[0]}{more}",
                    where=f"out: {self.path}",
                    hint="give another out folder, or the config of this run",
                )
            return self.record.get("status") == "finished"
        other = [name for name in _FILES_OF_MODELS if (self.path / name).exists()]
        if other or (self.path.exists() and not self.path.is_dir()):
            raise OutputError(
                f"this holds something else ({other[0] if other else 'a file'})",
                where=f"out: {self.path}",
                hint="give a folder that does not exist yet",
            )
        return False

    def must_hold(self, **inputs: str) -> None:
        """Note hashes of the content behind the run.

        Raises OutputError where one is another than when the run began.
        """
        self.inputs |= inputs
        before = self.record.get("inputs", {})
        changed = [name for name, value in inputs.items() if before.get(name, value) != value]
        if changed:
            raise OutputError(
                f"the {' and the '.join(changed)} changed since this run began",
                where=f"out: {self.path}",
                hint="give another out folder, or put back what was there",
            )

    def begin(self, settings: Mapping[str, Any], **facts: Any) -> None:
        """Write down what the run is: its ``settings``, without any ``auto``, and ``facts``."""
        import torch  # not above: a folder of another run is answered without it

        versions = {package.name: package.installed for package in packages()}
        threads = torch.get_num_threads()
        self._say_if_bits_may_differ({"threads": threads, **versions})
        write_text(self.path / "config.yaml", dump(settings))
        self.write_record(
            format=1,
            likelier=__version__,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            status="running",
            step=self.record.get("step", 0),
            asked=asked(self.config),
            resolved=settings,
            inputs=self.inputs,
            versions=versions,
            threads=threads,
            **facts,
        )

    def _say_if_bits_may_differ(self, now: Mapping[str, Any]) -> None:
        """A run that resumes under other versions or threads rounds otherwise from here on."""
        before = {**self.record, **self.record.get("versions", {})}
        for name, value in now.items():
            if before.get(name, value) != value:
                say(
                    f"the run began with {name} {before[name]} and resumes with {value}: "
                    "its last bits may differ"
                )

    def cut_back(self, step: int) -> None:
        """Forget what was logged after a step."""
        for name in _LOGS:
            rows = [row for row in read_lines(self.path / name) if step and row["step"] <= step]
            write_lines(self.path / name, rows)
        self.write_record(step=step)

    def sync_logs(self) -> None:
        """Have the logs on disk; called before a checkpoint says that the run got this far."""
        for name in _LOGS:
            sync(self.path / name)

    def finish(self, step: int) -> None:
        """The model is saved: this run is done."""
        rows = read_lines(self.path / "timing.jsonl")
        plain, tree = (sum(row[name] for row in rows) for name in ("plain_tokens", "tokens"))
        over = sum(row.get("over_budget", 0) for row in rows)
        tokens = {"plain": plain, "tree": tree, "batches_over_budget": over}
        self.write_record(status="finished", step=step, tokens=tokens)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to ``metrics.jsonl`` and tell whoever listens."""
        append_lines(self.path / "metrics.jsonl", [row])
        if self.on_row is not None:
            self.on_row(row)

    def time(
        self, step: int, seconds: float, batches: Sequence["Batch"], pairs: Sequence[TokenPair]
    ) -> None:
        """Append a row to ``timing.jsonl``: tokens computed, and what they would be unshared."""
        row = {
            "step": step,
            "seconds": round(seconds, 6),
            "tokens": sum(batch.num_tokens for batch in batches),
            "plain_tokens": sum(pair.num_tokens for pair in pairs),
            "pairs": len(pairs),
        }
        budget = self.record["resolved"]["train"]["tokens_per_batch"]
        over = sum(batch.num_tokens > budget for batch in batches)
        if over:  # a pair is never cut: these went alone
            row["over_budget"] = over
        append_lines(self.path / "timing.jsonl", [row])

    def write_record(self, **facts: Any) -> None:
        """Add facts to ``run.json``, whole or not at all."""
        self.record = {**self.record, **facts}
        write_json(self.path / "run.json", self.record)


def must_be_free(path: Path) -> None:
    """Look whether a run could work in a folder; nothing is made.

    Raises OutputError where another process works in it, or where nothing can be written.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise OutputError(f"cannot be written: {there} is not writable", where=f"out: {path}")
    if (path / ".lock").exists():
        lock = os.open(path / ".lock", os.O_RDWR)
        try:
            _hold(lock, path)
        finally:
            os.close(lock)


def _hold(lock: int, path: Path) -> None:
    """Hold a folder by its open lock file until that is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 200).decode(errors="replace").strip()
        raise OutputError(
            f"another process works in this folder ({holder})", where=f"out: {path}"
        ) from error


@contextmanager
def open_folder(config: Config, on_row: OnRow | None = None) -> Iterator[RunFolder]:
    """Make the folder of a run and hold it alone.

    Raises OutputError where it cannot be made or another process works in it.
    """
    path = config.out
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=f"out: {path}") from error
    try:
        _hold(lock, path)
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        for folder in (path, path / "checkpoints", path / "pair_log"):
            sweep(folder)
        yield RunFolder(config, on_row)
    finally:
        os.close(lock)  # the lock goes with it; the empty file stays, so nobody locks a stale one
