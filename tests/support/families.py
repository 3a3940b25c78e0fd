"""Tiny random models of the architectures that the prefix tree is tested with."""

import torch
import transformers as tf
from transformers import PreTrainedModel

VOCAB = 61

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _config(name: str) -> tf.PreTrainedConfig:
    match name:
        case "exaone4":
            return tf.Exaone4Config(
                **_SMALL,
                sliding_window=None,
                sliding_window_pattern=None,
                layer_types=["full_attention"] * 4,
                tie_word_embeddings=True,
            )
        case "exaone4-sliding":
            return tf.Exaone4Config(**_SMALL, sliding_window=5, sliding_window_pattern=4)
        case "llama":
            return tf.LlamaConfig(**_SMALL)
        case "qwen3":
            return tf.Qwen3Config(**_SMALL)
        case "mistral":
            return tf.MistralConfig(**_SMALL, sliding_window=7)
        case "gemma3":
            return tf.Gemma3TextConfig(**_SMALL, sliding_window=5, sliding_window_pattern=2)
        case "gemma2":
            return tf.Gemma2Config(**_SMALL, sliding_window=5)
        case "gpt2":
            return tf.GPT2Config(
                vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=512,
                bos_token_id=1, eos_token_id=2,
            )  # fmt: skip
        case "qwen3-moe":
            return tf.Qwen3MoeConfig(
                **_SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                decoder_sparse_step=1,
            )  # fmt: skip
        case "falcon-h1":
            return tf.FalconH1Config(
                **_SMALL, mamba_d_state=8, mamba_n_heads=4, mamba_d_head=8, mamba_d_ssm=32,
                mamba_n_groups=1, mamba_chunk_size=16,
            )  # fmt: skip
        case "qwen3-next":
            return tf.Qwen3NextConfig(
                **_SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                shared_expert_intermediate_size=16, linear_num_value_heads=4,
                linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
            )  # fmt: skip
    raise ValueError(name)


TREE_FAMILIES = ("exaone4", "exaone4-sliding", "llama", "qwen3", "mistral", "gemma3", "gpt2")
EXPERT_FAMILIES = ("qwen3-moe",)
PADDED_FAMILIES = ("gemma2", "qwen3-next")


def tiny_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, in train mode with weights large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(_config(name), attn_implementation="sdpa")
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            else:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()
