"""Sigmoid, its logarithm and expm1, whose slopes are as exact as their values.

torch is imported when a function is called: the losses are listed and configs are read without it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT = 30.0  # nats: exp of more is no information, and of 710 no number


def log_sigmoid(x: "Tensor") -> "Tensor":
    """``log(sigmoid(x))``, which written so would underflow at x = -120 in float32."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def sigma(x: "Tensor") -> "Tensor":
    """The sigmoid. ``torch.sigmoid`` has the slope s * (1 - s), which is 0 from x = 37 on."""
    return log_sigmoid(x).exp()


def expm1(x: "Tensor") -> "Tensor":
    """``exp(x) - 1``. ``torch.expm1`` has the slope (exp(x) - 1) + 1, which is 0 below -37."""
    return x.expm1().where(x.abs() < 1, x.exp() - 1)
