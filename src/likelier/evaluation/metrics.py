"""Metrics of a set of pairs, by the names the field logs them under."""

import torch
from torch import Tensor

from likelier.training.step import PairValues


def rewards(values: PairValues, beta: float) -> tuple[Tensor, Tensor]:
    """Implicit rewards of chosen and rejected, ``beta * log-ratio`` in nats, shape (P,) each."""
    chosen = beta * (values.policy_chosen - values.reference_chosen)
    rejected = beta * (values.policy_rejected - values.reference_rejected)
    return chosen, rejected


TIE = 1e-4  # nats of log-ratio margin: below, float32 rounding decides which side is ahead


def hits(values: PairValues, beta: float) -> Tensor:
    """1 where the chosen answer has the larger reward, 0 where the rejected, a tie one half."""
    chosen, rejected = rewards(values, beta)
    margin = chosen - rejected
    return torch.where(margin.abs() < beta * TIE, 0.5, (margin > 0).double())


def metrics(values: PairValues, beta: float) -> dict[str, float]:
    """Means over the pairs: loss and log-probs in nats, rewards in beta x nats, accuracy 0 to 1."""
    chosen, rejected = rewards(values, beta)
    columns = {
        "loss": values.loss,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": hits(values, beta),
        "logps/chosen": values.policy_chosen,
        "logps/rejected": values.policy_rejected,
    }
    return {name: float(column.mean()) for name, column in columns.items()}
