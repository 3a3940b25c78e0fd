"""Packing: no unit is cut, lost or repeated, the budget holds, and no pass is wasted."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.numerics import sequence

from likelier.batching.batch import Scored, lay_out, padded_batch, tree_batch
from likelier.batching.pack import Unit, pack, tokens_of
from likelier.batching.tree import build_tree

words = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
one = st.tuples(words, words).map(lambda both: sequence(*both))


@st.composite
def pair(draw: st.DrawFn) -> Unit:
    prompt = draw(words)
    return sequence(prompt, draw(words)), sequence(prompt, draw(words))


units = st.lists(one.map(lambda s: (s,)), max_size=10) | st.lists(pair(), max_size=10)


def two(prompt: tuple[int, ...], *answers: tuple[int, ...]) -> Unit:
    return tuple(sequence(prompt, answer) for answer in answers)


def laid_out(given_units: Sequence[Unit], places: Sequence[int], backend: str) -> int:
    sequences: list[Scored] = [s for place in places for s in given_units[place]]
    return lay_out(sequences, backend).num_tokens


@given(units, st.integers(1, 60))
@example([two((1, 2), (0, 1), (0, 2))] * 2, 3)
@example([two((0,), (1,), (2,)), two((1, 1, 1), (0,), (2,))], 4)  # new to the pass, but shared
def test_trees_take_units_in_order_up_to_the_budget(given_units: list[Unit], budget: int) -> None:
    passes = pack(given_units, budget, "segments")
    assert [place for places in passes for place in places] == list(range(len(given_units)))
    assert all(passes)
    for places in passes:
        assert laid_out(given_units, places, "segments") <= budget or len(places) == 1
    for places, following in itertools.pairwise(passes):
        # Neither the next unit would have fitted nor, where that would have, all of its prompt.
        of_prompt = [
            place
            for place in range(following[0], len(given_units))
            if all(_context(given_units[p]) == _context(given_units[following[0]])
                   for p in range(following[0], place + 1))
        ]  # fmt: skip
        assert laid_out(given_units, [*places, *of_prompt], "segments") > budget
        if laid_out(given_units, of_prompt, "segments") > budget:
            assert laid_out(given_units, [*places, following[0]], "segments") > budget


def _context(unit: Unit) -> tuple[int, ...]:
    return unit[0].tokens[: unit[0].scored.index(True)]


@given(units, st.integers(1, 60))
def test_rows_are_taken_by_length_up_to_the_budget(given_units: list[Unit], budget: int) -> None:
    passes = pack(given_units, budget, "padded")
    order = [place for places in passes for place in places]
    assert sorted(order) == list(range(len(given_units)))
    lengths = [max(len(s.inputs) for s in given_units[place]) for place in order]
    assert lengths == sorted(lengths)
    for places in passes:
        assert laid_out(given_units, places, "padded") <= budget or len(places) == 1
    for places, following in itertools.pairwise(passes):
        joined = [s for place in (*places, following[0]) for s in given_units[place]]
        # Rows are counted as if all differed; repeated sequences then share one.
        assert len(joined) * max(len(s.inputs) for s in joined) > budget


def test_a_unit_beyond_the_budget_goes_alone_and_the_others_go_on() -> None:
    short, long = sequence((1,), (2, 0)), sequence((2,), (1,) * 20)
    assert pack([(short,), (long,), (short,), (short,)], 5, "segments") == [[0], [1], [2, 3]]
    assert pack([(short,), (long,), (short,), (short,)], 8, "padded") == [[0, 2, 3], [1]]


@pytest.mark.parametrize("backend", ["segments", "padded"])
def test_nothing_needs_no_pass(backend: str) -> None:
    assert pack([], 10, backend) == []


def test_layouts_by_name() -> None:
    sequences = [Scored((1, 2, 3), (False, True, True)), Scored((1, 4), (False, True))]
    padded, tree = padded_batch(sequences), tree_batch(sequences)
    assert torch.equal(lay_out(sequences, "padded").token_BL, padded.token_BL)
    for backend in ("segments", "dense", "flex"):
        assert torch.equal(lay_out(sequences, backend).token_BL, tree.token_BL)
    assert padded.token_BL.shape != tree.token_BL.shape


def _group(prompt: int, answers: int) -> list[tuple[Scored, Scored]]:
    """A prompt of 10 tokens and all pairs of its answers of 5: 10 + 4 x answers in a tree."""
    made = [
        Scored((prompt,) * 10 + (100 + prompt * 10 + n,) * 5, (False,) * 10 + (True,) * 5)
        for n in range(answers)
    ]
    return list(itertools.combinations(made, 2))


def test_a_prompt_that_fits_into_a_pass_is_not_cut() -> None:
    units = [*_group(1, 4), *_group(2, 4), *_group(3, 4)]
    assert pack(units, 40, "segments") == [list(range(6)), list(range(6, 12)), list(range(12, 18))]
    assert pack(units, 52, "segments") == [list(range(12)), list(range(12, 18))]
    assert pack(units, 10**6, "segments") == [list(range(18))]


def test_a_prompt_larger_than_a_pass_is_cut_between_its_pairs() -> None:
    units = [*_group(1, 2), *_group(2, 6)]
    passes = pack(units, 30, "segments")
    assert [index for places in passes for index in places] == list(range(16))
    assert all(
        len(build_tree([s.inputs for i in places for s in units[i]])[0].token_T) <= 30
        for places in passes
    )
    assert passes[0][:1] == [0] and len(passes) > 2


@pytest.mark.parametrize("backend", ["segments", "padded"])
@given(given_units=units)
def test_a_unit_alone_has_the_tokens_of_its_batch(backend: str, given_units: list[Unit]) -> None:
    for unit in given_units:
        assert tokens_of(unit, backend) == laid_out([unit], [0], backend)
