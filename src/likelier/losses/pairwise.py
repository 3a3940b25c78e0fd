"""Losses of a pair's log-ratio margin: other links, and margins moved by the pair's own figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from likelier.losses.declare import hyper, hyper_beta, hyper_smoothing, loss
from likelier.losses.values import MAX_EXPONENT, StepValues, expm1, log_sigmoid, sigma

if TYPE_CHECKING:
    from torch import Tensor


def f_scores(
    values: StepValues, *, divergence: str = "reverse_kl", alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """``f'(policy / reference)`` of chosen and rejected, without constants, which cancel."""
    return (
        _f_score(values.chosen.ratio_P, divergence, alpha),
        _f_score(values.rejected.ratio_P, divergence, alpha),
    )


def _f_score(ratio_P: Tensor, divergence: str, alpha: float) -> Tensor:
    """``f'`` at exp(ratio). Clamped where it grows as an exponential: never inf, never NaN."""
    if divergence == "reverse_kl":
        return ratio_P
    if divergence == "js":
        return log_sigmoid(ratio_P)
    power = 1.0 if divergence == "forward_kl" else alpha
    # (1 - u^-alpha) / alpha; forward KL is alpha = 1 up to a constant, and needs no small alpha.
    return -expm1(-power * ratio_P.clamp(min=-MAX_EXPONENT)) / power


_F_FORMULAS = {
    "forward_kl": "-log sigmoid({beta} * (exp(rr - pr) - exp(rc - pc)))",
    "js": "-log sigmoid({beta} * (log sigmoid(pc - rc) - log sigmoid(pr - rr)))",
    "alpha": "-log sigmoid({beta} * (exp({alpha} * (rr - pr)) - exp({alpha} * (rc - pc))) "
    "/ {alpha})",
}
_F_PAPER = (
    "Wang et al. 2023, Beyond Reverse KL, arXiv 2309.16240: the reward is beta * f'(policy / "
    "reference); f' follows from each divergence's f and agrees with TRL"
)
_F_SCORE = "beta * f'(policy / reference), the divergence's own reward"
_NEARNESS = "what holds the policy near the reference"
_ALPHA = hyper(
    0.5,
    "of the alpha-divergence; near 0 it is reverse KL, 1 is forward KL",
    "0.5",
    gt=0,
    lt=1,
    only_if=("divergence", "alpha"),
)


@loss(
    paper=f"Rafailov et al. 2023, arXiv 2305.18290, equation 7; other divergences: {_F_PAPER}",
    formula="-log sigmoid({beta} * {margin})",
    variants=_F_FORMULAS,
    use="The first choice for clean pairs whose answers lie near what the model writes.",
    trap="Only the difference between the answers is held: both log-probs may fall. Labels without "
    "doubt drive the margin without bound. Other divergences than reverse KL grow as "
    "exp(-log-ratio), so log-ratios are clamped at -30 nats before exp.",
    aliases=("dpo",),
    score=_F_SCORE,
    scores=f_scores,
)
def sigmoid(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    divergence: str = hyper(
        "reverse_kl", _NEARNESS, "reverse_kl", choices=("reverse_kl", *_F_FORMULAS)
    ),
    alpha: float = _ALPHA,
) -> Tensor:
    """DPO; with another divergence than reverse KL, f-DPO."""
    if divergence != "reverse_kl":
        return f_dpo(values, beta=beta, divergence=divergence, alpha=alpha)
    return -log_sigmoid(beta * values.log_ratio_margin_P)


