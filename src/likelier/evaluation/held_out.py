"""Held-out figures of models: how they rank pairs, and what training moved, each with its interval.

A figure is a function of all pairs, as exact sums and counts: it has the same bits however the
pairs were cut into batches. Imports no torch. Axis letters: P pairs.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likelier.evaluation.intervals import means_of_clusters

TIE = 1e-4  # nats of a margin: below, float32 rounding decides which side is ahead
PERCENTILES = (5, 50, 95)
LONGER = {"chosen_longer": 1, "rejected_longer": -1, "same_length": 0}


@dataclass(frozen=True)
class PairLogps:
    """What one model says of pairs: summed log-probs of both completions in nats, and how many
    tokens each has; shape (P,) each.
    """

    chosen_P: np.ndarray
    rejected_P: np.ndarray
    chosen_tokens_P: np.ndarray
    rejected_tokens_P: np.ndarray

    @classmethod
    def joined(cls, batches: Sequence["PairLogps"]) -> "PairLogps":
        """Those of several batches of pairs, in their order."""
        names = ("chosen_P", "rejected_P", "chosen_tokens_P", "rejected_tokens_P")
        return cls(*(np.concatenate([getattr(one, name) for one in batches]) for name in names))

    def reads_as(self, other: "PairLogps") -> bool:
        """Whether both cut every completion into as many tokens."""
        ours = (self.chosen_tokens_P, self.rejected_tokens_P)
        theirs = (other.chosen_tokens_P, other.rejected_tokens_P)
        return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Figure:
    """A mean over ``pairs`` pairs and its 95 % interval, drawn by prompts."""

    mean: float
    low: float
    high: float
    pairs: int


def hits_of(margin_P: np.ndarray, tie_P: Any = TIE) -> np.ndarray:
    """1 where the margin is above the tie, 0 where it is below, one half within; shape (P,)."""
    return np.where(np.abs(margin_P) < tie_P, 0.5, (margin_P > 0).astype(np.float64))


def columns_of(model: PairLogps, reference: PairLogps | None) -> dict[str, np.ndarray]:
    """What each pair adds to each figure, shape (P,); NaN where it adds nothing.

    - ``ranking_accuracy``: whether the chosen completion is the likelier one, by its summed
      log-prob; ``.._per_token`` by its mean.
    - ``reward_accuracy``: whether its implicit reward is the larger one, which is the sign of the
      log-ratio ``margin`` (nats) for any beta (Rafailov et al. 2023, section 5.2).
    - ``chosen_drift``, ``rejected_drift``: log-ratio over tokens, nats a token.
    - the accuracy where the chosen completion is longer, is shorter, and is of the same length.

    ``reference`` is the initial policy; without one there are no rewards, margins and drifts. The
    initial policy beside itself has a reward accuracy of one half: it changed nothing.
    """
    long_P, short_P = model.chosen_tokens_P, model.rejected_tokens_P
    ranked_P = model.chosen_P - model.rejected_P
    each_P = model.chosen_P / long_P - model.rejected_P / short_P
    found = {
        "ranking_accuracy": hits_of(ranked_P),
        "ranking_accuracy_per_token": hits_of(each_P, TIE / np.maximum(long_P, short_P)),
    }
    name = "ranking_accuracy"
    if reference is not None:
        ratio_P = model.chosen_P - reference.chosen_P
        other_P = model.rejected_P - reference.rejected_P
        found |= {
            "reward_accuracy": hits_of(ratio_P - other_P),
            "margin": ratio_P - other_P,
            "chosen_drift": ratio_P / long_P,
            "rejected_drift": other_P / short_P,
        }
        name = "reward_accuracy"
    sign_P = np.sign(long_P - short_P)
    for which, sign in LONGER.items():
        found[f"{name}_{which}"] = np.where(sign_P == sign, found[name], np.nan)
    return found


def longer_wins(model: PairLogps) -> np.ndarray:
    """The accuracy of preferring whatever has more tokens, pair by pair: shape (P,)."""
    return hits_of((model.chosen_tokens_P - model.rejected_tokens_P).astype(np.float64))


def figures_of(columns: Mapping[str, np.ndarray], prompts: Sequence[Hashable]) -> dict[str, Figure]:
    """Every column's mean and interval; one that no pair adds to is left out."""
    kept = {name: column for name, column in columns.items() if not np.isnan(column).all()}
    rows = means_of_clusters(np.stack(list(kept.values())), prompts)
    return {
        name: Figure(mean, low, high, int((~np.isnan(column)).sum()))
        for (name, column), (mean, low, high) in zip(kept.items(), rows.tolist(), strict=True)
    }


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What is larger by how much in each pair, of what both have."""
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def percentiles(margin_P: np.ndarray) -> dict[str, float]:
    """The 5th, 50th and 95th percentile of margins, in nats."""
    values = np.percentile(margin_P, PERCENTILES).tolist()
    return {f"p{at}": value for at, value in zip(PERCENTILES, values, strict=True)}


def is_clear(figure: Figure) -> bool:
    """Whether the interval of a difference leaves 0 out."""
    return figure.low > 0 or figure.high < 0
