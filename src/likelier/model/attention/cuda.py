"""Attention over a prefix tree by FlexAttention: the fast path on a CUDA GPU.

The kernel visits blocks of 128 x 128 and skips those in which no query sees a key. Which those
are follows from the extremes of ``end_T`` and ``depth_T`` in every block: T / 128 squared
comparisons, never T squared. Rows are padded to few lengths, so that nothing is compiled anew.

Axis letters: T rows, padded; B blocks of queries or keys.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from likelier.batching.tree import Tree

BLOCK = 128
MOST_KERNELS = 128  # torch's own limit is 8: fewer than the counts of rows with two windows
ROW_COUNTS = tuple(BLOCK << n for n in range(1, 9))  # 256 to 32768; beyond, multiples of that


def padded_size(tokens: int) -> int:
    """How many rows so many tokens are padded to."""
    most = ROW_COUNTS[-1]
    return next((rows for rows in ROW_COUNTS if rows >= tokens), -(-tokens // most) * most)


def block_mask(tree: Tree, window: int | None) -> BlockMask:
    """The predicate of a tree for the kernel, made once for each kind of window in a batch.

    A row of padding sees itself: a row that sees nothing has no softmax.
    """
    tokens = len(tree.end_T)
    size = padded_size(tokens)
    row_T = torch.arange(size, device=tree.end_T.device)
    end_T = torch.cat([tree.end_T, row_T[tokens:] + 1])
    depth_T = F.pad(tree.depth_T, (0, size - tokens))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (end_T[key] > query)
        return seen if window is None else seen & (depth_T[query] - depth_T[key] < window)

    first_B, last_B = row_T[::BLOCK], row_T[BLOCK - 1 :: BLOCK]
    end_BK, depth_BK = end_T.view(-1, BLOCK), depth_T.view(-1, BLOCK)
    some_BB = (first_B[None, :] <= last_B[:, None]) & (end_BK.amax(1)[None, :] > first_B[:, None])
    all_BB = (last_B[None, :] <= first_B[:, None]) & (end_BK.amin(1)[None, :] > last_B[:, None])
    if window is not None:
        low_B, high_B = depth_BK.amin(1), depth_BK.amax(1)
        some_BB &= low_B[:, None] - high_B[None, :] < window
        all_BB &= high_B[:, None] - low_B[None, :] < window
    return BlockMask.from_kv_blocks(
        *_listed(some_BB & ~all_BB),
        *_listed(all_BB),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(size, size),
    )


def _listed(wanted_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Per block of queries, how many blocks of keys are wanted and which, those first."""
    count_B = wanted_BB.sum(1, dtype=torch.int32)
    order_BB = wanted_BB.int().argsort(dim=1, descending=True, stable=True).int()
    return count_B[None, None], order_BB[None, None]


def flex(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of shape (1, heads, T, head size) over a tree; ``dense`` is the twin."""
    if window not in tree.memo:
        tree.memo[window] = block_mask(tree, window)
    tokens = query.shape[2]
    more = padded_size(tokens) - tokens
    padded = [F.pad(states, (0, 0, 0, more)) for states in (query, key, value)]
    attention: Any = compiled() if query.is_cuda else flex_attention
    with torch._dynamo.config.patch(recompile_limit=MOST_KERNELS):
        output: Any = attention(
            *padded, block_mask=tree.memo[window], scale=scaling, enable_gqa=True
        )
    return output[:, :, :tokens]


@cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """FlexAttention with a kernel for each count of rows, window, shape of heads and dtype, with
    gradient and without.

    ``fullgraph``: beyond `MOST_KERNELS` it is an error. Torch would continue with all tokens by
    all tokens in memory, and one warning.
    """
    return torch.compile(flex_attention, backend=backend, dynamic=False, fullgraph=True)
