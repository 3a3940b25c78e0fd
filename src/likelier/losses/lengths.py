"""Losses over log-probs per token, and those without a reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.losses.sigmoid import EXPONENT, logistic
from likelier.losses.stable import expm1
from likelier.losses.values import StepValues

SUREST = -1e-15  # log-prob of a token surer than which the odds are no information


def sigmoid_mean(values: StepValues, *, beta: float) -> Tensor:
    """Lambert et al. 2024, Tülu 3, equation 6 (arXiv 2411.15124)."""
    return logistic(values.chosen.mean_ratio_P - values.rejected.mean_ratio_P, beta)


def simpo(values: StepValues, *, beta: float, gamma: float) -> Tensor:
    """Meng et al. 2024, equation 6 (arXiv 2405.14734)."""
    return -F.logsigmoid(beta * (values.chosen.mean_P - values.rejected.mean_P) - gamma)


def alphapo(values: StepValues, *, beta: float, gamma: float, alpha: float) -> Tensor:
    """Gupta et al. 2025 (arXiv 2501.03884)."""
    chosen_P, rejected_P = alpha_scores(values, alpha=alpha)
    return -F.logsigmoid(beta * (chosen_P - rejected_P) - gamma)


def alpha_scores(values: StepValues, *, alpha: float) -> tuple[Tensor, Tensor]:
    """``(1 - exp(-alpha * a)) / alpha`` of both log-probs per token; ``a`` itself for alpha 0."""
    chosen_P, rejected_P = values.chosen.mean_P, values.rejected.mean_P
    if alpha == 0:
        return chosen_P, rejected_P
    exponents = ((-alpha * a).clamp(max=EXPONENT) for a in (chosen_P, rejected_P))
    chosen_P, rejected_P = (-expm1(e) / alpha for e in exponents)
    return chosen_P, rejected_P


def simper(values: StepValues) -> Tensor:
    """Xiao et al. 2025 (arXiv 2502.00883)."""
    return torch.exp(values.rejected.mean_P) - torch.exp(values.chosen.mean_P)


def orpo(values: StepValues, *, beta: float) -> Tensor:
    """Hong et al. 2024, equation 6 (arXiv 2403.07691); the likelihood is the answer's alone."""
    chosen_P, rejected_P = log_odds(values)
    return logistic(chosen_P - rejected_P, 1.0) * beta - values.chosen.mean_P


def log_odds(values: StepValues) -> tuple[Tensor, Tensor]:
    """``log(p / (1 - p))`` of both answers' geometric mean token; expm1, as 1 - exp cancels."""
    means = (side.mean_P.clamp(max=SUREST) for side in (values.chosen, values.rejected))
    chosen_P, rejected_P = (a - torch.log(-expm1(a)) for a in means)
    return chosen_P, rejected_P


def cpo(values: StepValues, *, beta: float, alpha: float) -> Tensor:
    """Xu et al. 2024 (arXiv 2401.08417); the likelihood is a sum, as in the paper."""
    chosen_P, rejected_P = values.chosen.policy_P, values.rejected.policy_P
    return logistic(chosen_P - rejected_P, beta) - alpha * chosen_P


def slic(values: StepValues, *, delta: float, alpha: float) -> Tensor:
    """Zhao et al. 2023 (arXiv 2305.10425)."""
    chosen_P, rejected_P = values.chosen.policy_P, values.rejected.policy_P
    return torch.relu(delta - chosen_P + rejected_P) - alpha * chosen_P
