"""Sequences of one pass do not touch each other: other tokens in one, the same bits in the rest."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support.families import shared_model
from tests.support.numerics import VOCAB, examples, scored_sets, sequence
from torch import Tensor

from likelier.batching.batch import Batch, Scored, lay_out
from likelier.data.records import common_length
from likelier.model.policy import Policy

FAMILIES = ("exaone4", "exaone4-sliding", "llama", "qwen3", "mistral", "gemma3", "gpt2")
KNOWN, NEW = range(3, 45), range(45, VOCAB)  # changed tokens are new, so no beginning is shared


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def changed(sequences: list[Scored], index: int, seed: int) -> list[Scored] | None:
    """The same sequences, but all tokens that only this one has differ; None if none is scored."""
    one, rng = sequences[index], random.Random(seed)
    others = sequences[:index] + sequences[index + 1 :]
    shared = max(common_length(one.tokens, other.tokens) for other in others)
    if not any(one.scored[shared:]):
        return None
    tail = tuple(rng.choice(NEW) for _ in one.tokens[shared:])
    return [
        *sequences[:index],
        Scored(one.tokens[:shared] + tail, one.scored),
        *sequences[index + 1 :],
    ]


@torch.no_grad()
def score(policy: Policy, batch: Batch, backend: str) -> tuple[Tensor, list[Tensor]]:
    """All hidden states of a pass by flat position, and each answer's log-probs."""
    kept = []
    assert policy.scorer is not None  # made before the hook: it tries the head on a row
    backbone = policy.causal_lm.base_model
    hook = backbone.register_forward_hook(lambda *call: kept.append(call[-1].last_hidden_state))
    try:
        with policy.running(backend) as scorer:
            logp_K = scorer(batch)[batch.entry_K]
    finally:
        hook.remove()
    return kept[0].flatten(0, 1), list(logp_K.split(batch.length_R.tolist()))


def check(
    policy: Policy, sequences: list[Scored], others: list[Scored], index: int, backend: str
) -> None:
    first, second = lay_out(sequences, backend), lay_out(others, backend)
    assert torch.equal(first.depth_BL, second.depth_BL)
    assert torch.equal(first.predict_N, second.predict_N)
    if first.tree is not None and second.tree is not None:
        assert torch.equal(first.tree.end_T, second.tree.end_T)
        assert first.tree.segments == second.tree.segments
    same_T = (first.token_BL == second.token_BL).flatten()
    if first.tree is None:  # a changed token reaches the later ones of its own row
        row = first.token_BL.shape[1]
        same_T = same_T.view(-1, row).cumprod(1).bool().flatten()
    hidden_TD, logps = score(policy, first, backend)
    hidden_after_TD, logps_after = score(policy, second, backend)
    assert torch.equal(hidden_TD[same_T], hidden_after_TD[same_T])
    for place, (before, after) in enumerate(zip(logps, logps_after, strict=True)):
        assert torch.equal(before, after) == (place != index)


@pytest.mark.parametrize("backend", ["segments", "dense", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
@examples(4)
@given(sequences=scored_sets(tokens=KNOWN), index=st.integers(0, 6), seed=st.integers(0, 9))
def test_other_tokens_leave_the_neighbours_bits(
    family: str, backend: str, sequences: list[Scored], index: int, seed: int
) -> None:
    index %= len(sequences)
    others = changed(sequences, index, seed)
    assume(others is not None)
    assert others is not None
    policy = Policy(shared_model(family, torch.float32), None)  # type: ignore[arg-type]
    check(policy, sequences, others, index, backend)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("backend", ["segments", "dense", "padded"])
def test_the_same_where_two_threads_really_share_the_work(backend: str, count: int) -> None:
    rng = random.Random(3)

    def words(count: int) -> tuple[int, ...]:
        return tuple(rng.choice(KNOWN) for _ in range(count))

    prompts = [words(40) for _ in range(5)]
    sequences = [sequence(prompt, words(30)) for prompt in prompts for _ in range(4)]
    policy = Policy(shared_model("exaone4-sliding", torch.float32), None)  # type: ignore[arg-type]
    others = changed(sequences, 9, seed=0)
    assert others is not None
    with threads(count):
        check(policy, sequences, others, 9, backend)
