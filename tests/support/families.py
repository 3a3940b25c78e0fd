"""Tiny random models of the architectures that the prefix tree is tested with."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tests.support.numerics import VOCAB
from tests.support.tiny import tiny_tokenizer
from transformers import PreTrainedConfig, PreTrainedModel

from likelier.model.adapters import attach_lora
from likelier.model.policy import Policy

TREE_FAMILIES = (
    *("exaone4", "exaone4-sliding", "llama", "qwen3", "mistral", "gemma3", "gpt2"),
    *("granite", "cohere"),  # their heads scale the logits
)
EXPERT_FAMILIES = ("qwen3-moe",)
# Soft-capped attention, then layers that carry a state along: recurrent and convolutional ones.
PADDED_FAMILIES = ("gemma2", "qwen3-next", "falcon-h1", "lfm2")

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_GLOBAL, _SLIDING = "full_attention", "sliding_attention"


def _config(name: str) -> PreTrainedConfig:
    match name:
        case "exaone4":
            return tf.Exaone4Config(
                **_SMALL,
                sliding_window=None,
                sliding_window_pattern=None,
                layer_types=[_GLOBAL] * 2,
                tie_word_embeddings=True,
            )
        case "exaone4-sliding":
            four = {**_SMALL, "num_hidden_layers": 4}
            types = [_SLIDING] * 3 + [_GLOBAL]
            return tf.Exaone4Config(
                **four, sliding_window=5, sliding_window_pattern=4, layer_types=types
            )
        case "llama":
            return tf.LlamaConfig(**_SMALL)
        case "qwen3":
            return tf.Qwen3Config(**_SMALL)
        case "mistral":
            return tf.MistralConfig(**_SMALL, sliding_window=7)
        case "gemma2":
            return tf.Gemma2Config(
                **_SMALL,
                sliding_window=5,
                layer_types=[_SLIDING, _GLOBAL],
                attn_logit_softcapping=2.0,
                final_logit_softcapping=3.0,
            )
        case "gemma3":
            return tf.Gemma3TextConfig(**_SMALL, sliding_window=5, layer_types=[_SLIDING, _GLOBAL])
        case "granite":
            return tf.GraniteConfig(**_SMALL, logits_scaling=3.0, attention_multiplier=0.3)
        case "cohere":
            small = {key: value for key, value in _SMALL.items() if key != "head_dim"}
            return tf.CohereConfig(**small, logit_scale=0.4)
        case "gpt2":  # its default configuration asks for dropout
            return tf.GPT2Config(
                vocab_size=VOCAB,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=128,
                bos_token_id=1,
                eos_token_id=2,
            )
        case "qwen3-moe":
            return tf.Qwen3MoeConfig(**_SMALL, **_EXPERTS, decoder_sparse_step=1)
        case "falcon-h1":
            return tf.FalconH1Config(
                **_SMALL,
                mamba_d_state=8,
                mamba_n_heads=4,
                mamba_d_head=8,
                mamba_d_ssm=32,
                mamba_n_groups=1,
                mamba_chunk_size=16,
            )
        case "qwen3-next":
            return tf.Qwen3NextConfig(
                **_SMALL,
                **_EXPERTS,
                layer_types=["linear_attention", _GLOBAL],
                shared_expert_intermediate_size=16,
                linear_num_value_heads=4,
                linear_num_key_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
            )
        case "lfm2":
            return tf.Lfm2Config(**_SMALL, layer_types=["conv", _GLOBAL], conv_L_cache=3)
    raise ValueError(name)


def tiny_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, in train mode with weights large enough to matter.

    Its attention is the architecture's own: ``sdpa``, or ``eager`` where that cannot be.
    """
    config = _config(name)
    own = "eager" if name == "gemma2" else "sdpa"
    experts = {"experts_implementation": "eager"} if hasattr(config, "num_experts") else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=own, **experts)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


@cache
def shared_model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The same model for every test that leaves it as it was."""
    return tiny_model(name, dtype)


def with_lora(policy: Policy, targets: Any = "all-linear") -> Policy:
    """A policy with adapters that do something."""
    policy = attach_lora(policy, r=4, alpha=8, targets=targets, seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return policy


def saved(folder: Path, families: Iterable[str]) -> dict[str, Path]:
    """Families as checkpoints in bfloat16, each in a folder of its name."""
    found = {family: folder / family for family in families}
    for family, place in found.items():
        tiny_model(family, torch.bfloat16).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
    return found
