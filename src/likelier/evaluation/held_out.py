"""Held-out figures of models: how they rank pairs, and what training moved, each with its interval.

A figure is a function of all pairs, as exact sums and counts: it has the same bits however the
pairs were cut into batches. Imports no torch. Axis letters: P pairs.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likelier.evaluation.intervals import means_of_clusters, wilson

TIE = 1e-4  # nats of a margin: below, float32 rounding decides which side is ahead
PERCENTILES = (5, 50, 95)
# All of five prompts point the same way in one of sixteen tosses of a coin: no interval that is
# drawn from so few can tell a difference at 95 %.
FEWEST_PROMPTS = 6
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
    """A mean over ``pairs`` pairs of ``prompts`` prompts, and its 95 % interval by prompts."""

    mean: float
    low: float
    high: float
    pairs: int
    prompts: int

    @property
    def is_clear(self) -> bool:
        """Whether a difference can be told from none: 0 is outside, and the prompts are not few."""
        return self.prompts >= FEWEST_PROMPTS and (self.low > 0 or self.high < 0)


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
    - both accuracies where the chosen completion is longer, is shorter, and is as long.

    ``reference`` is the initial policy; without one there are no rewards, margins and drifts. The
    initial policy beside itself has a reward accuracy of one half: it changed nothing.
    """
    long_P, short_P = model.chosen_tokens_P, model.rejected_tokens_P
    each_P = model.chosen_P / long_P - model.rejected_P / short_P
    found = {
        "ranking_accuracy": hits_of(model.chosen_P - model.rejected_P),
        "ranking_accuracy_per_token": hits_of(each_P, TIE / np.maximum(long_P, short_P)),
    }
    ranked = by_length(long_P - short_P, found["ranking_accuracy"])
    found |= {f"ranking_accuracy_{which}": hits_P for which, hits_P in ranked.items()}
    if reference is None:
        return found
    ratio_P = model.chosen_P - reference.chosen_P
    other_P = model.rejected_P - reference.rejected_P
    hits_P = hits_of(ratio_P - other_P)
    rewarded = by_length(long_P - short_P, hits_P)
    return found | {
        "reward_accuracy": hits_P,
        **{f"reward_accuracy_{which}": hits for which, hits in rewarded.items()},
        "margin": ratio_P - other_P,
        "chosen_drift": ratio_P / long_P,
        "rejected_drift": other_P / short_P,
    }


def by_length(longer_P: np.ndarray, hits_P: np.ndarray) -> dict[str, np.ndarray]:
    """Hits of the pairs whose chosen completion is longer, shorter, or as long, and NaN of others;
    ``longer_P`` is by how many tokens it is longer.
    """
    sign_P = np.sign(longer_P)
    return {which: np.where(sign_P == sign, hits_P, np.nan) for which, sign in LONGER.items()}


def longer_wins(model: PairLogps) -> np.ndarray:
    """The hits of preferring whatever has more tokens, pair by pair: shape (P,)."""
    return hits_of((model.chosen_tokens_P - model.rejected_tokens_P).astype(np.float64))


def figures_of(
    columns: Mapping[str, np.ndarray], prompts: Sequence[Hashable], least: float = 0.0
) -> dict[str, Figure]:
    """Every column's mean and interval; one that no pair adds to is left out.

    ``least`` is what a hit can be at least: 0, and -1 of a difference. Where all hits are the same,
    no draw of them differs: their interval is as if those that were not seen, which are so many
    prompts that Wilson's interval of none of them allows, were as low or as high as can be.
    """
    kept = {name: column for name, column in columns.items() if not np.isnan(column).all()}
    rows = means_of_clusters(np.stack(list(kept.values())), prompts)
    found = {}
    for (name, column), (mean, low, high) in zip(kept.items(), rows.tolist(), strict=True):
        counted = ~np.isnan(column)
        number = len({prompt for prompt, is_in in zip(prompts, counted, strict=True) if is_in})
        if "accuracy" in name and np.ptp(column[counted]) == 0:
            _, unseen = wilson(0.0, number)
            low, high = (mean + unseen * (end - mean) for end in (least, 1.0))
        found[name] = Figure(mean, low, high, int(counted.sum()), number)
    return found


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What is larger by how much in each pair, of what both have."""
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def percentiles(margin_P: np.ndarray) -> dict[str, float]:
    """The 5th, 50th and 95th percentile of margins, in nats."""
    values = np.percentile(margin_P, PERCENTILES).tolist()
    return {f"p{at}": value for at, value in zip(PERCENTILES, values, strict=True)}
