"""Losses that give each completion, or the margin of a pair, a value to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from likelier.losses.declare import hyper, hyper_beta, hyper_shift, loss
from likelier.losses.values import StepValues, log_sigmoid, sigma

if TYPE_CHECKING:
    from torch import Tensor


_TAU = hyper(
    0.1,
    "strength of the regulariser; the target margin is 1 / (2 tau)",
    "0.01, 0.1, 0.5 or 1",
    gt=0,
    le=100,
)


@loss(
    paper="Azar et al. 2023, A General Theoretical Paradigm, arXiv 2310.12036, equation 17",
    formula="({margin} - 1 / (2 * {tau}))^2",
    use="Labels without doubt (a rule, a checker), where DPO would run away.",
    trap="tau means nats per answer here and nats per token in ipo_mean: never carry it over. Loss "
    "values are large: clip gradients.",
    reward="tau",
    score="log-ratio",
    scores="ratio_P",
    times_beta=False,
)
def ipo_sum(values: StepValues, *, tau: float = _TAU) -> Tensor:
    """IPO over summed log-probs, as the paper writes it."""
    return (values.log_ratio_margin_P - 1 / (2 * tau)) ** 2


@loss(
    paper="Azar et al. 2023, arXiv 2310.12036, equation 17, with each log-ratio divided by the "
    "answer's length",
    formula="((pc - rc) / nc - (pr - rr) / nr - 1 / (2 * {tau}))^2",
    needs=("reference", "lengths"),
    use="Like ipo_sum, where the lengths of answers differ much.",
    trap="At tau 0.1 the target is 5 nats per token, which is out of reach: it then pushes without "
    "end. Larger tau gives a target that can be met.",
    reward="tau",
    score="log-ratio per token",
    scores="mean_ratio_P",
    times_beta=False,
)
def ipo_mean(values: StepValues, *, tau: float = _TAU) -> Tensor:
    """IPO over per-token means, as most trainers run it."""
    margin_P = values.chosen.mean_ratio_P - values.rejected.mean_ratio_P
    return (margin_P - 1 / (2 * tau)) ** 2


@loss(
    paper="Wu et al. 2024, Self-Play Preference Optimization, arXiv 2405.00675, "
    "practical objective",
    formula="(pc - rc - 1 / (2 * {beta}))^2 + (pr - rr + 1 / (2 * {beta}))^2",
    use="Pairs from the policy's own samples.",
    trap="Loss values are huge at small beta: clip gradients and compare no losses.",
    aliases=("sppo_hard",),
    score="log-ratio",
    scores="ratio_P",
    times_beta=False,
)
def sppo(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.001, "0.001: targets of +500 and -500 nats"),
) -> Tensor:
    """SPPO with hard labels."""
    target = 1 / (2 * beta)
    return (values.chosen.ratio_P - target) ** 2 + (values.rejected.ratio_P + target) ** 2


@loss(
    paper="Xiao et al. 2024, Cal-DPO, arXiv 2412.14516, main objective",
    formula="-log sigmoid({margin}) + (pc - rc - 1 / (2 * {beta}))^2 "
    "+ (pr - rr + 1 / (2 * {beta}))^2",
    use="The chosen answers fall under DPO.",
    trap="beta does not stand in the logistic term. The authors' code halves the squares.",
    score="log-ratio",
    scores="ratio_P",
    times_beta=False,
)
def cal_dpo(
    values: StepValues, *, beta: float = hyper_beta(0.1, "0.1; a smaller one sets higher targets")
) -> Tensor:
    """Cal-DPO: rewards calibrated on an absolute scale."""
    return -log_sigmoid(values.log_ratio_margin_P) + sppo(values, beta=beta)


@loss(
    paper="Chen et al. 2024, Noise Contrastive Alignment, arXiv 2402.05369, two answers a prompt",
    formula="-log sigmoid(c) - log sigmoid(-c) / 2 - log sigmoid(-r) / 2, "
    "c = {beta} * (pc - rc), r = {beta} * (pr - rr)",
    use="The chosen answers fall under DPO and must not.",
    trap="It pulls the chosen reward towards ln 2 and no further.",
    aliases=("nca_pair",),
)
def nca(values: StepValues, *, beta: float = hyper_beta(0.01, "0.01")) -> Tensor:
    """Noise contrastive alignment with pairs."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return -log_sigmoid(up_P) - (log_sigmoid(-up_P) + log_sigmoid(-down_P)) / 2


@loss(
    paper="Jung et al. 2024, Binary Classifier Optimization, arXiv 2404.04656, main objective",
    formula="-log sigmoid({beta} * (pc - rc) - {delta}) "
    "- log sigmoid({delta} - {beta} * (pr - rr))",
    needs=("reference", "whole step"),
    use="Like nca; also where a pair is really two independent binary labels.",
    trap="delta belongs to the run and its checkpoints; likelier.preference_loss takes 0 for it.",
    aliases=("bco_pair",),
)
def bco(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.01, "0.01"),
    delta: float = hyper_shift(),
) -> Tensor:
    """Binary classifier optimization with pairs."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return -log_sigmoid(up_P - delta) - log_sigmoid(delta - down_P)


@loss(
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7",
    formula="1 - sigmoid({beta} * (pc - rc)) + sigmoid({beta} * (pr - rr))",
    use="The chosen answers are better than what the model writes.",
    trap="The gradient dies where a reward is large, on the wrong side too.",
)
def apo_zero(values: StepValues, *, beta: float = hyper_beta()) -> Tensor:
    """Anchored preference optimization, chosen up."""
    up_P, down_P = beta * values.chosen.ratio_P, beta * values.rejected.ratio_P
    return sigma(-up_P) + sigma(down_P)


@loss(
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8",
    formula="sigmoid({beta} * (pc - rc)) + 1 - sigmoid({beta} * {margin})",
    use="The model already writes better than the chosen answers.",
    trap="It lowers the chosen answer by design.",
)
def apo_down(values: StepValues, *, beta: float = hyper_beta()) -> Tensor:
    """Anchored preference optimization, both down."""
    up_P = beta * values.chosen.ratio_P
    return sigma(up_P) + sigma(-beta * values.log_ratio_margin_P)
