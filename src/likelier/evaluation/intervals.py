"""Intervals of shares and of means. Imports no torch: the report and the checks of data use it.

Axis letters: N values, C clusters, F figures, R draws of all clusters.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**22  # clusters: what is held of them at a time does not grow with the data


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed over ``n`` independent trials (Wilson 1927).

    Neither ``n`` nor ``share * n`` must be whole: ties count as a half, and trials that depend on
    each other count as fewer.
    """
    scale = 1 + Z95**2 / n
    middle = (share + Z95**2 / (2 * n)) / scale
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n)) / scale
    # At 0 and 1 the interval ends there, which rounding would miss by a hair.
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))


def mean_of_clusters(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The mean of values and its interval, where those of one cluster depend on each other.

    ``values`` are differences of two measurements of the same thing, so the interval is a paired
    one: see `means_of_clusters`.
    """
    values_N = np.asarray(values, dtype=np.float64)
    mean, low, high = means_of_clusters(values_N[None], clusters, seed, resamples, level)[0]
    return float(mean), float(low), float(high)


def means_of_clusters(
    values_FN: np.ndarray,
    clusters: Sequence[Hashable],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> np.ndarray:
    """Several means over the same clusters, each with its interval: shape (F, 3).

    Whole clusters (a prompt with all its pairs, say) are drawn again with replacement, and the
    middle of the means is the interval: its quantiles are those of `interval_of_draws`. A value
    that is NaN is not counted in its figure. The sum of a figure is exact, so that the order of
    the values does not change its mean. A figure without values is NaN.

    Raises ValueError where there are no values, or as many clusters as values are not given.
    """
    if not values_FN.shape[1] or values_FN.shape[1] != len(clusters):
        raise ValueError(f"{values_FN.shape[1]} values and {len(clusters)} clusters")
    at_N, number = numbered(clusters)
    counts_FN = ~np.isnan(values_FN)
    sums_FC, sizes_FC = (
        np.stack([np.bincount(at_N, weights=one, minlength=number) for one in some])
        for some in (np.where(counts_FN, values_FN, 0.0), counts_FN)
    )
    drawn = draws(number, seed, resamples)
    means_RF = np.concatenate([_means(sums_FC, sizes_FC, some) for some in drawn])
    found = []
    for values_N, sizes_C, means_R in zip(values_FN, sizes_FC, means_RF.T, strict=True):
        kept = values_N[~np.isnan(values_N)]
        mean = math.fsum(kept.tolist()) / len(kept) if len(kept) else math.nan
        found.append((mean, *interval_of_draws(means_R, int((sizes_C > 0).sum()), level)))
    return np.array(found)


def _means(sums_FC: np.ndarray, sizes_FC: np.ndarray, drawn_RC: np.ndarray) -> np.ndarray:
    """The mean of each figure in each draw, shape (R, F); NaN where a draw has no value of it."""
    both = zip(sums_FC, sizes_FC, strict=True)
    with np.errstate(invalid="ignore"):
        return np.stack([s_C[drawn_RC].sum(1) / n_C[drawn_RC].sum(1) for s_C, n_C in both], axis=1)


def bounded_mean_of_clusters(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], error: float
) -> tuple[float, float, float]:
    """The mean of values and an interval that misses it with a probability of at most ``error``,
    however small that is and however few the clusters are: of too few it has no ends.

    It holds where the sum of a cluster, less its share of the mean, is as likely as its negative;
    for differences of two things that are alike it does. A sum of such values over the root of the
    sum of their squares is beyond x with a probability of at most exp(-x²/2) (Efron 1969, from
    Hoeffding 1963); the interval has the means for which it is not. A bootstrap that rare would
    need as many resamples, and errs where clusters are few.

    Raises ValueError where there are no values, or as many clusters as values are not given.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters")
    at_N, _ = numbered(clusters)
    sums_C, sizes_C = np.bincount(at_N, weights=np.asarray(values, float)), np.bincount(at_N)
    total, number = float(sums_C.sum()), float(sizes_C.sum())
    beyond = 2 * math.log(2 / error)  # x², of either side
    a = number**2 - beyond * float((sizes_C**2).sum())
    b = total * number - beyond * float((sums_C * sizes_C).sum())
    c = total**2 - beyond * float((sums_C**2).sum())
    if a <= 0:
        return total / number, -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return total / number, (b - root) / a, (b + root) / a


def numbered(clusters: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """The number of each value's cluster, shape (N,), in the order in which they first appear; and
    how many clusters there are.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters]), len(numbers)


def draws(number: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Draws with replacement of as many clusters as there are: numbers of clusters, (R, C), in
    blocks whose R make ``resamples``.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // number)
    for first in range(0, resamples, at_once):
        yield generator.integers(number, size=(min(at_once, resamples - first), number))


def interval_of_draws(
    values_R: np.ndarray, clusters: int, level: float = 0.95
) -> tuple[float, float]:
    """The interval between two quantiles of what a figure is in each draw; NaN is not counted.

    Few clusters vary less among themselves than what they were drawn from, and the plain
    percentiles are then too narrow. The quantiles are therefore those of the expanded percentile
    interval (Hesterberg 2015, section 4.3), by Student's t for so many clusters. Of one cluster
    nothing can be drawn: the interval is then the figure alone.
    """
    kept_R = values_R[~np.isnan(values_R)]
    if not len(kept_R):
        return math.nan, math.nan
    share = (1 - level) / 2
    if clusters > 1:
        wider = math.sqrt(clusters / (clusters - 1)) * student_quantile(1 - share, clusters - 1)
        share = NormalDist().cdf(-wider)
    low, high = np.quantile(kept_R, [share, 1 - share]).tolist()
    return low, high


def student_quantile(share: float, freedom: int) -> float:
    """The quantile of Student's t with so many degrees of freedom, from 3 on to a thousandth at
    the usual levels (Abramowitz and Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
