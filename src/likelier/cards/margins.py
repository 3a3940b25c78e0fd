"""Cards of losses that look at the log-ratio margin of a pair."""

from likelier.cards.card import Card, Parameter, beta

RATIO = "((pc - rc) - (pr - rr))"  # the log-ratio margin in the formulas
_FLIPS = "the share of pairs whose labels are flipped"

MARGINS = (
    Card(
        "sigmoid",
        "DPO; with another divergence than reverse KL, f-DPO",
        "Rafailov et al. 2023, arXiv 2305.18290, equation 7; divergences: Wang et al. 2023, "
        "arXiv 2309.16240, main objective",
        f"-log sigmoid({{beta}} * {RATIO})",
        ("reference",),
        (
            beta(),
            Parameter(
                "divergence",
                "reverse_kl",
                "what holds the policy near the reference",
                "reverse_kl",
                choices=("reverse_kl", "forward_kl", "js", "alpha"),
            ),
            Parameter(
                "alpha",
                0.5,
                "of the alpha-divergence; near 0 it is reverse KL, 1 is forward KL",
                "0.5",
                0,
                1,
                "()",
            ),
        ),
        "The first choice for clean pairs whose answers lie near what the model writes.",
        "Only the difference of the two answers is held: both log-probs may fall. Pairs without "
        "doubt drive the margin without bound. Other divergences than reverse KL grow as "
        "exp(-log-ratio), so log-ratios are clamped at -30 nats before exp.",
        ("dpo", "f_dpo"),
        score="beta * f'(policy / reference), the divergence's own reward",
        variants=(
            ("forward_kl", "-log sigmoid({beta} * (exp(rr - pr) - exp(rc - pc)))"),
            (
                "js",
                "-log sigmoid({beta} * (log sigmoid(pc - rc) - log sigmoid(pr - rr)))",
            ),
            (
                "alpha",
                "-log sigmoid({beta} * (exp({alpha} * (rr - pr)) - exp({alpha} * (rc - pc))) "
                "/ {alpha})",
            ),
        ),
    ),
    Card(
        "cdpo",
        "Conservative DPO: labels are flipped with a known probability",
        "Mitchell 2023, A note on DPO with noisy preferences, main objective",
        f"-(1 - {{smoothing}}) * log sigmoid(x) - {{smoothing}} * log sigmoid(-x), "
        f"x = {{beta}} * {RATIO}",
        ("reference",),
        (beta(), Parameter("smoothing", 0.1, _FLIPS, "0.1 to 0.2", 0, 0.5, "[)")),
        "Some labels are wrong and a finite target margin is welcome.",
        "The gradient is 0 at x = ln((1 - smoothing) / smoothing) and turns round beyond it. It "
        "is not an unbiased estimate of DPO on clean labels: see robust.",
    ),
    Card(
        "robust",
        "Robust DPO: unbiased under flipped labels",
        "Chowdhury et al. 2024, Provably Robust DPO, arXiv 2403.00409, main objective",
        f"(-(1 - {{smoothing}}) * log sigmoid(x) + {{smoothing}} * log sigmoid(-x)) "
        f"/ (1 - 2 * {{smoothing}}), x = {{beta}} * {RATIO}",
        ("reference",),
        (beta(), Parameter("smoothing", 0.1, _FLIPS, "0.1", 0, 0.5, "[)")),
        "The share of wrong labels is known and the clean optimum is wanted.",
        "Its gradient never ends and the loss has no lower bound: stop early and watch the drift.",
    ),
    Card(
        "hinge",
        "Hinge on the reward margin (RSO's form of SLiC)",
        "Liu et al. 2023, Statistical Rejection Sampling, arXiv 2309.06657, hinge objective",
        f"max(0, 1 - {{beta}} * {RATIO})",
        ("reference",),
        (beta(0.05, "0.05; 1 / beta is the log-ratio margin that satisfies it"),),
        "Labels that follow a rule, so that a margin once reached needs no further push.",
        "No gradient at all past the margin.",
    ),
    Card(
        "exo",
        "EXO with pairs: reverse KL to the labels",
        "Ji et al. 2024, Towards Efficient Exact Optimization, arXiv 2402.00856, equation 16",
        "q * (log q - log(1 - {smoothing})) + (1 - q) * (log(1 - q) - log {smoothing}), "
        f"q = sigmoid({{beta}} * {RATIO})",
        ("reference",),
        (
            beta(),
            Parameter(
                "smoothing", 1e-3, "softens the labels; 0 has no finite loss", "0.001", 0, 0.5, "()"
            ),
        ),
        "A policy that should seek one good mode rather than cover all.",
        "The gradient vanishes on pairs that are ranked badly wrong.",
        ("exo_pair",),
    ),
    Card(
        "discopop",
        "DiscoPOP (log-ratio modulated loss)",
        "Lu et al. 2024, Discovering Preference Optimization Algorithms, arXiv 2406.08414, "
        "equation 5",
        "(1 - m) * -log sigmoid(x) + m * exp(-x), m = sigmoid(x / {tau}), "
        f"x = {{beta}} * {RATIO}",
        ("reference",),
        (
            beta(0.05, "0.05"),
            Parameter("tau", 0.05, "how sharply the two parts blend", "0.05", 0, 1, "(]"),
        ),
        "To reproduce its paper.",
        "With tau 0.05 the loss rises with the margin for x from -0.119 to 0.072: a policy that "
        "starts at its reference is first pushed the wrong way.",
    ),
    Card(
        "dpop",
        "DPO-positive (Smaug)",
        "Pal et al. 2024, Smaug, arXiv 2402.13228, equation 3",
        f"-log sigmoid({{beta}} * ({RATIO} - {{penalty}} * max(0, rc - pc)))",
        ("reference",),
        (
            beta(0.3, "0.3 in the paper"),
            Parameter(
                "penalty",
                50.0,
                "lambda: weight of a fall of the chosen answer",
                "5 to 50",
                0,
                1e4,
                "[]",
            ),
        ),
        "Answers that are nearly the same (edits, mathematics), where DPO lets both fall.",
        "With penalty 50, one nat that the chosen answer loses weighs as 50 of margin: the scale "
        "of loss and gradient jumps.",
        score="beta * log-ratio, the chosen one less its penalty",
    ),
    Card(
        "rdpo",
        "R-DPO: length taken out of quality",
        "Park et al. 2024, Disentangling Length from Quality, arXiv 2403.19159, equation 9",
        f"-log sigmoid({{beta}} * {RATIO} + {{alpha}} * (nc - nr))",
        ("reference", "lengths"),
        (
            beta(),
            Parameter(
                "alpha", 0.01, "reward per token of length", "0.01; 0.05 to 1 in use", 0, 10, "[]"
            ),
        ),
        "Answers grow longer without growing better.",
        "alpha counts tokens: 50 tokens of difference at 0.01 are half a nat of margin. Some code "
        "has the other sign.",
    ),
    Card(
        "odpo",
        "DPO with an offset per pair",
        "Amini et al. 2024, Direct Preference Optimization with an Offset, arXiv 2402.10571, "
        "main objective",
        f"-log sigmoid({{beta}} * {RATIO} - {{alpha}} * margin)",
        ("reference", "margin"),
        (beta(), Parameter("alpha", 1.0, "scale of the margin column", "1", 0, 100, "[]")),
        "Every pair has a rating of how much better the chosen answer is.",
        "margin is already f(score gap): give log or the plain gap in the column, never infinite.",
    ),
    Card(
        "dpo_shift",
        "DPO-Shift: the rejected answer weighs less",
        "Yang et al. 2025, DPO-Shift, arXiv 2502.07599, main objective",
        "-log sigmoid({beta} * ((pc - rc) - {alpha} * (pr - rr)))",
        ("reference",),
        (
            beta(),
            Parameter(
                "alpha",
                0.95,
                "f(lambda): weight of the rejected answer",
                "0.95 or 0.75",
                0,
                1,
                "(]",
            ),
        ),
        "The chosen answers fall; a smaller margin is an acceptable price.",
        "Below 1 the prompt's normaliser no longer cancels, so there is no closed-form optimum.",
        score="beta * log-ratio, the rejected one times alpha",
    ),
    Card(
        "chi_po",
        "Chi-squared preference optimization",
        "Huang et al. 2024, Correcting the Mythos of KL-Regularization, arXiv 2407.13399, "
        "main objective",
        "-log sigmoid(clip(±2 * {bound}; {beta} * (phi(pc - rc) - phi(pr - rr)))), "
        "phi(d) = d + exp(d)",
        ("reference",),
        (
            beta(),
            Parameter(
                "bound",
                5.0,
                "R_max: the largest reward that is believed",
                "the reward's range; 5 keeps x within 10",
                0,
                1e4,
                "(]",
            ),
        ),
        "Data that covers little: it doubts what is far from the reference.",
        "Outside the clip there is no gradient, on either side. exp is clamped at 30 nats.",
        score="beta * (log-ratio + exp(log-ratio))",
    ),
)
