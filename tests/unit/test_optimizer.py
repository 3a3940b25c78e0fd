"""AdamW on masters, its schedule and clipping, against torch and against the formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments, get_scheduler

from likelier.base.errors import RunFailed
from likelier.config.schema import OptimConfig
from likelier.training.optimizer import MasterAdamW, schedule


def test_cosine_by_hand() -> None:
    rate = schedule(OptimConfig(warmup=2), peak=1.0, num_steps=6)
    expected = [
        0.5,
        1.0,
        1.0,
        (1 + math.cos(math.pi / 4)) / 2,
        0.5,
        (1 - math.cos(math.pi / 4)) / 2,
    ]
    assert [rate(step) for step in range(1, 7)] == pytest.approx(expected)


def test_linear_and_constant_by_hand() -> None:
    linear = schedule(OptimConfig(warmup=1, schedule="linear"), peak=0.1, num_steps=5)
    assert [linear(step) for step in range(1, 6)] == pytest.approx([0.1, 0.1, 0.075, 0.05, 0.025])
    constant = schedule(OptimConfig(warmup=0.5, schedule="constant"), peak=2.0, num_steps=4)
    assert [constant(step) for step in range(1, 5)] == [1.0, 2.0, 2.0, 2.0]


@given(
    kind=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0, 0.99) | st.integers(0, 60),
    steps=st.integers(1, 60),
)
def test_no_step_is_without_a_rate_and_none_is_over_the_peak(
    kind: str, warmup: float, steps: int
) -> None:
    rate = schedule(OptimConfig(schedule=kind, warmup=warmup), peak=3.0, num_steps=steps)
    rates = [rate(step) for step in range(1, steps + 1)]
    assert all(0 < value <= 3.0 for value in rates)
    rising = warmup if isinstance(warmup, int) else math.ceil(warmup * steps)
    assert rates[: min(rising, steps)] == sorted(rates[: min(rising, steps)])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    if rising < steps:
        assert rates[rising] == 3.0


@given(
    kind=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0.001, 0.99) | st.integers(1, 60),
    steps=st.integers(1, 60),
)
def test_from_zero_the_rates_are_those_of_transformers(
    kind: str, warmup: float, steps: int
) -> None:
    ours = OptimConfig(schedule=kind, warmup=warmup, warmup_from_zero=True)
    rate = schedule(ours, peak=3.0, num_steps=steps)
    theirs = TrainingArguments(warmup_steps=warmup).get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    name = {"constant": "constant_with_warmup"}.get(kind, kind)
    scheduler = get_scheduler(name, optimizer, theirs, steps)
    for step in range(1, steps + 1):
        assert rate(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_a_whole_number_is_steps_and_a_share_is_a_share() -> None:
    assert schedule(OptimConfig(warmup=4), 1.0, 100)(2) == 0.5
    assert schedule(OptimConfig(warmup=0.4), 1.0, 100)(20) == 0.5


def named(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (3, 4), "vector": (5,), "tensor": (2, 2, 2)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def gradients(seed: int) -> dict[str, torch.Tensor]:
    return {name: p.detach() * 0.3 for name, p in named(seed).items()}


def test_ten_steps_are_those_of_torch() -> None:
    config = OptimConfig(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2, max_grad_norm=None)
    ours, theirs = named(0), named(0)
    optimizer = MasterAdamW(ours.items(), config)
    plain = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"], theirs["tensor"]], "weight_decay": 0.2},
            {"params": [theirs["vector"]], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
        eps=1e-6,
        foreach=False,
    )
    for step in range(1, 11):
        for parameters in (ours, theirs):
            for name, gradient in gradients(step).items():
                parameters[name].grad = gradient.clone()
        for group in plain.param_groups:
            group["lr"] = 0.01 * step
        plain.step()
        optimizer.step(0.01 * step)
    for name, parameter in ours.items():
        assert torch.allclose(parameter, theirs[name], rtol=1e-6, atol=1e-7), name
        assert parameter.grad is None


@pytest.mark.parametrize(("limit", "scale"), [(1.0, 0.2), (5.0, 1.0), (6.0, 1.0), (None, 1.0)])
def test_clipping(limit: float | None, scale: float) -> None:
    """A gradient of norm 5 is scaled down to the limit, never up; its own norm is returned."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = MasterAdamW([("weight", weight)], OptimConfig(max_grad_norm=limit))
    weight.grad = torch.tensor([3.0, -4.0])
    assert optimizer.step(1e-3) == 5.0
    average = optimizer.state()["exp_avg"]["weight"]
    assert torch.allclose(average, torch.tensor([3.0, -4.0]) * 0.1 * scale)


def test_the_norm_is_of_all_parameters_together() -> None:
    two = [(name, torch.nn.Parameter(torch.zeros(1))) for name in "ab"]
    optimizer = MasterAdamW(two, OptimConfig())
    two[0][1].grad, two[1][1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert optimizer.step(1e-3) == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, dtype: torch.dtype) -> None:
    parameters = named(0, dtype)
    optimizer = MasterAdamW(parameters.items(), OptimConfig())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    spoiled = parameters["vector"] * torch.tensor([1, 1, bad, 1, 1], dtype=dtype)
    (spoiled.sum() + parameters["matrix"].sum()).backward()
    with pytest.raises(RunFailed, match="the gradient of vector is not finite, so no update"):
        optimizer.step(0.1)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name])
        assert torch.equal(optimizer.masters[name], before[name].float())
    assert optimizer.state()["exp_avg"] == {}


