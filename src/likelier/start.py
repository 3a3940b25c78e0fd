"""What a run starts from: the policy, its adapter, and the reference where it is another model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.environment import multiplies_bfloat16
from likelier.base.errors import ConfigError, DataError
from likelier.base.terminal import say
from likelier.config import Config
from likelier.data.tokenizer import Encoder, build_encoder
from likelier.model.adapters import attach_lora
from likelier.model.load import Policy, checkpoint_activations, load, parse_dtype
from likelier.model.score import Ready, make_ready


def handed_over(
    model: nn.Module | None,
    tokenizer: Tokenizer | None,
    train: Iterable[Any] | None,
    eval: Iterable[Any] | None,
) -> list[str]:
    """The config keys that Python objects replace.

    Raises ConfigError for a model without a tokenizer, or the reverse.
    """
    if (model is None) != (tokenizer is None):
        raise ConfigError(
            "model and tokenizer go together",
            where="likelier.train",
            hint="hand over both, or neither and set model.path",
        )
    objects = {"model.path": model, "data.train": train, "data.eval": eval}
    return [key for key, given in objects.items() if given is not None]


def open_start(config: Config, model: nn.Module | None, tokenizer: Tokenizer | None) -> Policy:
    """The policy as it is before training.

    Raises DataError where a weight is not finite, ConfigError for a key that a model handed over
    does not follow, and what `load` raises.
    """
    if model is not None and tokenizer is not None:
        start = Policy(model.train(), tokenizer)
        _fits_config(start, config)
    else:
        start = load(config.model.path, dtype=config.model.dtype, revision=config.model.revision)
    for name, parameter in start.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{name} holds values that are not finite",
                where=f"model.path: {config.model.path}",
                hint="the weights are damaged; get them again",
            )
    is_half = start.causal_lm.dtype in (torch.bfloat16, torch.float16)
    if is_half and start.device.type == "cpu" and not multiplies_bfloat16():
        say("this processor has no bfloat16 products: model.dtype=float32 is several times faster")
    return start


def encoder_of(config: Config, start: Policy) -> Encoder:
    """The start's tokenizer made ready for the data, with the template settings of the config."""
    return build_encoder(
        start.tokenizer,
        start.causal_lm.generation_config,
        config.data.template,
        config.data.today,
    )


def _fits_config(start: Policy, config: Config) -> None:
    """A model that was handed over is taken as it is: keys that say otherwise are an error."""
    if start.has_adapter and start.causal_lm is start.model:
        raise ConfigError(
            "the model handed over has adapters inside, as an earlier run leaves them",
            where="model",
            hint="hand over a fresh one, or load the run's adapter folder",
        )
    if config.model.revision is not None:
        raise ConfigError(
            "would not be read: the model was handed over",
            where="model.revision",
            hint="take it away",
        )
    if parse_dtype(config.model.dtype) not in ("auto", start.causal_lm.dtype):
        raise ConfigError(
            f"the model handed over computes in {start.causal_lm.dtype}",
            where=f"model.dtype: {config.model.dtype}",
            hint="take the key away, or hand over model.to(…)",
        )


def adapt(config: Config, start: Policy) -> Policy:
    """The policy with what is to be trained: a fresh adapter, its own adapter, or everything.

    It is ``start`` itself but where a fresh adapter was attached, which changes the layers of
    ``start`` in place.

    Raises ConfigError for a key that this start would not read.
    """
    if config.adapter.kind == "none":
        if start.has_adapter:
            raise ConfigError(
                "the start has an adapter, so it cannot be tuned in full",
                where="adapter.kind",
                hint="merge the adapter into its base first, or use adapter.kind: lora",
            )
        start.model.requires_grad_(True)
        policy = start
    else:
        if config.model.save_dtype != "auto":
            raise ConfigError(
                "would not be read: adapters are saved in float32",
                where="model.save_dtype",
                hint="take it away",
            )
        if start.has_adapter:
            _keeps_own_adapter(config)
            policy = start
        else:
            targets = config.adapter.targets
            policy = attach_lora(
                start,
                config.adapter.r,
                config.adapter.alpha,
                targets if isinstance(targets, str) else list(targets),
                config.train.seed,
            )
    if not any(parameter.requires_grad for parameter in policy.model.parameters()):
        raise ConfigError(
            "the adapter of the model handed over is frozen, so nothing would be trained",
            where="model",
            hint="load it with is_trainable=True",
        )
    if config.train.gradient_checkpointing:
        checkpoint_activations(policy.causal_lm)
    return policy


def _keeps_own_adapter(config: Config) -> None:
    given = config.adapter.model_fields_set - {"kind"}
    if given:
        raise ConfigError(
            "would not be read: the start has a trained adapter, which goes on as it is",
            where=f"adapter.{sorted(given)[0]}",
            hint="take it away",
        )


def open_reference(config: Config, start: Policy) -> Ready | None:
    """Another model as the reference, ready to score; None where the start is the reference.

    Raises DataError where its tokenizer is not the start's: ids would mean other text.
    """
    if config.reference.path is None:
        return None
    policy = load(config.reference.path, dtype=config.model.dtype)
    if policy.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise DataError(
            "the reference has another vocabulary than the policy",
            where="reference.path",
            hint="give a model with the same tokenizer",
        )
    policy.model.requires_grad_(False)
    return make_ready(policy)
