"""Cards of losses over per-token means, and of those without a reference."""

from likelier.cards.card import Card, Parameter, beta

_GAMMA = Parameter("gamma", 1.25, "target margin: gamma itself, not gamma / beta",
                   "half of beta", 0, 100, "[]")  # fmt: skip

LENGTHS = (
    Card(
        "sigmoid_mean",
        "Length-normalised DPO",
        "Lambert et al. 2024, Tülu 3, arXiv 2411.15124, equation 6",
        "-log sigmoid({beta} * ((pc - rc) / nc - (pr - rr) / nr))",
        ("reference", "lengths"),
        (beta(5.0, "5"),),
        "Answers grow longer under DPO; the recipe of Tülu 3 and OLMo.",
        "It has no closed-form optimum near the reference: learning rate and data size are what "
        "holds it. beta is per token, fifty times that of sigmoid.",
        ("sigmoid_norm", "dpo_norm"),
        score="beta * log-ratio per token",
    ),
    Card(
        "simpo",
        "SimPO",
        "Meng et al. 2024, SimPO, arXiv 2405.14734, equation 6",
        "-log sigmoid({beta} * (pc / nc - pr / nr) - {gamma})",
        ("lengths",),
        (beta(2.5, "2 to 2.5; up to 10"), _GAMMA),
        "No reference is wanted.",
        "Nothing holds the policy but the learning rate: 1e-5 ruins a model that 5e-7 improves. "
        "gamma is not gamma / beta: a mistake here is a factor of beta.",
        score="beta * log-prob per token",
    ),
    Card(
        "alphapo",
        "AlphaPO: SimPO with a shaped reward",
        "Gupta et al. 2025, AlphaPO, arXiv 2501.03884, main objective",
        "-log sigmoid({beta} * (s(pc / nc) - s(pr / nr)) - {gamma}), "
        "s(a) = (1 - exp(-{alpha} * a)) / {alpha}",
        ("lengths",),
        (
            beta(2.5, "2.5"),
            _GAMMA,
            Parameter(
                "alpha", 0.25, "shape of the reward; 0 is SimPO", "0.1 to 0.25", -10, 10, "[]"
            ),
        ),
        "SimPO lets the chosen answers fall too far.",
        "exp grows with falling log-probs; its exponent is clamped at 30.",
        score="beta * s(log-prob per token)",
    ),
    Card(
        "simper",
        "SimPER: inverse perplexities",
        "Xiao et al. 2025, SimPER, arXiv 2502.00883, main objective",
        "-exp(pc / nc) + exp(pr / nr)",
        ("lengths",),
        (),
        "No hyper-parameter is wanted.",
        "The gradient is tiny where perplexity is high, as for answers of another model.",
        reward=None,
        score="inverse perplexity",
    ),
    Card(
        "orpo",
        "ORPO",
        "Hong et al. 2024, ORPO, arXiv 2403.07691, equation 6",
        "-pc / nc - {beta} * log sigmoid(o(pc / nc) - o(pr / nr)), o(a) = a - log(1 - exp(a))",
        ("lengths",),
        (beta(0.1, "0.1; the paper's lambda"),),
        "One stage from a base model: supervised and preference training at once.",
        "The likelihood is the answer's alone; some code counts the prompt too.",
        score="log odds of the mean token",
    ),
    Card(
        "cpo",
        "Contrastive preference optimization",
        "Xu et al. 2024, Contrastive Preference Optimization, arXiv 2401.08417, main objective",
        "-log sigmoid({beta} * (pc - pr)) - {alpha} * pc",
        (),
        (
            beta(),
            Parameter(
                "alpha",
                1.0,
                "weight of the chosen answer's negative log-likelihood",
                "1, or 1 / (mean length) for the mean that most code takes",
                0,
                100,
                "[]",
            ),
        ),
        "Translation, as in its paper.",
        "The paper sums the likelihood over tokens; code often takes the mean, which weighs far "
        "less. Sums without a reference favour short answers.",
        score="beta * log-prob",
    ),
    Card(
        "slic",
        "SLiC-HF",
        "Zhao et al. 2023, SLiC-HF, arXiv 2305.10425, calibration with a likelihood regulariser",
        "max(0, {delta} - pc + pr) - {alpha} * pc",
        (),
        (
            Parameter("delta", 1.0, "margin in nats", "0.1, 0.5, 1 or 2", 0, 1e4, "[]"),
            Parameter(
                "alpha",
                0.1,
                "lambda: weight of the chosen answer's negative log-likelihood",
                "0.1, 0.5, 1 or 10",
                0,
                100,
                "[]",
            ),
        ),
        "To reproduce its paper.",
        "The regulariser takes the chosen answer for the target text, as most code does.",
        reward=None,
        score="log-prob",
    ),
)
