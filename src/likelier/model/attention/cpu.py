"""Attention over a prefix tree as blocks that need no mask: the fast path on a CPU.

Written depth first, a node's descendants follow it in one run. So attention over the tree is a
causal square for every node, and for every inner node one rectangle: all its descendants over
its keys. Two partial softmaxes of a row join by their log-sum-exps, and given the joined output
and log-sum-exp the kernel's backward of every block is exact: the softmax of a block is
``exp(score - lse)``, whatever else the row saw. No T x T, no mask, no repeated keys.

A long node is cut into pieces, each the only child of the one before: the kernel computes all of
a square and then masks half of it, while all of a rectangle is used.

Half precision is computed in float32: the kernels' products are no slower there on a processor
without matrix tiles, and more exact.

Axis letters: G query heads that share a key head, H key heads, T tokens of the row, D head size.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from likelier.batching.tree import Span, Tree
from likelier.model.logprob import at_least_float32

PIECE = 256  # rows; squares of 128 cost as much again in calls and in joining as they save

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Block:
    """The queries of some rows over the keys of some rows.

    ``causal`` marks the square of a node over itself. A sliding ``window`` that cuts through the
    block gives it a mask, for which ``ahead`` is the position of the first query less that of the
    first key.
    """

    query: Span
    key: Span
    causal: bool = False
    window: int | None = None
    ahead: int = 0

    def mask_QK(self, like: Tensor) -> Tensor | None:
        """0 where a query sees a key and -inf where not; None where causality says it all."""
        if self.window is None:
            return None
        rows, columns = (torch.arange(stop - start) for start, stop in (self.query, self.key))
        behind_QK = self.ahead + rows[:, None] - columns[None, :]
        hidden_QK = (behind_QK >= self.window) | (behind_QK < 0)
        return like.new_zeros(hidden_QK.shape).masked_fill_(hidden_QK, float("-inf"))


def blocks(tree: Tree, window: int | None) -> list[Block]:
    """The blocks of a tree, every node's own square first: all that `ancestor_mask_TT` allows."""
    deepest = max(s.depth + s.stop - s.start for s in tree.segments)
    if window is None or window >= deepest:
        pieces = [(piece, s.end) for s in tree.segments for piece in _pieces(s.start, s.stop)]
        squares = [Block(piece, piece, causal=True) for piece, _ in pieces]
        return squares + [Block((piece[1], end), piece) for piece, end in pieces if end > piece[1]]
    found = []
    for s in tree.segments:
        cut = window if s.stop - s.start > window else None
        found.append(Block((s.start, s.stop), (s.start, s.stop), cut is None, cut))
    for s in tree.segments:
        depth = 0
        for start, stop in s.ancestors:
            # Keys that the first query does not reach, and queries that reach no key, stay out:
            # a row of nothing but -inf has no softmax.
            first = max(start, start + s.depth - window + 1 - depth)
            reach = min(s.stop, s.start + (depth + stop - start - 1) + window - s.depth)
            if first < stop and reach > s.start:
                ahead = s.depth - (depth + first - start)
                cut = window if ahead + reach - s.start > window else None
                found.append(Block((s.start, reach), (first, stop), False, cut, ahead))
            depth += stop - start
    return found


