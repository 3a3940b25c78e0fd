"""Checkpoints: taken between steps, written whole with hashes, nothing pickled.

A checkpoint is a folder, ``step-00000040``, that holds

- ``masters.safetensors``: the float32 copies of all trained tensors, by name;
- ``exp_avg.safetensors``, ``exp_avg_sq.safetensors``, ``count.safetensors``: AdamW's averages and
  its count of steps, by the same names;
- ``exp_avg_scale.safetensors``, ``exp_avg_sq_scale.safetensors``: where its averages are held in
  eight bits, the scales of their blocks;
- ``reference.safetensors``: the weights of a reference that moves, once it has moved;
- in the place of all these, where several processes held the model in parts, one file of each:
  see `likelier.training.checkpoint_parts`;
- ``MANIFEST.json``: the step, the hashes of what the run reads, the loss's own figures, the seals
  of the run's logs as they stood (`likelier.training.logs`), the size and hash of every file, and
  a hash over all of this.

It is valid only where every hash holds. A run resumes from the newest valid one whose logs still
hold what they held, so that lost rows are made again; where none is left, from the newest valid
one, and says what is lost. Checkpoints of format 1 had no hash over all: they are refused, because
a damaged manifest of that format cannot be told from a whole one.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from likelier.base.errors import OutputError, RunFailed
from likelier.base.files import (
    MANIFEST,
    make_folder,
    read_errors,
    read_json,
    read_manifest,
    remove_folder,
    write_folder,
)
from likelier.base.terminal import say
from likelier.model.sharding import part_of
from likelier.reference.moving import MovingReference
from likelier.training.batches import Batcher
from likelier.training.checkpoint_parts import load_parts, save_together
from likelier.training.logs import Sealed, lost_rows
from likelier.training.optimizer import MasterAdamW

FORMAT = 2
_NAME = re.compile(r"step-(\d{8})")
_PARTS = ("masters", "exp_avg", "exp_avg_sq", "count")


def save_checkpoint(
    folder: Path,
    step: int,
    optimizer: MasterAdamW,
    facts: dict[str, Any],
    keep: int,
    reference: dict[str, Tensor] | None = None,
) -> Path:
    """Write the state after ``step`` steps, then delete all but the newest ``keep`` valid ones.

    ``facts`` go into the manifest. ``reference`` are the weights of a reference that has moved.
    Called on every process of the optimizer's team; those that hold no more than the first do
    nothing.

    Raises OutputError where the disk refuses; earlier checkpoints then still stand.
    """
    path = folder / f"step-{step:08d}"
    team, state = (
        optimizer.team,
        optimizer.state() | ({"reference": reference} if reference else {}),
    )
    in_parts = optimizer.replicas < team.size

    def put(write: Callable[[Path], None]) -> None:
        make_folder(folder)
        if path.exists():  # one that is damaged, or whose logs are
            remove_folder(path)
        parts = {"parts": team.size} if in_parts else {}
        write_folder(path, write, {"format": FORMAT, "step": step, **parts, **facts})
        prune(folder, keep)

    if in_parts:
        save_together(team, put, state, optimizer)
    elif team.leads:
        plain = {name: _plain(tensors) for name, tensors in state.items()}
        put(partial(_write_files, plain))
    return path


def _write_files(state: dict[str, dict[str, Tensor]], target: Path) -> None:
    for name, tensors in state.items():
        save_file(tensors, target / f"{name}.safetensors")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: contiguous, on the CPU, sharing nothing."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def steps_saved(folder: Path) -> list[int]:
    """The steps that checkpoints, valid or not, stand there for, the newest first.

    Raises OutputError where the folder cannot be read.
    """
    try:
        names = [p.name for p in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"cannot be read: {error.strerror}", where=str(folder)) from error
    return sorted((int(m[1]) for name in names if (m := _NAME.fullmatch(name))), reverse=True)


def latest_checkpoint(
    folder: Path, facts: dict[str, Any], logs: Sequence[Sealed] = ()
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint to resume from, its manifest, and what of the logs is lost, a line each.

    It is the newest valid one whose ``logs`` hold what they held; where there is none, the newest
    valid one. None where there is no checkpoint at all.

    Raises RunFailed where checkpoints stand there but none is valid, or where one was made with
    other ``facts`` or by an older version; OutputError where one cannot be read now, and no other
    will do.
    """
    steps = steps_saved(folder)
    newest: tuple[Path, dict[str, Any], list[str]] | None = None
    unreadable: OutputError | None = None
    for step in steps:
        path = folder / f"step-{step:08d}"
        try:
            manifest = _manifest(path, step)
        except OutputError as error:
            say(f"{error.where} {error.what}: {path.name} is passed over")
            unreadable = unreadable or error
            continue
        if manifest is None:
            say(f"{path} is damaged: passed over")
            continue
        different = [name for name, value in facts.items() if manifest.get(name) != value]
        if different:
            raise RunFailed(
                f"the checkpoint was made with another {different[0]}",
                where=str(path),
                hint="start again with another out folder",
            )
        lost = lost_rows(logs, manifest.get("logs", {}), step)
        if not lost:
            return path, manifest, []
        newest = newest or (path, manifest, lost)
    if newest is None and unreadable is not None:
        raise unreadable
    if steps and newest is None:
        raise RunFailed(
            f"none of the {len(steps)} checkpoints is whole",
            where=str(folder),
            hint="delete the folder to start again",
        )
    return newest


