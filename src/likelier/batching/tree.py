"""The prefix tree of a batch: every distinct prefix stands once, in one flat row of T tokens.

A hidden state depends only on the tokens before it, so sequences that begin alike share the
states of their common beginning. The tree is a radix tree written down depth first; a token may
look at its ancestors only, and one predicate says which those are (`ancestor_mask_TT`).

Axis letters: T tokens of the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from likelier.data.records import common_length

Span = tuple[int, int]  # flat row indices: first, one past the last


@dataclass(frozen=True)
class Segment:
    """One node of the tree: a run of tokens without a branch, and the spans of its ancestors.

    Its descendants are the rows from ``stop`` to ``end``. ``ancestors`` runs from the root down;
    spans that touch in the row are joined.
    """

    start: int
    stop: int
    end: int
    ancestors: tuple[Span, ...]

    @property
    def depth(self) -> int:
        """The position of its first token: how many tokens stand above it."""
        return sum(stop - start for start, stop in self.ancestors)


@dataclass(frozen=True)
class Tree:
    """The layout of T tokens.

    ``token_T`` the token ids; ``depth_T`` the position of each in its own sequence; ``end_T`` the
    row index just past the last token of its subtree. ``segments`` cover the row in order.
    ``memo`` is what an attention works out of all this once, and reads in every layer.
    """

    token_T: Tensor
    depth_T: Tensor
    end_T: Tensor
    segments: tuple[Segment, ...]
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def with_tensors(self, token_T: Tensor, depth_T: Tensor, end_T: Tensor) -> "Tree":
        """The same layout with tensors that lie on another device; what was worked out is not."""
        return Tree(token_T, depth_T, end_T, self.segments)


class _Node:
    __slots__ = ("children", "tokens")

    def __init__(self, tokens: tuple[int, ...]):
        self.tokens = tokens
        self.children: dict[int, _Node] = {}  # by first token, in order of first appearance


class Trie:
    """A radix tree of token ids that grows by whole sequences and knows its size in tokens."""

    def __init__(self) -> None:
        self.root = _Node(())
        self.num_tokens = 0

    def shared(self, sequence: tuple[int, ...]) -> int:
        """How many of a sequence's first tokens stand here already."""
        return self._descend(sequence)[1]

    def insert(self, sequence: tuple[int, ...]) -> None:
        """Add a sequence; what it shares with earlier ones is not added again."""
        node, at, kept = self._descend(sequence)
        if kept < len(node.tokens):  # the sequences part inside this node: cut it in two
            lower = _Node(node.tokens[kept:])
            lower.children, node.children = node.children, {lower.tokens[0]: lower}
            node.tokens = node.tokens[:kept]
        if at < len(sequence):
            node.children[sequence[at]] = _Node(sequence[at:])
            self.num_tokens += len(sequence) - at

    def _descend(self, sequence: tuple[int, ...]) -> tuple[_Node, int, int]:
        """The last node a sequence reaches, tokens matched in all, and inside that node."""
        node, at, kept = self.root, 0, 0
        while kept == len(node.tokens) and at < len(sequence):
            child = node.children.get(sequence[at])
            if child is None:
                break
            node, kept = child, common_length(child.tokens, sequence[at : at + len(child.tokens)])
            at += kept
        return node, at, kept


def build_tree(sequences: Sequence[tuple[int, ...]]) -> tuple[Tree, list[list[Span]]]:
    """Lay sequences of token ids out as a prefix tree.

    Returns the tree, and for every sequence the spans of the row that spell it, in order.
    Siblings stand in order of first appearance; repeated sequences share all their spans.
    """
    trie = Trie()
    for sequence in sequences:
        trie.insert(sequence)
    tree, start_of = _write_down(trie.root)
    return tree, [_spell(trie.root, sequence, start_of) for sequence in sequences]


def _write_down(root: _Node) -> tuple[Tree, dict[_Node, int]]:
    """The flat row of a trie, and where each of its nodes begins."""
    token: list[int] = []
    depth: list[int] = []
    runs: list[tuple[int, int, tuple[Span, ...]]] = []  # start, stop, ancestors
    ends: dict[int, int] = {}  # end of the subtree of each run, filled on leaving a node
    start_of: dict[_Node, int] = {}
    stack: list[tuple[_Node, tuple[Span, ...], int] | int] = [
        (child, (), 0) for child in reversed(root.children.values())
    ]
    while stack:
        visit = stack.pop()
        if isinstance(visit, int):
            ends[visit] = len(token)
            continue
        node, ancestors, node_depth = visit
        start, stop = len(token), len(token) + len(node.tokens)
        start_of[node] = start
        token.extend(node.tokens)
        depth.extend(range(node_depth, node_depth + len(node.tokens)))
        stack.append(len(runs))
        runs.append((start, stop, ancestors))
        below = _joined(ancestors, (start, stop))
        stack.extend(
            (child, below, node_depth + len(node.tokens))
            for child in reversed(node.children.values())
        )
    end_T = torch.empty(len(token), dtype=torch.long)
    segments = [Segment(run[0], run[1], ends[i], run[2]) for i, run in enumerate(runs)]
    for segment in segments:
        end_T[segment.start : segment.stop] = segment.end
    tree = Tree(
        torch.tensor(token, dtype=torch.long),
        torch.tensor(depth, dtype=torch.long),
        end_T,
        tuple(segments),
    )
    return tree, start_of


def _joined(spans: tuple[Span, ...], span: Span) -> tuple[Span, ...]:
    if spans and spans[-1][1] == span[0]:
        return (*spans[:-1], (spans[-1][0], span[1]))
    return (*spans, span)


def _spell(root: _Node, sequence: tuple[int, ...], start_of: dict[_Node, int]) -> list[Span]:
    spans, node, at = [], root, 0
    while at < len(sequence):
        node = node.children[sequence[at]]
        start = start_of[node]
        spans.append((start, start + len(node.tokens)))
        at += len(node.tokens)
    return spans


def ancestor_mask_TT(tree: Tree, window: int | None = None) -> Tensor:
    """Which keys each query may see, shape (T, T), True where it may: the one predicate.

    ``k <= q and end[k] > q``: k comes first and q lies in its subtree, so k is q or an ancestor
    of q. A sliding window of w positions adds ``depth[q] - depth[k] < w``.
    """
    row_T = torch.arange(len(tree.token_T), device=tree.token_T.device)
    mask_TT = (row_T[None, :] <= row_T[:, None]) & (tree.end_T[None, :] > row_T[:, None])
    if window is not None:
        mask_TT &= tree.depth_T[:, None] - tree.depth_T[None, :] < window
    return mask_TT
