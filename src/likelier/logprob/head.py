"""What a language-model head computes: hidden states to logits, with its scale and soft-cap."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """``softcap(scale * (hidden @ weight.T + bias))``; ``weight`` of shape (V, D)."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def at_least_float32(values: Tensor) -> Tensor:
    """float32 of half-precision values; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def head_logits(hidden_ND: Tensor, head: Head) -> Tensor:
    """Logits of shape (N, V): the product in the hidden states' dtype, the rest in float32."""
    logits_NV = at_least_float32(hidden_ND @ head.weight.T)
    if head.bias is not None:
        logits_NV = logits_NV + head.bias
    if head.scale != 1.0:
        logits_NV = logits_NV * head.scale
    if head.softcap is not None:
        logits_NV = torch.tanh(logits_NV / head.softcap) * head.softcap
    return logits_NV


def head_logits_into(logits_NV: Tensor, hidden_ND: Tensor, head: Head) -> None:
    """The same, written over ``logits_NV``, without gradient: new memory costs more than sums."""
    if hidden_ND.dtype == logits_NV.dtype:
        torch.mm(hidden_ND, head.weight.T, out=logits_NV)
    else:
        logits_NV.copy_(hidden_ND @ head.weight.T)
    if head.bias is not None:
        logits_NV.add_(head.bias)
    if head.scale != 1.0:
        logits_NV.mul_(head.scale)
    if head.softcap is not None:
        logits_NV.div_(head.softcap).tanh_().mul_(head.softcap)
