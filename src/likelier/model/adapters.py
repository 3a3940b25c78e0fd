"""LoRA by peft: attach, switch off, and what a start that already has an adapter means."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from likelier.base.errors import ConfigError
from likelier.model.load import Policy
from likelier.model.quiet import quietly


def attach_lora(policy: Policy, r: int, alpha: int, targets: str | list[str], seed: int) -> Policy:
    """The policy with a fresh LoRA adapter, the only trainable part.

    ``targets`` is ``all-linear`` (every linear layer but the head), or names of modules. The
    adapter changes nothing yet: its B matrices are 0. Its A matrices depend on ``seed`` alone.

    Raises ConfigError where no module has such a name.
    """
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
            raise ConfigError(
                f"no module of this model is called {targets}",
                where="adapter.targets",
                hint="use all-linear, or names such as [q_proj, v_proj]",
            ) from error
    return replace(policy, model=model.train())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The bare base of a peft model for a while; nothing for a model without adapters.

    peft turns gradients of frozen adapters on when it switches back, so what was trainable
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
