"""What the backward makes again instead of keeping it: norms, gated products, or whole layers.

A norm in half precision keeps float32 copies of its input, one that is trained its output as well;
a gated product ``act(gate) * up`` is kept beside the activation and both of its factors. Inputs
are enough to make them again, by elementwise operations only. The modules change their class while
a policy is trained; their values stay the same to the bit, their gradients but for the order of
sums, and the classes that they had are the slow twins.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from likelier.base.errors import ConfigError

# A module that keeps this many times its input or more makes its inside again.
_WORTH = 1.25
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class _Again(torch.autograd.Function):
    """``function(*inputs)``; only inputs are saved, and the backward runs the function once more.

    ``tensors`` are the inputs and, after them, the parameters that the function reads.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.weights, ctx.taken = function, tensors[count:], None
        ctx.save_for_backward(*tensors[:count])
        return function(*tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            pairs = zip(_taken(ctx), needed, strict=False)
            inputs = [tensor.detach().requires_grad_(needs) for tensor, needs in pairs]
            output = ctx.function(*inputs)
        wanted = [t for t, needs in zip((*inputs, *ctx.weights), needed, strict=True) if needs]
        found = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
        return None, None, *(next(found) if needs else None for needs in needed)


def _taken(node: Any, leave: bool = False) -> tuple[Tensor, ...]:
    """What a node saved. torch's checkpoints give it out once, so it is left for another taker."""
    tensors: tuple[Tensor, ...] = node.taken or node.saved_tensors
    node.taken = tensors if leave else None
    return tensors


def _again(function: Callable[..., Tensor], *inputs: Tensor, reads: nn.Module) -> Tensor:
    """The function of some inputs and of the parameters of a module, saved as the inputs alone."""
    apply: Any = _Again.apply
    output: Tensor = apply(function, len(inputs), *inputs, *reads.parameters())
    return output


@contextmanager
def _by_recipe(output: Tensor) -> Iterator[None]:
    """Inside, what is saved of the output of `_again` is how to make it.

    Everything else is saved as it would be outside, through whatever hooks there are.
    """
    node: Any = output.grad_fn
    place = _place_of(output)

    def pack(tensor: Tensor) -> Any:
        if _place_of(tensor) == place and tensor.is_contiguous():
            return node, tensor.shape
        if not tensor.is_floating_point():
            return tensor
        ours[0].__exit__()
        try:
            with torch.enable_grad():
                kept: Any = _again(_nothing, tensor.detach().requires_grad_(), reads=_NO_MODULE)
        finally:
            ours[0].__enter__()
        return kept.grad_fn, None

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        holder, shape = packed
        if shape is None:
            return holder.saved_tensors[0]
        with torch.no_grad():
            return holder.function(*_taken(holder, leave=True)).view(shape)

    ours = [saved_tensors_hooks(pack, unpack)]
    try:
        with ours[0]:
            yield
    finally:
        ours.clear()  # a circle through `pack` would hold the graph until it is collected


def _place_of(tensor: Tensor) -> tuple[int, ...]:
    """Which numbers a tensor holds; those of a tensor without memory, which counts, too."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel()


def _nothing(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0)


_NO_MODULE = nn.Module()


class _NormAgain(nn.Module):
    """A norm that saves its input; the class behind it is the twin."""

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """What the class behind it computes."""
        forward: Callable[..., Tensor] = super().forward
        alone = len(inputs) == 1 and not named
        if not (alone and torch.is_grad_enabled() and inputs[0].requires_grad):
            return forward(*inputs, **named)
        return _again(forward, *inputs, reads=self)


class _GatedAgain(nn.Module):
    """``down(act(gate(x)) * up(x))`` that saves both factors; the class behind it is the twin."""

    gate_proj: Callable[..., Tensor]
    up_proj: Callable[..., Tensor]
    down_proj: Callable[..., Tensor]
    act_fn: Any

    def forward(self, *inputs: Tensor, **named: Any) -> Tensor:
        """What the class behind it computes, shape (…, D) to (…, D)."""
        if len(inputs) != 1 or named:
            return super().forward(*inputs, **named)

        def product(gate: Tensor, up: Tensor) -> Tensor:
            return self.act_fn(gate) * up

        gate, up = self.gate_proj(*inputs), self.up_proj(*inputs)
        if not (torch.is_grad_enabled() and gate.requires_grad and up.requires_grad):
            return self.down_proj(product(gate, up))
        made = _again(product, gate, up, reads=self.act_fn)
        with _by_recipe(made):
            return self.down_proj(made)


@cache
def _on_top(kind: Any, of: Any) -> Any:
    """``kind`` put before a class, under the name of that class."""
    return type(of.__name__, (kind, of), {"__module__": of.__module__})


@contextmanager
def made_again(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Save less for the backward while a model that computes in ``dtype`` is trained.

    Norms and gated products change, where that saves memory and fits; others stay.
    """
    fits: dict[Any, bool] = {}  # one of a kind is tried: the weights are large
    device = next(model.parameters()).device  # of the embedding: a weight of a layer may lie apart
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in model.modules():
            kind: Any = None
            was: Any = type(module)
            if _is_costly_norm(module, dtype):
                kind = _NormAgain
            elif _is_gated(module):
                key: Any = was, type(module.act_fn)
                if key not in fits:
                    fits[key] = _computes_a_gated_product(module, dtype, device)
                kind = _GatedAgain if fits[key] else None
            if kind is not None:
                before.append((module, was))
                module.__class__ = _on_top(kind, was)
        yield
    finally:
        for module, was in before:
            module.__class__ = was


def _is_costly_norm(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module scales the last axis, and keeps more for the backward than its input."""
    weights = list(module.parameters(recurse=False))
    if not weights or any(True for _ in module.children()) or any(True for _ in module.buffers()):
        return False
    if any(weight.shape != weights[0].shape or weight.ndim != 1 for weight in weights):
        return False
    input = torch.ones(2, len(weights[0]), dtype=dtype, device=weights[0].device)
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    saved: dict[int, Tensor] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    try:
        with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
            output = module(input.requires_grad_())
    except (RuntimeError, TypeError, ValueError, AttributeError):  # it takes something else
        return False
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    return isinstance(output, Tensor) and kept >= _WORTH * input.nbytes


def _is_gated(module: nn.Module) -> bool:
    """Whether a module has the parts of a gated product and no others."""
    parts = dict(module.named_children())
    return parts.keys() == {*_PROJECTIONS, "act_fn"}


@torch.no_grad()
def _computes_a_gated_product(module: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a module gives what `_GatedAgain` gives, to the bit, on one input."""
    size = getattr(module.gate_proj, "in_features", None)
    if size is None:
        return False
    input = torch.linspace(-2, 2, 2 * size, device=device).view(2, size).to(dtype)
    try:
        plain = module(input)
        ours = _GatedAgain.forward(module, input)
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(plain, Tensor) and torch.equal(plain, ours)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let a model keep the input of each decoder layer only and run the layer once more.

    Raises ConfigError where the architecture does not offer that.
    """
    if not can_checkpoint(model):
        raise ConfigError(
            f"{type(model).__name__} cannot run its layers again",
            where="train.checkpointing",
            hint="write train.checkpointing: none",
        )
    # The method has another name since transformers 5.2x, which warns of the old one.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def runs_layers_again(model: PreTrainedModel) -> bool:
    """Whether a model was told to by `checkpoint_layers`."""
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")  # the second warns
    return bool(getattr(model, next(name for name in names if hasattr(type(model), name))))


def can_checkpoint(model: PreTrainedModel) -> bool:
    """Whether a model's layers can run again in the backward."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))
