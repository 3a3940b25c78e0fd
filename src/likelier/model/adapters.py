"""What of the initial policy is trained: everything, a fresh LoRA adapter, or its own adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from likelier.base.environment import without_bitsandbytes
from likelier.base.errors import ConfigError
from likelier.base.model_files import first_line
from likelier.config import Config
from likelier.model.frozen import is_half
from likelier.model.load import quietly
from likelier.model.policy import Policy
from likelier.model.quantise import LIBRARIES, method_of
from likelier.model.recompute import checkpoint_layers, made_again
from likelier.model.stream import move_adapters


def adapt(config: Config, initial: Policy) -> Policy:
    """The policy with what is to be trained: everything, a fresh adapter, or its own adapter.

    It is ``initial`` itself unless a fresh adapter was attached, which changes the layers of
    ``initial`` in place.

    Raises ConfigError for a key that would have no effect on this initial policy, or that it
    cannot follow.
    """
    policy = initial
    if config.adapter.kind == "none":
        if initial.has_adapter:
            raise ConfigError(
                "model.path holds an adapter, so its weights cannot all be trained",
                where="adapter.kind",
                hint="merge the adapter into its base first, or use adapter.kind: lora",
            )
        if (method := method_of(initial.causal_lm.config)) in LIBRARIES:
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
    if config.train.checkpointing == "layers":
        checkpoint_layers(policy.causal_lm)
    return policy


def attach_lora(policy: Policy, r: int, alpha: int, targets: str | list[str], seed: int) -> Policy:
    """The policy with a fresh LoRA adapter, the only trainable part.

    ``targets`` is ``all-linear`` (every linear layer but the head), or names of modules. The
    adapter changes nothing yet: its B matrices are 0. Its A matrices depend on ``seed`` alone.

    Raises ConfigError where no module has such a name.
    """
    with without_bitsandbytes():
        import peft  # slow to import, and only adapters need it

    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), quietly(), without_bitsandbytes():
        torch.manual_seed(seed)
        try:
            model = peft.get_peft_model(policy.causal_lm, config)
        except ValueError as error:
            what = f"no module of this model is called {targets}"
            hint = "use all-linear, or names such as [q_proj, v_proj]"
            if "not found in the base model" not in str(error):
                what, hint = first_line(error), "name the modules, such as [q_proj, v_proj]"
            raise ConfigError(what, where="adapter.targets", hint=hint) from error
    move_adapters(model, policy.device)
    return replace(policy, model=model.train())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapters of a peft model off; a model without adapters is left as it is.

    peft freezes adapters when it switches them off, and makes frozen ones trainable when it
    switches them on again, so what was trainable before is remembered here and stays so.
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():  # type: ignore[operator]
            _make_trainable(model, trainable)  # FSDP decides by what its first forward sees
            yield
    finally:
        _make_trainable(model, trainable)


def _make_trainable(model: nn.Module, trainable: Mapping[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])


@contextmanager
def for_training(policy: Policy, in_parts: bool = False) -> Iterator[dict[str, Tensor]]:
    """`in_compute_dtype` and `made_again`: how a policy is trained, so that little is saved.

    A policy that is to be ``in_parts`` casts its matrices where it puts them together.
    """
    cast = nullcontext(dict[str, Tensor]()) if in_parts else in_compute_dtype(policy)
    with cast as exact, made_again(policy.causal_lm, policy.dtype):
        yield exact


@contextmanager
def in_compute_dtype(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """Have the LoRA matrices of a model in half precision compute in it while they are trained.

    peft keeps them in float32, and then each of them has a float32 copy of its input saved for the
    backward. Gives their float32 values by name, which are to be the optimizer's masters: on
    leaving, the matrices are these tensors.

    Matrices of other kinds of layers, of layers in float32, of variants such as DoRA, and those of
    which only one half is trained stay as they are.
    """
    exact: dict[str, Tensor] = {}
    wanted = {id(p) for p in _plain_matrices(policy.model)} if is_half(policy.dtype) else set()
    named = {name: p for name, p in policy.model.named_parameters() if id(p) in wanted}
    try:
        for name, parameter in named.items():
            exact[name] = parameter.detach()
            parameter.data = parameter.data.to(policy.dtype)
        yield exact
    finally:
        for name, master in exact.items():
            named[name].data = master


def _plain_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The float32 matrices of LoRA on linear layers, where both halves are trained."""
    for module in model.modules():
        halves = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        base = getattr(module, "base_layer", None)
        if not isinstance(base, nn.Linear | Conv1D) or None in halves:
            continue
        if base.weight.dtype == torch.float32:  # kept so by an architecture
            continue
        for name in halves[0]:  # type: ignore[union-attr]
            pair = [p for half in halves for p in half[name].parameters()]  # type: ignore[index]
            varies = name in module.lora_variant  # type: ignore[operator]
            if not varies and all(p.requires_grad and p.dtype == torch.float32 for p in pair):
                yield from pair
