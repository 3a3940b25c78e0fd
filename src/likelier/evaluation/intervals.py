"""Intervals of shares and of means. Imports no torch: the report and the checks of data use it."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

Z95 = 1.959963984540054


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
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """The mean of values and its 95 % interval, where those of one cluster depend on each other.

    ``values`` are differences of two measurements of the same thing, so the interval is a paired
    one. Whole clusters (a prompt's tokens, say) are drawn again with replacement, and the middle
    95 % of the means is the interval (Efron and Tibshirani 1993, chapter 13). Of one cluster
    nothing can be drawn: the interval is then the mean alone.

    Raises ValueError where there are no values, or as many clusters as values are not given.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    at_N = np.array([numbers[name] for name in clusters])
    sums_C = np.bincount(at_N, weights=np.asarray(values, dtype=np.float64))
    sizes_C = np.bincount(at_N)
    drawn_RC = np.random.default_rng(seed).integers(len(sums_C), size=(resamples, len(sums_C)))
    means_R = sums_C[drawn_RC].sum(1) / sizes_C[drawn_RC].sum(1)
    low, high = np.quantile(means_R, [0.025, 0.975]).tolist()
    return float(sums_C.sum() / sizes_C.sum()), low, high
