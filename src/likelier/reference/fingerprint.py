"""Whose log-probs they are: one hash of everything of a model that they depend on."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from likelier.model.policy import Policy

# Where a model came from, how it is trained and what it prints: no log-prob depends on these.
_IRRELEVANT = re.compile(
    r"path|version|dtype|drop|jitter|cache|label|output_|return_|architectures|problem_type"
    r"|initializer|_token_id"
)


def reference_identity(policy: Policy, base_only: bool, model: str | None = None) -> str:
    """The identity of the values that this model gives with this backend and dtype.

    ``model`` is its `model_identity`, where that is known: one in parts cannot be asked any more.
    """
    return hash_of(
        model=model or model_identity(policy.causal_lm, base_only),
        dtype=str(policy.dtype),
        backend=policy.backend,
        head="own" if policy.scorer.rule.use_model_head else "chunked",
        device=policy.device.type,
        format=2,
    )


def model_identity(model: PreTrainedModel, base_only: bool = False) -> str:
    """Weights, configuration and the scales of adapters; the same for a file and for an object.

    ``base_only`` leaves adapters out and gives what the bare base gives.
    """
    scales = {
        name: module.scaling
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    return hash_of(
        weights=weights_identity(model, base_only),
        config=_relevant(model.config.to_dict()),
        scales={} if base_only else scales,
    )


def weights_identity(model: nn.Module, base_only: bool = False) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and saved buffers.

    ``base_only`` leaves LoRA's own tensors out and gives what the bare base gives.
    """
    digest = hashlib.sha256()
    named = {
        name.replace(".base_layer", "") if base_only else name: tensor
        for name, tensor in model.state_dict().items()
        if not (base_only and ".lora_" in name)
    }
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def hash_of(**facts: Any) -> str:
    """SHA-256 of facts that JSON can hold, whatever their order."""
    content = json.dumps(facts, sort_keys=True, default=_plain)
    return hashlib.sha256(content.encode()).hexdigest()


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration, and of those inside it, log-probs depend on."""
    return {
        name: _relevant(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not _IRRELEVANT.search(str(name))
    }


def _plain(value: Any) -> Any:
    """Text for what JSON cannot hold; a set sorted, because its order changes with each process."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
