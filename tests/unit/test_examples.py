"""The configs in examples/: each can be read, and its first lines say what is true."""

import re
from pathlib import Path

import pytest
import torch
import transformers as tf

from likelier.config import load_config
from likelier.config.schema import LoraConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
_TIED = {"tie_word_embeddings": True}
# The sizes that these models publish in their config.json.
MODELS = {
    "LGAI-EXAONE/EXAONE-4.0-1.2B": tf.Exaone4Config(
        vocab_size=102400, hidden_size=2048, intermediate_size=4096, num_hidden_layers=30,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, sliding_window=None,
        layer_types=["full_attention"] * 30, **_TIED,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": tf.LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, **_TIED,
    ),
    "Qwen/Qwen3-1.7B": tf.Qwen3Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, **_TIED,
    ),
    "google/gemma-3-1b-it": tf.Gemma3TextConfig(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, **_TIED,
    ),
}  # fmt: skip
CONFIGS = sorted(file for file in EXAMPLES.glob("*.yaml") if file.stem != "turned")


def cost(file: Path) -> str:
    """The line of cost: bytes of the weights, and of all that is there for each trained one."""
    config = load_config(file)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(MODELS[config.model.path])
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = weights
    if isinstance(config.adapter, LoraConfig):
        layers = [
            layer
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and name != "lm_head"
        ]
        trained = config.adapter.r * sum(x.in_features + x.out_features for x in layers)
    # A bfloat16 weight has a float32 master, a float32 gradient and two averages beside it.
    return (
        f"# Cost: {weights / 1e9:.2f} billion weights, {2 * weights / 1e9:.1f} GB in bfloat16; "
        f"{trained / 1e6:,.0f} million are trained, {16 * trained / 1e9:.1f} GB more."
    )


def test_the_families_are_there_with_adapter_and_in_full() -> None:
    kinds = {
        (config.model.path, config.adapter.kind)
        for config in (load_config(file) for file in CONFIGS)
    }
    assert kinds == {(model, kind) for model in MODELS for kind in ("lora", "none")}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_its_first_lines_are_true(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    assert f"likelier train examples/{file.name}" in lines[0]
    assert lines[1] == cost(file)
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert re.search(r"^# Outcome: .*0\.6931", head, re.MULTILINE)
    config = load_config(file)
    assert (EXAMPLES.parent / config.data.train).is_file()


def test_the_pairs_are_of_the_demo() -> None:
    """So that they can be made again, and hold nothing of anyone else's."""
    import json

    from likelier.demo.make import chat_rows

    rows = [json.loads(x) for x in (EXAMPLES / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert rows == chat_rows("train", per_topic=1, seed=0)


if __name__ == "__main__":  # writes the lines of cost
    for file in CONFIGS:
        lines = file.read_text("utf-8").splitlines()
        file.write_text("\n".join([lines[0], cost(file), *lines[2:]]) + "\n", "utf-8")
