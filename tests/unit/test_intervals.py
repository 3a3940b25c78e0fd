"""Intervals of means hold at the stated rate where the pairs of a prompt depend on each other."""

import math

import numpy as np
import pytest

from likelier.evaluation.intervals import (
    interval_of_draws,
    mean_of_clusters,
    means_of_clusters,
    student_quantile,
)

WORLDS = 1000


@pytest.mark.parametrize("prompts", [20, 60])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_they_cover_at_the_stated_rate(prompts: int, level: float) -> None:
    """Pairs of one prompt share most of their value; the truth is the mean over all prompts."""
    rng, truth, held = np.random.default_rng(prompts), 0.3, 0
    for world in range(WORLDS):
        sizes = rng.integers(1, 6, size=prompts)
        shared = rng.normal(truth, 1.0, size=prompts)
        clusters = np.repeat(np.arange(prompts), sizes)
        values = shared[clusters] + rng.normal(0, 0.3, size=len(clusters))
        _, low, high = mean_of_clusters(values, clusters.tolist(), world, 800, level)
        held += low <= truth <= high
    error = 3 * math.sqrt(level * (1 - level) / WORLDS)
    assert abs(held / WORLDS - level) <= error, held


def test_pairs_drawn_alone_would_not_cover() -> None:
    """What the clusters are for: as if pairs were independent, a third of the intervals miss."""
    rng, held = np.random.default_rng(0), 0
    for world in range(200):
        values = np.repeat(rng.normal(size=20), 5)
        _, low, high = mean_of_clusters(values, list(range(100)), world, 400)
        held += low <= 0 <= high
    assert held / 200 < 0.8


def test_the_mean_does_not_depend_on_the_order() -> None:
    values = [1e16, 1.0, -1e16, 0.1, 0.2, 0.3]
    names = list("aabbcc")
    turned = mean_of_clusters(values[::-1], names[::-1])[0]
    assert mean_of_clusters(values, names)[0] == turned == math.fsum(values) / 6 != sum(values) / 6


def test_values_that_are_not_there_are_not_counted() -> None:
    nothing = [math.nan] * 4
    figures = np.array([[1.0, math.nan, 0.0, math.nan], [1.0, 1.0, 0.0, 0.0], nothing])
    found = means_of_clusters(figures, ["a", "b", "c", "d"])
    assert found[:2, 0].tolist() == [0.5, 0.5]
    assert np.isnan(found[2]).all()
    assert (found[0, 1:] == [0.0, 1.0]).all()


def test_one_cluster_gives_its_mean_alone() -> None:
    assert mean_of_clusters([1.0, 2.0], ["a", "a"]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        mean_of_clusters([1.0, 2.0], ["a"])


def test_quantiles_are_wider_for_few_clusters() -> None:
    draws = np.linspace(0, 1, 10_001)
    low, high = interval_of_draws(draws, 10**6)
    assert (low, high) == pytest.approx((0.025, 0.975), abs=1e-4)
    few, _ = interval_of_draws(draws, 10)
    assert few == pytest.approx(0.00854, abs=1e-3)  # Phi(-sqrt(10/9) t_9)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(3, 3.182446), (9, 2.262157), (29, 2.045230), (10**7, 1.959964)]
)
def test_student_by_known_quantiles(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=2e-3)
