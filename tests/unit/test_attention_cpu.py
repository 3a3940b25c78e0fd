"""Attention by blocks against the predicate and against its dense twin."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from likelier.batching.tree import ancestor_mask_TT, build_tree
from likelier.model.attention.backends import dense
from likelier.model.attention.cpu import PIECE, blocks, segments

Tokens = tuple[int, ...]

sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1)
windows = st.none() | st.integers(1, 14)
pieces = st.sampled_from([1, 2, 5, PIECE])
CROSSED = [(1, 2, 3, 4), (5, 6), (1, 2), (1, 2, 7), (5, 6), (9,), (1, 2, 3, 4, 4), (1, 2, 7, 2)]


@given(sets, windows, pieces)
@example(CROSSED, None, 2)
@example(CROSSED, 2, 2)
def test_every_visible_key_is_in_exactly_one_block(
    sequences: list[Tokens], window: int | None, piece: int
) -> None:
    tree, _ = build_tree(sequences)
    times_TT = torch.zeros(len(tree.token_T), len(tree.token_T), dtype=torch.int)
    squares = True
    with patch("likelier.model.attention.cpu.PIECE", piece):
        found = blocks(tree, window)
    for block in found:
        assert not block.causal or window or block.query[1] - block.query[0] <= piece
        (q0, q1), (k0, k1) = block.query, block.key
        mask_QK = block.mask_QK(torch.zeros(1))
        seen_QK = (
            torch.ones(q1 - q0, k1 - k0, dtype=torch.bool) if mask_QK is None else mask_QK == 0
        )
        if block.causal:
            seen_QK = seen_QK.tril()
        assert seen_QK.any(1).all()  # a row without a key has no softmax
        assert squares or block.query != block.key  # squares come first: they set their rows
        squares = block.query == block.key
        times_TT[q0:q1, k0:k1] += seen_QK.int()
    assert torch.equal(times_TT, ancestor_mask_TT(tree, window).int())


def states(tokens: int, heads: int, size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Like a layer's projections: rows in memory, seen heads first."""
    return torch.randn(1, tokens, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()


@settings(max_examples=40)
@given(
    sets, windows, pieces, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.sampled_from([4, 8, 12])
)
@example(CROSSED, 3, PIECE, (4, 2), 8)
@example(CROSSED, None, 1, (4, 2), 8)
def test_values_and_gradients_equal_the_dense_twin(
    sequences: list[Tokens], window: int | None, piece: int, heads: tuple[int, int], value_size: int
) -> None:
    tree, _ = build_tree(sequences)
    tokens = len(tree.token_T)
    inputs = [states(tokens, heads[0], 8), states(tokens, heads[1], 8)]
    inputs.append(states(tokens, heads[1], value_size))
    results = []
    for attention in (segments, dense):
        with patch("likelier.model.attention.cpu.PIECE", piece):
            output = attention(*inputs, tree, 0.3, window)
        weight = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
        results.append([output.detach(), *torch.autograd.grad(output, inputs, weight)])
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)


def test_the_default_scale_is_that_of_torch() -> None:
    tree, _ = build_tree(CROSSED)
    inputs = [states(len(tree.token_T), 2, 8) for _ in range(3)]
    ours, twin = (attention(*inputs, tree, None, None) for attention in (segments, dense))
    torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)


def test_long_scores_lose_nothing_where_softmaxes_join() -> None:
    """Scores of +-400: exponentials overflow where the joining is not by log-sum-exps."""
    tree, _ = build_tree(CROSSED)
    inputs = [states(len(tree.token_T), 2, 8) for _ in range(3)]
    ours, twin = (attention(*inputs, tree, 100.0, None) for attention in (segments, dense))
    assert bool(ours.isfinite().all())
    torch.testing.assert_close(ours, twin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 3])
def test_bfloat16_is_as_near_the_truth_as_the_twin(window: int | None) -> None:
    torch.manual_seed(0)
    tree, _ = build_tree([(1, 2, 3) * 10 + (n,) * 20 for n in range(4)])
    half = [states(len(tree.token_T), 4, 16, torch.bfloat16) for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in half]
    errors = []
    weight = torch.randn(1, 4, len(tree.token_T), 16, dtype=torch.float64)
    truth = dense(*exact, tree, None, window)
    true_grads = torch.autograd.grad(truth, exact, weight)
    for attention in (segments, dense):
        output = attention(*half, tree, None, window)
        grads = torch.autograd.grad(output, half, weight.bfloat16())
        found, wanted = (output, *grads), (truth, *true_grads)
        errors.append([float((a - b).detach().norm()) for a, b in zip(found, wanted, strict=True)])
    assert all(ours < 1.5 * twin for ours, twin in zip(*errors, strict=True))
