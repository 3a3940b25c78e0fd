"""Frozen weights that stay in memory as they are stored, in half precision, and compute in more.

A product casts the weight where it is used, block by block, and nothing of the cast is kept: what
the backward needs is the stored weight, which is there anyway. ``F.linear(x, weight.float())``
would keep the copy, and with it twice the memory of a float32 model's weights.

Axis letters: N rows, V outputs of a layer, D its inputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from likelier.base.environment import multiplies_bfloat16

MOST_CAST = 1 << 23  # values of a block: 32 MiB in float32

Here = Callable[[Tensor], Tensor]  # where a weight lies to where it is used


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype have 16 bits."""
    return dtype in (torch.bfloat16, torch.float16)


def in_dtype(weight_VD: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a weight in a dtype: all of them as they are, or cast block by block."""
    whole = len(weight_VD)
    step = whole if weight_VD.dtype == dtype else max(1, MOST_CAST // weight_VD.shape[1])
    for start in range(0, whole, step):
        rows = slice(start, min(start + step, whole))
        yield rows, weight_VD[rows].to(dtype)


def into_outputs(out_NV: Tensor, input_ND: Tensor, weight_VD: Tensor) -> None:
    """``input @ weight.T`` into given memory, without gradient, in the dtype of the input."""
    for rows, block in in_dtype(weight_VD, input_ND.dtype):
        torch.mm(input_ND, block.T, out=out_NV[:, rows])


def into_inputs(out_ND: Tensor, output_NV: Tensor, weight_VD: Tensor) -> None:
    """``output @ weight`` into given memory, without gradient, in the dtype of the output.

    In float32 where a processor has no bfloat16 products: this one was measured 60 times slower.
    """
    if out_ND.dtype == torch.bfloat16 and not multiplies_bfloat16(out_ND.device.type):
        wide_ND = out_ND.new_empty(out_ND.shape, dtype=torch.float32)
        into_inputs(wide_ND, output_NV.float(), weight_VD)
        out_ND.copy_(wide_ND)
        return
    for rows, block in in_dtype(weight_VD, output_NV.dtype):
        out_ND.addmm_(output_NV[:, rows], block, beta=min(rows.start, 1))  # the first one replaces


class _Product(torch.autograd.Function):
    """``linear(input, weight, bias)`` that saves the weight alone, as it is stored, where it lies.

    Shape (…, D) to (…, V). The weight has no gradient. One that is not cast gives the bits of a
    plain layer.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight_VD: Tensor, bias_V: Tensor | None, here: Here | None
    ) -> Tensor:
        ctx.here = here
        ctx.save_for_backward(weight_VD)
        used_VD = here(weight_VD) if here else weight_VD
        if used_VD.dtype == input.dtype:
            return F.linear(input, used_VD, bias_V)
        input_ND = input.reshape(-1, used_VD.shape[1])
        out_NV = input_ND.new_empty(len(input_ND), len(used_VD))
        into_outputs(out_NV, input_ND, used_VD)
        if bias_V is not None:
            out_NV = out_NV + bias_V
        return out_NV.view(*input.shape[:-1], len(used_VD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        used_VD = ctx.here(*ctx.saved_tensors) if ctx.here else ctx.saved_tensors[0]
        grad_NV = grad.reshape(-1, len(used_VD))
        bias_V = grad_NV.sum(0) if ctx.needs_input_grad[2] else None
        if used_VD.dtype == grad.dtype:  # as the backward of a plain layer does
            return grad @ used_VD, None, bias_V, None
        grad_ND = grad_NV.new_empty(len(grad_NV), used_VD.shape[1])
        into_inputs(grad_ND, grad_NV, used_VD)
        return grad_ND.view(*grad.shape[:-1], used_VD.shape[1]), None, bias_V, None


class StoredLinear(nn.Linear):
    """A linear layer whose frozen weight is stored in fewer bits than it computes in.

    A plain ``nn.Linear`` of ``compute_dtype`` is its twin, with the same names in its state. Like
    it, it refuses an input of another dtype.
    """

    compute_dtype: torch.dtype  # peft makes its adapters in a layer's attribute of this name
    here: Here | None = None  # brings the weight to where it is used; None: it lies there

    def forward(self, input: Tensor) -> Tensor:
        """The product in ``compute_dtype``; shape (…, D) to (…, V)."""
        if input.dtype != self.compute_dtype:
            raise TypeError(f"a layer that computes in {self.compute_dtype} met {input.dtype}")
        if self.weight.requires_grad and torch.is_grad_enabled():
            return F.linear(input, self.weight.to(input.dtype), self.bias)
        product: Any = _Product
        out: Tensor = product.apply(input, self.weight, self.bias, self.here)
        return out


class StoredEmbedding(nn.Embedding):
    """An embedding that is stored in fewer bits than its vectors have where they are used."""

    compute_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        """Vectors in ``compute_dtype``."""
        return super().forward(input).to(self.compute_dtype)


_STORED: dict[type, type] = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}


def _read_by_others(model: nn.Module) -> dict[int, str]:
    """Parameters that a layer reads that cannot cast them, by id; and the kind of that layer."""
    can_cast = {*_STORED, *_STORED.values()}
    found: dict[int, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            packed = hasattr(parameter, "quant_state")
            if not packed and (type(module) not in can_cast or name != "weight"):
                found.setdefault(id(parameter), type(module).__name__)
    return found


def keep_stored(model: nn.Module, stored: torch.dtype, compute: torch.dtype) -> list[str]:
    """Freeze a model: linear layers and embeddings keep ``stored`` weights, all computes wider.

    A weight that another kind of layer reads, too, becomes ``compute``, as all others do; the
    names of those kinds are returned.
    """
    widened = _read_by_others(model)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                wanted = compute if id(parameter) in widened else stored
                parameter.data = parameter.data.to(wanted)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype == stored:
                setattr(module, name, buffer.to(compute))
        weight = getattr(module, "weight", None)
        if type(module) in _STORED and id(weight) not in widened:
            module.__class__ = _STORED[type(module)]  # hooks and names stay
            module.compute_dtype = compute  # type: ignore[assignment]
    return sorted(set(widened.values()) - {kind.__name__ for kind in _STORED})


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype, casts: bool = True) -> Iterator[None]:
    """Compute in more bits for a while than a model does, without gradient.

    Linear layers and embeddings cast their weights where they use them; all else, which is small,
    is widened. Afterwards every tensor is the one that was there before. Without ``casts`` all is
    widened, for models in which a layer reads another's weight.
    """
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.data for tensor in tensors]
    others, cast = _read_by_others(model), set[int]()
    changed: list[tuple[Any, type, Any]] = []
    for name, module in model.named_modules() if casts else ():
        kind = _STORED.get(type(module), type(module))
        if kind not in _STORED.values() or ".lora_" in name:
            continue
        weight: Any = module.weight
        if is_half(weight.dtype) and id(weight) not in others:
            cast.add(id(weight))
            changed.append((module, type(module), vars(module).pop("compute_dtype", None)))
            module.__class__ = kind
            module.compute_dtype = dtype
    try:
        for tensor in tensors:
            if is_half(tensor.dtype) and id(tensor) not in cast:
                tensor.data = tensor.data.to(dtype)
        with torch.no_grad():
            yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
        for layer, kind, compute in changed:
            layer.__class__ = kind
            del layer.compute_dtype
            if compute is not None:
                layer.compute_dtype = compute


def widen(model: nn.Module) -> bool:
    """Make plain layers of those that `keep_stored` made; whether there were any, and may be.

    Weights that are brought from elsewhere cannot be plain.
    """
    found = [m for m in model.modules() if isinstance(m, StoredLinear | StoredEmbedding)]
    if any(getattr(module, "here", None) for module in found):
        return False
    for module in found:
        module.weight.data = module.weight.data.to(module.compute_dtype)
        plain = nn.Linear if isinstance(module, StoredLinear) else nn.Embedding
        module.__class__ = plain  # type: ignore[assignment]
    return bool(found)


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model computes in, where it may store its weights in fewer bits."""
    stored = (m for m in model.modules() if isinstance(m, StoredLinear | StoredEmbedding))
    plain = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return next((module.compute_dtype for module in stored), plain)


def made_in(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a model computed something in a dtype as it was made: a buffer that no file holds."""
    held = model.state_dict().keys()
    return any(b.dtype == dtype and name not in held for name, b in model.named_buffers())


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
