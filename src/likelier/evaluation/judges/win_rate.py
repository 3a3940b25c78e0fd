"""How often one model wins, by verdicts: raw, with the length of answers controlled, and whether
two judges agree. Imports no torch. Axis letters: N prompts, R draws of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from likelier.evaluation.intervals import draws, interval_of_draws
from likelier.evaluation.judges.verdicts import JudgeVerdict

STRENGTHS = tuple(np.logspace(0, 4, 10).tolist())  # that are tried, as inverse penalties
CV_FOLDS = 5
FEWEST_TO_FIT = 10  # prompts
_RESAMPLES = 1000
_WEIGHTS_AT_ONCE = 2**21
_STEPS = 100  # of Newton's method, which takes about six
_TOLERANCE = 1e-10
_FINITE = 1e-3
_SIGNS = {"first": 1, "second": -1, "tie": 0}


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate with its 95 % interval, and the terms that were fitted:
    ``model`` is the log-odds of a win at equal length, ``length`` what the judge makes of length.
    ``strength`` is the inverse of the penalty on ``length``.
    """

    mean: float
    low: float
    high: float
    model: float
    length: float
    strength: float


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on win, tie and loss: the share, and Cohen's kappa (1960), which
    is 0 for what chance alone gives; each as (mean, low, high). None where it is not defined.
    """

    prompts: int
    share: tuple[float, float, float]
    kappa: tuple[float, float, float] | None


def outcome_of(other_first: JudgeVerdict, ours_first: JudgeVerdict) -> tuple[float, bool]:
    """What two verdicts on the same answers, asked in both orders, make for our model: 1 a win, 0 a
    loss, 0.5 a tie, NaN where one is missing; and whether the order changed nothing.

    A verdict that changes with the order is a tie.
    """
    if other_first.better is None or ours_first.better is None:
        return math.nan, True
    second, first = -_SIGNS[other_first.better], _SIGNS[ours_first.better]
    return (0.5 + first / 2, True) if first == second else (0.5, False)


def length_controlled(
    outcomes_N: np.ndarray, ours_N: np.ndarray, theirs_N: np.ndarray, seed: int = 0
) -> LengthControlled | None:
    """The win rate at equal length, by the method of Dubois et al. 2024 (arXiv 2404.04475,
    equations 1 and 2); None of fewer than ten prompts, or where all outcomes are the same.

    Of an outcome y and the lengths of both answers in characters the logistic regression is
    ``logit P(y) = model + length * tanh(difference / standard deviation of the differences)``,
    with the cross-entropy of soft outcomes, an L2 penalty on the length term, and its strength
    chosen by 5-fold cross-validation. The win rate is that of a difference of 0.

    Two things differ from theirs. How hard an instruction is for which model, their third term, is
    estimated from many models that answered the same instructions: with one pair of models nothing
    tells it from the outcome itself, and it is left out. And the penalty is weak, and on the length
    term alone. A strong one takes the length term away, and then 95 % intervals of 60 prompts held
    the truth in 80 % of simulated judges; one on the other term pulls win rates to 50 %. Of
    hundreds of prompts the figures are the same. The interval draws prompts again and keeps the
    strength.
    """
    difference_N = (ours_N - theirs_N).astype(np.float64)
    number = len(outcomes_N)
    if number < FEWEST_TO_FIT or np.ptp(outcomes_N) == 0:
        return None
    spread = float(difference_N.std(ddof=1))
    x_N = np.tanh(difference_N / spread) if spread else np.zeros(number)
    strength = _best_strength(x_N, outcomes_N, seed)
    model, length = fit_logistic(x_N, outcomes_N, np.ones((1, number)), strength)[0].tolist()
    drawn = [
        fit_logistic(x_N, outcomes_N, weights_RN, strength)[:, 0]
        for weights_RN in _drawn_weights(number, seed, _RESAMPLES)
    ]
    low, high = interval_of_draws(_logistic(np.concatenate(drawn)), number)
    rate = float(_logistic(np.array(model)))
    return LengthControlled(rate, low, high, model, length, strength)


def _best_strength(x_N: np.ndarray, outcomes_N: np.ndarray, seed: int) -> float:
    """The strength whose fits predict the held-out folds best."""
    fold_N = np.random.default_rng(seed).permutation(len(x_N)) % CV_FOLDS
    held_FN = np.arange(CV_FOLDS)[:, None] == fold_N
    losses = []
    for strength in STRENGTHS:
        terms_F2 = fit_logistic(x_N, outcomes_N, (~held_FN).astype(np.float64), strength)
        logit_FN = terms_F2[:, :1] + terms_F2[:, 1:] * x_N
        losses.append(float((_cross_entropy(logit_FN, outcomes_N) * held_FN).sum()))
    return STRENGTHS[int(np.argmin(losses))]


def fit_logistic(
    x_N: np.ndarray, y_N: np.ndarray, weights_RN: np.ndarray, strength: float
) -> np.ndarray:
    """The terms (a, b), shape (R, 2), that minimise the weighted sum of the cross-entropy of y
    under ``logistic(a + b x)``, and ``b² / (2 strength)``, for each row of weights.

    By Newton's method, in float64; a step that would make it worse is halved. A penalty on a
    that is too small to be seen keeps it finite where all outcomes that are drawn are wins.
    """
    penalty_2 = np.array([_FINITE, 1 / strength])

    def worth(terms_R2: np.ndarray) -> np.ndarray:
        logit_RN = terms_R2[:, :1] + terms_R2[:, 1:] * x_N
        fit_R = (weights_RN * _cross_entropy(logit_RN, y_N)).sum(1)
        found: np.ndarray = (penalty_2 * terms_R2**2).sum(1) / 2 + fit_R
        return found

    terms_R2 = np.zeros((len(weights_RN), 2))
    now_R = worth(terms_R2)
    for _ in range(_STEPS):
        chance_RN = _logistic(terms_R2[:, :1] + terms_R2[:, 1:] * x_N)
        off_RN = weights_RN * (chance_RN - y_N)
        bend_RN = weights_RN * chance_RN * (1 - chance_RN)
        slope_R2 = penalty_2 * terms_R2 + np.stack([off_RN.sum(1), off_RN @ x_N], axis=1)
        a_R, b_R, c_R = bend_RN.sum(1) + _FINITE, bend_RN @ x_N, bend_RN @ x_N**2 + 1 / strength
        down_R2 = np.stack(
            [c_R * slope_R2[:, 0] - b_R * slope_R2[:, 1],
             a_R * slope_R2[:, 1] - b_R * slope_R2[:, 0]], axis=1,
        ) / (a_R * c_R - b_R**2)[:, None]  # fmt: skip
        for _ in range(_STEPS):
            then_R = worth(terms_R2 - down_R2)
            worse_R = then_R > now_R + 1e-12 * np.abs(now_R)  # rounding is not worse
            if not worse_R.any():
                break
            down_R2[worse_R] /= 2
        terms_R2, now_R = terms_R2 - down_R2, then_R
        if np.abs(down_R2).max() < _TOLERANCE:
            break
    return terms_R2


def _cross_entropy(logit_RN: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """``-y ln p - (1 - y) ln(1 - p)`` in nats, for p = logistic(logit)."""
    found: np.ndarray = np.logaddexp(0.0, logit_RN) - y_N * logit_RN
    return found


def _logistic(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(-np.logaddexp(0.0, -x))
    return found


def _drawn_weights(number: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of so many prompts is in each draw, (R, N) at a time."""
    at_once = max(1, _WEIGHTS_AT_ONCE // number)
    for drawn_RN in draws(number, seed, resamples):
        for first in range(0, len(drawn_RN), at_once):
            some = drawn_RN[first : first + at_once]
            yield np.stack([np.bincount(one, minlength=number) for one in some]).astype(np.float64)


def agreement(ours_N: Sequence[float], theirs_N: Sequence[float], seed: int = 0) -> Agreement:
    """How far two judges agree, on prompts of which both gave outcomes (1, 0.5, 0; NaN: none)."""
    both = [one for one in zip(ours_N, theirs_N, strict=True) if not any(map(math.isnan, one))]
    if not both:
        return Agreement(0, (math.nan, math.nan, math.nan), None)
    pairs_N2 = (2 * np.array(both)).astype(int)
    cells_N9 = np.zeros((len(both), 9))
    cells_N9[np.arange(len(both)), 3 * pairs_N2[:, 0] + pairs_N2[:, 1]] = 1
    whole = _share_and_kappa(cells_N9.mean(0, keepdims=True))
    drawn = [
        _share_and_kappa(weights_RN @ cells_N9 / len(both))
        for weights_RN in _drawn_weights(len(both), seed, _RESAMPLES)
    ]
    found: list[tuple[float, float, float]] = []
    for value_1, *some in zip(whole, *drawn, strict=True):
        found.append((float(value_1[0]), *interval_of_draws(np.concatenate(some), len(both))))
    share, kappa = found
    return Agreement(len(both), share, None if math.isnan(kappa[0]) else kappa)


def _share_and_kappa(cells_R9: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of agreement, and kappa, NaN where both judges say one thing always; (R,) each."""
    table_R33 = cells_R9.reshape(-1, 3, 3)
    share_R = np.trace(table_R33, axis1=1, axis2=2)
    chance_R = (table_R33.sum(1) * table_R33.sum(2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa_R = np.where(chance_R < 1 - 1e-12, (share_R - chance_R) / (1 - chance_R), math.nan)
    return share_R, kappa_R
