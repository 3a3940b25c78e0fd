"""The plain-function door to the DPO loss."""

import torch
from torch import Tensor

from likelier.loss.sigmoid import logistic


def dpo_loss(
    policy_chosen: Tensor | float,
    policy_rejected: Tensor | float,
    reference_chosen: Tensor | float,
    reference_rejected: Tensor | float,
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
    given = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    tensors = [
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for value in given
    ]
    if len({tuple(tensor.shape) for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"the four log-probs differ in shape: {shapes}")
    # bfloat16 log-probs of a sentence are whole nats apart: never subtract in less than float32.
    exact = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
    pc, pr, rc, rr = exact
    return logistic((pc - rc) - (pr - rr), beta)
