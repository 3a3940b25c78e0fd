"""Losses and references that carry figures of the run go on bit by bit, and TR-DPO is TR-DPO."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.runs import Place, bytes_of, differing, make_place, training_rows

from likelier.base.errors import LikelierError
from likelier.base.files import read_manifest
from likelier.run import train


class Crash(Exception):
    """What a run does not expect."""


def crash_after(step: int) -> Any:
    def on_step(row: dict) -> None:
        if row["step"] == step and "loss" in row:
            raise Crash

    return on_step


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=16)


@pytest.fixture(autouse=True)
def quick(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


CARRYING: dict[str, dict[str, Any]] = {
    "bco": {"loss": {"name": "bco", "beta": 0.5}},
    "dynamic beta": {"loss": {"name": "sigmoid", "dynamic_beta": {}}},
    "tr-dpo": {"reference": {"update_every": 3, "update_mix": 0.6}},
    "tr-dpo, lora": {
        "reference": {"update_every": 1, "update_mix": 0.5},
        "adapter": {"kind": "lora", "r": 2},
        "optim": {"lr": 0.05},
    },
}


@pytest.mark.parametrize("name", CARRYING)
def test_a_crashed_run_goes_on_as_if_nothing_had_been(
    place: Place, name: str, tmp_path: Path
) -> None:
    train(place.config(tmp_path / "whole", **CARRYING[name]))
    with pytest.raises(Crash):
        train(place.config(tmp_path / "crashed", **CARRYING[name]), on_step=crash_after(5))
    train(place.config(tmp_path / "crashed", **CARRYING[name]))
    assert differing(bytes_of(tmp_path / "crashed"), bytes_of(tmp_path / "whole")) == []
    manifest = read_manifest(tmp_path / "whole" / "checkpoints" / "step-00000004")
    assert manifest is not None
    assert bool(manifest["figures"]) == ("tr-dpo" not in name)


def test_the_shift_changes_the_run(place: Place, tmp_path: Path) -> None:
    """Without it the second step would be another one."""
    moving = train(place.config(tmp_path / "a", loss={"name": "bco", "beta": 0.5}))
    fixed = train(place.config(tmp_path / "b", loss={"name": "bco", "beta": 0.5, "delta": 0.0}))
    first, second = (training_rows(run.folder) for run in (moving, fixed))
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)
    assert first[-1]["loss"] != pytest.approx(second[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 2}])
def test_a_reference_that_follows_at_once_has_rewards_of_nothing(
    place: Place, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    """mix 1 after every step: the policy of each step is its own reference."""
    settings = place.config(
        tmp_path / "out", adapter=adapter, optim={"lr": 0.01},
        reference={"update_every": 1, "update_mix": 1.0},
    )  # fmt: skip
    run = train(settings)
    rows = training_rows(run.folder)
    assert all(abs(row["rewards/margins"]) < 1e-5 for row in rows)
    still = train(place.config(tmp_path / "still", adapter=adapter, optim={"lr": 0.01}))
    assert abs(training_rows(still.folder)[-1]["rewards/margins"]) > 1e-3


def test_the_reference_moves_by_the_mix(place: Place, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train(place.config(tmp_path / "a", train__steps=2, train__save_every=1,
                       reference={"update_every": 2, "update_mix": 0.25}))  # fmt: skip
    start = load_file(place.base / "model.safetensors")
    end = tmp_path / "a" / "checkpoints" / "step-00000002"
    moved, policy = load_file(end / "reference.safetensors"), load_file(end / "masters.safetensors")
    assert not (tmp_path / "a" / "checkpoints" / "step-00000001" / "reference.safetensors").exists()
    for name, tensor in moved.items():
        wanted = 0.25 * policy[name] + 0.75 * start[name]
        assert torch.allclose(tensor, wanted, atol=1e-7), name


def test_rows_of_the_wrong_kind_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(LikelierError, match="kto learns from single answers") as found:
        train(place.config(tmp_path / "a", loss={"name": "kto"}))
    assert found.value.exit_code == 65 and not (tmp_path / "a").exists()
    with pytest.raises(LikelierError, match="the loss reads this column") as found:
        train(place.config(tmp_path / "b", loss={"name": "odpo"}))
    assert "margin" in str(found.value.where) and not (tmp_path / "b").exists()
