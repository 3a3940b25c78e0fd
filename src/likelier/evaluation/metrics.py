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
    """1 where the chosen answer has the larger reward, 0 where the rejected, a tie one half.

    Of single answers with a thumb: 1 where the reward has the sign of the thumb.
    """
    chosen, rejected = rewards(values, beta)
    margin = chosen - rejected
    if values.label is not None:
        margin = torch.where(values.label > 0, chosen, -chosen)
    return _hits(margin, beta * TIE)


def _hits(margin: Tensor, tie: float) -> Tensor:
    return torch.where(margin.abs() < tie, 0.5, (margin > 0).double())


def metrics(values: PairValues, beta: float) -> dict[str, float]:
    """Means over the pairs: loss and log-probs in nats, rewards in beta x nats, accuracy 0 to 1.

    ``scores/*`` stand beside ``rewards/*`` where the loss optimises another figure.
    """
    if values.label is not None:
        return _of_thumbs(values, beta)
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
    if values.score_chosen is not None and values.score_rejected is not None:
        margin = values.score_chosen - values.score_rejected
        columns |= {
            "scores/chosen": values.score_chosen,
            "scores/rejected": values.score_rejected,
            "scores/margins": margin,
            "scores/accuracies": _hits(margin, beta * TIE / float(values.chosen_tokens.max())),
        }
    return {name: float(column.mean()) for name, column in columns.items()}


def _of_thumbs(values: PairValues, beta: float) -> dict[str, float]:
    """Of single answers: ``chosen`` are those with thumbs up, ``rejected`` those with down.

    Where a step has one kind only, the figures of the other are left out.
    """
    assert values.label is not None
    reward, _ = rewards(values, beta)
    row = {"loss": float(values.loss.mean())}
    for name, which in (("chosen", values.label > 0), ("rejected", values.label <= 0)):
        if which.any():
            row[f"rewards/{name}"] = float(reward[which].mean())
            row[f"logps/{name}"] = float(values.policy_chosen[which].mean())
    if "rewards/chosen" in row and "rewards/rejected" in row:
        row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
    row["rewards/accuracies"] = float(hits(values, beta).mean())
    if not torch.equal(values.policy_rejected, values.policy_chosen):
        mismatched = values.policy_rejected - values.reference_rejected
        row["kl"] = max(0.0, float(mismatched.mean()))  # KTO's z0
    return row
