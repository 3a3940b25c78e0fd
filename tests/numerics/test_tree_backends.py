"""Every backend against a plain loop: log-probs and the gradient of every parameter.

The loop runs one sequence at a time through the model's own forward and attention, with all
logits. Everything is float64 unless a test says otherwise.
"""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from tests.support.families import (
    EXPERT_FAMILIES,
    PADDED_FAMILIES,
    TREE_FAMILIES,
    shared_model,
)
from tests.support.numerics import (
    TELLING,
    answer_weights,
    assert_near,
    distance,
    examples,
    gradients,
    in_own_dtype,
    plain_logps,
    scored_sets,
)

from likelier.batching.batch import Scored, lay_out
from likelier.model.policy import Policy

ALL = (*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES)
EXACT = 1e-9
STOCK = 1e-6  # what transformers' float32 norms leave of float64
# Modules that go through float32 besides norms and routers: Cohere's rotation, Gemma 2's softmax,
# recurrent layers.
ALSO_FLOAT32 = {
    "cohere": "Norm|Attention",
    "gemma2": "Norm|Attention",
    "qwen3-next": "Norm|Router|Delta",
    "falcon-h1": "Norm|Mixer",
}


def backends(family: str) -> tuple[str, ...]:
    return ("padded",) if family in PADDED_FAMILIES else ("segments", "dense", "padded")


def compare(policy: Policy, sequences: Sequence[Scored], backend: str, tolerance: float) -> None:
    """One backend against the loop, with an arbitrary weight for every answer."""
    model, weight_R = policy.model, answer_weights(len(sequences))
    with policy.running("padded"):  # the model's own attention, without dropout
        each = plain_logps(model, sequences)
        torch.stack([logps.double().sum() for logps in each]).backward(weight_R)
    expected = gradients(model)
    with policy.running(backend) as scorer:
        batch = lay_out(sequences, backend)
        logp_E = scorer(batch)
        logp_E.backward(batch.entry_gradients(weight_R).to(logp_E.dtype))
    assert distance(logp_E[batch.entry_K], torch.cat(each)) <= tolerance
    assert_near(gradients(model), expected, tolerance)


def ready_model(family: str, dtype: torch.dtype = torch.float64) -> Policy:
    return Policy(shared_model(family, dtype), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ALL)
@examples(3)
@given(sequences=scored_sets())
@example(sequences=TELLING)
def test_exactly_equal_without_float32_modules(family: str, sequences: list[Scored]) -> None:
    policy = ready_model(family)
    with in_own_dtype(policy.model, ALSO_FLOAT32.get(family, "Norm|Router")):
        for backend in backends(family):
            compare(policy, sequences, backend, EXACT)


@pytest.mark.parametrize("family", ALL)
@examples(1)
@given(sequences=scored_sets())
@example(sequences=TELLING)
def test_equal_with_modules_as_they_are(family: str, sequences: list[Scored]) -> None:
    policy = ready_model(family)
    # Recurrent layers compute in float32 throughout, so the padding of a row reaches its sums.
    tolerance = 1e-5 if family in ("qwen3-next", "falcon-h1") else STOCK
    # Gemma 2's eager softmax in float32 makes the lowest float64 of the mask infinite.
    with in_own_dtype(policy.model, "^Gemma2Attention$"):
        for backend in backends(family):
            compare(policy, sequences, backend, tolerance)


@pytest.mark.parametrize("family", ALL)
def test_the_backend_is_chosen_by_itself(family: str) -> None:
    policy = ready_model(family)
    if family not in PADDED_FAMILIES:
        assert (policy.backend, policy.backend_reason) == ("segments", None)
    else:
        assert policy.backend == "padded"
        word = {
            "gemma2": "softcap",
            "qwen3-next": "linear_attention",
            "falcon-h1": "hybrid",
            "lfm2": "conv",
        }[family]
        assert policy.backend_reason is not None and word in policy.backend_reason


@pytest.mark.parametrize("family", ["qwen3-next", "falcon-h1", "lfm2"])
def test_layers_with_a_state_would_be_wrong_in_a_tree(family: str) -> None:
    """The fall-back is needed: these layers read the row as one long text."""
    with pytest.raises(AssertionError):
        compare(ready_model(family), TELLING, "segments", 1e-3)


@pytest.mark.parametrize("backend", ["segments", "dense", "padded"])
def test_experts_by_grouped_products_in_float32(backend: str) -> None:
    """As users run them: the grouped product takes no float64, and rounding may flip a route."""
    policy = ready_model("qwen3-moe", torch.float32)
    model = policy.causal_lm
    before = model.config._experts_implementation
    model.set_experts_implementation("grouped_mm")
    try:
        compare(policy, TELLING, backend, 1e-4)
    finally:
        model.set_experts_implementation(before)


@pytest.mark.parametrize("family", ["exaone4-sliding", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_of_the_head_change_nothing(family: str, chunk: int) -> None:
    policy = ready_model(family)
    policy.scorer.chunk = chunk
    with in_own_dtype(policy.model):
        compare(policy, TELLING, "segments", EXACT)


def test_the_loop_would_notice_one_wrong_token() -> None:
    """The comparison itself: one changed input token, and no tolerance hides it."""
    policy = ready_model("llama")
    changed = [Scored((*one.tokens[:-2], 60, one.tokens[-1]), one.scored) for one in TELLING]
    with policy.running() as scorer:
        batch = lay_out(changed, "segments")
        ours = scorer(batch)[batch.entry_K]
    theirs = torch.cat(plain_logps(policy.model, TELLING))
    assert distance(ours, theirs) > 1e-2
