"""Stopping early is rare where runs are alike, and sure where one is clearly worse: simulated."""

import math

import numpy as np
import pytest

from likelier.evaluation.compare import (
    ERROR,
    STOP_SHARES,
    HeldOut,
    looks_at,
    num_comparisons,
    surely_lower,
)
from likelier.evaluation.intervals import bounded_mean_of_clusters

RUNS = 6


def evaluation(hit_P: np.ndarray, of_a_prompt: int) -> HeldOut:
    """Held-out pairs of which some are hit, several of a prompt."""
    margin_P = np.where(hit_P, 1.0, -1.0)
    numbers = np.arange(len(hit_P))
    names = [
        np.array([f"{n:05d}" for n in some], dtype=object)
        for some in (numbers, numbers // of_a_prompt)
    ]
    policy_P2 = np.stack([margin_P, np.zeros_like(margin_P)], axis=1)
    return HeldOut(1, *names, policy_P2, 0 * policy_P2, 1 + 0 * policy_P2, 0 * margin_P)


def hits(
    random: np.random.Generator, share_C: np.ndarray, of_a_prompt: int, together: float
) -> np.ndarray:
    """Whether a run hits each pair: with probability ``together`` all of a prompt alike."""
    alike_C = random.random(len(share_C)) < share_C
    share_P, all_P = np.repeat(share_C, of_a_prompt), np.repeat(alike_C, of_a_prompt)
    each_P = random.random(len(share_P)) < share_P
    return np.where(np.repeat(random.random(len(share_C)) < together, of_a_prompt), all_P, each_P)


def stops(random: np.random.Generator, runs: list[np.ndarray], of_a_prompt: int) -> list[int]:
    """The runs of a sweep that are stopped, each with the shares of the prompts that it hits."""
    stopped = []
    before: list[dict[str, HeldOut]] = [{} for _ in STOP_SHARES]
    for run, share_C in enumerate(runs):
        hit_P = hits(random, share_C, of_a_prompt, 0.9)
        for others in before:
            seen = evaluation(hit_P, of_a_prompt)
            if surely_lower(seen, others, len(runs)):
                stopped.append(run)
                break
            others[str(run)] = seen
            again_P = hits(random, share_C, of_a_prompt, 0.9)  # much of it has changed by the next
            hit_P = np.where(random.random(len(hit_P)) < 0.7, hit_P, again_P)
    return stopped


@pytest.mark.parametrize(("prompts", "of_a_prompt"), [(25, 8), (60, 1), (200, 2)])
def test_equal_runs_are_stopped_in_fewer_than_one_sweep_of_a_hundred(
    prompts: int, of_a_prompt: int
) -> None:
    """All runs hit each prompt equally often; within binomial error, which is three deviations."""
    random, sweeps = np.random.default_rng(prompts), 150
    wrong = 0
    for _ in range(sweeps):
        share_C = random.beta(2, 1, prompts)
        wrong += bool(stops(random, [share_C] * RUNS, of_a_prompt))
    assert wrong <= sweeps * ERROR + 3 * math.sqrt(sweeps * ERROR * (1 - ERROR))


def test_a_clearly_worse_run_is_stopped_and_no_other() -> None:
    random = np.random.default_rng(1)
    good_C, bad_C = np.full(60, 0.9), np.full(60, 0.25)
    for _ in range(20):
        assert stops(random, [good_C, good_C, bad_C, good_C, good_C, good_C], 2) == [2]


def test_it_is_compared_with_the_best_before_it() -> None:
    good, bad = np.arange(60) % 6 > 0, np.arange(60) % 6 == 0
    seen = {name: evaluation(hit_P, 1) for name, hit_P in (("bad", bad), ("good", good))}
    found = surely_lower(evaluation(bad, 1), seen, RUNS)
    assert found is not None and found[0] == "good"
    assert found[1].mean == pytest.approx(-2 / 3) and found[1].high < 0
    assert surely_lower(evaluation(bad, 1), {"bad": seen["bad"]}, RUNS) is None
    assert surely_lower(evaluation(bad, 1), {}, RUNS) is None


def test_the_interval_is_corrected_for_every_comparison_there_can_be() -> None:
    assert [num_comparisons(runs) for runs in (2, 3, 6)] == [2, 6, 30]
    ours, theirs = evaluation(np.arange(40) >= 14, 1), evaluation(np.ones(40, bool), 1)
    assert surely_lower(ours, {"theirs": theirs}, 2) is not None
    assert surely_lower(ours, {"theirs": theirs}, 60) is None


def test_pairs_of_one_prompt_are_one_trial() -> None:
    """Ten prompts can never be enough, however many pairs each has."""
    ours, theirs = evaluation(np.zeros(400, bool), 40), evaluation(np.ones(400, bool), 40)
    assert surely_lower(ours, {"theirs": theirs}, 2) is None
    ours, theirs = evaluation(np.zeros(400, bool), 4), evaluation(np.ones(400, bool), 4)
    assert surely_lower(ours, {"theirs": theirs}, 2) is not None


def test_looks_are_the_first_evaluations_from_half_and_three_quarters_on() -> None:
    assert looks_at(list(range(0, 101, 10)), 100) == [50, 80]
    assert looks_at([0, 40, 90, 100], 100) == [90]
    assert looks_at([0, 100], 100) == []
    assert looks_at([0, 49, 50], 100) == [50]
    assert looks_at([], 100) == []


def test_the_bound_holds_at_any_rate_for_few_clusters() -> None:
    """Symmetric differences of eleven clusters of unequal size: missed no more often than said."""
    random = np.random.default_rng(0)
    for error in (0.5, 0.1, 0.02):
        missed = 0
        for _ in range(2000):
            sizes = random.integers(1, 6, 11)
            values = np.repeat(random.choice([-1.0, 0.0, 1.0], 11), sizes)
            clusters = np.repeat(np.arange(11), sizes).tolist()
            _, low, high = bounded_mean_of_clusters(values, clusters, error)
            missed += not low <= 0 <= high
        assert missed / 2000 <= error


def test_the_bound_by_hand() -> None:
    """Equal clusters of one value: the mean, and a root of x² = 2 ln(2 / error) around it."""
    values = np.tile([0.0, 1.0], 20)
    mean, low, high = bounded_mean_of_clusters(values, list(range(40)), 0.01)
    beyond = 2 * math.log(2 / 0.01)
    # (20 - 40 m)² = x² (20 (1 - m)² + 20 m²), solved for m around a half
    half = math.sqrt(beyond * 10 / (1600 - 40 * beyond))
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert bounded_mean_of_clusters([1.0] * 5, list(range(5)), 0.01)[1:] == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="clusters"):
        bounded_mean_of_clusters([1.0], [], 0.1)
