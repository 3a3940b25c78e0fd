"""What of the initial policy is trained: everything, a fresh LoRA adapter, or its own adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from likelier.base.environment import import_bitsandbytes
from likelier.base.errors import ConfigError
from likelier.base.model_files import first_line
from likelier.config import Config
from likelier.model.load import quietly
from likelier.model.policy import Policy
from likelier.model.quantise import method_of


def adapt(config: Config, initial: Policy) -> Policy:
    """The policy with what is to be trained: everything, a fresh adapter, or its own adapter.

    It is ``initial`` itself unless a fresh adapter was attached, which changes the layers of
    ``initial`` in place.

    Raises ConfigError for a key that would have no effect on this initial policy.
    """
    policy = initial
    if config.adapter.kind == "none":
        if initial.has_adapter:
            raise ConfigError(
                "model.path holds an adapter, so its weights cannot all be trained",
                where="adapter.kind",
                hint="merge the adapter into its base first, or use adapter.kind: lora",
            )
        if method := method_of(initial.causal_lm.config):
            raise ConfigError(
                f"the weights are quantised ({method}), so they cannot be trained",
                where="adapter.kind",
                hint="use adapter.kind: lora",
            )
        initial.model.requires_grad_(True)
    else:
        if config.model.save_dtype != "auto":
            raise ConfigError(
                "has no effect: adapters are saved in float32",
                where="model.save_dtype",
                hint="remove model.save_dtype",
            )
        if not initial.has_adapter:
            wanted = config.adapter
            targets = wanted.targets if isinstance(wanted.targets, str) else list(wanted.targets)
            policy = attach_lora(initial, wanted.r, wanted.alpha, targets, config.train.seed)
            # Without it, the saved adapter would be put on the newest weights of a Hub id.
            policy.model.peft_config["default"].revision = config.model.revision  # type: ignore
        elif given := sorted(config.adapter.model_fields_set - {"kind"}):
            raise ConfigError(
                "has no effect: model.path already holds a trained adapter, which training "
                "continues",
                where=f"adapter.{given[0]}",
                hint=f"remove adapter.{given[0]}",
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


def attach_lora(policy: Policy, r: int, alpha: int, targets: str | list[str], seed: int) -> Policy:
    """The policy with a fresh LoRA adapter, the only trainable part.

    ``targets`` is ``all-linear`` (every linear layer but the head), or names of modules. The
    adapter changes nothing yet: its B matrices are 0. Its A matrices depend on ``seed`` alone.

    Raises ConfigError where no module has such a name.
    """
    import_bitsandbytes()  # if peft does, it may ask the Hub
    import peft  # slow to import, and only adapters need it

    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(seed)
        try:
            model = peft.get_peft_model(policy.causal_lm, config)
        except ValueError as error:
            what = f"no module of this model is called {targets}"
            hint = "use all-linear, or names such as [q_proj, v_proj]"
            if "not found in the base model" not in str(error):
                what, hint = first_line(error), "name the modules, such as [q_proj, v_proj]"
            raise ConfigError(what, where="adapter.targets", hint=hint) from error
    return replace(policy, model=model.train())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapters of a peft model off; a model without adapters is left as it is.

    peft makes frozen adapters trainable when it switches them on again, so what was trainable
    before is remembered here and put back.
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def checkpoint_activations(model: Any) -> None:
    """Let a transformers model recompute activations in the backward.

    The method has another name since transformers 5.2x, which warns of the old one.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