def _manifest(path: Path, step: int) -> dict[str, Any] | None:
    """The manifest of a valid checkpoint; None where it is damaged, or another step's.

    Raises RunFailed where an older version made it; OutputError where it cannot be read now.
    """
    manifest = read_manifest(path)
    if manifest is not None and _is_of(manifest, step):
        return manifest
    written = read_json(path / MANIFEST) or {}
    if written.get("format") == 1 and "seal" not in written:
        raise RunFailed(
            "the checkpoint was made by an older version, which sealed no manifest",
            where=str(path),
            hint="finish the run with that version, or start again with another out folder",
        )
    return None


def _is_of(manifest: dict[str, Any], step: int) -> bool:
    """Whether a manifest says what that of a checkpoint of a step does, in the types it should."""
    figures, logs = manifest.get("figures", {}), manifest.get("logs", {})
    files = [] if "parts" in manifest else [f"{name}.safetensors" for name in _PARTS]
    return (
        (manifest.get("format"), manifest.get("step")) == (FORMAT, step)
        and all(name in manifest["files"] for name in files)
        and isinstance(figures, dict)
        and all(isinstance(value, int | float) for value in figures.values())
        and isinstance(logs, dict)
        and all(isinstance(seal, dict) for seal in logs.values())
    )


def good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, whatever it was made with; None where there is none."""
    for step in steps_saved(folder):
        path = folder / f"step-{step:08d}"
        with suppress(OutputError):  # it cannot be read now
            if _manifest(path, step) is not None:
                return path
    return None


def load_checkpoint(path: Path, optimizer: MasterAdamW) -> dict[str, Tensor]:
    """Put a checkpoint's state into the optimizer and the model whose parameters it trains.

    Returns the weights of a reference that has moved, none where none has. Raises OutputError where
    it cannot be read now.
    """
    with read_errors(path):
        if (path / "masters.safetensors").exists():
            state = _read_files(path, optimizer)
        else:
            state = load_parts(path, optimizer)
        reference = state.pop("reference", {})
        optimizer.restore(state)
    return reference


def _read_files(path: Path, optimizer: MasterAdamW) -> dict[str, dict[str, Tensor]]:
    """The state in a checkpoint of whole tensors, of each what this process holds."""
    moved = (path / "reference.safetensors").exists()
    names = (*optimizer.parts, "reference") if moved else optimizer.parts
    state = {name: load_file(path / f"{name}.safetensors") for name in names}
    own = optimizer.parameters
    for part, tensors in state.items():
        if part != "count":
            for name in tensors.keys() & own.keys():
                tensors[name] = part_of(tensors[name], own[name])
    return state


def resume(
    folder: Path,
    facts: dict[str, Any],
    optimizer: MasterAdamW,
    batcher: Batcher,
    logs: Sequence[Sealed],
) -> tuple[int, list[str]]:
    """Load the checkpoint to resume from: optimizer, model, the loss's own figures, the reference;
    and cut the logs back to it. Which one it is, the first process of a team finds.

    Returns its step, 0 where there is no checkpoint at all, and what of the logs is lost, a line
    each. Raises as `latest_checkpoint`.
    """
    found = optimizer.team.agreed(lambda: latest_checkpoint(folder, facts, logs))
    if found is None:
        for log in logs:
            log.cut_back(0, {})
        return 0, []
    path, manifest, lost = found
    step: int = manifest["step"]
    reference = load_checkpoint(path, optimizer)
    batcher.loss.state.update(manifest.get("figures", {}))
    if isinstance(batcher.reference, MovingReference) and reference:  # once it has moved
        batcher.reference.restore(reference)
    for log in logs:
        log.cut_back(step, manifest.get("logs", {}).get(log.name, {}))
    say(f"resuming from step {step}")
    for line in lost:
        say(f"{line}; no checkpoint is left to make them again from")
    return step, lost


def prune(folder: Path, keep: int, ended: bool = False) -> None:
    """Delete every checkpoint but the newest ``keep`` valid ones.

    Until a run has ``ended``, one that is damaged stays where it is newer than these.

    Raises OutputError where the disk refuses, or where one that is to stay cannot be read now.
    """
    valid = 0
    for step in steps_saved(folder):
        path = folder / f"step-{step:08d}"
        if valid < keep and read_manifest(path) is not None:
            valid += 1
        elif valid or ended:
            remove_folder(path)
