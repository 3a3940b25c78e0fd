"""What a loss reads: the log-probs of a step's answers and which of them form pairs.

Axis letters: R answers, P pairs.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AnswerValues:
    """The answers of a step, or of one pass of it.

    ``policy_R`` and ``reference_R`` are summed log-probs in nats (float64), ``length_R`` the
    scored tokens of each answer, ``chosen_P`` and ``rejected_P`` index into R. An answer may
    stand in several pairs.
    """

    policy_R: Tensor
    reference_R: Tensor
    length_R: Tensor
    chosen_P: Tensor
    rejected_P: Tensor

    @property
    def log_ratio_R(self) -> Tensor:
        """log policy - log reference of every answer, in nats."""
        return self.policy_R - self.reference_R

    @property
    def log_ratio_margin_P(self) -> Tensor:
        """The log-ratio of the chosen answer less that of the rejected one, in nats."""
        ratio_R = self.log_ratio_R
        return ratio_R[self.chosen_P] - ratio_R[self.rejected_P]
