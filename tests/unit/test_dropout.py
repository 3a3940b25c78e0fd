"""Train mode without chance, and everything as it was afterwards."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.support.families import tiny_model
from tests.support.numerics import TELLING, VOCAB
from tests.support.tiny import tiny_model as exaone_with_dropout
from tests.support.tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
)

from likelier.batching.batch import tree_batch
from likelier.model.load import quietly
from likelier.model.policy import Policy
from likelier.model.running import without_dropout


def gpt2() -> nn.Module:
    """Dropout modules, and an attention that reads their probability."""
    return tiny_model("gpt2", torch.float32)


def exaone() -> nn.Module:
    """A probability that the attention keeps as a number."""
    return exaone_with_dropout(tiny_tokenizer())


def mixtral() -> nn.Module:
    """Noise on what the router reads, and attention dropout."""
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.3,
        attention_dropout=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config)


def opt() -> nn.Module:
    """Functional dropout, and whole layers left out."""
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        dropout=0.2,
        attention_dropout=0.2,
        layerdrop=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OPTForCausalLM(config)


def persimmon() -> nn.Module:
    """A probability that is read from the configuration at every call."""
    config = PersimmonConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.3,
        hidden_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PersimmonForCausalLM(config)


def with_adapter() -> nn.Module:
    """Adapters that ask for dropout themselves, on a base that does, too."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(1)
        model = peft.get_peft_model(exaone_with_dropout(tiny_tokenizer()), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.train()


MODELS = [gpt2, exaone, mixtral, opt, persimmon, with_adapter]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 43)[None] % 50, use_cache=False).logits


def chances(model: Any) -> dict[str, Any]:
    """Every number that a module or configuration holds, whatever its name."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (float, bool)):
                found[f"{path}.{name}"] = value
        if hasattr(module, "config"):
            found[f"{path}.config"] = json.dumps(module.config.to_dict(), default=str)
    return found


@pytest.mark.parametrize("make", MODELS)
def test_two_forwards_in_train_mode_give_the_same_bits(make: Any) -> None:
    model = make()
    assert model.training
    assert not torch.equal(logits(model), logits(model))  # or this would prove nothing
    modes = [module.training for module in model.modules()]
    with without_dropout(model):
        first, second = logits(model), logits(model)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(first, second)
    assert not torch.equal(logits(model), logits(model))
    assert torch.equal(first, logits(model.eval()))  # it is the model without its dropout


@pytest.mark.parametrize("make", MODELS)
def test_everything_is_put_back(make: Any) -> None:
    model = make()
    before = chances(model)
    with without_dropout(model):
        assert chances(model) != before
    assert chances(model) == before
    with pytest.raises(ZeroDivisionError), without_dropout(model):
        raise ZeroDivisionError
    assert chances(model) == before
    with without_dropout(model), without_dropout(model):
        pass
    assert chances(model) == before


def test_a_model_saved_afterwards_keeps_its_configuration(tmp_path: Path) -> None:
    model = gpt2()
    with without_dropout(model):
        logits(model)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert [saved[name] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")] == [0.1] * 3


def test_the_random_numbers_of_others_are_not_used_up() -> None:
    model = gpt2()
    state = torch.get_rng_state()
    with without_dropout(model):
        logits(model)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("make", [gpt2, exaone, with_adapter])
def test_training_passes_are_silent(make: Any) -> None:
    """Through the one door that training and scoring use, gradients included."""
    policy = Policy(make(), None)  # type: ignore[arg-type]
    batch = tree_batch(TELLING)

    def run() -> list[Tensor]:
        with policy.running() as scorer:
            logp_E = scorer(batch)
            logp_E.sum().backward()
        grads = [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]
        policy.model.zero_grad()
        return [logp_E.detach(), *grads]

    first, second = run(), run()
    assert policy.model.training and len(first) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
