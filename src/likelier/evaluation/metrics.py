"""Metrics of a set of pairs, by the names the field logs them under.

`likelier.evaluation.registry` says what each means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from likelier.data.records import TokenPair
from likelier.evaluation.held_out import (
    TIE,
    PairLogps,
    columns_of,
    longer_wins,
    percentiles,
)
from likelier.evaluation.intervals import wilson
from likelier.losses.values import StepValues, sigma

SATURATED = 0.01  # a weight below it: the pair no longer pulls
_LOGGED = {  # by the names of `columns_of`
    "ranking_accuracy": "ranking/accuracies",
    "ranking_accuracy_per_token": "ranking/accuracies_per_token",
    "reward_accuracy_chosen_longer": "rewards/accuracies_chosen_longer",
    "reward_accuracy_rejected_longer": "rewards/accuracies_rejected_longer",
}


def rewards(values: StepValues, beta: float) -> tuple[Tensor, Tensor]:
    """Implicit rewards of chosen and rejected, ``beta * log-ratio`` in nats, shape (P,) each."""
    return beta * values.chosen.ratio_P, beta * values.rejected.ratio_P


def hits(values: StepValues, beta: float) -> Tensor:
    """1 where the chosen answer has the larger reward, 0 where the rejected, a tie one half.

    Of unpaired examples: 1 where the reward has the sign of the binary label.
    """
    chosen, rejected = rewards(values, beta)
    margin = chosen - rejected
    if values.label_P is not None:
        margin = torch.where(values.label_P > 0, chosen, -chosen)
    return _hits(margin, beta * TIE)


def _hits(margin: Tensor, tie: float) -> Tensor:
    return torch.where(margin.abs() < tie, 0.5, (margin > 0).double())


def metrics(values: StepValues, beta: float) -> dict[str, float]:
    """Means over the pairs: loss and log-probs in nats, rewards in beta x nats, accuracy 0 to 1.

    ``scores/*`` stand beside ``rewards/*`` where the loss optimises another figure.
    """
    if values.label_P is not None:
        return _of_labelled(values, beta)
    chosen, rejected = rewards(values, beta)
    assert values.loss_P is not None  # the step made it
    columns = {
        "loss": values.loss_P,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": hits(values, beta),
        "logps/chosen": values.chosen.policy_P,
        "logps/rejected": values.rejected.policy_P,
    }
    if values.score_chosen_P is not None and values.score_rejected_P is not None:
        margin = values.score_chosen_P - values.score_rejected_P
        columns |= {
            "scores/chosen": values.score_chosen_P,
            "scores/rejected": values.score_rejected_P,
            "scores/margins": margin,
            "scores/accuracies": _hits(margin, beta * TIE / float(values.chosen.tokens_P.max())),
        }
    columns |= _drifts(values)
    row = {name: float(column.mean()) for name, column in columns.items()}
    return row | (_weights(chosen - rejected) if values.reference_R.any() else {})


def _drifts(values: StepValues) -> dict[str, Tensor]:
    """The log-ratio of each side a token, in nats; none where the loss reads no reference."""
    if not values.reference_R.any():
        return {}
    return {
        "drift/chosen": values.chosen.mean_ratio_P,
        "drift/rejected": values.rejected.mean_ratio_P,
    }


def _weights(margin_P: Tensor) -> dict[str, float]:
    """What is left to pull: the weight of a pair in DPO's gradient is ``sigmoid(-margin)``.

    Of them the share below `SATURATED`, and the effective sample size over the number of pairs
    (Kish 1965).
    """
    weight_P = sigma(-margin_P)
    effective = weight_P.sum() ** 2 / (len(weight_P) * (weight_P**2).sum())
    return {
        "weights/saturated": float((weight_P < SATURATED).double().mean()),
        "weights/effective": float(effective),
    }


def _of_labelled(values: StepValues, beta: float) -> dict[str, float]:
    """Of unpaired examples: ``chosen`` are those labelled good, ``rejected`` the others.

    Where a step has one kind only, the figures of the other are left out.
    """
    assert values.label_P is not None and values.loss_P is not None
    reward, _ = rewards(values, beta)
    row = {"loss": float(values.loss_P.mean())}
    for name, which in (("chosen", values.label_P > 0), ("rejected", values.label_P <= 0)):
        if which.any():
            row[f"rewards/{name}"] = float(reward[which].mean())
            row[f"logps/{name}"] = float(values.chosen.policy_P[which].mean())
    if "rewards/chosen" in row and "rewards/rejected" in row:
        row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
    row["rewards/accuracies"] = float(hits(values, beta).mean())
    if not torch.equal(values.rejected.policy_P, values.chosen.policy_P):
        row["kl"] = max(0.0, float(values.rejected.ratio_P.mean()))  # KTO's z0
    return row


def held_out_metrics(
    pairs: Sequence[TokenPair], values: StepValues, beta: float
) -> dict[str, float]:
    """The metrics of pairs that no step sees, prefixed ``eval_``, with an interval of the accuracy.

    Means run over pairs, never over batches.
    """
    low, high = accuracy_interval(pairs, values, beta)
    row = metrics(values, beta)
    if values.label_P is None:
        row |= _of_many_pairs(values, beta)
    row = {f"eval_{name}": value for name, value in row.items()}
    row["eval_rewards/accuracies_low"], row["eval_rewards/accuracies_high"] = low, high
    row["eval_pairs"] = len(pairs)
    return row


def _of_many_pairs(values: StepValues, beta: float) -> dict[str, float]:
    """Figures that a single step has too few pairs for; those that no pair adds to are left out."""
    model = _logps(values.chosen.policy_P, values.rejected.policy_P, values)
    reference = None
    if values.reference_R.any():
        reference = _logps(values.chosen.reference_P, values.rejected.reference_P, values)
    columns = columns_of(model, reference)
    found = {
        logged: float(np.nanmean(columns[name]))
        for name, logged in _LOGGED.items()
        if name in columns and not np.isnan(columns[name]).all()
    }
    chosen, rejected = rewards(values, beta)
    margin_P = (chosen - rejected).numpy()
    found |= {f"rewards/margins_{name}": at for name, at in percentiles(margin_P).items()}
    found["lengths/longer_wins"] = float(longer_wins(model).mean())
    longer_P = model.chosen_tokens_P - model.rejected_tokens_P
    if np.ptp(longer_P) > 0 and np.ptp(margin_P) > beta * TIE:
        found["lengths/correlation"] = float(np.corrcoef(longer_P, margin_P)[0, 1])
    return found


def _logps(chosen_P: Tensor, rejected_P: Tensor, values: StepValues) -> PairLogps:
    sides = (chosen_P, rejected_P, values.chosen.tokens_P, values.rejected.tokens_P)
    return PairLogps(*(side.numpy() for side in sides))


def accuracy_interval(
    pairs: Sequence[TokenPair], values: StepValues, beta: float
) -> tuple[float, float]:
    """95 % interval of the accuracy, in which prompts count as the trials.

    Pairs of one prompt are not independent of each other.
    """
    prompts = {pair.prompt for pair in pairs}
    return wilson(float(hits(values, beta).mean()), len(prompts))
