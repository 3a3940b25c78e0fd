"""Metrics by hand, ties, and held-out means that no cut into batches changes."""

import math
from pathlib import Path

import pytest
import torch
from tests.support.runs import make_place, token_pairs

from likelier.base.errors import RunFailed
from likelier.batching.batch import completions_of
from likelier.data.records import Completion, TokenPair
from likelier.evaluation.metrics import (
    TIE,
    accuracy_interval,
    held_out_metrics,
    hits,
    metrics,
    rewards,
    wilson,
)
from likelier.losses.registry import BoundLoss, bind
from likelier.losses.values import StepValues
from likelier.model.load import load
from likelier.reference.cache import StoredReference, cached_reference
from likelier.training.batches import cut_batches
from likelier.training.step import step_values


def values_of(rows: list[tuple[float, float, float, float]], beta: float = 0.5) -> StepValues:
    """Rows of (policy chosen, policy rejected, reference chosen, reference rejected)."""
    pc, pr, rc, rr = torch.tensor(rows, dtype=torch.float64).T
    index = torch.arange(2 * len(rows))
    return StepValues(
        policy_R=torch.cat([pc, pr]),
        reference_R=torch.cat([rc, rr]),
        length_R=torch.ones(2 * len(rows)),
        chosen_P=index[: len(rows)],
        rejected_P=index[len(rows) :],
        loss_P=-torch.nn.functional.logsigmoid(beta * ((pc - rc) - (pr - rr))),
    )


THREE = values_of([(-10, -20, -12, -19), (-5, -5, -4, -7), (-8, -9, -8, -9)])


def test_by_hand() -> None:
    """Log-ratios: +2 and -1, -1 and +2, 0 and 0. Rewards are half of them."""
    assert [column.tolist() for column in rewards(THREE, 0.5)] == [[1, -0.5, 0], [-0.5, 1, 0]]
    found = metrics(THREE, 0.5)
    losses = [math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5)), math.log(2)]
    assert found == pytest.approx(
        {
            "loss": sum(losses) / 3,
            "rewards/chosen": 0.5 / 3,
            "rewards/rejected": 0.5 / 3,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.5,
            "logps/chosen": -23 / 3,
            "logps/rejected": -34 / 3,
        }
    )


def test_a_tie_counts_one_half() -> None:
    assert hits(THREE, 0.5).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize(
    ("margin", "hit"),
    [(2 * TIE, 1.0), (TIE / 2, 0.5), (0.0, 0.5), (-TIE / 2, 0.5), (-2 * TIE, 0.0)],
)
def test_a_tie_is_what_rounding_decides_whatever_beta(
    beta: float, margin: float, hit: float
) -> None:
    assert hits(values_of([(-10 + margin, -20, -10, -20)]), beta).tolist() == [hit]


def test_wilson_by_known_figures() -> None:
    """Brown, Cai and DasGupta 2001 and the closed form at the ends."""
    z = 1.959963985
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, z * z / (20 + z * z)))
    assert wilson(1.0, 20) == pytest.approx((20 / (20 + z * z), 1.0))
    low, high = wilson(0.95, 10_000)
    assert high - low < 0.01


def test_prompts_are_the_trials() -> None:
    """Ten pairs of one prompt say less than ten prompts."""
    answer = Completion((1,), (True,))
    same = [TokenPair((1,), answer, answer, "x")] * 10
    apart = [TokenPair((i,), answer, answer, "x") for i in range(10)]
    values = values_of([(-1, -2, -2, -1)] * 10)
    narrow, wide = (accuracy_interval(pairs, values, 0.1) for pairs in (apart, same))
    assert narrow == pytest.approx(wilson(1.0, 10))
    assert wide == pytest.approx(wilson(1.0, 1))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory):
    place = make_place(tmp_path_factory.mktemp("place"), rows=13, dtype=torch.float64)
    policy = load(place.base)
    pairs = token_pairs(policy, place.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        answers = {answer for pair in pairs for answer in completions_of(pair)}
        column = cached_reference(policy, answers, 10_000)
    shifted = {key: value + 0.2 * (key[0] / 255 - 0.5) for key, value in column.values.items()}
    return policy, pairs, StoredReference("x", shifted)


def test_means_run_over_pairs(held) -> None:
    """Thirteen pairs in batches of uneven size: a mean of the batches' means is another number."""
    policy, pairs, column = held
    loss = bind({"name": "sigmoid", "beta": 0.5})
    found = []
    for budget in (16, 60, 200, 10_000):
        batches = cut_batches(pairs, column, policy.backend, budget)
        sizes = {len(batch.position_P) for batch in batches}
        with policy.running():
            values = step_values(policy, batches, loss)
        found.append((held_out_metrics(pairs, values, loss.beta), len(batches), sizes))
    assert found[0][1] == 13
    assert found[-1][1] == 1
    assert len(found[1][2]) > 1
    for row, _, _ in found[:-1]:
        assert row == pytest.approx(found[-1][0], rel=1e-6)
    row = found[0][0]
    assert row["eval_pairs"] == 13
    assert row["eval_loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert row["eval_rewards/accuracies_low"] < row["eval_rewards/accuracies"]
    assert row["eval_rewards/accuracies"] < row["eval_rewards/accuracies_high"]


def test_no_pairs_no_batches(held) -> None:
    policy, _, column = held
    assert cut_batches([], column, policy.backend, 100) == []


def test_a_held_out_number_that_is_not_finite_stops_the_run(held, tmp_path: Path) -> None:
    """It would not even be JSON."""
    policy, pairs, column = held
    batches = cut_batches(pairs, column, policy.backend, 10_000)
    bad = BoundLoss("bad", lambda values: values.log_ratio_margin_P / 0, 0.1)
    with policy.running(), pytest.raises(RunFailed, match="a loss is not finite"):
        step_values(policy, batches, bad)
