"""Which pairs of a step each rank computes: a pure function of the pairs, the same on every rank.

The pairs of a prompt are one unit, because whoever computes its prompt computes it for all of them.
Units go to the rank with the least to do, the longest unit first.
"""

from collections.abc import Iterable, Sequence
from heapq import heapreplace

from likelier.batching.batch import Scored
from likelier.batching.tree import Trie
from likelier.data.records import TokenPair
from likelier.training.memory import Costs

_LIMITS_TRIED = 8  # halvings between a rank's share and the slowest rank with no prompt cut
_PARTNERS = 8  # ranks with the least to do that the slowest may exchange units with
_EXCHANGES = 4  # a rank on average, at most
_EVEN = 1.001  # of the mean load: no exchange is worth more

_Unit = tuple[int, list[int]]  # operations of pairs that stay together, and the pairs


def deal(pairs: Sequence[TokenPair], ranks: int, costs: Costs, backend: str) -> list[list[int]]:
    """The indices of every rank's pairs, ascending; a rank may get none.

    A prompt's pairs stay on one rank unless they alone exceed a rank's share, the total over
    ``ranks``. Then they are cut between pairs where that makes the slowest rank faster: each piece
    computes the prompt again.
    """
    prompts: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        prompts.setdefault(pair.prompt, []).append(index)
    whole = [_cut(pairs, group, None, costs, backend)[0] for group in prompts.values()]
    best = _evened(_longest_first(whole, ranks))
    low = -(-sum(cost for cost, _ in whole) // ranks)
    low, high = max([low, *(cost for cost, group in whole if len(group) == 1)]), _slowest(best)
    for _ in range(_LIMITS_TRIED):
        limit = (low + high) // 2
        if all(cost <= limit or len(group) == 1 for cost, group in whole):
            break  # nothing to cut at this limit
        units: list[_Unit] = []
        for cost, group in whole:
            longer = cost > limit
            units += _cut(pairs, group, limit, costs, backend) if longer else [(cost, group)]
        found = _evened(_longest_first(units, ranks))
        best = min(best, found, key=_slowest)
        low, high = (low, limit) if _slowest(found) <= limit else (limit, high)
    return [sorted(index for _, group in units for index in group) for units in best]


def _slowest(dealt: Sequence[Sequence[_Unit]]) -> int:
    return max(map(_load, dealt))


def _load(units: Iterable[_Unit]) -> int:
    return sum(cost for cost, _ in units)


def _longest_first(units: Iterable[_Unit], ranks: int) -> list[list[_Unit]]:
    """The units of every rank: the longest first, each to the rank with the least to do."""
    dealt: list[list[_Unit]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for unit in sorted(units, key=lambda unit: -unit[0]):
        load, rank = loads[0]
        dealt[rank].append(unit)
        heapreplace(loads, (load + unit[0], rank))
    return dealt


def _evened(dealt: list[list[_Unit]]) -> list[list[_Unit]]:
    """The same, after the slowest rank has given units away, or exchanged them for shorter ones,
    as long as it and its partner, one of those with the least to do, are both faster then."""
    loads = [_load(units) for units in dealt]
    even = int(_EVEN * sum(loads) / len(loads))
    for _ in range(_EXCHANGES * len(dealt)):
        *others, slowest = sorted(range(len(dealt)), key=loads.__getitem__)
        if loads[slowest] <= even:
            break
        best = loads[slowest], 0, -1, -1, -1  # the load of the slower one, what moves, who, units
        for partner in others[:_PARTNERS]:
            least = loads[partner]
            for at, (cost, _) in enumerate(dealt[slowest]):
                for other, (back, _) in enumerate([*dealt[partner], (0, [])]):
                    moved = cost - back
                    if moved > 0 and (load := max(loads[slowest] - moved, least + moved)) < best[0]:
                        best = load, moved, partner, at, other
        _, moved, partner, at, other = best
        if not moved:
            break
        dealt[slowest] += dealt[partner][other : other + 1]
        dealt[partner] = [*dealt[partner][:other], *dealt[partner][other + 1 :]]
        dealt[partner].append(dealt[slowest].pop(at))
        loads[slowest], loads[partner] = loads[slowest] - moved, loads[partner] + moved
    return dealt


def _cut(
    pairs: Sequence[TokenPair], group: Sequence[int], limit: int | None, costs: Costs, backend: str
) -> list[_Unit]:
    """The pairs of one prompt in pieces of at most ``limit`` operations, or of one pair."""
    pieces: list[_Unit] = []
    rows = _Rows(costs, backend)
    for index in group:
        added = rows.add(pairs[index])
        if pieces and (limit is None or pieces[-1][0] + added <= limit):
            cost, piece = pieces[-1]
            pieces[-1] = cost + added, piece
            piece.append(index)
            continue
        if pieces:
            rows = _Rows(costs, backend)
            added = rows.add(pairs[index])
        pieces.append((added, [index]))
    return pieces


class _Rows:
    """The tokens that pairs of one prompt compute, which grow pair by pair: their prefix tree, or
    one row a sequence where the backend is ``padded``.

    Sequences that begin alike count as scored alike as far as they do.
    """

    def __init__(self, costs: Costs, backend: str):
        self.costs, self.padded = costs, backend == "padded"
        self._tree = Trie()  # of what follows the prompt
        self._known: set[tuple[int, ...]] = set()

    def add(self, pair: TokenPair) -> int:
        """Operations that a pair adds."""
        added, prompt = 0, len(pair.prompt)
        for completion in (pair.chosen, pair.rejected):
            inputs = Scored(completion.tokens, completion.scored).inputs
            if inputs in self._known:
                continue
            first = self.padded or not self._known
            shared = 0 if first else prompt + self._tree.shared(inputs)
            length = prompt + len(inputs)
            predicts = completion.scored[shared - prompt + 1 :] if shared else completion.scored
            attended = (length * (length + 1) - shared * (shared + 1)) // 2
            added += self.costs.of(length - shared, attended, sum(predicts))
            self._known.add(inputs)
            if not self.padded:
                self._tree.insert(inputs)
        return added
