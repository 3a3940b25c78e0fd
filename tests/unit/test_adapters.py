"""LoRA: what is trainable, what a seed decides, and the bare base underneath."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.families import tiny_model
from tests.support.numerics import TELLING, assert_near, distance, gradients
from tests.support.tiny import tiny_model as exaone
from tests.support.tiny import tiny_tokenizer
from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.batching.batch import lay_out
from likelier.model.adapters import adapters_off, attach_lora, in_compute_dtype
from likelier.model.load import quietly
from likelier.model.policy import Policy


def make_policy(seed: int = 0, dtype: torch.dtype = torch.float32, **lora: Any) -> Policy:
    tokenizer = tiny_tokenizer()
    wanted = {"r": 4, "alpha": 8, "targets": "all-linear", **lora}
    return attach_lora(Policy(exaone(tokenizer, dtype), tokenizer, "here"), seed=seed, **wanted)


def train(policy: Policy) -> None:
    """Adapters that do something."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits


def adapter(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if "lora_" in n}


def test_every_linear_layer_but_the_head_gets_one() -> None:
    policy = make_policy()
    found = adapter(policy)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in found}
    assert layers == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert len(found) == 2 * 2 * 7
    trainable = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert trainable == set(found)
    assert policy.has_adapter and policy.model.training
    assert policy.path == "here" and policy.tokenizer is not None


def test_named_targets_and_rank() -> None:
    found = adapter(make_policy(targets=["q_proj"], r=3))
    assert {tuple(t.shape) for n, t in found.items() if "lora_A" in n} == {(3, 32)}
    assert all("q_proj" in name for name in found) and len(found) == 2 * 2


def test_a_fresh_adapter_changes_nothing() -> None:
    policy = make_policy()
    base = exaone(tiny_tokenizer()).eval()
    assert torch.equal(logits(policy.model.eval()), logits(base))
    train(policy)
    assert not torch.equal(logits(policy.model), logits(base))


def test_alpha_scales_what_it_does() -> None:
    def change(alpha: int) -> Tensor:
        policy = make_policy(targets=["down_proj"], alpha=alpha, dtype=torch.float64)
        layer = policy.causal_lm.get_submodule("model.layers.1.mlp.down_proj")
        train(policy)
        x = torch.ones(1, 64, dtype=torch.float64)
        with torch.no_grad():
            return layer(x) - layer.base_layer(x)

    torch.testing.assert_close(change(16), 2 * change(8), rtol=1e-6, atol=0)


def test_the_seed_alone_decides_and_nobody_elses_numbers_are_used() -> None:
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = adapter(make_policy(seed=5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    torch.manual_seed(99)
    torch.randn(7)
    again, other = adapter(make_policy(seed=5)), adapter(make_policy(seed=6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_adapters_are_float32_on_a_half_precision_base() -> None:
    policy = make_policy(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in adapter(policy).values()} == {torch.float32}
    assert policy.causal_lm.dtype is torch.bfloat16


def test_no_module_has_such_a_name() -> None:
    with pytest.raises(ConfigError, match="no module of this model is called") as caught:
        make_policy(targets=["query"])
    assert caught.value.where == "adapter.targets" and "query" in str(caught.value)


def test_what_peft_refuses_is_said_and_the_cure_works() -> None:
    """Kernels of recurrent layers would read some weights beside their adapters."""
    policy = Policy(tiny_model("falcon-h1", torch.float32), tiny_tokenizer())
    with pytest.raises(ConfigError, match="'out_proj' is incompatible") as caught:
        attach_lora(policy, 2, 4, "all-linear", seed=0)
    assert "name the modules, such as [q_proj, v_proj]" in str(caught.value)
    fresh = Policy(tiny_model("falcon-h1", torch.float32), tiny_tokenizer())
    assert attach_lora(fresh, 2, 4, ["q_proj", "v_proj"], seed=0).has_adapter


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_off_is_the_base_bit_for_bit(family: str) -> None:
    base = logits(tiny_model(family, torch.float32).eval())
    policy = attach_lora(
        Policy(tiny_model(family, torch.float32), None),  # type: ignore[arg-type]
        r=4,
        alpha=8,
        targets="all-linear",
        seed=0,
    )
    train(policy)
    model = policy.model.eval()
    on = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), base)
        assert torch.equal(logits(policy.causal_lm), base)  # what the scorer calls
    assert torch.equal(logits(model), on) and not torch.equal(on, base)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_", "nothing"])
def test_what_was_trainable_is_trainable_again(frozen: str) -> None:
    policy = make_policy()
    for name, parameter in policy.model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)

    def trainable() -> dict[str, bool]:
        return {name: p.requires_grad for name, p in policy.model.named_parameters()}

    before = trainable()
    with adapters_off(policy.model):
        pass
    assert trainable() == before
    with pytest.raises(ZeroDivisionError), adapters_off(policy.model):
        raise ZeroDivisionError
    assert trainable() == before
    train(policy)
    assert not torch.equal(logits(policy.model.eval()), logits(exaone(tiny_tokenizer()).eval()))


def test_a_model_without_adapters_stays_as_it_is() -> None:
    model = exaone(tiny_tokenizer()).eval()
    before = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), before)
    assert all(p.requires_grad for p in model.parameters())


