"""LoRA: what is trainable, what a seed decides, and the bare base underneath."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.families import tiny_model
from tests.support.tiny import tiny_model as exaone
from tests.support.tiny import tiny_tokenizer
from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.model.adapters import adapters_off, attach_lora
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
