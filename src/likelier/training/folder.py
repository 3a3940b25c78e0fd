"""The run folder: whose it is, how far it got, and its logs cut back to a checkpoint."""

import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from likelier import __version__
from likelier.compat import packages
from likelier.config import Config, difference, dump, live, resolved
from likelier.data.prepare import Prepared, content_hash
from likelier.data.records import TokenPair
from likelier.errors import OutputError
from likelier.files import (
    append_lines,
    read_json,
    read_lines,
    sha256,
    write_json,
    write_lines,
    write_text,
)
from likelier.model.load import Policy
from likelier.model.score import Ready
from likelier.progress import say
from likelier.reference.column import Column
from likelier.training.budget import tokens_per_pass
from likelier.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from likelier.training.gate import GateReport
from likelier.training.optimizer import MasterAdamW
from likelier.training.step import PairPass

_OTHER_THINGS = ("config.json", "adapter_config.json", "tokenizer.json")


class RunFolder:
    """One run's files. ``record`` is the content of ``run.json``, empty before it is written."""

    def __init__(self, path: Path):
        self.path = path
        self.record: dict[str, Any] = read_json(path / "run.json") or {}
        self.asked: dict[str, Any] = {}
        self.resolved: dict[str, Any] = {}
        self.facts: dict[str, str] = {}  # what every checkpoint of this run must agree with

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step and its model is saved."""
        return self.record.get("status") == "finished"

    def must_fit(self, asked: Mapping[str, Any]) -> None:
        """Refuse a folder that holds a run of another config, or something else.

        Raises OutputError with the difference.
        """
        if not self.record:
            other = [name for name in _OTHER_THINGS if (self.path / name).exists()]
            if other or (self.path.exists() and not self.path.is_dir()):
                raise OutputError(
                    f"this holds something else ({other[0] if other else 'a file'})",
                    where=f"out: {self.path}",
                    mend="give a folder that does not exist yet",
                )
            return
        changed = difference(self.record.get("asked", {}), asked)
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise OutputError(
                f"this folder holds another run: {changed[0]}{more}",
                where=f"out: {self.path}",
                mend="give another out folder, or the config of this run",
            )

    def decide(self, config: Config, policy: Policy) -> int:
        """Settle every ``auto`` of the config; returns the tokens of a pass.

        A run that goes on keeps what it decided when it began.
        """
        self.asked = live(config)
        before = self.record.get("resolved")
        dtype = str(policy.causal_lm.dtype).removeprefix("torch.")
        self.resolved = before or resolved(
            config,
            dtype=dtype,
            save_dtype="auto" if policy.has_adapter else dtype,
            tokens_per_pass=tokens_per_pass(policy),
        )
        budget: int = self.resolved["train"]["tokens_per_pass"]
        return budget

    def begin(
        self, ready: Ready, data: Prepared, column: Column, gate: GateReport, num_steps: int
    ) -> None:
        """Write down what the run is, or make sure that it still is what it was.

        Raises OutputError where the content behind the config has changed since the start.
        """
        self.facts = {
            "pairs": content_hash(data.pairs),
            "reference": sha256(self.path / "reference.safetensors"),
        }
        before = self.record.get("inputs", self.facts)
        changed = [name for name, value in self.facts.items() if before.get(name) != value]
        if changed:
            raise OutputError(
                f"the {' and the '.join(changed)} changed since this run began",
                where=f"out: {self.path}",
                mend="give another out folder, or put back what was there",
            )
        parameters = list(ready.policy.model.parameters())
        write_text(self.path / "config.yaml", dump(self.resolved))
        self.write_record(
            format=1,
            likelier=__version__,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            status="running",
            step=0,
            steps=num_steps,
            pairs=len(data.train),
            eval_pairs=len(data.eval),
            data=data.counts,
            asked=self.asked,
            resolved=self.resolved,
            inputs=self.facts,
            versions={p.name: p.installed for p in packages()},
            threads=torch.get_num_threads(),
            device=str(ready.policy.device),
            backend=ready.backend,
            backend_reason=ready.backend_reason,
            gate=gate.as_record(),
            reference={
                "identity": column.identity,
                "column": self.facts["reference"],
                "answers": len(column.values),
            },
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
        )

    def go_on(self, optimizer: MasterAdamW) -> int:
        """Load the newest valid checkpoint, forget what was logged after it; returns its step.

        Raises RunFailed where checkpoints are there but none is whole.
        """
        found = latest_checkpoint(self.path / "checkpoints", self.facts)
        step = 0
        if found is not None:
            step, checkpoint = found
            load_checkpoint(checkpoint, optimizer)
            say(f"going on from step {step}")
        for name in ("metrics.jsonl", "timing.jsonl"):
            rows = [row for row in read_lines(self.path / name) if step and row["step"] <= step]
            write_lines(self.path / name, rows)
        return step

    def save(self, step: int, optimizer: MasterAdamW, keep: int) -> None:
        """Write a checkpoint of the state after ``step`` steps."""
        save_checkpoint(self.path / "checkpoints", step, optimizer, self.facts, keep)
        self.write_record(step=step)

    def finish(self, step: int) -> None:
        """The model is saved: this run is done."""
        rows = read_lines(self.path / "timing.jsonl")
        plain, tree = (sum(row[name] for row in rows) for name in ("plain_tokens", "tokens"))
        self.write_record(status="finished", step=step, tokens={"plain": plain, "tree": tree})

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to ``metrics.jsonl``."""
        append_lines(self.path / "metrics.jsonl", [row])

    def time(
        self, step: int, seconds: float, passes: Sequence[PairPass], pairs: Sequence[TokenPair]
    ) -> None:
        """Append a row to ``timing.jsonl``: tokens computed, and what they would be unshared."""
        row = {
            "step": step,
            "seconds": round(seconds, 6),
            "tokens": sum(item.batch.num_tokens for item in passes),
            "plain_tokens": sum(
                2 * len(p.prompt) + len(p.chosen.tokens) + len(p.rejected.tokens) for p in pairs
            ),
            "pairs": len(pairs),
        }
        append_lines(self.path / "timing.jsonl", [row])

    def write_record(self, **facts: Any) -> None:
        """Add facts to ``run.json``, whole or not at all."""
        self.record = {**self.record, **facts}
        write_json(self.path / "run.json", self.record)


@contextmanager
def open_folder(path: Path) -> Iterator[RunFolder]:
    """Make the folder and hold it alone.

    Raises OutputError where it cannot be made or another process works in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=f"out: {path}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 200).decode(errors="replace").strip()
        os.close(lock)
        raise OutputError(
            f"another process works in this folder ({holder})", where=f"out: {path}"
        ) from error
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield RunFolder(path)
    finally:
        os.close(lock)  # the lock goes with it; the empty file stays, so nobody locks a stale one
