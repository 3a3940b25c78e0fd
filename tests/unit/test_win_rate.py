"""Win rates: both orders, length under control against an independent fit, and agreement."""

import math

import numpy as np
import pytest
import torch

from likelier.evaluation.judges.verdicts import JudgeVerdict
from likelier.evaluation.judges.win_rate import (
    agreement,
    fit_logistic,
    length_controlled,
    outcome_of,
)

MODEL, LENGTH = -0.4, 1.6  # log-odds: ours is worse, and the judge likes length


def logistic(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def world(number: int, seed: int, ties: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes of a judge with a known length bias; our answers are longer by 150 characters."""
    rng = np.random.default_rng(seed)
    theirs = rng.integers(50, 600, number)
    ours = np.maximum(1, theirs + rng.normal(150, 150, number).astype(int))
    apart = ours - theirs
    x = np.tanh(apart / apart.std(ddof=1))
    wins = (rng.random(number) < logistic(MODEL + LENGTH * x)).astype(float)
    wins[rng.random(number) < ties] = 0.5
    return wins, ours, theirs


def independent_fit(
    wins: np.ndarray, ours: np.ndarray, theirs: np.ndarray, penalties: tuple[float, float]
) -> tuple[float, float]:
    """The same regression written down anew, in float64, by L-BFGS."""
    apart = torch.tensor(ours - theirs, dtype=torch.float64)
    x, y = torch.tanh(apart / apart.std()), torch.tensor(wins)
    terms = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [terms], lr=0.5, max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-15,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chance = torch.sigmoid(terms[0] + terms[1] * x)
        fit = -(y * chance.log() + (1 - y) * (1 - chance).log()).sum()
        whole = fit + (torch.tensor(penalties) * terms**2).sum() / 2
        whole.backward()
        return whole

    for _ in range(3):
        optimizer.step(loss)
    a, b = terms.tolist()
    return a, b


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_published_regression(seed: int) -> None:
    """To six digits with our penalty; within half a point with theirs, which is on both terms."""
    wins, ours, theirs = world(805, seed)
    found = length_controlled(wins, ours, theirs)
    assert found is not None
    model, length = independent_fit(wins, ours, theirs, (1e-3, 1 / found.strength))
    assert (found.model, found.length) == pytest.approx((model, length), abs=1e-6)
    assert found.mean == pytest.approx(float(logistic(model)), abs=1e-6)
    published = independent_fit(wins, ours, theirs, (1 / found.strength, 1 / found.strength))
    assert found.mean == pytest.approx(float(logistic(published[0])), abs=0.005)


def test_it_is_near_the_truth_where_the_raw_rate_is_not() -> None:
    truth, held, raws, controlled = float(logistic(MODEL)), 0, [], []
    for seed in range(40):
        wins, ours, theirs = world(200, 100 + seed, ties=0.0)
        found = length_controlled(wins, ours, theirs)
        assert found is not None
        held += found.low <= truth <= found.high
        raws.append(wins.mean())
        controlled.append(found.mean)
    assert np.mean(raws) > 0.55 and truth < 0.41  # the raw rate names the wrong winner
    assert abs(np.mean(controlled) - truth) < 0.03
    assert held >= 34  # of 40 at 95 %: fewer than 34 in one of 4,000 worlds


def test_equal_lengths_leave_the_raw_rate() -> None:
    wins = np.array([1.0, 0.0, 1.0, 0.5] * 10)
    found = length_controlled(wins, np.full(40, 9), np.full(40, 9))
    assert found is not None and found.mean == pytest.approx(wins.mean(), abs=1e-4)


def test_it_is_fair_to_both_models() -> None:
    """Their rate is what ours leaves (the symmetry of section 3)."""
    wins, ours, theirs = world(120, 5)
    one, other = length_controlled(wins, ours, theirs), length_controlled(1 - wins, theirs, ours)
    assert one and other and one.mean + other.mean == pytest.approx(1)


def test_what_cannot_be_fitted_is_not() -> None:
    wins, ours, theirs = world(9, 0)
    assert length_controlled(wins, ours, theirs) is None
    assert length_controlled(np.ones(50), np.arange(50), np.zeros(50)) is None


def test_draws_without_a_loss_stay_finite() -> None:
    x, y = np.linspace(-1, 1, 12), np.array([0.0] + [1.0] * 11)
    weights = np.array([[0.0] + [1.0] * 11, [1.0] * 12])
    terms = fit_logistic(x, y, weights, 1e4)
    assert np.isfinite(terms).all() and logistic(terms[0, 0]) > 0.99


@pytest.mark.parametrize(
    ("theirs_first", "ours_first", "expected"),
    [
        ("second", "first", (1.0, True)),
        ("first", "second", (0.0, True)),
        ("tie", "tie", (0.5, True)),
        ("first", "first", (0.5, False)),
        ("second", "second", (0.5, False)),
        ("tie", "first", (0.5, False)),
        ("first", "tie", (0.5, False)),
    ],
)
def test_both_orders_make_an_outcome(
    theirs_first: str, ours_first: str, expected: tuple[float, bool]
) -> None:
    assert outcome_of(JudgeVerdict(theirs_first), JudgeVerdict(ours_first)) == expected  # type: ignore[arg-type]


def test_one_verdict_is_no_outcome() -> None:
    assert math.isnan(outcome_of(JudgeVerdict(None), JudgeVerdict("first"))[0])
    assert math.isnan(outcome_of(JudgeVerdict("first"), JudgeVerdict(None))[0])


def test_kappa_by_hand() -> None:
    """25 prompts, 20 agreed; Cohen's kappa of the table is (0.8 - 0.48) / (1 - 0.48)."""
    ours = [1.0] * 15 + [0.0] * 10
    theirs = [1.0] * 12 + [0.0] * 3 + [0.0] * 8 + [1.0] * 2
    found = agreement([*ours, math.nan], [*theirs, 1.0])
    chance = 0.6 * 0.56 + 0.4 * 0.44
    assert found.prompts == 25 and found.share[0] == pytest.approx(0.8)
    assert found.kappa is not None
    assert found.kappa[0] == pytest.approx((0.8 - chance) / (1 - chance))
    assert found.kappa[1] < found.kappa[0] < found.kappa[2] <= 1
    assert agreement([0.5] * 12, [0.5] * 12).kappa is None
    assert agreement([math.nan], [1.0]).prompts == 0


def test_chance_alone_has_no_kappa() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (rng.choice([0.0, 0.5, 1.0], 400).tolist() for _ in range(2))
    found = agreement(ours, theirs)
    assert found.kappa is not None and found.kappa[1] < 0 < found.kappa[2]
    assert 0.25 < found.share[0] < 0.42
