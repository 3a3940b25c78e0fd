"""Weights in few bits: NF4 made while loading (QLoRA), or a base that was quantised before.

A four-bit layer of bitsandbytes holds a packed weight and what unpacks it; its twin is a plain
layer of the unpacked weight. On a CPU the product is ours, because that of bitsandbytes (0.50)

- takes wrong scales where a layer's inputs are a multiple of 16 and not of a block, 64;
- repacks the weight in place in an evaluation, where the processor has AVX-512 bfloat16, in another
  order and with rounded scales, so that no later state is the same;
- rounds the weight to the dtype that it once had in the backward, and not in the forward.

QLoRA: Dettmers et al. 2023, arXiv 2305.14314.

Axis letters: N rows, V outputs of a layer, D its inputs, B bytes.
"""

from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from likelier.base.environment import import_bitsandbytes, needs_bitsandbytes
from likelier.base.errors import ConfigError, DataError

_BLOCKS = tuple(2**power for power in range(5, 13))  # that bitsandbytes makes
# What transformers needs to read weights that peft trains adapters on.
LIBRARIES = {"bitsandbytes": (), "gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}


def in_four_bits(compute: torch.dtype, method: str | None) -> Any:
    """What has transformers quantise every linear layer but the head, tensor by tensor as it reads.

    Raises ConfigError where bitsandbytes is missing, or the weights are quantised by a ``method``.
    """
    from transformers import BitsAndBytesConfig

    if method is not None:
        what = f"has no effect: the weights are quantised already ({method})"
        raise ConfigError(what, where="model.quantise", hint="remove model.quantise")
    needs_bitsandbytes("model.quantise")
    import_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def method_of(config: Any) -> str | None:
    """How the weights that a model's configuration describes are quantised; None: they are not."""
    described = getattr(config, "quantization_config", None)
    if described is None:
        return None
    get = getattr(described, "get", None)
    method = get("quant_method") if get else getattr(described, "quant_method", "")
    return str(getattr(method, "value", method))


def must_be_readable(config: Any, where: str) -> None:
    """Raise ConfigError where a library that reads quantised weights is missing."""
    method = method_of(config) or ""
    if method == "bitsandbytes":
        needs_bitsandbytes(where)
        import_bitsandbytes()
    missing = [name for name in LIBRARIES.get(method, ()) if find_spec(name) is None]
    if missing:
        what = f"its weights are quantised ({method}), and to read them needs"
        hint = f"run: pip install {' '.join(missing)}"
        raise ConfigError(f"{what} {' and '.join(missing)}", where=where, hint=hint)


def describe_packed(model: nn.Module) -> str:
    """How much of a model is in four bits, in words. Raises ConfigError where nothing is."""
    total = sum(numbers_of(parameter) for parameter in model.parameters())
    packed = sum(numbers_of(p) for p in model.parameters() if hasattr(p, "quant_state"))
    if not packed:
        what = "has no effect: this model has no linear layers but its head"
        raise ConfigError(what, where="model.quantise", hint="remove model.quantise")
    return f"{packed / total:.0%} of the weights are held in four bits (NF4)"


def settle(model: nn.Module, compute: torch.dtype, where: str) -> None:
    """Freeze a model that holds quantised weights; its four-bit layers compute in one dtype.

    Raises DataError for a weight that is not packed.
    """
    if method_of(getattr(model, "config", None)) not in LIBRARIES:
        return
    model.requires_grad_(False)
    bitsandbytes = import_bitsandbytes()
    for name, layer in model.named_modules() if bitsandbytes else ():
        if not isinstance(layer, bitsandbytes.nn.Linear4bit):
            continue
        state = getattr(layer.weight, "quant_state", None)
        if state is None:
            what = f"{name}.weight is not packed in four bits, as config.json says"
            hint = "remove quantization_config from config.json, or get the folder again"
            raise DataError(what, where=where, hint=hint)
        if wrong := _misfit(layer):
            what = f"{name}.weight is packed in parts that do not fit: {wrong}"
            raise DataError(what, where=where, hint="the weights are damaged; get them again")
        state.dtype = layer.compute_dtype = compute
        layer.compute_type_is_set = True
        layer.__class__ = _packed_linear()  # hooks and names stay


def _misfit(layer: Any) -> str | None:
    """What is wrong with the parts of a packed weight, which come from a file; None: nothing.

    bitsandbytes believes them, and reads beside what is there.
    """
    state = layer.weight.quant_state
    shape, outer = (layer.out_features, layer.in_features), state.state2 if state.nested else None
    numbers = prod(shape)
    if tuple(state.shape) != shape:
        return f"another shape than {shape}"
    if state.quant_type not in ("nf4", "fp4"):
        return "numbers of no known kind"
    if any(one.blocksize not in _BLOCKS for one in (state, outer) if one is not None):
        return "blocks of no known size"
    blocks = -(-numbers // state.blocksize)
    wanted = {
        "bytes": (layer.weight.data.view(torch.uint8), torch.uint8, -(-numbers // 2)),
        "scales": (state.absmax, torch.float32 if outer is None else torch.uint8, blocks),
        "levels": (state.code, torch.float32, 16),
    }
    if outer is not None:
        wanted |= {
            "scales of scales": (outer.absmax, torch.float32, -(-blocks // outer.blocksize)),
            "levels of scales": (outer.code, torch.float32, 256),
            "the offset of scales": (torch.as_tensor(state.offset), torch.float32, 1),
        }
    for part, (tensor, dtype, count) in wanted.items():
        if tensor.dtype != dtype or tensor.numel() != count:
            return f"{tensor.numel()} {part} of {tensor.dtype} where {count} of {dtype} belong"
        if dtype == torch.float32 and not bool(tensor.isfinite().all()):
            return f"{part} that are not finite"
    return None


@cache
def _packed_linear() -> Any:
    base: Any = import_bitsandbytes().nn.Linear4bit

    class PackedLinear(base):
        """A four-bit layer that no product changes; to peft it is one of bitsandbytes."""

        def forward(self, input: Tensor) -> Tensor:
            """The product in the dtype of the input; shape (…, D) to (…, V)."""
            if input.device.type != "cpu" and input.dtype != torch.float64:
                out: Tensor = super().forward(input)
                return out
            product: Any = _Product
            out = product.apply(input.reshape(-1, self.in_features), self.weight)
            if self.bias is not None:
                out = out + self.bias
            return out.view(*input.shape[:-1], self.out_features)

    return PackedLinear


class _Product(torch.autograd.Function):
    """``input @ weight.T``; nothing is kept for the backward, which unpacks the weight again."""

    @staticmethod
    def forward(ctx: Any, input_ND: Tensor, packed: Tensor) -> Tensor:
        ctx.packed = packed
        return input_ND @ unpack(packed, input_ND.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor, None]:
        return grad_NV @ unpack(ctx.packed, grad_NV.dtype), None


def unpack(packed: Any, dtype: torch.dtype) -> Tensor:
    """The weight of a four-bit layer, shape (V, D).

    Its blocks are unpacked as rows of their own: see the top of this file.
    """
    state, functional = packed.quant_state, import_bitsandbytes().functional
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
    bytes_B = packed.data.view(torch.uint8).flatten()
    lacking = len(scales) * state.blocksize // 2 - len(bytes_B)  # of the last block
    if lacking:
        bytes_B = F.pad(bytes_B, (0, lacking))
    ready = torch.float32 if dtype == torch.float64 else dtype
    rows = functional.dequantize_4bit(
        bytes_B[:, None],
        functional.QuantState(
            scales,
            shape=torch.Size((len(scales), state.blocksize)),
            dtype=ready,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
        ),
    )
    weight: Tensor = rows.flatten()[: state.shape.numel()].view(state.shape)
    return weight.to(dtype)


def bytes_of(parameter: Tensor) -> int:
    """What a weight takes, with the scales of one that is packed."""
    state = getattr(parameter, "quant_state", None)
    return parameter.nbytes + (0 if state is None else state.absmax.nbytes)


def numbers_of(parameter: Tensor) -> int:
    """How many numbers a weight is: a packed one holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
