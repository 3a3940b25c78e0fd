"""The DPO loss against forty digits of arithmetic, and its gradients in closed form."""

import math
from collections.abc import Sequence

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import likelier
from likelier.api import dpo_loss
from likelier.base.errors import ConfigError
from likelier.losses.declare import LOSSES
from likelier.losses.pairwise import sigmoid
from likelier.losses.registry import bind
from likelier.losses.values import StepValues, log_sigmoid

LN2 = math.log(2)
# Policy chosen, policy rejected, reference chosen, reference rejected: nats of whole answers.
CASES = [
    (-10.0, -12.0, -11.0, -11.5),
    (-10.0, -12.0, -10.0, -12.0),
    (-85.5, -59.0, -85.25, -60.5),
    (-1e4, 0.0, 0.0, -1e4),
    (0.0, -1e4, -1e4, 0.0),
    (-1e4, -1e4, -1e4, -1e4),
    (-1e4, 0.0, 0.0, 0.0),
    (-1234.5, -1200.25, -1230.0, -1210.0),
    (-1e-3, -2e-3, -3e-3, -5e-3),
]
logp = st.floats(-1e4, 0, allow_nan=False)
Four = tuple[float, float, float, float]


def oracle(four: Sequence[float], beta: float) -> tuple[float, float]:
    """The loss, and its slope in the policy's chosen log-prob, by 40 digits of arithmetic."""
    with mpmath.workdps(40):
        pc, pr, rc, rr = (mpmath.mpf(value) for value in four)
        scaled = mpmath.mpf(beta) * ((pc - rc) - (pr - rr))
        loss = mpmath.log1p(mpmath.exp(-scaled))
        slope = -mpmath.mpf(beta) / (1 + mpmath.exp(scaled))
        return float(loss), float(slope)


def tensors(four: Sequence[float], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in four]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("four", CASES)
def test_value_and_gradients_in_float64(four: Four, beta: float) -> None:
    given_tensors = tensors(four)
    loss = dpo_loss(*given_tensors, beta=beta)
    loss.backward()
    value, slope = oracle(four, beta)
    assert loss.item() == pytest.approx(value, rel=1e-13, abs=1e-300)
    found = [float(t.grad) for t in given_tensors if t.grad is not None]
    wanted = [slope, -slope, -slope, slope]  # what the policy gains, the reference loses
    assert found == pytest.approx(wanted, rel=1e-13, abs=1e-300)


@given(st.tuples(logp, logp, logp, logp), st.floats(0.01, 2))
def test_any_log_probs(four: Four, beta: float) -> None:
    value, _ = oracle(four, beta)
    found = dpo_loss(*tensors(four), beta=beta)
    # The margin's own rounding: 1e4 nats hold 2e-12 in float64.
    assert found.item() == pytest.approx(value, rel=1e-12, abs=beta * 1e-11)
    assert math.isfinite(found.item()) and found.item() >= 0


def test_the_start_of_every_run_is_ln_2() -> None:
    same = torch.tensor([-3.0, -400.0, -1e4])
    loss_P = dpo_loss(same, same - 1, same, same - 1)
    assert loss_P.tolist() == pytest.approx([LN2] * 3, abs=1e-7)
    assert dpo_loss(*tensors(CASES[1])).item() == LN2