@loss(
    paper=_F_PAPER,
    formula="-log sigmoid({beta} * (s(pc - rc) - s(pr - rr))), s(d) = f'(exp(d)) of the divergence",
    variants=_F_FORMULAS,
    use="More varied answers than DPO leaves; js and alpha lie between reverse and forward KL.",
    trap="forward_kl and alpha grow as exp(-log-ratio), so log-ratios are clamped at -30 nats "
    "before exp. What is alpha here is 1 - alpha in some trainers: both agree at 0.5 alone.",
    score=_F_SCORE,
    scores=f_scores,
)
def f_dpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    divergence: str = hyper("js", _NEARNESS, "js", choices=tuple(_F_FORMULAS)),
    alpha: float = _ALPHA,
) -> Tensor:
    """f-DPO: another divergence than reverse KL; sigmoid with the same divergence is the same."""
    chosen_P, rejected_P = f_scores(values, divergence=divergence, alpha=alpha)
    return -log_sigmoid(beta * (chosen_P - rejected_P))


def smoothed(x_P: Tensor, smoothing: float) -> Tensor:
    """The logistic loss of x, where a share of the labels says the reverse."""
    return -(1 - smoothing) * log_sigmoid(x_P) - smoothing * log_sigmoid(-x_P)


@loss(
    paper="Mitchell 2023, A note on DPO with noisy preferences, main objective",
    formula="-(1 - {smoothing}) * log sigmoid(x) - {smoothing} * log sigmoid(-x), "
    "x = {beta} * {margin}",
    use="Some labels are wrong and a finite target margin is welcome.",
    trap="The gradient is 0 at x = ln((1 - smoothing) / smoothing) and turns round beyond it. It "
    "is not an unbiased estimate of DPO on clean labels: see robust.",
)
def cdpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    smoothing: float = hyper_smoothing(0.1, "0.1 to 0.2"),
) -> Tensor:
    """Conservative DPO: labels are flipped with a known probability."""
    return smoothed(beta * values.log_ratio_margin_P, smoothing)


@loss(
    paper="Chowdhury et al. 2024, Provably Robust DPO, arXiv 2403.00409, main objective",
    formula="(-(1 - {smoothing}) * log sigmoid(x) + {smoothing} * log sigmoid(-x)) "
    "/ (1 - 2 * {smoothing}), x = {beta} * {margin}",
    use="The share of wrong labels is known and the clean optimum is wanted.",
    trap="Its gradient never vanishes and it has no lower bound: stop early and watch the drift.",
)
def robust(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    smoothing: float = hyper_smoothing(0.1, "0.1"),
) -> Tensor:
    """Robust DPO: unbiased under flipped labels."""
    x_P = beta * values.log_ratio_margin_P
    as_labelled_P = -(1 - smoothing) * log_sigmoid(x_P)
    return (as_labelled_P + smoothing * log_sigmoid(-x_P)) / (1 - 2 * smoothing)


@loss(
    paper="Liu et al. 2023, Statistical Rejection Sampling, arXiv 2309.06657, hinge objective",
    formula="max(0, 1 - {beta} * {margin})",
    use="Labels that follow a rule, so that a margin once reached needs no further push.",
    trap="No gradient at all past the margin.",
)
def hinge(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.05, "0.05; 1 / beta is the log-ratio margin that satisfies it"),
) -> Tensor:
    """Hinge on the reward margin (RSO's form of SLiC)."""
    return (1 - beta * values.log_ratio_margin_P).relu()


@loss(
    paper="Ji et al. 2024, Towards Efficient Exact Optimization, arXiv 2402.00856, equation 16",
    formula="q * (log q - log(1 - {smoothing})) + (1 - q) * (log(1 - q) - log {smoothing}), "
    "q = sigmoid({beta} * {margin})",
    use="A policy that should seek one good mode rather than cover all.",
    trap="The gradient vanishes on pairs that are ranked badly wrong.",
    aliases=("exo_pair",),
)
def exo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    smoothing: float = hyper(
        1e-3, "softens the labels; 0 has no finite loss", "0.001", gt=0, lt=0.5
    ),
) -> Tensor:
    """EXO with pairs: reverse KL to the labels."""
    x_P = beta * values.log_ratio_margin_P
    label = x_P.new_tensor(smoothing)
    above_P = log_sigmoid(x_P) - (-label).log1p()
    below_P = log_sigmoid(-x_P) - label.log()
    return sigma(x_P) * above_P + sigma(-x_P) * below_P


