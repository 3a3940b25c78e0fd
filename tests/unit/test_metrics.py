"""Metrics by hand, ties, and held-out means that no cut into batches changes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.runs import make_place, token_pairs
from tests.support.tiny import pair_rows, write_rows

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
from likelier.evaluation.registry import metrics_known, metrics_page
from likelier.losses.registry import BoundLoss, bind
from likelier.losses.values import StepValues
from likelier.model.load import load
from likelier.reference.cache import StoredReference, cached_reference
from likelier.run import train
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


ROOT = Path(__file__).parents[2]
ANSWER = Completion((1,), (True,))
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
            "drift/chosen": 1 / 3,
            "drift/rejected": 1 / 3,
            "weights/saturated": 0.0,
            "weights/effective": 1.5**2 / (3 * (0.5**2 + 2 * 0.25 * (1 + math.tanh(0.75) ** 2))),
        }
    )


def test_weights_by_hand() -> None:
    """Margins of ln 1, ln 3 and ln 199: weights of 1/2, 1/4 and 1/200, of which one is small."""
    values = values_of([(math.log(n) - 9, -9, -9, -9) for n in (1, 3, 199)], beta=1.0)
    found = metrics(values, 1.0)
    assert found["weights/saturated"] == pytest.approx(1 / 3)
    sums = (1 / 2 + 1 / 4 + 1 / 200) ** 2, 1 / 4 + 1 / 16 + 1 / 40_000
    assert found["weights/effective"] == pytest.approx(sums[0] / sums[1] / 3)


def test_held_out_figures_by_hand() -> None:
    """Two long chosen answers that are preferred, and a short one that is not."""
    values = values_of([(-10, -20, -12, -19), (-8, -9, -9, -9), (-5, -4, -4, -6)])
    values = replace(values, length_R=torch.tensor([4, 3, 2, 2, 2, 3]))
    pairs = [TokenPair((i,), ANSWER, ANSWER, "x") for i in range(3)]
    found = held_out_metrics(pairs, values, 0.5)
    expected = {
        "rewards/margins_p5": -1.3,  # of -1.5, 0.5 and 1.5
        "rewards/margins_p50": 0.5,
        "rewards/margins_p95": 1.4,
        "rewards/accuracies_chosen_longer": 1.0,
        "rewards/accuracies_rejected_longer": 0.0,
        "ranking/accuracies": 2 / 3,
        "ranking/accuracies_per_token": 2 / 3,  # -2.5 to -10, -2.7 to -4.5, -2.5 to -1.3
        "lengths/longer_wins": 2 / 3,
        "lengths/correlation": np.corrcoef([2, 1, -1], [3, 1, -3])[0, 1],
        "drift/chosen": (2 / 4 + 1 / 3 - 1 / 2) / 3,
        "drift/rejected": (-1 / 2 + 0 + 2 / 3) / 3,
    }
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected)


def test_what_no_pair_adds_to_is_left_out() -> None:
    """No reference: nothing drifts. Answers of one length: none is longer."""
    values = values_of([(-1, -2, 0, 0), (-2, -1, 0, 0)])
    pairs = [TokenPair((i,), ANSWER, ANSWER, "x") for i in range(2)]
    found = held_out_metrics(pairs, values, 0.5)
    assert "eval_drift/chosen" not in found and "eval_lengths/correlation" not in found
    assert "eval_rewards/accuracies_chosen_longer" not in found
    assert found["eval_ranking/accuracies"] == found["eval_lengths/longer_wins"] == 0.5


def test_the_page_of_the_metrics() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    how = "run: python -m likelier.evaluation.registry > docs/metrics.md"
    assert written == metrics_page(), how


def test_what_a_run_logs_is_known(tmp_path: Path) -> None:
    """And what is known is logged by one of these runs."""
    place, logged = make_place(tmp_path / "place"), set()
    rows = pair_rows(12)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    for loss, data in (("sigmoid", rows + swapped), ("simpo", rows), ("kto", labelled)):
        write_rows(place.data, data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
            patch.setattr("likelier.run._write_report", lambda out: None)
            run = train(place.config(tmp_path / loss, loss={"name": loss}, train__steps=2))
        logged |= {name for row in run.metrics for name in row} - {"step"}
    assert logged == {key for metric in metrics_known().values() for key in metric.keys}


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


@pytest.mark.parametrize("cut", ["pairs", "tokens"])
def test_means_run_over_pairs(held, cut: str) -> None:
    """Thirteen pairs in batches of uneven size: a mean of the batches' means is another number."""
    policy, pairs, column = held
    loss = bind({"name": "sigmoid", "beta": 0.5})
    found = []
    for size in (1, 2, 3, 5, 13) if cut == "pairs" else (16, 60, 200, 10_000):
        if cut == "pairs":
            shares = [range(at, min(at + size, 13)) for at in range(0, 13, size)]
            batches = [batch for share in shares for batch in
                       cut_batches(pairs, column, policy.backend, 10_000, share=share)]  # fmt: skip
        else:
            batches = cut_batches(pairs, column, policy.backend, size)
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
