"""Checkpoints: taken between steps, written whole with hashes, nothing pickled.

A checkpoint is a folder, ``step-00000040``, that holds

- ``masters.safetensors``: the float32 copies of all trained tensors, by name;
- ``exp_avg.safetensors``, ``exp_avg_sq.safetensors``, ``count.safetensors``: AdamW's averages and
  its count of steps, by the same names;
- ``reference.safetensors``: the weights of a reference that moves, once it has moved;
- ``MANIFEST.json``: the step, the hashes of what the run reads, the loss's own figures, and the
  size and hash of every file.

It is valid only where every hash holds; a run resumes from the newest valid one.
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from likelier.base.errors import RunFailed
from likelier.base.files import read_manifest, remove_folder, write_folder
from likelier.base.terminal import say
from likelier.reference.moving import MovingReference
from likelier.training.batches import Batcher
from likelier.training.optimizer import MasterAdamW

_NAME = re.compile(r"step-(\d{8})")


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

    Raises OutputError where the disk refuses; earlier checkpoints then still stand.
    """
    path = folder / f"step-{step:08d}"
    whole = optimizer.state() | ({"reference": reference} if reference else {})
    state = {name: _plain(tensors) for name, tensors in whole.items()}

    def write(target: Path) -> None:
        for name, tensors in state.items():
            save_file(tensors, target / f"{name}.safetensors")

    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():  # a damaged one: the run would have resumed from a valid one
        remove_folder(path)
    write_folder(path, write, {"format": 1, "step": step, **facts})
    _prune(folder, keep)
    return path


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: contiguous, on the CPU, sharing nothing."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def steps_saved(folder: Path) -> list[int]:
    """The steps that checkpoints, valid or not, stand there for, the newest first."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(m[1]) for name in names if (m := _NAME.fullmatch(name))), reverse=True)


def latest_checkpoint(folder: Path, facts: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid checkpoint with its manifest, or None where there is no checkpoint at all.

    Raises RunFailed where checkpoints stand there but none is valid, or where the newest valid
    one was made with other ``facts``.
    """
    steps = steps_saved(folder)
    for step in steps:
        path = folder / f"step-{step:08d}"
        manifest = read_manifest(path)
        if manifest is None or manifest.get("step") != step:
            continue
        different = [name for name, value in facts.items() if manifest.get(name) != value]
        if different:
            raise RunFailed(
                f"the checkpoint was made with another {different[0]}",
                where=str(path),
                hint="start again with another out folder",
            )
        return path, manifest
    if steps:
        raise RunFailed(
            f"none of the {len(steps)} checkpoints is whole",
            where=str(folder),
            hint="delete the folder to start again",
        )
    return None


def load_checkpoint(path: Path, optimizer: MasterAdamW) -> None:
    """Put a checkpoint's state into the optimizer and the model whose parameters it trains."""
    names = ("masters", "exp_avg", "exp_avg_sq", "count")
    optimizer.restore({name: load_file(path / f"{name}.safetensors") for name in names})


def resume(folder: Path, facts: dict[str, Any], optimizer: MasterAdamW, batcher: Batcher) -> int:
    """Load the newest valid checkpoint: optimizer, model, the loss's own figures, the reference.

    Returns its step, 0 where there is no checkpoint at all. Raises as `latest_checkpoint`.
    """
    found = latest_checkpoint(folder, facts)
    if found is None:
        return 0
    path, manifest = found
    step: int = manifest["step"]
    load_checkpoint(path, optimizer)
    batcher.loss.state.update(manifest.get("figures", {}))
    moved = path / "reference.safetensors"  # not there before it first moved
    if isinstance(batcher.reference, MovingReference) and moved.exists():
        batcher.reference.restore(load_file(moved))
    say(f"resuming from step {step}")
    return step


def _prune(folder: Path, keep: int) -> None:
    """Delete every checkpoint older than the newest ``keep`` valid ones."""
    valid = 0
    for step in steps_saved(folder):
        path = folder / f"step-{step:08d}"
        if valid >= keep:
            remove_folder(path)
        elif read_manifest(path) is not None:
            valid += 1
