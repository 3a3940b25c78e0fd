"""Hidden states to log-probs of chosen tokens, the vocabulary visited in chunks of rows.

The logits are never kept. The forward saves one log-sum-exp a row; the backward makes each chunk's
logits again. Peak memory is chunk x V, whatever the number of completions. Under a frozen head the
backward needs no second visit: the mean weight row under the softmax, which is all it asks of the
logits, is made in the first. `token_logps_at_once` is the obvious twin.

Axis letters: N predicting positions, E (position, token) entries, C rows of a chunk, D hidden,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from likelier.model.frozen import into_inputs, into_outputs, is_half

DEFAULT_CHUNK_VALUES = 1 << 23  # logits of one chunk: 32 MiB in float32
# Every chunk adds to the whole of the weight's gradient: with fewer rows that is most of the work.
LEAST_ROWS = 256


@dataclass(frozen=True)
class Head:
    """``softcap(scale * (hidden @ weight.T + bias))``; ``weight`` of shape (V, D)."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def at_least_float32(values: Tensor) -> Tensor:
    """float32 of half-precision values; float32 and float64 as they are."""
    return values.float() if is_half(values.dtype) else values


def head_logits(hidden_ND: Tensor, head: Head) -> Tensor:
    """Logits of shape (N, V): the product in the hidden states' dtype, the rest in float32."""
    logits_NV = at_least_float32(hidden_ND @ head.weight.to(hidden_ND.dtype).T)
    if head.bias is not None:
        logits_NV = logits_NV + head.bias
    if head.scale != 1.0:
        logits_NV = logits_NV * head.scale
    if head.softcap is not None:
        logits_NV = torch.tanh(logits_NV / head.softcap) * head.softcap
    return logits_NV


def head_logits_into(logits_NV: Tensor, hidden_ND: Tensor, head: Head) -> None:
    """`head_logits` into given memory, without gradient: new memory costs more than the sums."""
    if hidden_ND.dtype == logits_NV.dtype:
        into_outputs(logits_NV, hidden_ND, head.weight)
    else:
        logits_NV.copy_(hidden_ND @ head.weight.T)
    if head.bias is not None:
        logits_NV.add_(head.bias)
    if head.scale != 1.0:
        logits_NV.mul_(head.scale)
    if head.softcap is not None:
        logits_NV.div_(head.softcap).tanh_().mul_(head.softcap)


@torch.no_grad()
def logits_of(hidden_ND: Tensor, head: Head) -> Tensor:
    """`head_logits` without gradient; a stored weight is cast block by block."""
    logits_NV = _buffer(hidden_ND, head, len(hidden_ND))
    head_logits_into(logits_NV, hidden_ND, head)
    return logits_NV


def token_logps(
    hidden_ND: Tensor,
    head: Head,
    row_E: Tensor,
    token_E: Tensor,
    chunk: int | None = None,
    starts: Sequence[int] | None = None,
) -> Tensor:
    """``log softmax(head(hidden[row]))[token]`` for every entry, in nats, shape (E,).

    ``row_E`` indexes rows of ``hidden_ND`` in ascending order, several entries a row at a fork;
    no (row, token) stands twice. ``starts`` are the first entry of every row and their number;
    None: they are read from ``row_E``, for which a GPU must be waited for. ``chunk`` is the number
    of rows whose logits exist at once. Gradients go to the hidden states, the weight and the bias.
    """
    chunk, rows = chunk or default_chunk(head), len(hidden_ND)
    starts = starts or (0, *row_E.bincount(minlength=rows).cumsum(0).tolist())
    cuts = [starts[min(at, rows)] for at in range(0, rows + chunk, chunk)]
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    makes_gradient = torch.is_grad_enabled() and hidden_ND.requires_grad
    is_frozen = makes_gradient and not trained and not head.softcap
    shape = head.scale, head.softcap
    function: Any = _HeadLogps
    logp_E: Tensor = function.apply(
        hidden_ND, head.weight, head.bias, row_E, token_E, shape, chunk, cuts, is_frozen
    )
    return logp_E


