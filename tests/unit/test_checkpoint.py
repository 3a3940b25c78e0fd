"""Checkpoints: which is gone on from, and which are kept."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from likelier.base import files
from likelier.base.errors import OutputError, RunFailed
from likelier.base.files import open_regular, remove_folder
from likelier.config.schema import OptimConfig
from likelier.training.checkpoint import (
    good_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
    steps_saved,
)
from likelier.training.optimizer import MasterAdamW

FACTS = {"data": "abc", "config": "def"}


def optimizer_at(value: float, dtype: torch.dtype = torch.float32) -> MasterAdamW:
    weight = torch.nn.Parameter(torch.full((2, 3), value, dtype=dtype))
    optimizer = MasterAdamW([("layer.weight", weight)], OptimConfig())
    (weight.sum() * 2).backward()
    optimizer.step(0.1)
    return optimizer


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(folder, step, optimizer_at(float(step)), FACTS, keep)


def latest(folder: Path) -> tuple[int, Path]:
    found = latest_checkpoint(folder, FACTS)
    assert found is not None
    path, manifest, lost = found
    assert lost == []
    return manifest["step"], path


def damage(folder: Path, step: int) -> None:
    file = folder / f"step-{step:08d}" / "masters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)


def test_what_a_checkpoint_is(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "new", 7, optimizer_at(1.0, torch.bfloat16), FACTS, 1)
    assert path == tmp_path / "new" / "step-00000007"
    assert {file.name for file in path.iterdir()} == {
        "MANIFEST.json", "masters.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors",
        "count.safetensors",
    }  # fmt: skip
    for name in ("masters", "exp_avg", "exp_avg_sq"):
        (tensor,) = load_file(path / f"{name}.safetensors").values()
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_there_and_back(tmp_path: Path, dtype: torch.dtype) -> None:
    before, after = optimizer_at(1.0, dtype), optimizer_at(5.0, dtype)
    load_checkpoint(save_checkpoint(tmp_path, 1, before, FACTS, 1), after)
    for part, tensors in before.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(after.state()[part][name], tensor)
    assert torch.equal(after.parameters["layer.weight"], before.parameters["layer.weight"])


def test_the_newest_valid_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none", FACTS) is None
    save(tmp_path, 2, 4, 10, keep=3)
    assert latest(tmp_path) == (10, tmp_path / "step-00000010")
    damage(tmp_path, 10)
    assert latest(tmp_path) == (4, tmp_path / "step-00000004")


def test_a_copy_that_made_the_older_one_younger(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    for step, seconds in ((2, 2_000_000_000), (4, 1_000_000_000)):
        os.utime(tmp_path / f"step-{step:08d}", (seconds, seconds))
    assert latest(tmp_path) == (4, tmp_path / "step-00000004")
    save(tmp_path, 6)
    assert steps_saved(tmp_path) == [6, 4]


def test_none_valid(tmp_path: Path) -> None:
    save(tmp_path, 2)
    damage(tmp_path, 2)
    with pytest.raises(RunFailed, match="none of the 1 checkpoints is whole"):
        latest_checkpoint(tmp_path, FACTS)


def test_one_under_another_name_is_not_valid(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000009")
    assert latest(tmp_path) == (4, tmp_path / "step-00000004")


def test_other_facts_are_refused(tmp_path: Path) -> None:
    """Also where an older checkpoint would fit: it is another run's folder."""
    save(tmp_path, 2)
    save_checkpoint(tmp_path, 4, optimizer_at(1.0), {**FACTS, "config": "other"}, 2)
    with pytest.raises(RunFailed, match="made with another config"):
        latest_checkpoint(tmp_path, FACTS)


def test_names_that_are_none_of_ours(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for name in ("step-3", "step-000000040", ".step-00000006.1.tmp", "notes", "step-0000000x"):
        (tmp_path / name).mkdir()
    assert steps_saved(tmp_path) == [2]
    save(tmp_path, 3, keep=1)
    assert (tmp_path / "notes").exists()


@pytest.mark.parametrize(("keep", "kept"), [(1, [10]), (2, [10, 8]), (3, [10, 8, 6]), (9, None)])
def test_the_newest_are_kept(tmp_path: Path, keep: int, kept: list[int] | None) -> None:
    save(tmp_path, 2, 4, 6, 8, 10, keep=keep)
    assert steps_saved(tmp_path) == (kept or [10, 8, 6, 4, 2])


def test_the_old_one_stands_until_the_new_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 4, keep=1)
    monkeypatch.setattr("likelier.training.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        save(tmp_path, 6, keep=1)
    assert latest(tmp_path) == (4, tmp_path / "step-00000004")


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6, keep=9)
    damage(tmp_path, 6)
    save(tmp_path, 8)
    assert steps_saved(tmp_path) == [8, 4]
    damage(tmp_path, 8)
    prune(tmp_path, 2)
    assert steps_saved(tmp_path) == [8, 4]  # the run goes on from 4, and may write 8 again
    prune(tmp_path, 2, ended=True)
    assert steps_saved(tmp_path) == [4]


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    damage(tmp_path, 4)
    save(tmp_path, 4)
    assert latest(tmp_path) == (4, tmp_path / "step-00000004")
    assert steps_saved(tmp_path) == [4, 2]


def test_a_checkpoint_that_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older one will do; where none will, it is not called damaged, and it is never deleted."""
    save(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002" / "masters.safetensors"

    def fails(path: Path) -> object:
        if path == newest:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return open_regular(path)

    monkeypatch.setattr(files, "open_regular", fails)
    assert latest(tmp_path)[0] == 1
    assert "cannot be read: Input/output error: step-00000002 is passed over" in (
        capsys.readouterr().err
    )
    assert good_checkpoint(tmp_path) == tmp_path / "step-00000001"
    for ended in (False, True):
        with pytest.raises(OutputError, match="cannot be read"):
            prune(tmp_path, 1, ended)
    assert steps_saved(tmp_path) == [2, 1]
    remove_folder(tmp_path / "step-00000001")
    with pytest.raises(OutputError, match="cannot be read"):
        latest(tmp_path)
    assert steps_saved(tmp_path) == [2]
