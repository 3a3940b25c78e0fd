"""AdamW with averages in eight bits: beside a plain one, resumed, and where it would go astray."""

import json
import math
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from tests.support.numerics import distance
from tests.support.runs import Place, bytes_of, differing, make_place
from torch import Tensor, nn

from likelier.base import environment
from likelier.base.errors import ConfigError, NotFinite
from likelier.cli import main
from likelier.commands.plan import plan
from likelier.config import config_from
from likelier.config.schema import OptimConfig
from likelier.model.load import load
from likelier.run import train
from likelier.training import adamw8bit
from likelier.training.adamw8bit import NUMBERS_A_BLOCK, bytes_of_averages, pack_into, unpacked
from likelier.training.memory import memory_of
from likelier.training.optimizer import MasterAdamW

EIGHT = OptimConfig(kind="adamw8bit", betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=None)
SHAPES = {"matrix": (70, 101), "vector": (5000,), "small": (30, 40), "norm": (64,)}
KINDS = ("adamw", "adamw8bit")
CODES = {
    "exp_avg": bitsandbytes.functional.create_dynamic_map(signed=True),
    "exp_avg_sq": bitsandbytes.functional.create_dynamic_map(signed=False),
}


def named(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def steps(optimizer: MasterAdamW, numbers: range) -> None:
    """Gradients of very different size, the same for a number; of some rows there is none."""
    for number in numbers:
        for parameter in optimizer.parameters.values():
            generator = torch.Generator().manual_seed(number)
            grad = torch.randn(parameter.shape, generator=generator)
            grad *= torch.logspace(-3, 0, len(grad)).view(-1, *[1] * (grad.ndim - 1))
            grad[:3] = 0
            (parameter * grad.to(parameter)).sum().backward()
        optimizer.step(0.01)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("count", [256, 4096, 5001])
def test_what_is_packed_is_the_nearest_code(name: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=generator) ** 5
    if name == "exp_avg_sq":
        values = values.square()
    values[:300:2] = 0
    packed, scale = torch.zeros(count, dtype=torch.uint8), torch.zeros(-(-count // NUMBERS_A_BLOCK))
    pack_into(values, packed, scale, CODES[name])
    assert torch.equal(
        scale, torch.stack([block.abs().max() for block in values.split(NUMBERS_A_BLOCK)])
    )
    shares = values.double() / scale.double().repeat_interleave(NUMBERS_A_BLOCK)[:count]
    off = (shares[:, None] - CODES[name].double()).abs()
    chosen = off.gather(1, packed.long()[:, None])[:, 0]
    assert float((chosen - off.amin(1)).max()) < 1e-7
    found = unpacked(packed, scale, CODES[name])
    assert torch.equal(found[values == 0], values[values == 0])
    assert float((found - values).abs().max()) < 0.008 * float(scale.max())


def test_a_block_of_zeros_stays_zero() -> None:
    packed, scale = torch.ones(256, dtype=torch.uint8), torch.ones(1)
    pack_into(torch.zeros(256), packed, scale, CODES["exp_avg"])
    assert not unpacked(packed, scale, CODES["exp_avg"]).any()


def test_fifteen_steps_beside_plain_ones() -> None:
    """Each moves as AdamW in float32 moves it, to the rounding of its averages."""
    ours, theirs = named(0), named(0)
    before = named(0)
    steps(packed := MasterAdamW(ours.items(), EIGHT), range(15))
    steps(MasterAdamW(theirs.items(), EIGHT.model_copy(update={"kind": "adamw"})), range(15))
    state = packed.state()
    for name, parameter in ours.items():
        apart = distance(parameter - before[name], theirs[name] - before[name])
        if name in ("matrix", "vector"):
            assert state["exp_avg"][name].dtype == state["exp_avg_sq"][name].dtype == torch.uint8
            assert state["exp_avg"][name].shape == parameter.shape
            assert state["exp_avg_scale"][name].shape == (-(-parameter.numel() // NUMBERS_A_BLOCK),)
            assert 1e-5 < apart < 0.02, name
        else:  # too small to be packed
            assert state["exp_avg"][name].dtype == torch.float32
            assert name not in state["exp_avg_scale"]
            assert apart == 0, name


def test_a_weight_without_a_gradient_only_decays() -> None:
    """Also in a block with others."""
    parameters, before = named(0), named(0)
    steps(MasterAdamW(parameters.items(), EIGHT), range(5))
    matrix, vector = parameters["matrix"], parameters["vector"]
    assert torch.allclose(matrix[:3], before["matrix"][:3] * (1 - 0.01 * 0.1) ** 5, rtol=1e-6)
    assert torch.equal(vector[:3], before["vector"][:3])
    assert not torch.equal(vector[3:], before["vector"][3:])


def test_no_update_is_larger_than_its_rate_where_squares_round_to_nothing() -> None:
    """Gradients 10,000 times smaller than the largest of their block have squares of code 0."""
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = MasterAdamW([("weight", weight)], EIGHT)
    weight.grad = torch.where(torch.arange(4096) % NUMBERS_A_BLOCK == 0, 1.0, 1e-4)
    optimizer.step(1e-3)
    assert float(weight.detach().abs().max()) == pytest.approx(1e-3, rel=0.05)
    before = weight.detach().clone()
    weight.grad = torch.zeros(4096)
    optimizer.step(1e-3)
    assert float((weight.detach() - before).abs().max()) < 1.2e-3


@pytest.mark.parametrize("at_once", [NUMBERS_A_BLOCK, 5 * NUMBERS_A_BLOCK])
def test_any_number_of_blocks_at_once_gives_the_same(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MasterAdamW(named(0).items(), EIGHT)
    steps(whole, range(3))
    monkeypatch.setattr(adamw8bit, "AT_ONCE", at_once)
    cut = MasterAdamW(named(0).items(), EIGHT)
    steps(cut, range(3))
    assert_same(whole, cut)


def assert_same(ours: MasterAdamW, theirs: MasterAdamW) -> None:
    for part, tensors in ours.state().items():
        assert tensors.keys() == theirs.state()[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, theirs.state()[part][name]), (part, name)
    for name, parameter in ours.parameters.items():
        assert torch.equal(parameter, theirs.parameters[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_resumes_to_the_bit(dtype: torch.dtype) -> None:
    """Five steps, saved, three more: as eight in a row."""
    whole = MasterAdamW(named(0, dtype).items(), EIGHT)
    steps(whole, range(8))
    first = MasterAdamW(named(0, dtype).items(), EIGHT)
    steps(first, range(5))
    saved = {
        part: {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for part, tensors in first.state().items()
    }
    second = MasterAdamW(named(1, dtype).items(), EIGHT)
    second.restore(saved)
    steps(second, range(5, 8))
    assert_same(whole, second)
    assert whole.state()["count"]["matrix"].item() == 8


def test_an_average_that_is_not_finite_is_not_saved() -> None:
    optimizer = MasterAdamW(named(0).items(), EIGHT)
    steps(optimizer, range(1))
    optimizer.must_be_finite()
    optimizer.state()["exp_avg_sq_scale"]["matrix"][1] = math.inf
    with pytest.raises(NotFinite, match="exp_avg_sq_scale of matrix is not finite"):
        optimizer.must_be_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_nothing_can_be_packed_the_key_has_no_effect(dtype: torch.dtype) -> None:
    names = ("small", "norm") if dtype == torch.float32 else tuple(SHAPES)
    parameters = {name: p for name, p in named(0, dtype).items() if name in names}
    with pytest.raises(ConfigError, match=r"optim\.kind: has no effect: no trained tensor"):
        MasterAdamW(parameters.items(), EIGHT)


@pytest.mark.cuda
def test_the_kernel_is_the_twin_of_the_blocks() -> None:
    """A code may be the next one where the last bit of an average decides."""
    there = {name: nn.Parameter(p.detach().cuda()) for name, p in named(0).items()}
    here = named(0)
    theirs, ours = (MasterAdamW(some.items(), EIGHT) for some in (there, here))
    steps(theirs, range(5))
    steps(ours, range(5))
    before = named(0)
    for name, parameter in here.items():
        moved = parameter - before[name]
        assert distance(there[name].cpu() - before[name], moved) < 1e-3, name
    for part, tensors in ours.state().items():
        for name, tensor in tensors.items():
            found = theirs.state()[part][name].cpu()
            if tensor.dtype == torch.uint8:
                assert float((found.int() - tensor.int()).abs().float().mean()) < 0.01
            else:
                assert distance(found.float(), tensor.float()) < 1e-3


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=18)


def test_the_missing_library_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = environment._installed
    monkeypatch.setattr(
        environment, "_installed", lambda name: None if name == "bitsandbytes" else known(name)
    )
    words = [f"model.path={place.base}", f"data.train={place.data}", "optim.kind=adamw8bit"]
    assert main(["train", *words, f"out={place.folder / 'none'}"]) == 2
    said = capsys.readouterr().err
    assert "optim.kind: needs bitsandbytes>=0.50, which is not installed\n" in said
    assert "run: pip install 'likelier[quantise]'\n" in said
    with pytest.raises(ConfigError, match="which is not installed"):
        MasterAdamW(named(0).items(), EIGHT)


class Crash(Exception):
    """What a run does not expect."""


def crash(row: dict[str, Any]) -> None:
    if row["step"] == 5 and "loss" in row:
        raise Crash


def test_a_run_resumes_to_the_bit(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))

    def settings(out: str, kind: str = "adamw8bit") -> dict[str, Any]:
        return place.config(tmp_path / out, optim__kind=kind)

    whole = train(settings("whole"))
    with pytest.raises(Crash):
        train(settings("crashed"), on_step=crash)
    train(settings("crashed"))
    assert differing(bytes_of(whole.folder), bytes_of(tmp_path / "crashed")) == []
    record = json.loads((whole.folder / "run.json").read_text())
    assert record["resolved"]["optim"]["kind"] == "adamw8bit"
    files = {path.name for path in (whole.folder / "checkpoints" / "step-00000004").iterdir()}
    assert {"exp_avg_scale.safetensors", "exp_avg_sq_scale.safetensors"} < files
    plain = train(settings("plain", "adamw"))
    losses = [[row["loss"] for row in run.metrics if "loss" in row] for run in (whole, plain)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_the_bytes_of_averages_are_counted(place: Place) -> None:
    assert bytes_of_averages(1000, "adamw8bit") == bytes_of_averages(1000, "adamw") == 8000
    assert bytes_of_averages(5000, "adamw8bit") == 2 * 5000 + 2 * 4 * 20
    policy = load(place.base)
    policy.model.requires_grad_(True)
    optimizer = MasterAdamW(policy.model.named_parameters(), EIGHT)
    for master in optimizer.masters.values():
        master.grad = torch.zeros_like(master)
    optimizer.step(1e-3)
    held: list[Tensor] = [
        tensor
        for part, tensors in optimizer.state().items()
        for tensor in tensors.values()
        if part.startswith("exp_avg")
    ]
    counted = sum(bytes_of_averages(p.numel(), "adamw8bit") for p in policy.model.parameters())
    assert sum(tensor.nbytes for tensor in held) == counted
    eight, plain = memory_of(policy, "adamw8bit").fixed, memory_of(policy).fixed
    numbers = sum(p.numel() for p in policy.model.parameters())
    assert plain - eight == 8 * numbers - counted


def test_a_plan_of_averages_in_eight_bits(place: Place) -> None:
    """They count in every checkpoint: two are kept, one is being written."""
    plans = {kind: plan(config_from(place.config("none", optim__kind=kind))) for kind in KINDS}
    policy = load(place.base)
    saved = sum(
        bytes_of_averages(p.numel(), "adamw") - bytes_of_averages(p.numel(), "adamw8bit")
        for p in policy.model.parameters()
    )
    assert saved > 0
    assert plans["adamw"].disk - plans["adamw8bit"].disk == 3 * saved
