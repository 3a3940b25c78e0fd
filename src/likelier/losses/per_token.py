"""Losses over log-probs per token, and those without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from likelier.losses.declare import hyper, hyper_beta, loss
from likelier.losses.values import MAX_EXPONENT, StepValues, expm1, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor

MAX_MEAN_LOGP = -1e-15  # the odds of a surer token say nothing


def _hyper_likelihood(default: float, start: str) -> Any:
    meaning = "weight of the chosen answer's negative log-likelihood"
    return hyper(default, meaning, start, ge=0, le=100)


_GAMMA = hyper(1.25, "target margin: gamma itself, not gamma / beta", "half of beta", ge=0, le=100)


@loss(
    paper="Lambert et al. 2024, Tülu 3, arXiv 2411.15124, equation 6",
    formula="-log sigmoid({beta} * ((pc - rc) / nc - (pr - rr) / nr))",
    needs=("reference", "lengths"),
    use="Answers grow longer under DPO; the recipe of Tülu 3 and OLMo.",
    trap="It has no closed-form optimum near the reference: learning rate and data size are what "
    "holds it. beta is per token, fifty times that of sigmoid.",
    aliases=("sigmoid_norm", "dpo_norm"),
    score="beta * log-ratio per token",
    scores="mean_ratio_P",
)
def sigmoid_mean(values: StepValues, *, beta: float = hyper_beta(5.0, "5")) -> Tensor:
    """Length-normalised DPO."""
    return -log_sigmoid(beta * (values.chosen.mean_ratio_P - values.rejected.mean_ratio_P))


@loss(
    paper="Meng et al. 2024, SimPO, arXiv 2405.14734, equation 6",
    formula="-log sigmoid({beta} * (pc / nc - pr / nr) - {gamma})",
    needs=("lengths",),
    use="No reference is wanted.",
    trap="Nothing holds the policy but the learning rate: 1e-5 ruins a model that 5e-7 improves. "
    "gamma is not gamma / beta: a mistake here is a factor of beta.",
    score="beta * log-prob per token",
    scores="mean_P",
)
def simpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(2.5, "2 to 2.5; up to 10"),
    gamma: float = _GAMMA,
) -> Tensor:
    """SimPO."""
    return -log_sigmoid(beta * (values.chosen.mean_P - values.rejected.mean_P) - gamma)


def _shaped_means(values: StepValues, *, alpha: float) -> tuple[Tensor, Tensor]:
    """``(1 - exp(-alpha * a)) / alpha`` of both log-probs per token; ``a`` itself for alpha 0."""
    chosen_P, rejected_P = values.chosen.mean_P, values.rejected.mean_P
    if alpha == 0:
        return chosen_P, rejected_P
    chosen_P, rejected_P = ((-alpha * a).clamp(max=MAX_EXPONENT) for a in (chosen_P, rejected_P))
    return -expm1(chosen_P) / alpha, -expm1(rejected_P) / alpha


@loss(
    paper="Gupta et al. 2025, AlphaPO, arXiv 2501.03884, main objective",
    formula="-log sigmoid({beta} * (s(pc / nc) - s(pr / nr)) - {gamma}), "
    "s(a) = (1 - exp(-{alpha} * a)) / {alpha}",
    needs=("lengths",),
    use="SimPO lets the chosen answers fall too far.",
    trap="exp grows with falling log-probs; its exponent is clamped at 30.",
    score="beta * s(log-prob per token)",
    scores=_shaped_means,
)
def alphapo(
    values: StepValues,
    *,
    beta: float = hyper_beta(2.5, "2.5"),
    gamma: float = _GAMMA,
    alpha: float = hyper(0.25, "shape of the reward; 0 is SimPO", "0.1 to 0.25", ge=-10, le=10),
) -> Tensor:
    """AlphaPO: SimPO with a shaped reward."""
    chosen_P, rejected_P = _shaped_means(values, alpha=alpha)
    return -log_sigmoid(beta * (chosen_P - rejected_P) - gamma)


def _inverse_perplexities(values: StepValues) -> tuple[Tensor, Tensor]:
    return values.chosen.mean_P.exp(), values.rejected.mean_P.exp()


@loss(
    paper="Xiao et al. 2025, SimPER, arXiv 2502.00883, main objective",
    formula="-exp(pc / nc) + exp(pr / nr)",
    needs=("lengths",),
    use="No hyper-parameter is wanted.",
    trap="The gradient is tiny where perplexity is high, as for answers of another model.",
    reward=None,
    score="inverse perplexity",
    scores=_inverse_perplexities,
    times_beta=False,
)
def simper(values: StepValues) -> Tensor:
    """SimPER: inverse perplexities."""
    chosen_P, rejected_P = _inverse_perplexities(values)
    return rejected_P - chosen_P


def _log_odds(values: StepValues) -> tuple[Tensor, Tensor]:
    """``log(p / (1 - p))`` of both answers' geometric mean token; expm1, as 1 - exp cancels."""
    chosen_P = values.chosen.mean_P.clamp(max=MAX_MEAN_LOGP)
    rejected_P = values.rejected.mean_P.clamp(max=MAX_MEAN_LOGP)
    return chosen_P - (-expm1(chosen_P)).log(), rejected_P - (-expm1(rejected_P)).log()


