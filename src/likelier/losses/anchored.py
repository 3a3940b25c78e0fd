"""Losses that give each answer a reward to reach: squared ones, and sigmoids of one answer."""

import torch.nn.functional as F
from torch import Tensor

from likelier.losses.stable import sigma
from likelier.losses.values import StepValues


def ipo_sum(values: StepValues, *, tau: float) -> Tensor:
    """Azar et al. 2023, equation 17 (arXiv 2310.12036), over summed log-probs."""
    return (values.log_ratio_margin_P - 1 / (2 * tau)) ** 2


def ipo_mean(values: StepValues, *, tau: float) -> Tensor:
    """The same over log-ratios per token."""
    margin_P = values.chosen.mean_ratio_P - values.rejected.mean_ratio_P
    return (margin_P - 1 / (2 * tau)) ** 2


def sppo(values: StepValues, *, beta: float) -> Tensor:
    """Wu et al. 2024 (arXiv 2405.00675), hard labels."""
    target = 1 / (2 * beta)
    return (values.chosen.ratio_P - target) ** 2 + (values.rejected.ratio_P + target) ** 2


def cal_dpo(values: StepValues, *, beta: float) -> Tensor:
    """Xiao et al. 2024 (arXiv 2412.14516): no beta in the logistic term."""
    return -F.logsigmoid(values.log_ratio_margin_P) + sppo(values, beta=beta)


def nca(values: StepValues, *, beta: float) -> Tensor:
    """Chen et al. 2024 (arXiv 2402.05369), two answers a prompt."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return -F.logsigmoid(up_P) - (F.logsigmoid(-up_P) + F.logsigmoid(-down_P)) / 2


def bco(values: StepValues, *, beta: float, delta: float) -> Tensor:
    """Jung et al. 2024 (arXiv 2404.04656); ``delta`` is the reward shift."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return -F.logsigmoid(up_P - delta) - F.logsigmoid(delta - down_P)


def apo_zero(values: StepValues, *, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, equation 7 (arXiv 2408.06266)."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return sigma(-up_P) + sigma(down_P)


def apo_down(values: StepValues, *, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, equation 8 (arXiv 2408.06266)."""
    up_P = beta * values.chosen.ratio_P
    return sigma(up_P) + sigma(-beta * values.log_ratio_margin_P)
