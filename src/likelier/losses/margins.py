"""Losses of the log-ratio margin: other links, and margins moved by a pair's own figures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.losses.sigmoid import EXPONENT, logistic
from likelier.losses.stable import sigma
from likelier.losses.values import StepValues


def smoothed(x_P: Tensor, smoothing: float) -> Tensor:
    """The logistic loss of x, where a share of the labels says the reverse."""
    return -(1 - smoothing) * F.logsigmoid(x_P) - smoothing * F.logsigmoid(-x_P)


def cdpo(values: StepValues, *, beta: float, smoothing: float) -> Tensor:
    """Mitchell 2023, A note on DPO with noisy preferences."""
    return smoothed(beta * values.log_ratio_margin_P, smoothing)


def robust(values: StepValues, *, beta: float, smoothing: float) -> Tensor:
    """Chowdhury et al. 2024 (arXiv 2403.00409): unbiased under flips."""
    x_P = beta * values.log_ratio_margin_P
    told_P = -(1 - smoothing) * F.logsigmoid(x_P)
    return (told_P + smoothing * F.logsigmoid(-x_P)) / (1 - 2 * smoothing)


def hinge(values: StepValues, *, beta: float) -> Tensor:
    """Liu et al. 2023 (arXiv 2309.06657)."""
    return torch.relu(1 - beta * values.log_ratio_margin_P)


def exo(values: StepValues, *, beta: float, smoothing: float) -> Tensor:
    """Ji et al. 2024, equation 16 (arXiv 2402.00856)."""
    x_P = beta * values.log_ratio_margin_P
    label_P = x_P.new_tensor(smoothing)
    above_P = F.logsigmoid(x_P) - torch.log1p(-label_P)
    below_P = F.logsigmoid(-x_P) - torch.log(label_P)
    return sigma(x_P) * above_P + sigma(-x_P) * below_P


def discopop(values: StepValues, *, beta: float, tau: float) -> Tensor:
    """Lu et al. 2024, equation 5 (arXiv 2406.08414)."""
    x_P = beta * values.log_ratio_margin_P
    # m * exp(-x) with both factors in one exponent: 0 * inf would be NaN.
    exponential_P = torch.exp(F.logsigmoid(x_P / tau) - x_P)
    return -sigma(-x_P / tau) * F.logsigmoid(x_P) + exponential_P


def dpop(values: StepValues, *, beta: float, penalty: float) -> Tensor:
    """Pal et al. 2024, equation 3 (arXiv 2402.13228)."""
    chosen_P, rejected_P = dpop_scores(values, penalty=penalty)
    return logistic(chosen_P - rejected_P, beta)


def dpop_scores(values: StepValues, *, penalty: float) -> tuple[Tensor, Tensor]:
    """The log-ratios, the chosen one less its penalty where it is negative."""
    chosen_P = values.chosen.ratio_P
    return chosen_P - penalty * torch.relu(-chosen_P), values.rejected.ratio_P


def rdpo(values: StepValues, *, beta: float, alpha: float) -> Tensor:
    """Park et al. 2024, equation 9 (arXiv 2403.19159): a longer chosen answer is pushed less."""
    longer_P = values.chosen.tokens_P - values.rejected.tokens_P
    return -F.logsigmoid(beta * values.log_ratio_margin_P + alpha * longer_P)


def odpo(values: StepValues, *, beta: float, alpha: float) -> Tensor:
    """Amini et al. 2024 (arXiv 2402.10571): every pair has a margin of its own to reach."""
    if values.margin_P is None:
        raise ValueError("odpo needs a margin for every pair")
    return -F.logsigmoid(beta * values.log_ratio_margin_P - alpha * values.margin_P)


def dpo_shift(values: StepValues, *, beta: float, alpha: float) -> Tensor:
    """Yang et al. 2025 (arXiv 2502.07599)."""
    chosen_P, rejected_P = dpo_shift_scores(values, alpha=alpha)
    return logistic(chosen_P - rejected_P, beta)


def dpo_shift_scores(values: StepValues, *, alpha: float) -> tuple[Tensor, Tensor]:
    """The log-ratios, the rejected one times alpha."""
    return values.chosen.ratio_P, alpha * values.rejected.ratio_P


def chi_po(values: StepValues, *, beta: float, bound: float) -> Tensor:
    """Huang et al. 2024 (arXiv 2407.13399)."""
    chosen_P, rejected_P = chi_scores(values)
    x_P = beta * (chosen_P - rejected_P)
    return -F.logsigmoid(x_P.clamp(-2 * bound, 2 * bound))


def chi_scores(values: StepValues) -> tuple[Tensor, Tensor]:
    """``phi(d) = d + exp(d)`` of both log-ratios, the exponent clamped."""
    ratios = values.chosen.ratio_P, values.rejected.ratio_P
    chosen_P, rejected_P = (r + torch.exp(r.clamp(max=EXPONENT)) for r in ratios)
    return chosen_P, rejected_P