def test_frozen_parameters_are_left_alone() -> None:
    parameters = named(0)
    parameters["vector"].requires_grad_(False)
    optimizer = MasterAdamW(parameters.items(), OptimConfig(weight_decay=0.5))
    assert optimizer.masters.keys() == {"matrix", "tensor"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_state_goes_on_to_the_bit(dtype: torch.dtype) -> None:
    """Five steps, saved, three more: as eight in a row."""

    def steps(optimizer: MasterAdamW, numbers: range) -> None:
        for number in numbers:
            loss = sum(
                (parameter * gradient.to(dtype)).sum()
                for (_, parameter), gradient in zip(
                    optimizer.parameters.items(), gradients(number).values(), strict=True
                )
            )
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            optimizer.step(0.01)

    whole = MasterAdamW(named(0, dtype).items(), OptimConfig(weight_decay=0.1))
    steps(whole, range(8))
    first = MasterAdamW(named(0, dtype).items(), OptimConfig(weight_decay=0.1))
    steps(first, range(5))
    saved = {
        name: {k: t.detach().clone() for k, t in part.items()}
        for name, part in first.state().items()
    }
    second = MasterAdamW(named(1, dtype).items(), OptimConfig(weight_decay=0.1))
    second.restore(saved)
    steps(second, range(5, 8))
    for part, tensors in whole.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.state()[part][name]), (part, name)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
    assert whole.state()["count"]["matrix"].item() == 8


def test_the_state_of_other_parameters_is_refused() -> None:
    saved = MasterAdamW(named(0).items(), OptimConfig()).state()
    for change in ("rename", "reshape"):
        other = named(0)
        if change == "rename":
            other["another"] = other.pop("vector")
        else:
            other["vector"] = torch.nn.Parameter(torch.zeros(6))
        with pytest.raises(RunFailed, match="other parameters than this model trains"):
            MasterAdamW(other.items(), OptimConfig()).restore(saved)


def test_what_is_not_finite_is_not_saved() -> None:
    parameters = named(0)
    optimizer = MasterAdamW(parameters.items(), OptimConfig())
    optimizer.must_be_finite()
    parameters["tensor"].data[0, 1, 1] = math.nan
    with pytest.raises(RunFailed, match="tensor is not finite after an update"):
        optimizer.must_be_finite()


def test_gradients_that_were_there_before_count_for_nothing() -> None:
    norms = []
    for before in (None, 7.0):
        parameters = named(0)
        for parameter in parameters.values():
            parameter.grad = None if before is None else torch.full_like(parameter, before)
        optimizer = MasterAdamW(parameters.items(), OptimConfig())
        parameters["matrix"].sum().backward()
        norms.append(optimizer.step(0.01))
    assert norms == [pytest.approx(math.sqrt(12))] * 2


def test_gradients_of_several_batches_are_summed_in_float32() -> None:
    """In bfloat16 the second would be rounded away."""
    parameters = named(0, torch.bfloat16)
    optimizer = MasterAdamW(parameters.items(), OptimConfig())
    for share in (1.0, 2.0**-10):
        (parameters["matrix"].sum() * share).backward()
    grad = optimizer.masters["matrix"].grad
    assert grad is not None and grad.unique().tolist() == [1 + 2.0**-10]


def test_closed_it_leaves_gradients_to_the_model() -> None:
    parameters = named(0, torch.bfloat16)
    optimizer = MasterAdamW(parameters.items(), OptimConfig())
    parameters["matrix"].sum().backward()
    assert parameters["matrix"].grad is None and optimizer.masters["matrix"].grad is not None
    optimizer.forget_gradients()
    optimizer.close()
    parameters["matrix"].sum().backward()
    assert parameters["matrix"].grad is not None and optimizer.masters["matrix"].grad is None


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_what_is_restored_lies_where_the_weights_do(kind: str) -> None:
    """A checkpoint is read on the CPU. torch's fused AdamW counts its steps on the device; ours of
    eight bits reads its count for every tensor, and so keeps it on the CPU.
    """
    config = OptimConfig.model_validate({"kind": kind})
    weight = torch.nn.Parameter(torch.ones(64, 128))
    weight.grad = torch.ones_like(weight)
    trained = MasterAdamW([("weight", weight)], config)
    weight.grad = torch.ones_like(weight)
    trained.step(0.1)
    elsewhere = torch.nn.Parameter(torch.empty(64, 128, device="meta"))
    resumed = MasterAdamW([("weight", elsewhere)], config)
    resumed.restore(trained.state())
    places = {part: tensors["weight"].device.type for part, tensors in resumed.state().items()}
    assert places.pop("count") == ("meta" if kind == "adamw" else "cpu")
    assert set(places.values()) == {"meta"} and len(places) == (3 if kind == "adamw" else 5)
