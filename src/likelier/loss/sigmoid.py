"""DPO: Rafailov et al., Direct Preference Optimization, 2023, equation 7 (arXiv 2305.18290)."""

import torch.nn.functional as F
from torch import Tensor

from likelier.loss.values import AnswerValues


def sigmoid(values: AnswerValues, *, beta: float) -> Tensor:
    """``-log sigmoid(beta * margin)`` of every pair, shape (P,), in nats."""
    return logistic(values.log_ratio_margin_P, beta)


def logistic(margin_P: Tensor, beta: float) -> Tensor:
    """The same from log-ratio margins. ``logsigmoid``: log(sigmoid(x)) underflows at x = -120."""
    return -F.logsigmoid(beta * margin_P)
