"""Which pairs each step sees."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.data.records import Completion, TokenPair
from likelier.training.order import Order, make_order

ANSWER = Completion((1,), (True,))


def pairs_of(prompts: list[int]) -> list[TokenPair]:
    """One pair for each number; the same number is the same prompt."""
    return [TokenPair((7, prompt), ANSWER, ANSWER, f"x:{i}") for i, prompt in enumerate(prompts)]


def order_of(prompts: list[int], per_step: int, seed: int = 0, **length: float) -> Order:
    config = SimpleNamespace(seed=seed, pairs_per_step=per_step, steps=None, epochs=None)
    vars(config).update(length)
    return make_order(pairs_of(prompts), config)


def visits(order: Order) -> list[tuple[int, int]]:
    return [visit for step in range(1, order.num_steps + 1) for visit in order.step(step)]


PROMPTS = st.lists(st.integers(0, 8), min_size=1, max_size=30)


@given(
    prompts=PROMPTS, per_step=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_every_pair_once_an_epoch(prompts, per_step, epochs, seed) -> None:
    order = order_of(prompts, per_step, seed, epochs=float(epochs))
    seen = visits(order)
    assert sorted(seen) == [(e, i) for e in range(epochs) for i in range(len(prompts))]
    sizes = [len(order.step(step)) for step in range(1, order.num_steps + 1)]
    assert all(size == per_step for size in sizes[:-1])
    assert 1 <= sizes[-1] <= per_step


@given(prompts=PROMPTS, per_step=st.integers(1, 12), steps=st.integers(1, 20))
def test_steps_are_exact_beyond_an_epoch(prompts: list[int], per_step: int, steps: int) -> None:
    order = order_of(prompts, per_step, steps=steps)
    assert order.num_steps == steps
    assert {len(order.step(step)) for step in range(1, steps + 1)} == {per_step}
    assert [epoch for epoch, _ in visits(order)] == [
        at // len(prompts) for at in range(steps * per_step)
    ]


@given(prompts=PROMPTS, seed=st.integers(0, 9))
def test_pairs_of_a_prompt_stand_together_in_their_own_order(prompts: list[int], seed: int) -> None:
    """So that a step shares its prompts, cut only where a step ends."""
    order = order_of(prompts, len(prompts), seed, epochs=1.0)
    stream = [index for _, index in visits(order)]
    runs: list[list[int]] = []
    for index in stream:
        if runs and prompts[runs[-1][-1]] == prompts[index]:
            runs[-1].append(index)
        else:
            runs.append([index])
    assert len(runs) == len(set(prompts))
    assert all(run == sorted(run) for run in runs)


def test_order_depends_on_seed_epoch_and_content_alone() -> None:
    prompts = list(range(40))
    stream = visits(order_of(prompts, 8, epochs=2.0))
    assert stream == visits(order_of(prompts, 8, epochs=2.0))
    first = [index for epoch, index in stream if epoch == 0]
    second = [index for epoch, index in stream if epoch == 1]
    assert first != second
    assert first != sorted(first)
    assert first != [index for _, index in visits(order_of(prompts, 8, seed=1, epochs=1.0))]
    # Rows in another order: the same prompts at the same places.
    turned = prompts[::-1]
    assert [turned[index] for _, index in visits(order_of(turned, 8, epochs=1.0))] == first
    # What a step holds does not depend on how many come after it, or on how it is cut.
    assert visits(order_of(prompts, 5, epochs=1.0)) == stream[:40]
    assert visits(order_of(prompts, 8, steps=3)) == stream[:24]


def test_a_known_order() -> None:
    """Written down once: another version of Python or numpy must not shuffle otherwise."""
    assert visits(order_of([1, 2, 1, 3, 4, 5], 4, epochs=1.0)) == KNOWN


KNOWN = [(0, 0), (0, 2), (0, 1), (0, 4), (0, 5), (0, 3)]


def test_every_place_is_as_likely() -> None:
    """Over many seeds a prompt is first as often as any other."""
    firsts = [visits(order_of(list(range(4)), 4, seed, epochs=1.0))[0][1] for seed in range(400)]
    counts = [firsts.count(index) for index in range(4)]
    assert all(60 < count < 140 for count in counts), counts


@pytest.mark.parametrize(
    ("epochs", "rows", "visited"),
    [(0.5, 10, 5), (1.5, 10, 15), (0.01, 10, 1), (2.0, 3, 6), (0.25, 10, 2), (0.35, 10, 4)],
)
def test_parts_of_an_epoch(epochs: float, rows: int, visited: int) -> None:
    """Rounded to whole pairs, at least one; the last step holds what is left."""
    order = order_of(list(range(rows)), 4, epochs=epochs)
    assert len(visits(order)) == order.total == visited
    assert order.num_steps == -(-visited // 4)