@loss(
    paper="Lu et al. 2024, Discovering Preference Optimization Algorithms, arXiv 2406.08414, "
    "equation 5",
    formula="(1 - m) * -log sigmoid(x) + m * exp(-x), m = sigmoid(x / {tau}), "
    "x = {beta} * {margin}",
    use="To reproduce its paper.",
    trap="With tau 0.05 the loss rises with the margin for x from -0.119 to 0.072: a policy that "
    "starts at its reference is first pushed the wrong way.",
)
def discopop(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.05, "0.05"),
    tau: float = hyper(0.05, "how sharply the two parts blend", "0.05", gt=0, le=1),
) -> Tensor:
    """DiscoPOP (log-ratio modulated loss)."""
    x_P = beta * values.log_ratio_margin_P
    # m * exp(-x) with both factors in one exponent: 0 * inf would be NaN.
    exponential_P = (log_sigmoid(x_P / tau) - x_P).exp()
    return -sigma(-x_P / tau) * log_sigmoid(x_P) + exponential_P


def _penalised_ratios(values: StepValues, *, penalty: float) -> tuple[Tensor, Tensor]:
    """The log-ratios, the chosen one less its penalty where it is negative."""
    chosen_P = values.chosen.ratio_P
    return chosen_P - penalty * (-chosen_P).relu(), values.rejected.ratio_P


@loss(
    paper="Pal et al. 2024, Smaug, arXiv 2402.13228, equation 3",
    formula="-log sigmoid({beta} * ({margin} - {penalty} * max(0, rc - pc)))",
    use="Answers that are nearly the same (edits, mathematics), where DPO lets both fall.",
    trap="With penalty 50, one nat that the chosen answer loses weighs as 50 of margin: the scale "
    "of loss and gradient jumps.",
    score="beta * log-ratio, the chosen one less its penalty",
    scores=_penalised_ratios,
)
def dpop(
    values: StepValues,
    *,
    beta: float = hyper_beta(0.3, "0.3 in the paper"),
    penalty: float = hyper(
        50.0, "lambda: weight of a fall of the chosen answer", "5 to 50", ge=0, le=10_000
    ),
) -> Tensor:
    """DPO-positive (Smaug)."""
    chosen_P, rejected_P = _penalised_ratios(values, penalty=penalty)
    return -log_sigmoid(beta * (chosen_P - rejected_P))


@loss(
    paper="Park et al. 2024, Disentangling Length from Quality, arXiv 2403.19159, equation 9",
    formula="-log sigmoid({beta} * {margin} + {alpha} * (nc - nr))",
    needs=("reference", "lengths"),
    use="Answers grow longer without growing better.",
    trap="alpha counts tokens: 50 tokens of difference at 0.01 are half a nat of margin. Some code "
    "has the other sign.",
)
def rdpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    alpha: float = hyper(0.01, "reward per token of length", "0.01; 0.05 to 1 in use", ge=0, le=10),
) -> Tensor:
    """R-DPO: length taken out of quality."""
    longer_P = values.chosen.tokens_P - values.rejected.tokens_P
    return -log_sigmoid(beta * values.log_ratio_margin_P + alpha * longer_P)


@loss(
    paper="Amini et al. 2024, Direct Preference Optimization with an Offset, arXiv 2402.10571, "
    "main objective",
    formula="-log sigmoid({beta} * {margin} - {alpha} * margin)",
    needs=("reference", "margin"),
    use="Every pair has a rating of how much better the chosen answer is.",
    trap="The column holds the margin itself: apply log, or what is wanted, to the gap of the "
    "scores before, and keep it finite.",
)
def odpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    alpha: float = hyper(1.0, "scale of the margin column", "1", ge=0, le=100),
) -> Tensor:
    """DPO with an offset per pair."""
    if values.margin_P is None:
        raise ValueError("odpo needs a margin for every pair")
    return -log_sigmoid(beta * values.log_ratio_margin_P - alpha * values.margin_P)