# Adapters in what the model computes in


def test_matrices_compute_as_the_model_does_and_come_back_to_the_bit() -> None:
    policy = make_policy(dtype=torch.bfloat16)
    train(policy)
    before = adapter(policy)
    with in_compute_dtype(policy) as exact:
        assert {tensor.dtype for tensor in adapter(policy).values()} == {torch.bfloat16}
        assert exact.keys() == before.keys()
        assert all(torch.equal(exact[name], before[name]) for name in before)
        assert all(p.requires_grad == ("lora_" in n) for n, p in policy.model.named_parameters())
        next(iter(exact.values())).add_(1)  # as an optimizer does
    after = adapter(policy)
    first, *others = before
    assert torch.equal(after[first], before[first] + 1)
    assert all(torch.equal(after[name], before[name]) for name in others)
    with pytest.raises(ZeroDivisionError), in_compute_dtype(policy):
        raise ZeroDivisionError
    assert {tensor.dtype for tensor in adapter(policy).values()} == {torch.float32}


def test_gradients_are_as_near_to_those_of_a_float32_model_as_with_float32_matrices() -> None:
    """The slow twin is peft's way: float32 matrices, and a float32 copy of every input."""
    policy = make_policy(dtype=torch.bfloat16)
    train(policy)
    batch = lay_out(TELLING, policy.backend)

    def step() -> Tensor:
        with policy.running() as scorer:
            logp_E = scorer(batch)
            logp_E.backward(torch.linspace(1, 2, len(logp_E)))
        return torch.cat([grad.float().flatten() for grad in gradients(policy.model).values()])

    plain = step()
    with in_compute_dtype(policy):
        ours = step()
    policy.model.float()
    truth = step()
    assert not torch.equal(ours, plain)
    assert distance(ours, truth) < 1.5 * distance(plain, truth)


def test_off_is_the_base_while_matrices_are_half() -> None:
    policy = make_policy(dtype=torch.bfloat16)
    train(policy)
    base = logits(exaone(tiny_tokenizer(), torch.bfloat16).eval())
    with in_compute_dtype(policy), adapters_off(policy.model):
        assert torch.equal(logits(policy.model.eval()), base)


def test_half_merged_is_what_float32_merges_but_for_rounding() -> None:
    policies = [make_policy(dtype=torch.bfloat16) for _ in range(2)]
    for policy in policies:
        train(policy)
    with in_compute_dtype(policies[0]):
        ours = policies[0].model.merge_and_unload().state_dict()  # type: ignore[operator]
    theirs = policies[1].model.merge_and_unload().state_dict()  # type: ignore[operator]
    assert_near(ours, theirs, 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_models_have_their_matrices_as_they_are(dtype: torch.dtype) -> None:
    policy = make_policy(dtype=dtype)
    before = {name: p.data_ptr() for name, p in policy.model.named_parameters()}
    with in_compute_dtype(policy) as exact:
        assert not exact
        assert before == {name: p.data_ptr() for name, p in policy.model.named_parameters()}


@pytest.mark.parametrize("why", ["a variant", "a frozen half", "an embedding", "a wide layer"])
def test_matrices_of_other_kinds_stay_float32(why: str) -> None:
    import peft

    tokenizer = tiny_tokenizer()
    target = "embed_tokens" if why == "an embedding" else "q_proj"
    wanted = peft.LoraConfig(r=2, target_modules=[target], use_dora=why == "a variant")
    with quietly():
        model = peft.get_peft_model(exaone(tokenizer, torch.bfloat16), wanted)
    for name, parameter in model.named_parameters():
        if why == "a frozen half" and "lora_A" in name:
            parameter.requires_grad_(False)
        if why == "a wide layer" and "base_layer" in name:
            parameter.data = parameter.data.float()
    policy = Policy(model.train(), tokenizer)
    with in_compute_dtype(policy) as exact:
        assert not exact
        assert {tensor.dtype for tensor in adapter(policy).values()} == {torch.float32}


def test_transposed_layers_have_theirs_in_half_as_well() -> None:
    policy = Policy(tiny_model("gpt2", torch.bfloat16), tiny_tokenizer())
    policy = attach_lora(policy, 2, 4, "all-linear", seed=0)
    with in_compute_dtype(policy) as exact:
        assert exact.keys() == adapter(policy).keys()
        assert logits(policy.model).dtype is torch.bfloat16
