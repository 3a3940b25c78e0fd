"""A layout belongs to its forward alone: adapters, checkpointing and passes in any order."""

from collections.abc import Callable

import pytest
import torch
from tests.support.families import tiny_model
from tests.support.numerics import (
    TELLING,
    answer_weights,
    assert_near,
    gradients,
    in_own_dtype,
    plain_logps,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from likelier.batching.batch import Batch, lay_out, padded_batch, tree_batch
from likelier.model.adapters import attach_lora
from likelier.model.attention.backends import UnsupportedAttention, attention_backend
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers

FAMILIES = ("exaone4-sliding", "llama", "gemma3", "gpt2")
HALVES = (TELLING[:6], TELLING[3:])  # two trees of different size and shape


def tiny_policy(family: str, lora: bool, dtype: torch.dtype = torch.float64) -> Policy:
    policy = Policy(tiny_model(family, dtype), None)  # type: ignore[arg-type]
    if not lora:
        return policy
    policy = attach_lora(policy, r=3, alpha=6, targets="all-linear", seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:  # as trained ones are: B is not 0 and the dtype is the model's
                parameter.data = 0.3 * torch.randn_like(parameter, dtype=dtype)
    return policy


def backward(policy: Policy, logp_E: Tensor, batch: Batch) -> None:
    weight_R = answer_weights(len(batch.length_R))
    logp_E.backward(batch.entry_gradients(weight_R).to(logp_E.dtype))


def one_after_the_other(policy: Policy, backend: str) -> dict[str, Tensor]:
    with policy.running(backend) as scorer:
        for sequences in HALVES:
            batch = lay_out(sequences, backend)
            backward(policy, scorer(batch), batch)
    return gradients(policy.model)


def both_forwards_first(policy: Policy, backend: str, order: tuple[int, int]) -> dict[str, Tensor]:
    with policy.running(backend) as scorer:
        batches = [lay_out(sequences, backend) for sequences in HALVES]
        logps = [scorer(batch) for batch in batches]
        for place in order:
            backward(policy, logps[place], batches[place])
    return gradients(policy.model)


def loop(policy: Policy) -> dict[str, Tensor]:
    with policy.running("padded"):
        for sequences in HALVES:
            sums = [logps.sum() for logps in plain_logps(policy.model, sequences)]
            torch.stack(sums).backward(answer_weights(len(sequences)))
    return gradients(policy.model)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_layouts_in_flight_with_checkpointing(family: str, lora: bool) -> None:
    policy = tiny_policy(family, lora)
    model = policy.causal_lm
    with in_own_dtype(model):
        plain = loop(policy)
        apart = one_after_the_other(policy, "segments")
        assert_near(apart, plain, 1e-9)
        calls = count_calls(model, "mlp")
        one_after_the_other(policy, "segments")
        assert calls() == 2 * model.config.num_hidden_layers
        checkpoint_layers(model)
        calls()
        for backend in ("segments", "dense"):
            for order in ((0, 1), (1, 0)):
                together = both_forwards_first(policy, backend, order)
                # Every layer ran again in the backward, or this would prove nothing.
                assert calls() == 2 * 2 * model.config.num_hidden_layers
                assert_near(together, plain, 1e-9)
                if backend == "segments":
                    assert all(torch.equal(together[name], apart[name]) for name in apart)


def count_calls(model: PreTrainedModel, name: str) -> Callable[[], int]:
    """How often modules of a name were called since last asked."""
    calls = [0]

    def count(module: nn.Module, inputs: object) -> None:
        calls[0] += 1

    for path, module in model.named_modules():
        if path.endswith(f".{name}"):
            module.register_forward_pre_hook(count)

    def since() -> int:
        made, calls[0] = calls[0], 0
        return made

    return since


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_get_gradients(family: str) -> None:
    policy = tiny_policy(family, lora=True)
    found = one_after_the_other(policy, "segments")
    assert found and all("lora_" in name and bool(grad.any()) for name, grad in found.items())
    frozen = [p for name, p in policy.model.named_parameters() if "lora_" not in name]
    assert frozen and all(p.grad is None for p in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_pass_leaves_a_trace(family: str) -> None:
    policy = tiny_policy(family, lora=True, dtype=torch.float32)
    model = policy.model
    tokens = torch.tensor([TELLING[0].tokens])

    def plain() -> Tensor:
        with torch.no_grad(), policy.running("padded"):
            return model(input_ids=tokens, use_cache=False).logits

    def values(sequences: tuple, backend: str) -> Tensor:
        with policy.running(backend) as scorer:
            return scorer(lay_out(sequences, backend))

    before = plain()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    alone = [values(sequences, "segments") for sequences in HALVES]
    for backend in ("dense", "padded", "segments"):
        values(TELLING, backend)
    again = [values(sequences, "segments") for sequences in HALVES]
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))
    assert torch.equal(before, plain())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}


def test_the_models_own_attention_is_back_after_an_error() -> None:
    model = tiny_model("gemma3")
    with pytest.raises(ZeroDivisionError), attention_backend(model, "segments"):
        assert model.config._attn_implementation == "likelier_segments"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    with attention_backend(model, "padded"):
        assert model.config._attn_implementation == "sdpa"


def test_a_tree_backend_without_a_tree_is_refused() -> None:
    model = tiny_model("llama")
    with attention_backend(model, "segments"), pytest.raises(UnsupportedAttention, match="no tree"):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


def test_passes_of_one_sequence_agree_bit_for_bit_in_float64() -> None:
    """Without anything shared a tree is a row: the smallest case of all."""
    policy = tiny_policy("llama", lora=False)
    with torch.no_grad(), policy.running("padded") as scorer:
        row = scorer(padded_batch(TELLING[:1]))
    with torch.no_grad(), policy.running("segments") as scorer:
        tree = scorer(tree_batch(TELLING[:1]))
    torch.testing.assert_close(tree, row, rtol=1e-14, atol=0)
