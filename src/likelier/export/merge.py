"""An adapter merged into its base: one plain model of full weights, each computed in float32."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from likelier.base.errors import ConfigError
from likelier.base.files import write_json
from likelier.model.load import quietly
from likelier.model.logprob import at_least_float32
from likelier.model.policy import Policy
from likelier.model.quantise import unpack

_PLAIN = "merge it with peft: PeftModel.merge_and_unload"


def save_merged(policy: Policy, dtype: torch.dtype, target: Path) -> None:
    """Write the model that base and adapters give together, as `from_pretrained` loads it.

    Weights of a quantised base are unpacked, so that they take their full size again. A head that
    was tied to the embedding is written apart where the adapter changed one of them.

    Raises ConfigError where an adapter is not a sum of low-rank products.
    """
    model = policy.causal_lm
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = {name: tensor.to(dtype) for name, tensor in merged_weights(model)}
    names = {id(module): name for name, module in model.named_modules()}
    outer = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (weights[f"{names[id(module)]}.weight"] for module in outer)
    if not torch.equal(embedding, head):
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    plain.generation_config = copy.deepcopy(model.generation_config)
    ends = sorted(policy.encoder().end_ids.values())  # of the tokenizer, too
    plain.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    with quietly():
        plain.save_pretrained(target, state_dict=weights)
        policy.tokenizer.save_pretrained(target)
    _keep_sentencepiece(policy.tokenizer, model.name_or_path, target)


def _keep_sentencepiece(tokenizer: Any, base: str | None, target: Path) -> None:
    """Keep the model of SentencePiece, the tokens that were added to it and whether a text begins
    with a space, which transformers 5 does not save. llama.cpp's converter reads them there.
    """
    if not base:
        return
    file = Path(base, "tokenizer.model")
    if not file.is_file():
        with suppress(ValueError):  # no possible id
            file = Path(str(try_to_load_from_cache(base, "tokenizer.model")))
    if not file.is_file():
        return
    shutil.copyfile(file, target / "tokenizer.model")
    described = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    described["added_tokens_decoder"] = {
        str(number): {"content": token.content, "special": token.special,
                      "normalized": token.normalized, "lstrip": token.lstrip,
                      "rstrip": token.rstrip, "single_word": token.single_word}
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
    }  # fmt: skip
    described["add_prefix_space"] = tokenizer.tokenize("a")[0].startswith("▁")
    write_json(target / "tokenizer_config.json", described)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight and saved buffer of the merged model by its name there, one at a time.

    Floating-point numbers are at least float32.
    """
    yield from _of(model, "")


def _of(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    saved: Any = getattr(module, "modules_to_save", None)
    if saved is not None:  # a layer that was trained whole, beside the one of the base
        yield from _of(saved[_active(module)], prefix)
        return
    if hasattr(module, "base_layer"):
        base: Any = module.base_layer
        for name, tensor in _of(base, prefix):
            yield name, tensor + _change(module) if name == f"{prefix}weight" else tensor
        return
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in own:
        if name not in module._non_persistent_buffers_set:
            yield f"{prefix}{name}", _exact(tensor)
    for name, child in module.named_children():
        yield from _of(child, f"{prefix}{name}.")


def _exact(tensor: Tensor) -> Tensor:
    """A weight in float32, or as it is where it is no number of fewer bits."""
    if hasattr(tensor, "quant_state"):
        return unpack(tensor, torch.float32)
    return at_least_float32(tensor.detach())


def _change(layer: Any) -> Tensor:
    """What the active adapter adds to the weight of a layer."""
    active = _active(layer)
    low_rank = hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")
    plain = low_rank and active not in layer.lora_variant and not layer.lora_bias.get(active)
    if not plain:
        what = f"an adapter of this kind ({type(layer).__name__}) is not merged here"
        raise ConfigError(what, where="the adapter", hint=_PLAIN)
    change: Tensor = layer.get_delta_weight(active).float()
    return change


def _active(layer: Any) -> str:
    adapters = list(layer.active_adapters)
    if len(adapters) != 1:
        what = f"{len(adapters)} adapters are active, and one is merged"
        raise ConfigError(what, where="the adapter", hint=_PLAIN)
    return str(adapters[0])
