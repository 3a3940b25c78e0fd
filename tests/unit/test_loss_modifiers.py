"""What combines with losses, by hand: likelihood, weights, WPO, dynamic beta, mixtures, shifts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.data.records import Completion, TokenPair
from likelier.losses.registry import bind
from likelier.losses.values import StepValues, sigma
from likelier.reference.cache import NoReference
from likelier.training.batches import cut_batches


def values() -> StepValues:
    """Three pairs of six answers; the log-ratio margins are 0.5, -2 and 6."""
    return StepValues(
        policy_R=torch.tensor([-10.0, -20.0, -30.0, -11.0, -19.0, -40.0], dtype=torch.float64),
        reference_R=torch.tensor([-11.0, -19.0, -32.0, -11.5, -20.0, -36.0], dtype=torch.float64),
        length_R=torch.tensor([4, 9, 10, 5, 9, 14]),
        chosen_P=torch.tensor([0, 1, 2]),
        rejected_P=torch.tensor([3, 4, 5]),
        weight_P=torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64),
        wpo_log_weight_R=torch.tensor([-0.5, 0.25, -1.0, -0.1, 0.5, -2.0], dtype=torch.float64),
        mean_tokens=23 / 3,
    )


def dpo(*margins: float, beta: float = 0.1) -> list[float]:
    return [math.log1p(math.exp(-beta * margin)) for margin in margins]


PLAIN = dpo(0.5, -2.0, 6.0)


def given(loss_P: Tensor) -> list[float]:
    return pytest.approx(loss_P.tolist(), rel=1e-13)  # type: ignore[no-any-return]


def test_the_likelihood_of_the_chosen_answers() -> None:
    loss = {"name": "sigmoid", "beta": 0.1, "nll": 0.2}
    per_token = bind(loss).per_pair(values())
    # exactly the mean over all 23 chosen tokens, whatever the lengths
    assert float(per_token.mean()) == pytest.approx(sum(PLAIN) / 3 + 0.2 * 60 / 23, rel=1e-13)
    per_answer = bind({**loss, "nll_per": "answer"}).per_pair(values())
    means = zip(PLAIN, (10 / 4, 20 / 9, 30 / 10), strict=True)
    assert [p + 0.2 * m for p, m in means] == given(per_answer)
    summed = bind({**loss, "nll_per": "sum"}).per_pair(values())
    assert [p + 0.2 * s for p, s in zip(PLAIN, (10, 20, 30), strict=True)] == given(summed)


def test_weights_of_pairs() -> None:
    loss_P = bind({"name": "sigmoid", "beta": 0.1, "pair_weights": True}).per_pair(values())
    assert [p * w for p, w in zip(PLAIN, (1.0, 0.0, 2.5), strict=True)] == given(loss_P)
    with pytest.raises(ValueError, match="a weight for every pair"):
        bind({"name": "hinge", "pair_weights": True}).per_pair(replace(values(), weight_P=None))


def test_wpo_is_at_most_one_and_has_no_gradient_of_its_own() -> None:
    sure = values().wpo_log_weight_R
    assert sure is not None
    sure.requires_grad_()
    loss = bind({"name": "sigmoid", "beta": 0.1, "wpo": True})
    loss_P = loss.per_pair(replace(values(), wpo_log_weight_R=sure))
    wanted = [p * w for p, w in zip(PLAIN, (math.exp(-0.6), 1.0, math.exp(-3.0)), strict=True)]
    assert wanted == given(loss_P)
    assert loss.reads_wpo_log_weight and not loss_P.requires_grad


def test_dynamic_beta() -> None:
    options = {"alpha": 0.6, "momentum": 0.9, "keep": 0.67}
    loss = bind({"name": "sigmoid", "beta": 0.1, "dynamic_beta": options})
    assert loss.needs_whole_step and loss.observe is not None and loss.held_out is not None
    loss.observe(values())
    mean = 0.1 * (0.5 - 2.0 + 6.0) / 3
    assert loss.state["margin"] == pytest.approx(mean)  # the first step is its own average
    # beta is as it was; of the margins 0.05, -0.2 and 0.6 around 0.15, the last is left out
    assert [1.5 * PLAIN[0], 1.5 * PLAIN[1], 0.0] == given(loss.per_pair(values()))
    loss.state["margin"] = 0.05
    loss.observe(values())
    assert loss.state["margin"] == pytest.approx(0.05 + 0.1 * (mean - 0.05))
    beta = 0.1 * (1 + 0.6 * (mean - loss.state["margin"]))
    now = dpo(0.5, -2.0, beta=beta)
    assert [1.5 * now[0], 1.5 * now[1], 0.0] == given(loss.per_pair(values()))
    assert given(loss.held_out(values())) == PLAIN


def test_weights_of_pairs_weigh_held_out_pairs_as_well() -> None:
    options = {"alpha": 0.6, "momentum": 0.9, "keep": 0.67}
    loss = bind({"name": "sigmoid", "beta": 0.1, "dynamic_beta": options, "pair_weights": True})
    assert loss.held_out is not None
    assert [PLAIN[0], 0.0, 2.5 * PLAIN[2]] == given(loss.held_out(values()))


def test_dynamic_beta_needs_one_beta() -> None:
    for loss in ({"name": "ipo_sum"}, {"name": "mixture", "parts": [{"name": "exo"}] * 2}):
        with pytest.raises(ConfigError, match="no single beta"):
            bind({**loss, "dynamic_beta": {"alpha": 0.6, "momentum": 0.9, "keep": 0.8}})


def test_a_mixture_is_the_weighted_sum() -> None:
    parts = [{"name": "sigmoid", "beta": 0.1, "weight": 0.8},
             {"name": "bco", "beta": 0.5, "weight": 0.2, "delta": 0.0}]  # fmt: skip
    mixed = bind({"name": "mixture", "parts": parts, "nll": 1.0})
    alone = [bind({k: v for k, v in part.items() if k != "weight"}) for part in parts]
    wanted = 0.8 * alone[0].per_pair(values()) + 0.2 * alone[1].per_pair(values())
    wanted = wanted - values().chosen.policy_P / (23 / 3)
    assert mixed.per_pair(values()).tolist() == given(wanted)
    assert mixed.beta == 0.1 and not mixed.needs_whole_step and mixed.needs("reference")
    assert (
        mixed.formula.startswith("0.8 * (-log sigmoid(0.1 *") and "1 * NLL(token)" in mixed.formula
    )


def test_a_function_of_ones_own_takes_them_too() -> None:
    def own(values: StepValues) -> Tensor:
        return -values.log_ratio_margin_P

    loss = bind({"name": "sigmoid", "beta": 0.1, "nll": 1.0, "nll_per": "sum"}, own)
    assert given(loss.per_pair(values())) == [-0.5 + 10, 2 + 20, -6 + 30]
    with pytest.raises(ConfigError, match="a loss function was handed over") as found:
        bind({"name": "simpo", "beta": 0.1, "gamma": 1.0}, own)
    assert found.value.where == "loss.gamma"


def test_the_shift_of_bco() -> None:
    """All six rewards of the step; a second step counts as much as its answers."""
    loss = bind({"name": "bco", "beta": 0.5})
    assert loss.observe is not None
    loss.observe(values())
    rewards = [0.5 * r for r in (1.0, -1.0, 2.0, 0.5, 1.0, -4.0)]
    delta = sum(rewards) / 6
    assert loss.state == {"shift/mean": pytest.approx(delta), "shift/count": 6}
    wanted = [
        math.log1p(math.exp(-(up - delta))) + math.log1p(math.exp(down - delta))
        for up, down in zip(rewards[:3], rewards[3:], strict=True)
    ]
    assert wanted == given(loss.per_pair(values()))
    one = replace(values(), chosen_P=torch.tensor([0]), rejected_P=torch.tensor([3]))
    loss.observe(one)
    both = (sum(rewards) + rewards[0] + rewards[3]) / 8
    assert loss.state == {"shift/mean": pytest.approx(both), "shift/count": 8}


def test_no_gradient_enters_the_baseline_of_kto() -> None:
    policy_R = values().policy_R.requires_grad_()
    label_P = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    lifted = values().reference_R - 3  # so that z0 is over 0
    kto = bind({"name": "kto", "beta": 0.3})
    loss_P = kto.per_pair(replace(values(), policy_R=policy_R, reference_R=lifted, label_P=label_P))
    (grad_R,) = torch.autograd.grad(loss_P.sum(), policy_R)
    assert bool(grad_R[:3].all()) and not bool(grad_R[3:].any())


def drawn(seed: int, *answers: int) -> list[list[float]]:
    """What SamPO counts of the longer answers of some pairs, each of ten tokens to four."""
    loss = bind({"name": "sigmoid", "tokens": {"kind": "sampo"}}, seed=seed)
    pairs = [
        TokenPair(
            (1, 2),
            Completion(tuple(range(answer, answer + 10)), (True,) * 10),
            Completion((3, 4, 5, 6), (True,) * 4),
            f"train[{answer}]",
        )
        for answer in answers
    ]
    found = []
    for pair in pairs:
        (batch,) = cut_batches([pair], NoReference(), "dense", 100, loss.tokens)
        assert batch.weight_K is not None
        weights = [each.tolist() for each in batch.weight_K.split(batch.scored_R.tolist())]
        assert weights[1] == [1.0] * 4 and sorted(weights[0]) == [0.0] * 6 + [1.0] * 4
        found.append(weights[0])
    return found


def test_what_sampo_draws_follows_the_pair_and_the_seed() -> None:
    one, other = drawn(0, 20, 40), drawn(1, 20, 40)
    assert one == drawn(0, 20, 40)
    assert one[0] != one[1] and one[0] != other[0]


def test_the_sigmoid_keeps_its_slope_far_out() -> None:
    x = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sigma(x), x)
    assert float(slope) == pytest.approx(math.exp(-40.0), rel=1e-9, abs=0)
