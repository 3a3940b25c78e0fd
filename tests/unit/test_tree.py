"""The prefix tree against its definition, written out naively over all distinct prefixes."""

import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from likelier.batching.tree import Trie, ancestor_mask_TT, build_tree
from likelier.data.records import common_length

Tokens = tuple[int, ...]

# Three token ids only, so that shared beginnings, repeats and prefixes of each other are common.
words = st.lists(st.integers(0, 2), max_size=6).map(tuple)
sets = st.lists(words.filter(len), min_size=1, max_size=9)
windows = st.none() | st.integers(1, 8)

FORK = [(1, 2, 3), (1, 2, 4)]
CROSSED = [(1, 2, 3, 4), (5, 6), (1, 2), (1, 2, 7), (5, 6), (9,), (1, 2, 3, 4, 4), (1, 2, 7, 2)]


def prefixes_in_row(sequences: list[Tokens]) -> list[Tokens]:
    """Every distinct prefix once, parents first, siblings in order of first appearance."""
    seen: dict[Tokens, int] = {}
    for sequence in sequences:
        for length in range(1, len(sequence) + 1):
            seen.setdefault(sequence[:length], len(seen))
    return sorted(seen, key=lambda p: [seen[p[:length]] for length in range(1, len(p) + 1)])


def naive_mask(row: list[Tokens], window: int | None) -> torch.Tensor:
    """A prefix is seen where it is a prefix of the looking one, and near enough."""
    return torch.tensor(
        [
            [q[: len(k)] == k and (window is None or len(q) - len(k) < window) for k in row]
            for q in row
        ]
    )


@given(sets)
@example(FORK)
@example(CROSSED)
def test_every_distinct_prefix_stands_once_in_depth_first_order(sequences: list[Tokens]) -> None:
    row = prefixes_in_row(sequences)
    tree, spans = build_tree(sequences)
    assert tree.token_T.tolist() == [prefix[-1] for prefix in row]
    assert tree.depth_T.tolist() == [len(prefix) - 1 for prefix in row]
    below = [sum(other[: len(prefix)] == prefix for other in row) for prefix in row]
    assert tree.end_T.tolist() == [at + count for at, count in enumerate(below)]
    for sequence, path in zip(sequences, spans, strict=True):
        places = [place for start, stop in path for place in range(start, stop)]
        assert [row[place] for place in places] == [sequence[: i + 1] for i in range(len(sequence))]


@given(sets, windows)
@example(CROSSED, None)
@example(CROSSED, 2)
def test_the_mask_is_the_prefix_relation(sequences: list[Tokens], window: int | None) -> None:
    tree, _ = build_tree(sequences)
    expected = naive_mask(prefixes_in_row(sequences), window)
    assert torch.equal(ancestor_mask_TT(tree, window), expected)


@given(sets)
@example(CROSSED)
def test_segments_cover_the_row(sequences: list[Tokens]) -> None:
    tree, _ = build_tree(sequences)
    at = 0
    for segment in tree.segments:
        assert segment.start == at < segment.stop
        at = segment.stop
        assert segment.depth == int(tree.depth_T[segment.start])
        assert set(tree.end_T[segment.start : segment.stop].tolist()) == {segment.end}
        assert all(left[1] < right[0] for left, right in itertools.pairwise(segment.ancestors))
        seen = ancestor_mask_TT(tree)[segment.start, : segment.start].nonzero().flatten().tolist()
        assert seen == [p for start, stop in segment.ancestors for p in range(start, stop)]
    assert at == len(tree.token_T)


@given(st.lists(words, max_size=9), words)
@example([(0, 1, 2)], (0, 1))
def test_a_trie_knows_its_size_and_what_it_shares(inserted: list[Tokens], asked: Tokens) -> None:
    trie = Trie()
    held: set[Tokens] = {()}
    for sequence in inserted:
        assert trie.shared(asked) == max(n for n in range(len(asked) + 1) if asked[:n] in held)
        trie.insert(sequence)
        held |= {sequence[:length] for length in range(len(sequence) + 1)}
        assert trie.num_tokens == len(held) - 1
        assert trie.shared(sequence) == len(sequence)


@given(words, words)
def test_common_length(ours: Tokens, theirs: Tokens) -> None:
    shared = common_length(ours, theirs)
    assert ours[:shared] == theirs[:shared]
    assert ours[shared : shared + 1] != theirs[shared : shared + 1] or ours == theirs
    assert shared <= min(len(ours), len(theirs))
    assert shared == common_length(theirs, ours)


def test_a_long_chain_of_forks_needs_no_recursion() -> None:
    whole = tuple(range(1100))
    tree, spans = build_tree([whole[: length + 1] for length in range(1100)])
    assert tree.token_T.tolist() == list(whole)
    assert len(tree.segments) == 1100
    assert tree.end_T.unique().tolist() == [1100]
    # One path: what touches in the row is joined, or every segment would list all above it.
    assert all(len(segment.ancestors) <= 1 for segment in tree.segments)
    assert len(spans[-1]) == 1100


@pytest.mark.parametrize("sequences", [[], [()]])
def test_nothing_makes_an_empty_row(sequences: list[Tokens]) -> None:
    tree, spans = build_tree(sequences)
    assert tree.token_T.shape == (0,) and tree.segments == ()
    assert spans == [[] for _ in sequences]
