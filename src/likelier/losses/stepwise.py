"""Losses in which the completions of a step meet, and losses of unpaired examples with a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from likelier.losses.declare import hyper, hyper_beta, hyper_shift, hyper_smoothing, loss
from likelier.losses.pairwise import smoothed
from likelier.losses.values import StepValues, log_sigmoid, sigma

if TYPE_CHECKING:
    from torch import Tensor


def of_same_rank(values_P: Tensor, others_P: Tensor) -> Tensor:
    """For every value, that of ``others_P`` with the same rank when both are sorted."""
    rank_P = values_P.argsort(stable=True).argsort()
    return others_P.sort(stable=True).values[rank_P]


@loss(
    paper="Melnyk et al. 2024, Distributional Alignment, arXiv 2406.05882, paired objective",
    formula="-log sigmoid({beta} * (sorted(pc - pr) - sorted(rc - rr))), with labels smoothed by "
    "{smoothing}",
    needs=("reference", "whole step"),
    use="The distribution of margins matters more than each pair.",
    trap="Answers are sorted over the whole step, so train.pairs_per_step is part of the loss. "
    "With one pair a step it is DPO.",
    aliases=("aot_pair",),
)
def aot(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.01, "0.01"),
    smoothing: float = hyper_smoothing(0.0, "0"),
) -> Tensor:
    """Alignment by optimal transport, paired."""
    policy_P = values.chosen.policy_P - values.rejected.policy_P
    reference_P = values.chosen.reference_P - values.rejected.reference_P
    # A loss stays with its policy margin.
    return smoothed(beta * (policy_P - of_same_rank(policy_P, reference_P)), smoothing)


@loss(
    paper="Melnyk et al. 2024, arXiv 2406.05882, unpaired objective",
    formula="-log sigmoid({beta} * (sorted(pc - rc) - sorted(pr - rr))), with labels smoothed by "
    "{smoothing}",
    needs=("reference", "whole step"),
    use="Chosen and rejected answers that do not belong together.",
    trap="That of aot; besides, some versions of other trainers called this one aot_pair.",
)
def aot_unpaired(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.01, "0.01"),
    smoothing: float = hyper_smoothing(0.0, "0"),
) -> Tensor:
    """Alignment by optimal transport, unpaired."""
    chosen_P, rejected_P = values.chosen.ratio_P, values.rejected.ratio_P
    # A loss stays with its chosen completion.
    return smoothed(beta * (chosen_P - of_same_rank(chosen_P, rejected_P)), smoothing)


def _labels(values: StepValues) -> Tensor:
    """The binary labels as truth values."""
    if values.label_P is None:
        raise ValueError("this loss needs rows of one answer and a label")
    return values.label_P.bool()


@loss(
    paper="Ethayarajh et al. 2024, KTO, arXiv 2402.01306, main objective",
    formula="{desirable} * (1 - sigmoid({beta} * (p - r - z0))) for label 1, "
    "{undesirable} * (1 - sigmoid({beta} * (z0 - p + r))) for label 0, "
    "z0 = max(0, mean log-ratio of mismatched answers)",
    needs=("reference", "label", "mismatched", "whole step"),
    use="Unpaired examples: single answers with a binary label.",
    trap="z0 is a mean over the step: use 16 rows a step or more. A mismatched answer is one "
    "of another prompt, drawn once from the seed and the data.",
)
def kto(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    desirable: float = hyper(
        1.0,
        "weight of answers with label 1",
        "so that desirable * (number of 1s) is 1 to 4/3 of undesirable * (number of 0s)",
        gt=0,
        le=100,
    ),
    undesirable: float = hyper(
        1.0, "weight of answers with label 0", "see desirable", gt=0, le=100
    ),
) -> Tensor:
    """KTO."""
    z0 = values.rejected.ratio_P.detach().mean().clamp(min=0)
    return kto_values(values.chosen.ratio_P, _labels(values), z0, beta, desirable, undesirable)


def kto_values(
    ratio_P: Tensor, label_P: Tensor, z0: Tensor, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """The loss of log-ratios. ``1 - sigmoid(s)`` is ``sigmoid(-s)``, which does not cancel."""
    x_P = beta * (ratio_P - z0)
    return (desirable * sigma(-x_P)).where(label_P, undesirable * sigma(x_P))


@loss(
    paper="Jung et al. 2024, arXiv 2404.04656, main objective, one answer at a time",
    formula="-log sigmoid({beta} * (p - r) - {delta}) for label 1, "
    "-log sigmoid({delta} - {beta} * (p - r)) for label 0",
    needs=("reference", "label", "whole step"),
    use="Unpaired examples with a binary label; simpler than KTO.",
    trap="The paper's density-ratio weight for prompts that differ between the two labels is not "
    "applied.",
)
def bco_unpaired(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.01, "0.01"),
    delta: float = hyper_shift(),
) -> Tensor:
    """Binary classifier optimization of single answers."""
    x_P = beta * values.chosen.ratio_P - delta
    return -log_sigmoid(x_P.where(_labels(values), -x_P))


@loss(
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, one answer at a time",
    formula="1 - sigmoid({beta} * (p - r)) for label 1, sigmoid({beta} * (p - r)) for label 0",
    needs=("reference", "label"),
    use="Unpaired examples with a binary label, the good ones better than what the model writes.",
    trap="The gradient dies where a reward is large.",
)
def apo_zero_unpaired(values: StepValues, *, beta: float = hyper_beta()) -> Tensor:
    """APO-zero of single answers."""
    x_P = beta * values.chosen.ratio_P
    return sigma((-x_P).where(_labels(values), x_P))