def test_the_usual_beta_is_a_tenth() -> None:
    assert dpo_loss(*tensors(CASES[0])).item() == pytest.approx(oracle(CASES[0], 0.1)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_subtracted_in_float32(dtype: torch.dtype) -> None:
    """-85.5 and -85.25 are numbers of bfloat16; their margins with others are not."""
    four = (-85.5, -59.25, -0.0078125, -60.5)
    halves = tensors(four, dtype)
    assert [t.item() for t in halves] == list(four)
    loss = dpo_loss(*halves, beta=0.1)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(oracle(four, 0.1)[0], rel=1e-6)
    loss.backward()
    assert halves[0].grad is not None and halves[0].grad.dtype is dtype


def test_floats_are_as_good_as_tensors() -> None:
    for four in CASES:
        assert dpo_loss(*four, beta=0.3).item() == dpo_loss(*tensors(four), beta=0.3).item()
    policy = torch.tensor(-80.123456789, dtype=torch.float64, requires_grad=True)
    mixed = dpo_loss(policy, -90.987654321, -80.5, -91.25, beta=0.3)
    expected = oracle((-80.123456789, -90.987654321, -80.5, -91.25), 0.3)[0]
    assert mixed.item() == pytest.approx(expected, rel=1e-13)
    assert mixed.requires_grad


def test_the_shape_stays_and_pairs_do_not_mix() -> None:
    columns = torch.tensor(CASES, dtype=torch.float64).T
    loss_P = dpo_loss(*columns, beta=0.1)
    assert loss_P.shape == (len(CASES),)
    assert loss_P.tolist() == [dpo_loss(*tensors(four), beta=0.1).item() for four in CASES]
    assert dpo_loss(*tensors(CASES[0])).shape == ()
    grid = dpo_loss(*(column[:8].view(2, 4) for column in columns))
    assert grid.shape == (2, 4)
    assert dpo_loss(*(torch.empty(0) for _ in range(4))).shape == (0,)


@pytest.mark.parametrize("place", range(4))
def test_shapes_that_would_broadcast_are_refused(place: int) -> None:
    given_tensors = [torch.zeros(3) for _ in range(4)]
    for wrong in (torch.zeros(()), torch.zeros(1), torch.zeros(3, 1), torch.zeros(2)):
        given_tensors[place] = wrong
        with pytest.raises(ValueError, match="differ in shape") as caught:
            dpo_loss(*given_tensors)
        assert str(tuple(wrong.shape)) in str(caught.value)


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_beta_is_positive(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be positive"):
        dpo_loss(*tensors(CASES[0]), beta=beta)


def test_gradients_by_finite_differences() -> None:
    columns = [column.clone().requires_grad_() for column in torch.tensor(CASES[:3]).double().T]
    assert torch.autograd.gradcheck(lambda *four: dpo_loss(*four, beta=0.5), columns)
    assert torch.autograd.gradgradcheck(lambda *four: dpo_loss(*four, beta=0.5), columns)


def test_the_public_name() -> None:
    assert likelier.dpo_loss is dpo_loss


# The same loss as the engine calls it


def shared_answers() -> StepValues:
    """Three answers of one prompt in two pairs, and a pair of its own."""
    policy_R = torch.tensor([-10.0, -12.0, -9.0, -30.0, -31.5], dtype=torch.float64)
    return StepValues(
        policy_R=policy_R.requires_grad_(),
        reference_R=torch.tensor([-11.0, -11.5, -9.5, -30.0, -30.0], dtype=torch.float64),
        length_R=torch.tensor([5, 6, 4, 20, 21]),
        chosen_P=torch.tensor([0, 2, 3]),
        rejected_P=torch.tensor([1, 1, 4]),
    )


def test_the_engines_loss_is_the_same_function() -> None:
    values = shared_answers()
    loss_P = sigmoid(values, beta=0.1)
    four_columns = (
        values.policy_R[values.chosen_P],
        values.policy_R[values.rejected_P],
        values.reference_R[values.chosen_P],
        values.reference_R[values.rejected_P],
    )
    assert loss_P.tolist() == dpo_loss(*four_columns, beta=0.1).tolist()
    assert values.log_ratio_R.tolist() == [1.0, -0.5, 0.5, 0.0, -1.5]
    assert values.log_ratio_margin_P.tolist() == [1.5, 1.0, 1.5]
    (grad_R,) = torch.autograd.grad(loss_P.sum(), values.policy_R)
    push_P = 0.1 * torch.sigmoid(-0.1 * values.log_ratio_margin_P.detach())
    a, b, c = push_P.tolist()
    assert grad_R.tolist() == pytest.approx([-a, a + b, -b, -c, c], rel=1e-14)


def test_a_margin_of_thousands_keeps_its_slope() -> None:
    """log(sigmoid(x)) would be -inf from x = -745 on, its gradient nothing from 0/0 on."""
    margin = torch.tensor([-1e4, 1e4], dtype=torch.float64, requires_grad=True)
    loss = -log_sigmoid(margin)
    loss.sum().backward()
    assert loss.tolist() == [1e4, 0.0]
    assert margin.grad is not None and margin.grad.tolist() == [-1.0, 0.0]


def test_losses_by_name() -> None:
    assert LOSSES["sigmoid"].function is sigmoid and not LOSSES["sigmoid"].needs_whole_step
    bound = bind({"name": "sigmoid", "beta": 0.3})
    values = shared_answers()
    assert bound.per_pair(values).tolist() == sigmoid(values, beta=0.3).tolist()
    assert (bound.name, bound.beta, bound.needs_whole_step) == ("sigmoid", 0.3, False)
    with pytest.raises(ConfigError, match="no loss is called sigmoidal") as caught:
        bind({"name": "sigmoidal", "beta": 0.3})
    assert caught.value.where == "loss.name" and "sigmoid" in str(caught.value.hint)


def test_a_function_of_ones_own_may_look_at_the_whole_step() -> None:
    def own(values: StepValues) -> Tensor:
        return -values.log_ratio_margin_P

    bound = bind({"name": "sigmoid", "beta": 0.2}, own)
    assert (bound.name, bound.beta, bound.needs_whole_step) == ("own", 0.2, True)
    assert bound.per_pair(shared_answers()).tolist() == [-1.5, -1.0, -1.5]