@loss(
    paper="Hong et al. 2024, ORPO, arXiv 2403.07691, equation 6",
    formula="-pc / nc - {beta} * log sigmoid(o(pc / nc) - o(pr / nr)), o(a) = a - log(1 - exp(a))",
    needs=("lengths",),
    use="One stage from a base model: supervised and preference training at once.",
    trap="The likelihood is the answer's alone; some code counts the prompt too.",
    score="log odds of the mean token",
    scores=_log_odds,
    times_beta=False,
)
def orpo(values: StepValues, *, beta: float = hyper_beta(0.1, "0.1; the paper's lambda")) -> Tensor:
    """ORPO."""
    chosen_P, rejected_P = _log_odds(values)
    return -log_sigmoid(chosen_P - rejected_P) * beta - values.chosen.mean_P


@loss(
    paper="Xu et al. 2024, Contrastive Preference Optimization, arXiv 2401.08417, main objective",
    formula="-log sigmoid({beta} * (pc - pr)) - {alpha} * pc",
    needs=(),
    use="Translation, as in its paper.",
    trap="The paper sums the likelihood over tokens; code often takes the mean, which weighs far "
    "less. Sums without a reference favour short answers.",
    score="beta * log-prob",
    scores="policy_P",
)
def cpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    alpha: float = _hyper_likelihood(
        1.0, "1, or 1 / (mean length) for the mean that most code takes"
    ),
) -> Tensor:
    """Contrastive preference optimization."""
    chosen_P, rejected_P = values.chosen.policy_P, values.rejected.policy_P
    return -log_sigmoid(beta * (chosen_P - rejected_P)) - alpha * chosen_P


@loss(
    paper="Zhao et al. 2023, SLiC-HF, arXiv 2305.10425, calibration with a likelihood regulariser",
    formula="max(0, {delta} - pc + pr) - {alpha} * pc",
    needs=(),
    use="To reproduce its paper.",
    trap="The regulariser takes the chosen answer for the target text, as most code does.",
    reward=None,
    score="log-prob",
    scores="policy_P",
    times_beta=False,
)
def slic(
    values: StepValues,
    *,
    delta: float = hyper(1.0, "margin in nats", "0.1, 0.5, 1 or 2", ge=0, le=10_000),
    alpha: float = _hyper_likelihood(0.1, "0.1, 0.5, 1 or 10; the paper's lambda"),
) -> Tensor:
    """SLiC-HF."""
    chosen_P, rejected_P = values.chosen.policy_P, values.rejected.policy_P
    return (delta - chosen_P + rejected_P).relu() - alpha * chosen_P