def token_logps_at_once(hidden_ND: Tensor, head: Head, row_E: Tensor, token_E: Tensor) -> Tensor:
    """`token_logps` from all logits at once: the obvious twin, for tests and small inputs."""
    return torch.log_softmax(head_logits(hidden_ND, head), dim=-1)[row_E, token_E]


OfLogits = Callable[[Tensor], Tensor]  # a figure of every prediction: (C, V) to (C,)


@torch.no_grad()
def of_every_row(
    of_logits: OfLogits, hidden_ND: Tensor, head: Head, chunk: int | None = None
) -> Tensor:
    """A figure of the prediction at every position, shape (N,); its logits exist in chunks."""
    chunks = hidden_ND.split(chunk or default_chunk(head))
    return torch.cat([of_logits(logits_of(hidden_CD, head)) for hidden_CD in chunks])


def collisions_of(logits_CV: Tensor) -> Tensor:
    """How concentrated predictions are: the log-prob that two draws give the same token,
    ``log sum(p^2)`` over the vocabulary, in nats.
    """
    return torch.logsumexp(2 * torch.log_softmax(logits_CV, dim=-1), dim=-1)


def entropies_of(logits_CV: Tensor) -> Tensor:
    """The entropy of predictions, ``-sum(p log p)`` over the vocabulary, in nats."""
    logp_CV = torch.log_softmax(logits_CV, dim=-1)
    return -(logp_CV.exp() * logp_CV).sum(-1)


