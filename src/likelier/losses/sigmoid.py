"""DPO: Rafailov et al., Direct Preference Optimization, 2023, equation 7 (arXiv 2305.18290).

With another divergence than reverse KL: f-DPO, Wang et al. 2023 (arXiv 2309.16240).
"""

import torch.nn.functional as F
from torch import Tensor

from likelier.losses.stable import expm1
from likelier.losses.values import StepValues

EXPONENT = 30.0  # nats: exp of more is no information, and of 710 no number


def sigmoid(
    values: StepValues, *, beta: float, divergence: str = "reverse_kl", alpha: float = 0.5
) -> Tensor:
    """``-log sigmoid(beta * margin)`` of every pair, shape (P,), in nats."""
    if divergence == "reverse_kl":
        return logistic(values.log_ratio_margin_P, beta)
    chosen_P, rejected_P = f_scores(values, divergence=divergence, alpha=alpha)
    return logistic(chosen_P - rejected_P, beta)


def logistic(margin_P: Tensor, beta: float) -> Tensor:
    """The same from log-ratio margins. ``logsigmoid``: log(sigmoid(x)) underflows at x = -120."""
    return -F.logsigmoid(beta * margin_P)


def f_scores(
    values: StepValues, *, divergence: str = "reverse_kl", alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """``f'(policy / reference)`` of chosen and rejected, without constants, which cancel."""
    ratios = values.chosen.ratio_P, values.rejected.ratio_P
    chosen_P, rejected_P = (f_score(ratio_P, divergence, alpha) for ratio_P in ratios)
    return chosen_P, rejected_P


def f_score(ratio_P: Tensor, divergence: str, alpha: float) -> Tensor:
    """``f'`` at exp(ratio). Clamped where it grows as an exponential: never inf, never NaN."""
    if divergence == "reverse_kl":
        return ratio_P
    if divergence == "js":
        return F.logsigmoid(ratio_P)
    power = 1.0 if divergence == "forward_kl" else alpha
    # (1 - u^-alpha) / alpha; forward KL is alpha = 1 up to a constant, and needs no small alpha.
    return -expm1(-power * ratio_P.clamp(min=-EXPONENT)) / power
