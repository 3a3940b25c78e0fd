"""The losses as plain functions: log-probs in, a loss for each pair out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.losses.declare import Loss, find_loss
from likelier.losses.stepwise import kto_values
from likelier.losses.values import StepValues, log_sigmoid

Numbers = Tensor | float


def preference_loss(
    name: str,
    policy_chosen: Numbers,
    policy_rejected: Numbers,
    reference_chosen: Numbers | None = None,
    reference_rejected: Numbers | None = None,
    *,
    chosen_tokens: Numbers | None = None,
    rejected_tokens: Numbers | None = None,
    margin: Numbers | None = None,
    weight: Numbers | None = None,
    **parameters: float | str,
) -> Tensor:
    """Any loss of pairs by its name, from summed log-probs in nats; the graph is kept.

    `likelier losses` lists the names, the hyper-parameters and what each loss needs. An input
    that a loss does not read is accepted; a hyper-parameter that it does not read is not.
    Computed in float64, whatever comes in.

    Args:
        name: such as ``sigmoid``, ``ipo_mean`` or ``simpo``.
        policy_chosen, policy_rejected: shape (P,), or 0-d for one pair.
        reference_chosen, reference_rejected: the same shape; not needed by some losses.
        chosen_tokens, rejected_tokens: how many tokens each answer has, stop token included.
        margin: how much better the chosen answer is, for ``odpo``.
        weight: multiplies the loss of each pair.
        parameters: hyper-parameters; those left out take their defaults.

    Returns:
        The loss of each pair, the shape of the inputs, at least float32. Losses that look at the
        whole step (``aot``) take the pairs given for the step; ``bco`` takes 0 for its shift.

    Raises:
        ValueError: an unknown name or hyper-parameter, a value out of range, a missing input, or
            inputs that differ in shape.
    """
    loss = _checked_loss(name, parameters)
    if not loss.paired:
        raise ValueError(f"{loss.name} is for single answers with a label, not for pairs")
    fixed = loss.defaults | parameters
    if fixed.get("delta") == "running":
        fixed["delta"] = 0.0
    inputs = {
        "reference": {"reference_chosen": reference_chosen,
                      "reference_rejected": reference_rejected},
        "lengths": {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens},
        "margin": {"margin": margin},
    }  # fmt: skip
    for need, named in inputs.items():
        if loss.reads(need) and any(value is None for value in named.values()):
            raise ValueError(f"{loss.name} needs {' and '.join(named)}")
    given = [policy_chosen, policy_rejected, reference_chosen, reference_rejected,
             chosen_tokens, rejected_tokens, margin, weight]  # fmt: skip
    (pc, pr, rc, rr, nc, nr, offset, weight_P), out = _flat(given)
    for tokens in (nc, nr):
        if tokens is not None and not bool((tokens > 0).all()):
            raise ValueError("an answer has at least one token")
    both = torch.arange(2 * pc.numel(), device=pc.device)
    values = StepValues(
        policy_R=torch.cat([pc, pr]),
        reference_R=torch.cat([_or(rc, pc, 0.0), _or(rr, pc, 0.0)]),
        length_R=torch.cat([_or(nc, pc, 1.0), _or(nr, pc, 1.0)]),
        chosen_P=both[: pc.numel()],
        rejected_P=both[pc.numel() :],
        margin_P=offset,
    )
    loss_P = loss.function(values, **fixed)
    return out(loss_P if weight_P is None else loss_P * weight_P)


def _checked_loss(name: str, parameters: Mapping[str, Any]) -> Loss:
    try:
        loss = find_loss(name, "name")
        loss.check(parameters)
    except ConfigError as error:
        where = str(error.where).removeprefix("loss.")
        raise ValueError(f"{where}: {error.what}. {error.hint}") from None
    return loss


def kto_loss(
    policy: Numbers,
    reference: Numbers,
    label: Numbers,
    z0: Numbers,
    beta: float = 0.1,
    *,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """KTO loss of single answers, from summed log-probs in nats; the graph is kept.

    Args:
        policy, reference: shape (R,), or 0-d for one answer.
        label: the binary labels, 1 or True for a desirable answer; the same shape.
        z0: the mean log-ratio of mismatched answers, at least 0; a scalar. No gradient enters it.
        beta: strength of the pull towards the reference, > 0.
        desirable, undesirable: weights of the two labels, > 0.

    Returns:
        The loss of each answer, the shape of the inputs: 0.5 where policy is reference and z0 0.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a value is out of range.

    Source: Ethayarajh et al. 2024 (arXiv 2402.01306).
    """
    given = {"beta": beta, "desirable": desirable, "undesirable": undesirable}
    _checked_loss("kto", given)
    (policy_R, reference_R, label_R), out = _flat([policy, reference, label])
    if not bool(((label_R == 0) | (label_R == 1)).all()):
        raise ValueError("a label is neither 0 nor 1")
    baseline = torch.as_tensor(z0, dtype=policy_R.dtype, device=policy_R.device).detach()
    if baseline.numel() != 1 or not bool(baseline.isfinite()):
        raise ValueError("z0 is one finite number")
    ratio_R = policy_R - reference_R
    return out(kto_values(ratio_R, label_R.bool(), baseline.reshape(()), **given))


def _flat(given: Sequence[Numbers | None]) -> tuple[list[Any], Callable[[Tensor], Tensor]]:
    """The inputs as flat float64 tensors, and what gives a loss their shape and dtype."""
    device = next((c.device for c in given if isinstance(c, Tensor)), torch.device("cpu"))
    tensors = [None if c is None else torch.as_tensor(c, device=device) for c in given]
    shape = _shape([t for t in tensors if t is not None])
    dtypes = [c.dtype for c in given if isinstance(c, Tensor) and c.is_floating_point()]
    result = torch.float32
    for dtype in dtypes or [torch.float64]:
        result = torch.promote_types(result, dtype)
    wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no more
    flat = [None if t is None else t.to(wide).reshape(-1) for t in tensors]
    return flat, lambda loss: loss.to(result).reshape(shape)


def _shape(tensors: Sequence[Tensor]) -> torch.Size:
    """The shape that all have; raises ValueError where they differ."""
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"the inputs differ in shape: {shapes}")
    return tensors[0].shape


def _or(given: Tensor | None, like: Tensor, value: float) -> Tensor:
    return torch.full_like(like, value) if given is None else given


def dpo_loss(
    policy_chosen: Numbers,
    policy_rejected: Numbers,
    reference_chosen: Numbers,
    reference_rejected: Numbers,
    *,
    beta: float = 0.1,
) -> Tensor:
    """DPO loss of each pair from four summed log-probs in nats; the graph is kept.

    Args:
        policy_chosen, policy_rejected: shape (P,), or 0-d for one pair.
        reference_chosen, reference_rejected: the same shape.
        beta: strength of the pull towards the reference, > 0.

    Returns:
        ``-log sigmoid(beta * ((pc - rc) - (pr - rr)))``, the shape of the inputs, in nats.
        ln 2 = 0.693 where the policy is the reference.

    Raises:
        ValueError: shapes differ, or beta is not positive.

    Source: Rafailov et al. 2023, equation 7 (arXiv 2305.18290).
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    tensors = [
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for value in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    ]
    _shape(tensors)
    # bfloat16 log-probs of a sentence are whole nats apart: never subtract in less than float32.
    halves = (torch.bfloat16, torch.float16)
    pc, pr, rc, rr = (t.float() if t.dtype in halves else t for t in tensors)
    return -log_sigmoid(beta * ((pc - rc) - (pr - rr)))