def default_chunk(head: Head) -> int:
    """How many rows of logits of this head exist at once, where the caller does not say."""
    return max(LEAST_ROWS, DEFAULT_CHUNK_VALUES // head.weight.shape[0])


def _chunks(rows: int, chunk: int, cuts: list[int]) -> list[tuple[slice, slice]]:
    """For every chunk: its rows, and the entries that read them."""
    return [
        (slice(start, min(start + chunk, rows)), slice(cuts[i], cuts[i + 1]))
        for i, start in enumerate(range(0, rows, chunk))
    ]


def _buffer(hidden_ND: Tensor, head: Head, chunk: int) -> Tensor:
    """Room for the logits of one chunk, used again for every chunk."""
    shape = min(chunk, len(hidden_ND)), head.weight.shape[0]
    return at_least_float32(hidden_ND.new_empty(0)).new_empty(shape)


def _take_logps(
    logits_CV: Tensor, row_E: Tensor, token_E: Tensor, logp_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the log-probs of a chunk's entries; the logits become ``exp(logit - max)``.

    Returns the log-sum-exp and the sum of those exponentials, both of shape (C,).
    """
    chosen_E = logits_CV[row_E, token_E]
    max_C = logits_CV.amax(-1)
    sum_C = logits_CV.sub_(max_C[:, None]).exp_().sum(-1)
    lse_C = sum_C.log() + max_C
    torch.sub(chosen_E, lse_C[row_E], out=logp_E)
    return lse_C, sum_C


class _HeadLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_E: Tensor,
        token_E: Tensor,
        shape: tuple[float, float | None],
        chunk: int,
        cuts: list[int],
        is_frozen: bool,
    ) -> Tensor:
        head = Head(weight_VD, bias_V, *shape)
        buffer_CV = _buffer(hidden_ND, head, chunk)
        logp_E, lse_N = buffer_CV.new_empty(len(row_E)), buffer_CV.new_empty(len(hidden_ND))
        mean_ND = torch.empty_like(hidden_ND) if is_frozen else None
        for rows, entries in _chunks(len(hidden_ND), chunk, cuts):
            logits_CV = buffer_CV[: rows.stop - rows.start]
            head_logits_into(logits_CV, hidden_ND[rows], head)
            at_E = row_E[entries] - rows.start
            lse_N[rows], sum_C = _take_logps(logits_CV, at_E, token_E[entries], logp_E[entries])
            if mean_ND is not None:
                softmax_CV = logits_CV.div_(sum_C[:, None]).to(hidden_ND.dtype)
                into_inputs(mean_ND[rows], softmax_CV, weight_VD)
        if mean_ND is not None:  # all that the backward asks of the logits and hidden states
            ctx.save_for_backward(mean_ND, weight_VD, row_E, token_E)
        else:
            ctx.save_for_backward(hidden_ND, weight_VD, row_E, token_E, bias_V, lse_N)
        ctx.shape, ctx.chunk, ctx.cuts, ctx.is_frozen = shape, chunk, cuts, is_frozen
        return logp_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_E: Tensor) -> tuple[Tensor | None, ...]:
        grads = _frozen_head_gradient(ctx, grad_E) if ctx.is_frozen else _gradients(ctx, grad_E)
        return *grads, *[None] * 6


def _frozen_head_gradient(ctx: Any, grad_E: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of the hidden states, from the mean weight row of every position."""
    mean_ND, weight_VD, row_E, token_E = ctx.saved_tensors
    grad_E = grad_E * ctx.shape[0]
    total_N = grad_E.new_zeros(len(mean_ND)).index_add_(0, row_E, grad_E)
    grad_ND = at_least_float32(mean_ND) * -total_N[:, None]
    grad_ND.index_add_(0, row_E, at_least_float32(weight_VD[token_E]) * grad_E[:, None])
    return grad_ND.to(mean_ND.dtype), None, None


def _gradients(ctx: Any, grad_E: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of hidden states, weight and bias, each chunk's logits made again."""
    hidden_ND, weight_VD, row_E, token_E, bias_V, lse_N = ctx.saved_tensors
    head = Head(weight_VD, bias_V, *ctx.shape)
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    buffer_CV = _buffer(hidden_ND, head, ctx.chunk)
    grad_hidden_ND = torch.empty_like(hidden_ND) if need_hidden else None
    # Sums over chunks are kept in float32: bfloat16 would round each addition away.
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=lse_N.dtype) if need_weight else None
    grad_bias_V = torch.zeros_like(bias_V, dtype=lse_N.dtype) if need_bias else None
    for rows, entries in _chunks(len(hidden_ND), ctx.chunk, ctx.cuts):
        logits_CV = buffer_CV[: rows.stop - rows.start]
        head_logits_into(logits_CV, hidden_ND[rows], head)
        at_E, grad_e = row_E[entries] - rows.start, grad_E[entries]
        # d logp[row, token] / d logits = onehot(token) - softmax(logits[row]), summed over
        # the entries of a row.
        total_C = grad_e.new_zeros(len(logits_CV)).index_add_(0, at_E, grad_e)
        slope_CV = 1 - (logits_CV / head.softcap) ** 2 if head.softcap is not None else None
        # In place from here on: one chunk of logits is the memory of the backward.
        grad_CV = logits_CV.sub_(lse_N[rows, None]).exp_().mul_(-total_C[:, None])
        # (row, token) entries are distinct, so nothing is added twice to one place.
        grad_CV[at_E, token_E[entries]] += grad_e
        if slope_CV is not None:
            grad_CV *= slope_CV
        if head.scale != 1.0:
            grad_CV *= head.scale
        if grad_bias_V is not None:
            grad_bias_V += grad_CV.sum(0)
        grad_CV = grad_CV.to(hidden_ND.dtype)
        if grad_hidden_ND is not None:
            into_inputs(grad_hidden_ND[rows], grad_CV, weight_VD)
        if grad_weight_VD is not None and grad_weight_VD.dtype == hidden_ND.dtype:
            grad_weight_VD.addmm_(grad_CV.T, hidden_ND[rows])
        elif grad_weight_VD is not None:
            grad_weight_VD += grad_CV.T @ hidden_ND[rows]
    return (
        grad_hidden_ND,
        None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
        None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
    )