def _pieces(start: int, stop: int) -> list[Span]:
    """A run of rows in pieces of like length, none longer than `PIECE`."""
    count = -(-(stop - start) // PIECE)
    edges = [start + i * (stop - start) // count for i in range(count + 1)]
    return list(pairwise(edges))


def segments(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of shape (1, heads, T, head size) over a tree; ``dense`` is the twin.

    There may be fewer key heads than query heads, and values of another size than the keys.
    """
    size = value.shape[-1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    widest = max(size, query.shape[-1])  # the kernel wants one size: zeros change no product
    query, key, value = (
        states if states.shape[-1] == widest else F.pad(states, (0, widest - states.shape[-1]))
        for states in (query, key, value)
    )
    made = ("blocks", window)
    if made not in tree.memo:
        tree.memo[made] = blocks(tree, window)
    output: Tensor = _BlockAttention.apply(query, key, value, tree.memo[made], scale)
    return output[..., :size]


def _by_key_head(states: Tensor, key_heads: int) -> Tensor:
    """(1, heads, T, D) as (G, H, T, D), without a copy."""
    return states[0].unflatten(0, (key_heads, -1)).transpose(0, 1)


def _for_the_kernel(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as (G, H, T, D) in at least float32; keys are not repeated."""
    query, key, value = map(at_least_float32, (query, key, value))
    query_GHTD = _by_key_head(query, key.shape[1])
    key_GHTD, value_GHTD = (x.expand(len(query_GHTD), -1, -1, -1) for x in (key, value))
    return query_GHTD, key_GHTD, value_GHTD


def _row_by_row(like: Tensor, key_heads: int) -> Tensor:
    """An empty (G, H, T, D) in memory order T, heads, D: what the layer around it reads."""
    heads, tokens, size = like.shape[1:]
    empty = at_least_float32(like.new_empty(0)).new_empty(1, tokens, heads, size)
    return _by_key_head(empty.transpose(1, 2), key_heads)


def _as_heads(states: Tensor, dtype: torch.dtype) -> Tensor:
    """(G, H, T, D) as (1, heads, T, D)."""
    return states.transpose(0, 1).flatten(0, 1)[None].to(dtype)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: list[Block], scale: float
    ) -> Tensor:
        query_GHTD, key_GHTD, value_GHTD = _for_the_kernel(query, key, value)
        output_GHTD = _row_by_row(query, key.shape[1])
        lse_GHT = output_GHTD.new_empty(output_GHTD.shape[:3])
        for block in layout:
            (q0, q1), (k0, k1) = block.query, block.key
            part_GHQD, part_GHQ = _forward(
                query_GHTD[:, :, q0:q1],
                key_GHTD[:, :, k0:k1],
                value_GHTD[:, :, k0:k1],
                is_causal=block.causal,
                attn_mask=block.mask_QK(query_GHTD),
                scale=scale,
            )
            rows_GHQD, rows_GHQ = output_GHTD[:, :, q0:q1], lse_GHT[:, :, q0:q1]
            if block.query == block.key:
                rows_GHQD.copy_(part_GHQD)
                rows_GHQ.copy_(part_GHQ)
                continue
            joined_GHQ = torch.logaddexp(rows_GHQ, part_GHQ)
            rows_GHQD.mul_((rows_GHQ - joined_GHQ).exp_()[..., None])
            rows_GHQD.addcmul_(part_GHQD, (part_GHQ - joined_GHQ).exp_()[..., None])
            rows_GHQ.copy_(joined_GHQ)
        output = _as_heads(output_GHTD, query.dtype)
        ctx.save_for_backward(query, key, value, output, lse_GHT)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse_GHT = ctx.saved_tensors
        heads = key.shape[1]
        query_GHTD, key_GHTD, value_GHTD = _for_the_kernel(query, key, value)
        output_GHTD, grad_GHTD = (_by_key_head(at_least_float32(x), heads) for x in (output, grad))
        grad_query = _row_by_row(query, heads)
        grad_key, grad_value = (_row_by_row(x, heads)[0] for x in (key, value))
        for block in ctx.layout:
            (q0, q1), (k0, k1) = block.query, block.key
            parts = _backward(
                grad_GHTD[:, :, q0:q1],
                query_GHTD[:, :, q0:q1],
                key_GHTD[:, :, k0:k1],
                value_GHTD[:, :, k0:k1],
                output_GHTD[:, :, q0:q1],
                lse_GHT[:, :, q0:q1],
                0.0,
                block.causal,
                attn_mask=block.mask_QK(query_GHTD),
                scale=ctx.scale,
            )
            totals = (
                (grad_query[:, :, q0:q1], parts[0]),
                (grad_key[:, k0:k1], parts[1].sum(0)),
                (grad_value[:, k0:k1], parts[2].sum(0)),
            )
            for total, part in totals:
                if block.query == block.key:  # a node's own square comes first and sets its rows
                    total.copy_(part)
                else:
                    total.add_(part)
        return (
            _as_heads(grad_query, query.dtype),
            grad_key[None].to(key.dtype),
            grad_value[None].to(value.dtype),
            None,
            None,
        )
