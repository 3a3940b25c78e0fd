"""Where scored tokens are predicted in a batch: every entry against its definition."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.numerics import TELLING, answer_weights, scored_sets, sequence

from likelier.batching.batch import (
    Batch,
    Scored,
    completions_of,
    joined_copies,
    padded_batch,
    scored,
    together,
    tree_batch,
)
from likelier.data.records import Completion, TokenPair

Layout = Callable[[Sequence[Scored]], Batch]
layouts = st.sampled_from([tree_batch, padded_batch])
sets = scored_sets(tokens=range(3))


def spelled(batch: Batch) -> list[tuple[int, ...]]:
    """The prefix that ends at each flat position, read off the batch alone."""
    if batch.tree is None:
        return [tuple(row[: i + 1]) for row in batch.token_BL.tolist() for i in range(len(row))]
    path: list[int] = []
    row = []
    depths = batch.depth_BL.flatten().tolist()
    for token, depth in zip(batch.token_BL.flatten().tolist(), depths, strict=True):
        path = [*path[:depth], token]
        row.append(tuple(path))
    return row


@given(sets, layouts)
def test_every_scored_token_is_predicted_by_the_prefix_before_it(
    sequences: list[Scored], lay_out: Layout
) -> None:
    batch = lay_out(sequences)
    prefixes = spelled(batch)
    row_K = batch.row_E[batch.entry_K]
    wanted = [
        (s.tokens[:p], s.tokens[p]) for s in sequences for p, yes in enumerate(s.scored) if yes
    ]
    found = [
        (prefixes[position], token)
        for position, token in zip(
            batch.predict_N[row_K].tolist(), batch.token_E[batch.entry_K].tolist(), strict=True
        )
    ]
    assert found == wanted
    assert batch.length_R.tolist() == [sum(s.scored) for s in sequences]
    # Nothing stands twice, and what is read in order is in order.
    places = list(zip(batch.predict_N[batch.row_E].tolist(), batch.token_E.tolist(), strict=True))
    assert len(places) == len(set(places))
    if batch.tree is not None:
        assert len(places) == len(set(wanted))
    assert (batch.predict_N.diff() > 0).all() and (batch.row_E.diff() >= 0).all()
    assert sorted(set(batch.entry_K.tolist())) == list(range(len(batch.row_E)))


@given(sets)
def test_a_tree_holds_every_distinct_prefix_of_the_inputs_once(sequences: list[Scored]) -> None:
    batch = tree_batch(sequences)
    distinct = {s.inputs[:n] for s in sequences for n in range(1, len(s.inputs) + 1)}
    assert batch.num_tokens == len(distinct)
    assert sorted(spelled(batch)) == sorted(distinct)
    assert batch.tree is not None and batch.keep_BL is None
    assert torch.equal(batch.token_BL[0], batch.tree.token_T)
    assert torch.equal(batch.depth_BL[0], batch.tree.depth_T)


@given(sets)
def test_padded_rows_are_the_distinct_inputs(sequences: list[Scored]) -> None:
    batch = padded_batch(sequences)
    assert batch.keep_BL is not None and batch.tree is None
    rows = [
        tuple(tokens[keep == 1].tolist())
        for tokens, keep in zip(batch.token_BL, batch.keep_BL, strict=True)
    ]
    assert rows == list(dict.fromkeys(s.inputs for s in sequences))
    assert (batch.keep_BL.diff(dim=1) <= 0).all()  # padding only on the right
    assert batch.depth_BL.tolist() == [list(range(batch.token_BL.shape[1]))] * len(rows)
    assert batch.num_tokens == len(rows) * max(len(s.inputs) for s in sequences)


@given(sets, layouts)
def test_answers_are_sums_of_their_entries(sequences: list[Scored], lay_out: Layout) -> None:
    batch = lay_out(sequences)
    logp_E = -torch.rand(len(batch.row_E), dtype=torch.float64).requires_grad_()
    total_R = batch.completion_logps(logp_E)
    each = logp_E[batch.entry_K].split(batch.length_R.tolist())
    torch.testing.assert_close(total_R, torch.stack([part.sum() for part in each]))
    assert batch.completion_K.tolist() == [i for i, part in enumerate(each) for _ in part]
    # The way back, by hand and by autograd.
    weight_R = answer_weights(len(sequences))
    (expected_E,) = torch.autograd.grad(total_R, logp_E, weight_R)
    torch.testing.assert_close(batch.entry_gradients(weight_R), expected_E)


def test_sums_are_taken_in_float64() -> None:
    batch = tree_batch([sequence((1,), range(2, 50))])
    logp_E = torch.full((48,), -0.1, dtype=torch.float32)
    (total,) = batch.completion_logps(logp_E).tolist()
    assert total == pytest.approx(48 * float(torch.tensor(-0.1)), abs=1e-13)
    assert batch.entry_gradients(torch.tensor([0.1])).dtype is torch.float64


def test_a_pass_moves_with_everything_in_it() -> None:
    for lay_out in (tree_batch, padded_batch):
        moved = lay_out(TELLING).to("meta")
        tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) == (11 if lay_out is tree_batch else 12)
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        if moved.tree is not None:
            of_tree = moved.tree.token_T, moved.tree.depth_T, moved.tree.end_T
            assert {tensor.device.type for tensor in of_tree} == {"meta"}


def test_tensors_are_copied_together_and_arrive_as_they_were() -> None:
    """In one copy for each dtype, of whatever shape; each begins where kernels read fast."""
    sent = [
        torch.arange(7),
        torch.linspace(0, 1, 5, dtype=torch.float64),
        torch.zeros(0, dtype=torch.long),
        torch.arange(3).expand(4, -1),
        torch.tensor(2.5, dtype=torch.float64),
        torch.tensor([[True], [False]]),
    ]
    arrived = joined_copies(sent, torch.device("cpu"))
    for ours, theirs in zip(arrived, sent, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert ours.storage_offset() % 16 == 0
    places = {(tensor.dtype, tensor.untyped_storage().data_ptr()) for tensor in arrived}
    assert len(places) == 3
    assert all(a is b for a, b in zip(together(sent, torch.device("cpu")), sent, strict=True))


def test_a_pair_becomes_two_sequences_with_the_prompt_as_context() -> None:
    chosen = Completion((5, 6, 7, 2), (True, False, True, True))
    pair = TokenPair((1, 4), chosen, Completion((8, 2), (True, True)), "pairs.jsonl:1")
    first, second = completions_of(pair)
    assert first == Scored((1, 4, 5, 6, 7, 2), (False, False, True, False, True, True))
    assert second == Scored((1, 4, 8, 2), (False, False, True, True))
    assert (first.num_scored, second.num_scored) == (3, 2)


def test_what_follows_the_last_scored_token_is_not_computed() -> None:
    one = Scored((1, 2, 3, 4, 5), (False, True, False, True, False))
    assert one.inputs == (1, 2, 3)
    assert tree_batch([one]).num_tokens == 3


def test_a_first_token_needs_something_to_predict_it() -> None:
    with pytest.raises(ValueError, match="prompt of at least one token"):
        scored((), Completion((5, 2), (True, True)))
    with pytest.raises(ValueError, match="at least one scored token"):
        scored((1,), Completion((5, 2), (False, False)))
    assert scored((), Completion((5, 2), (False, True))).inputs == (5,)