def _shifted_ratios(values: StepValues, *, alpha: float) -> tuple[Tensor, Tensor]:
    """The log-ratios, the rejected one times alpha."""
    return values.chosen.ratio_P, alpha * values.rejected.ratio_P


@loss(
    paper="Yang et al. 2025, DPO-Shift, arXiv 2502.07599, main objective",
    formula="-log sigmoid({beta} * ((pc - rc) - {alpha} * (pr - rr)))",
    use="The chosen answers fall; a smaller margin is an acceptable price.",
    trap="Below 1 the prompt's normaliser no longer cancels, so there is no closed-form optimum.",
    score="beta * log-ratio, the rejected one times alpha",
    scores=_shifted_ratios,
)
def dpo_shift(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    alpha: float = hyper(
        0.95, "f(lambda): weight of the rejected answer", "0.95 or 0.75", gt=0, le=1
    ),
) -> Tensor:
    """DPO-Shift: the rejected answer weighs less."""
    chosen_P, rejected_P = _shifted_ratios(values, alpha=alpha)
    return -log_sigmoid(beta * (chosen_P - rejected_P))


def _chi_scores(values: StepValues) -> tuple[Tensor, Tensor]:
    """``phi(d) = d + exp(d)`` of both log-ratios, the exponent clamped."""
    chosen_P, rejected_P = values.chosen.ratio_P, values.rejected.ratio_P
    return (
        chosen_P + chosen_P.clamp(max=MAX_EXPONENT).exp(),
        rejected_P + rejected_P.clamp(max=MAX_EXPONENT).exp(),
    )


@loss(
    paper="Huang et al. 2024, Correcting the Mythos of KL-Regularization, arXiv 2407.13399, "
    "main objective",
    formula="-log sigmoid(clip(±2 * {bound}; {beta} * (phi(pc - rc) - phi(pr - rr)))), "
    "phi(d) = d + exp(d)",
    use="Data that covers little: this loss distrusts what is far from the reference.",
    trap="Outside the clip there is no gradient, on either side. exp is clamped at 30 nats.",
    score="beta * (log-ratio + exp(log-ratio))",
    scores=_chi_scores,
)
def chi_po(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    bound: float = hyper(
        5.0,
        "R_max: the largest reward that is believed",
        "the reward's range; 5 keeps x within 10",
        gt=0,
        le=10_000,
    ),
) -> Tensor:
    """Chi-squared preference optimization."""
    chosen_P, rejected_P = _chi_scores(values)
    x_P = beta * (chosen_P - rejected_P)
    return -log_sigmoid(x_P.clamp(-2 * bound, 2 * bound))


@loss(
    paper="Liu et al. 2025, FocalPO, arXiv 2501.06645: misranked pairs weigh less, as its abstract "
    "says; the factor p^gamma is oxRL's, not compared with the paper's equations",
    formula="-p^{gamma} * log p, p = sigmoid({beta} * {margin})",
    use="Pairs that the model ranks wrongly are mostly noise, or beyond what it can learn.",
    trap="The slope turns round where p is under exp(-1 / gamma): such pairs are pushed further "
    "the wrong way. That is a reward margin of -20 at gamma 0.05, and of -0.54 at 1.",
)
def focalpo(
    values: StepValues,
    *,
    beta: float = hyper_beta(),
    gamma: float = hyper(
        0.05,
        "how much less a misranked pair weighs; 0 is DPO",
        "0.05, not compared with the paper's value",
        ge=0,
        le=10,
    ),
) -> Tensor:
    """FocalPO: pairs that are ranked rightly weigh more."""
    log_p_P = log_sigmoid(beta * values.log_ratio_margin_P)
    # Focal loss has the power of 1 - p: here it is turned round, and misranked pairs weigh less.
    return -(gamma * log_p_P).exp() * log_p_P
