"""Which pairs share a batch: fill a token budget, keep a prompt's pairs together, cut no pair."""

from collections.abc import Sequence

from likelier.batching.batch import Scored
from likelier.batching.tree import Trie
from likelier.data.records import common_length

Unit = tuple[Scored, ...]  # sequences that must share a batch: both of a pair, or one


def pack(units: Sequence[Unit], budget: int, backend: str) -> list[list[int]]:
    """Cut units into batches of at most ``budget`` computed tokens; returns their indices.

    A unit that exceeds the budget by itself gets a batch of its own. Trees take units in the
    given order, so that units of one prompt should stand together; padded rows are taken by
    length.
    """
    return _pack_rows(units, budget) if backend == "padded" else _pack_trees(units, budget)


def tokens_of(unit: Unit, backend: str) -> int:
    """Tokens that a batch of one unit computes."""
    if backend == "padded":
        rows = {sequence.inputs for sequence in unit}
        return len(rows) * max(map(len, rows))
    return _tree_size([unit], [0])


def _pack_trees(units: Sequence[Unit], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    trie = Trie()
    for group in _of_one_prompt(units):
        # A prompt that is cut is computed twice, and so are completions that stand in pairs on both
        # sides of the cut: a batch that has too little room for all of it is left as it is.
        begins = not batches or (
            trie.num_tokens + (whole := _tree_size(units, group)) > budget
            and whole <= budget < _tree_size(units, batches[-1] + group)
        )
        for index in group:
            if begins or trie.num_tokens + _new_tokens(trie, units[index]) > budget:
                batches.append([])
                trie = Trie()
                begins = False
            batches[-1].append(index)
            for sequence in units[index]:
                trie.insert(sequence.inputs)
    return batches


def _of_one_prompt(units: Sequence[Unit]) -> list[list[int]]:
    """Neighbours whose context, all before the first scored token, is the same."""
    groups: list[list[int]] = []
    before: tuple[int, ...] | None = None
    for index, unit in enumerate(units):
        first = unit[0]
        context = first.tokens[: first.scored.index(True)]
        if context != before:
            groups.append([])
            before = context
        groups[-1].append(index)
    return groups


def _tree_size(units: Sequence[Unit], chosen: Sequence[int]) -> int:
    """Tokens of a tree of some units."""
    trie = Trie()
    for index in chosen:
        for sequence in units[index]:
            trie.insert(sequence.inputs)
    return trie.num_tokens


def _new_tokens(trie: Trie, unit: Unit) -> int:
    """How many tokens a unit of one or two sequences would add."""
    total, before = 0, None
    for sequence in unit:
        shared = trie.shared(sequence.inputs)
        if before is not None:
            shared = max(shared, common_length(before.inputs, sequence.inputs))
        total += len(sequence.inputs) - shared
        before = sequence
    return total


def _pack_rows(units: Sequence[Unit], budget: int) -> list[list[int]]:
    lengths = [max(len(sequence.inputs) for sequence in unit) for unit in units]
    batches: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(units)), key=lambda i: (lengths[i], i)):
        rows += len(units[index])
        if not batches or rows * lengths[index] > budget:
            batches.append([])
            rows = len(units[index])
        batches[-1].append(index)
    return batches
