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
from likelier.base.environment import packages
from likelier.base.errors import OutputError
from likelier.base.files import (
    append_lines,
    read_json,
    read_lines,
    sha256,
    sweep,
    sync,
    write_json,
    write_lines,
    write_text,
)
from likelier.base.terminal import say
from likelier.config import Config, dump, resolved
from likelier.data.load import Dataset
from likelier.data.records import TokenPair
from likelier.losses.registry import BoundLoss
from likelier.model.score import Ready
from likelier.reference.column import Column, Reference
from likelier.training.budget import settled
from likelier.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_figures,
    load_reference,
    save_checkpoint,
)
from likelier.training.gate import GateReport
from likelier.training.inputs import asked, hashes, refuse_changes, refuse_other_config
from likelier.training.moving import MovingReference
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
        self.inputs: dict[str, str] = {}  # hashes that every checkpoint must agree with

    @property
    def goes_on(self) -> bool:
        """Whether a run began here before."""
        return bool(self.record)

    def finished(self, config: Config) -> bool:
        """Whether the run of this config reached its last step here and its model is saved.

        Raises OutputError where the folder holds a run of another config, or something else.
        """
        if self.goes_on:
            refuse_other_config(self.record.get("asked", {}), config, self.path)
            return self.record.get("status") == "finished"
        other = [name for name in _OTHER_THINGS if (self.path / name).exists()]
        if other or (self.path.exists() and not self.path.is_dir()):
            raise OutputError(
                f"this holds something else ({other[0] if other else 'a file'})",
                where=f"out: {self.path}",
                hint="give a folder that does not exist yet",
            )
        return False

    def settle(self, config: Config, data: Dataset, ready: Ready, loss: BoundLoss) -> int:
        """Decide every ``auto`` of the config; returns the tokens of a pass.

        A run that goes on keeps what it decided when it began.

        Raises OutputError where the content behind the config has changed since then.
        """
        self.asked = asked(config)
        self.inputs = hashes(config, data, ready, loss)
        refuse_changes(self.record.get("inputs", {}), self.inputs, self.path)
        policy = ready.policy
        dtype = str(policy.causal_lm.dtype).removeprefix("torch.")
        self.resolved = self.record.get("resolved") or resolved(
            config,
            dtype=dtype,
            save_dtype="auto" if policy.has_adapter else dtype,
            tokens_per_batch=settled(config, ready),
        )
        budget: int = self.resolved["train"]["tokens_per_batch"]
        return budget

    def begin(
        self,
        ready: Ready,
        data: Dataset,
        column: Reference,
        gate: GateReport,
        num_steps: int,
        objective: BoundLoss,
    ) -> None:
        """Write down what the run is.

        Raises OutputError where the reference column is another than when it began.
        """
        if isinstance(column, Column):
            self.inputs["reference"] = sha256(self.path / "reference.safetensors")
        refuse_changes(self.record.get("inputs", {}), self.inputs, self.path)
        versions = {package.name: package.installed for package in packages()}
        self._tell_of_other_bits({"threads": torch.get_num_threads(), **versions})
        parameters = list(ready.policy.model.parameters())
        write_text(self.path / "config.yaml", dump(self.resolved))
        self.write_record(
            format=1,
            likelier=__version__,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            status="running",
            step=self.record.get("step", 0),
            steps=num_steps,
            pairs=len(data.train),
            eval_pairs=len(data.eval),
            data=data.counts,
            asked=self.asked,
            resolved=self.resolved,
            inputs=self.inputs,
            versions=versions,
            threads=torch.get_num_threads(),
            device=str(ready.policy.device),
            backend=ready.backend,
            backend_reason=ready.backend_reason,
            objective=objective.formula,
            loss=objective.as_record(),
            gate=gate.as_record(),
            reference={
                "identity": column.identity,
                "column": self.inputs.get("reference"),
                "answers": len(column.values),
            },
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
        )

    def go_on(
        self,
        optimizer: MasterAdamW,
        loss: BoundLoss | None = None,
        moving: MovingReference | None = None,
    ) -> int:
        """Load the newest valid checkpoint, forget what was logged after it; returns its step.

        Raises RunFailed where checkpoints are there but none is whole.
        """
        found = latest_checkpoint(self.path / "checkpoints", self.inputs)
        step = 0
        if found is not None:
            step, checkpoint = found
            load_checkpoint(checkpoint, optimizer)
            if loss is not None:
                loss.state.update(load_figures(checkpoint))
            saved = load_reference(checkpoint)
            if moving is not None and saved is not None:
                moving.restore(saved)
            say(f"going on from step {step}")
        for name in ("metrics.jsonl", "timing.jsonl"):
            rows = [row for row in read_lines(self.path / name) if step and row["step"] <= step]
            write_lines(self.path / name, rows)
        self.write_record(step=step)
        return step

    def save(
        self,
        step: int,
        optimizer: MasterAdamW,
        keep: int,
        loss: BoundLoss,
        moving: MovingReference | None,
    ) -> None:
        """Write a checkpoint of the state after ``step`` steps; its logs go to disk before it."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            sync(self.path / name)
        reference = moving.masters if moving is not None and moving.moved else None
        checkpoints = self.path / "checkpoints"
        save_checkpoint(checkpoints, step, optimizer, self.inputs, keep, loss.state, reference)
        self.write_record(step=step)

    def finish(self, step: int) -> None:
        """The model is saved: this run is done."""
        rows = read_lines(self.path / "timing.jsonl")
        plain, tree = (sum(row[name] for row in rows) for name in ("plain_tokens", "tokens"))
        over = sum(row.get("over_budget", 0) for row in rows)
        tokens = {"plain": plain, "tree": tree, "passes_over_budget": over}
        self.write_record(status="finished", step=step, tokens=tokens)

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
        budget = self.resolved["train"]["tokens_per_batch"]
        over = sum(item.batch.num_tokens > budget for item in passes)
        if over:  # a pair is never cut: these went alone
            row["over_budget"] = over
        append_lines(self.path / "timing.jsonl", [row])

    def _tell_of_other_bits(self, now: Mapping[str, Any]) -> None:
        """A run that goes on under other versions or threads rounds otherwise from here on."""
        before = {**self.record, **self.record.get("versions", {})}
        for name, value in now.items():
            if before.get(name, value) != value:
                say(f"began with {name} {before[name]}, goes on with {value}: bits may differ")

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
        for folder in (path, path / "checkpoints", path / "ledger"):
            sweep(folder)
        yield RunFolder(path)
    finally:
        os.close(lock)  # the lock goes with it; the empty file stays, so nobody locks a stale one
