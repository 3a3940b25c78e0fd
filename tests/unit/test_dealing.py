"""Dealing: every pair once, prompts whole, the same on every rank, and no rank much slower."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.batching.batch import completions_of, lay_out
from likelier.data.records import Completion, TokenPair
from likelier.training.dealing import _cut, deal
from likelier.training.memory import Costs, costs_of, operations_of

COSTS = Costs(token=2_139_095_040, attended=245_760, position=419_430_400)  # EXAONE 4 1.2B
TOKENS = Costs(token=1, attended=0, position=0)

backends = st.sampled_from(["segments", "padded"])
ids = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
completions = ids.map(lambda tokens: Completion(tokens, (True,) * len(tokens)))
pairs_of_a_step = st.lists(
    st.builds(TokenPair, ids, completions, completions, st.just("here:1")), max_size=24
)


def operations(pairs: Sequence[TokenPair], costs: Costs, backend: str) -> int:
    """Counted from batches as they are computed, one of each prompt, one row alone if padded."""
    total = 0
    for prompt in {pair.prompt: None for pair in pairs}:
        found = [s for pair in pairs if pair.prompt == prompt for s in completions_of(pair)]
        distinct = list({sequence.inputs: sequence for sequence in found}.values())
        for some in [[one] for one in distinct] if backend == "padded" else [distinct]:
            total += costs.of_batch(lay_out(some, backend))
    return total


def loads(
    pairs: Sequence[TokenPair], dealt: Sequence[Sequence[int]], costs: Costs, backend: str
) -> list[int]:
    return [operations([pairs[i] for i in indices], costs, backend) for indices in dealt]


@given(pairs_of_a_step, st.integers(1, 9), backends)
def test_every_pair_is_computed_once_and_by_the_same_rank_again(
    pairs: list[TokenPair], ranks: int, backend: str
) -> None:
    dealt = deal(pairs, ranks, COSTS, backend)
    assert len(dealt) == ranks
    assert sorted(i for indices in dealt for i in indices) == list(range(len(pairs)))
    assert all(list(indices) == sorted(indices) for indices in dealt)
    assert deal(list(pairs), ranks, COSTS, backend) == dealt


@given(pairs_of_a_step, st.integers(1, 9), backends)
def test_a_prompt_is_whole_unless_it_exceeds_a_share(
    pairs: list[TokenPair], ranks: int, backend: str
) -> None:
    total = operations(pairs, COSTS, backend)
    dealt = deal(pairs, ranks, COSTS, backend)
    for prompt in {pair.prompt for pair in pairs}:
        group = [i for i, pair in enumerate(pairs) if pair.prompt == prompt]
        holders = [rank for rank, indices in enumerate(dealt) if {*indices} & {*group}]
        alone = operations([pairs[i] for i in group], COSTS, backend)
        assert len(holders) == 1 or alone * ranks > total


@given(pairs_of_a_step, st.integers(1, 9), st.randoms(use_true_random=False))
def test_loads_do_not_depend_on_the_order_of_prompts(
    pairs: list[TokenPair], ranks: int, random: object
) -> None:
    """Of ranks, either: nobody is told which prompts stand first. A cut is made in their order."""
    groups: dict[tuple[int, ...], list[TokenPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt, []).append(pair)
    order = list(groups)
    random.shuffle(order)  # type: ignore[attr-defined]
    neighbours = [pair for group in groups.values() for pair in group]
    shuffled = [pair for prompt in order for pair in groups[prompt]]
    found = [
        sorted(loads(some, deal(some, ranks, COSTS, "segments"), COSTS, "segments"))
        for some in (neighbours, shuffled)
    ]
    assert max(found[0]) == max(found[1])


@given(pairs_of_a_step, st.integers(2, 9), backends)
def test_no_dealing_of_whole_prompts_is_left_that_moves_one_to_the_idlest(
    pairs: list[TokenPair], ranks: int, backend: str
) -> None:
    dealt = deal(pairs, ranks, COSTS, backend)
    load = loads(pairs, dealt, COSTS, backend)
    slowest, idlest = load.index(max(load)), load.index(min(load))
    for prompt in {pairs[i].prompt for i in dealt[slowest]}:
        moved = [i for i in dealt[slowest] if pairs[i].prompt == prompt]
        rest = [i for i in dealt[slowest] if i not in moved]
        after = loads(pairs, [rest, dealt[idlest] + moved], COSTS, backend)
        assert max(after) * 1.002 >= max(load)


def test_a_prompt_below_a_share_is_whole_though_cutting_it_would_be_faster() -> None:
    """Trees of 41, 41 and 33 tokens; the pairs of 41 as 21 and 21 would make 74 to 63."""
    pairs = [
        pair
        for prompt, length in enumerate((11, 11, 9))
        for start in (10, 20)
        for pair in answers_of((start,) * length, (start + 1,) * length, prompt=(prompt,))
    ]
    dealt = deal(pairs, 2, TOKENS, "segments")
    assert sorted(loads(pairs, dealt, TOKENS, "segments")) == [41, 74]


def answers_of(*answers: tuple[int, ...], prompt: tuple[int, ...] = (9,) * 10) -> list[TokenPair]:
    """All pairs of some answers to a prompt."""
    made = [Completion(answer, (True,) * len(answer)) for answer in answers]
    return [TokenPair(prompt, a, b, "here:1") for a, b in combinations(made, 2)]


def test_shared_answers_count_once() -> None:
    """Three pairs of three answers are 10 + 3 * 4 tokens, as many as one long pair."""
    three = answers_of((1,) * 5, (2,) * 5, (3,) * 5)
    long = answers_of((1,) * 7, (2,) * 7, prompt=(8,) * 10)
    assert deal([*three, *long, *long], 2, TOKENS, "segments") in ([[0, 1, 2], [3, 4]],)
    # A row a sequence: 3 * 14 against 2 * 16.
    assert loads([*three, *long], [[0, 1, 2], [3]], TOKENS, "padded") == [42, 32]


def test_a_prompt_of_many_answers_is_cut_where_that_is_faster() -> None:
    best = (1,) * 40
    pairs = [
        TokenPair((9,) * 5, Completion(best, (True,) * 40), Completion((i,) * 60, (True,) * 60), "")
        for i in range(2, 10)
    ]
    dealt = deal(pairs, 4, TOKENS, "segments")
    assert [len(indices) for indices in dealt] == [2, 2, 2, 2]
    assert max(loads(pairs, dealt, TOKENS, "segments")) == 5 + 39 + 2 * 59
    # A long prompt with short answers: whoever computes it computes all.
    pairs = answers_of((1, 1), (2, 2), (3, 3), (4, 4), prompt=(9,) * 1000)
    assert sorted(map(len, deal(pairs, 6, TOKENS, "segments")))[-1] < 6  # two answers less
    tied = answers_of((1,), (2,), (3,), prompt=(9,) * 1000)  # answers of one token cost nothing
    assert deal(tied, 3, TOKENS, "segments") == [[0, 1, 2], [], []]


def test_equal_pairs_are_dealt_in_their_order() -> None:
    pairs = [answers_of((1, 2), (2, 1), prompt=(i,))[0] for i in range(8)]
    assert deal(pairs, 3, COSTS, "segments") == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert deal(pairs[:2], 3, COSTS, "segments") == [[0], [1], []]
    assert deal([], 2, COSTS, "segments") == [[], []]


# Workloads as in bench/workloads.py: log-normal lengths, of a prompt and of an answer.
CHAT, SUMMARIES = ((100, 0.8), (200, 0.7)), ((350, 0.25), (35, 0.4))


def drawn(lengths: Sequence[tuple[float, float]], answers: int, seed: int) -> list[TokenPair]:
    """A step of 256 pairs; with 8 ``answers`` 1 to 8 of them are compared with one more, the best,
    with 4 all pairs of a prompt are."""
    rng = np.random.default_rng(seed)

    def tokens(median: float, sigma: float) -> tuple[int, ...]:
        length = int(np.clip(median * np.exp(sigma * rng.standard_normal()), 8, 700))
        return tuple(rng.integers(0, 30_000, length).tolist())

    pairs: list[TokenPair] = []
    while len(pairs) < 256:
        prompt = tokens(*lengths[0])
        count = int(rng.integers(2, 10)) if answers == 8 else answers
        made = [tokens(*lengths[1]) for _ in range(count)]
        found = answers_of(*made, prompt=prompt)
        pairs += found[: count - 1] if answers == 8 else found
    return pairs[:256]


@pytest.mark.parametrize("answers", [2, 4, 8])
@pytest.mark.parametrize("lengths", [CHAT, SUMMARIES], ids=["chat", "summaries"])
def test_the_slowest_of_64_ranks_is_near_to_the_mean_or_the_longest_unit(
    lengths: Sequence[tuple[float, float]], answers: int
) -> None:
    pairs = drawn(lengths, answers, seed=1)
    units = [units_of(pairs, part) for part in deal(pairs, 64, COSTS, "segments")]
    load = [sum(part) for part in units]
    longest = max(unit for part in units for unit in part)
    assert max(load) <= 1.05 * max(longest, sum(load) / 64)
    # Pieces compute their prompt again, but never so often that a rank in turn would be as fast.
    in_turn = [sum(units_of(pairs, range(rank, 256, 64))) for rank in range(64)]
    assert max(load) < 0.9 * max(in_turn)


def units_of(pairs: Sequence[TokenPair], indices: Sequence[int]) -> list[int]:
    """Operations of what a rank has of each prompt."""
    prompts: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        prompts.setdefault(pairs[index].prompt, []).append(index)
    return [_cut(pairs, group, None, COSTS, "segments")[0][0] for group in prompts.values()]


def test_costs_are_what_a_model_computes() -> None:
    model = tiny_model(tiny_tokenizer())
    costs = costs_of(model)
    (pair,) = answers_of((1, 2, 3), (4, 5), prompt=(6, 7, 8, 9))
    work = operations_of(lay_out(completions_of(pair), "segments"), model)
    # Inputs 6 7 8 9 | 1 2 | 4: 7 tokens, which see 1 2 3 4 5 6 5 keys; 9, 1, 2 and 4 predict.
    assert costs.of(7, 26, 4) == sum(work.values())
    assert operations([pair], costs, "segments") == costs.of(7, 26, 4)
    assert isinstance(costs.token, int)


@given(ids, st.lists(st.tuples(completions, completions), min_size=1, max_size=6), backends)
def test_a_unit_costs_what_its_batch_computes(
    prompt: tuple[int, ...], both: list[tuple[Completion, Completion]], backend: str
) -> None:
    pairs = [TokenPair(prompt, chosen, rejected, "") for chosen, rejected in both]
    for costs in (TOKENS, Costs(0, 1, 0), Costs(0, 0, 1)):
        ((cost, group),) = _cut(pairs, range(len(pairs)), None, costs, backend)
        assert group == list(range(len(pairs)))
        assert cost == operations(pairs, costs, backend)
