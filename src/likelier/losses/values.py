"""What a loss is made of: the log-probs of a step's pairs, and functions exact in value and slope.

Axis letters: R completions, P pairs. torch is imported when a function is called: the losses are
listed and configs are read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Side:
    """One completion of every pair: summed log-probs in nats and scored tokens, shape (P,) each."""

    policy_P: Tensor
    reference_P: Tensor
    tokens_P: Tensor

    @property
    def ratio_P(self) -> Tensor:
        """log policy - log reference, in nats."""
        return self.policy_P - self.reference_P

    @property
    def mean_P(self) -> Tensor:
        """The policy's log-prob per token."""
        return self.policy_P / self.tokens_P

    @property
    def mean_ratio_P(self) -> Tensor:
        """The log-ratio per token."""
        return self.ratio_P / self.tokens_P


@dataclass(frozen=True)
class StepValues:
    """The completions of a step, or of one batch of it.

    ``policy_R`` and ``reference_R`` are summed log-probs in nats (float64), ``length_R`` the
    scored tokens of each completion, ``chosen_P`` and ``rejected_P`` index into R. A completion
    may stand in several pairs.

    Columns that the data may bring: ``margin_P`` (how much better the chosen one is), ``weight_P``
    (of the pair in the loss), ``label_P`` (the binary labels of unpaired examples: the completion
    is then the chosen one, and the rejected one is a mismatched completion, or the same again
    where none is needed). ``wpo_log_weight_R`` is what WPO weighs by.

    ``mean_tokens`` is the mean length of the chosen completions of the whole step.

    What the loss made of them, absent before it ran: ``loss_P``, the loss of every pair, and
    ``score_chosen_P``, ``score_rejected_P``, its scores (log-ratios in nats, unless the loss
    scores by something else).
    """

    policy_R: Tensor
    reference_R: Tensor
    length_R: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    margin_P: Tensor | None = None
    weight_P: Tensor | None = None
    label_P: Tensor | None = None
    wpo_log_weight_R: Tensor | None = None
    mean_tokens: float | None = None
    loss_P: Tensor | None = None
    score_chosen_P: Tensor | None = None
    score_rejected_P: Tensor | None = None

    @property
    def chosen(self) -> Side:
        """The chosen completion of every pair."""
        return self._side(self.chosen_P)

    @property
    def rejected(self) -> Side:
        """The rejected completion of every pair."""
        return self._side(self.rejected_P)

    def _side(self, index_P: Tensor) -> Side:
        # A number times whole lengths would be float32.
        length_R = self.length_R.to(self.policy_R.dtype)
        return Side(self.policy_R[index_P], self.reference_R[index_P], length_R[index_P])

    @property
    def log_ratio_R(self) -> Tensor:
        """log policy - log reference of every completion, in nats."""
        return self.policy_R - self.reference_R

    @property
    def log_ratio_margin_P(self) -> Tensor:
        """The log-ratio of the chosen answer less that of the rejected one, in nats."""
        ratio_R = self.log_ratio_R
        return ratio_R[self.chosen_P] - ratio_R[self.rejected_P]


# ---- functions of them -----------------------------------------------------------------------

MAX_EXPONENT = 30.0  # nats; exp of more says nothing, and exp of 710 overflows


def log_sigmoid(x: Tensor) -> Tensor:
    """``log(sigmoid(x))``, which written so would underflow at x = -120 in float32."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def sigma(x: Tensor) -> Tensor:
    """The sigmoid. ``torch.sigmoid`` has the slope s * (1 - s), which is 0 from x = 37 on."""
    return log_sigmoid(x).exp()


def expm1(x: Tensor) -> Tensor:
    """``exp(x) - 1``. ``torch.expm1`` has the slope (exp(x) - 1) + 1, which is 0 below -37."""
    return x.expm1().where(x.abs() < 1, x.exp() - 1)
