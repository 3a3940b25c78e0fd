"""Losses in which the answers of a step meet, and losses of single answers with a thumb."""

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.losses.margins import smoothed
from likelier.losses.stable import sigma
from likelier.losses.values import StepValues


def aot(values: StepValues, *, beta: float, smoothing: float) -> Tensor:
    """Melnyk et al. 2024 (arXiv 2406.05882), paired; a loss stays with its policy margin."""
    policy_P = values.chosen.policy_P - values.rejected.policy_P
    reference_P = values.chosen.reference_P - values.rejected.reference_P
    return smoothed(beta * (policy_P - of_same_rank(policy_P, reference_P)), smoothing)


def aot_unpaired(values: StepValues, *, beta: float, smoothing: float) -> Tensor:
    """The same, unpaired; a loss stays with its chosen answer."""
    chosen_P, rejected_P = values.chosen.ratio_P, values.rejected.ratio_P
    return smoothed(beta * (chosen_P - of_same_rank(chosen_P, rejected_P)), smoothing)


def of_same_rank(values_P: Tensor, others_P: Tensor) -> Tensor:
    """For every value the one of ``others_P`` that stands at its place when both are sorted."""
    rank_P = values_P.argsort(stable=True).argsort()
    return others_P.sort(stable=True).values[rank_P]


def kto(values: StepValues, *, beta: float, desirable: float, undesirable: float) -> Tensor:
    """Ethayarajh et al. 2024 (arXiv 2402.01306); z0 from the mismatched answers of the step."""
    z0 = values.rejected.ratio_P.detach().mean().clamp(min=0)
    return kto_values(values.chosen.ratio_P, thumbs(values), z0, beta, desirable, undesirable)


def kto_values(
    ratio_P: Tensor, up_P: Tensor, z0: Tensor, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """The loss of log-ratios. ``1 - sigmoid(s)`` is ``sigmoid(-s)``, which does not cancel."""
    x_P = beta * (ratio_P - z0)
    return torch.where(up_P, desirable * sigma(-x_P), undesirable * sigma(x_P))


def bco_unpaired(values: StepValues, *, beta: float, delta: float) -> Tensor:
    """Jung et al. 2024 (arXiv 2404.04656), one answer at a time."""
    x_P = beta * values.chosen.ratio_P - delta
    return -F.logsigmoid(torch.where(thumbs(values), x_P, -x_P))


def apo_zero_unpaired(values: StepValues, *, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, equation 7 (arXiv 2408.06266), one answer at a time."""
    x_P = beta * values.chosen.ratio_P
    return sigma(torch.where(thumbs(values), -x_P, x_P))


def thumbs(values: StepValues) -> Tensor:
    """The labels as truth values."""
    if values.label_P is None:
        raise ValueError("this loss needs rows of one answer and a label")
    return values.label_P.bool()
