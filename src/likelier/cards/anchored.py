"""Cards of losses that hold each answer's reward on its own, and of squared ones."""

from likelier.cards.card import Card, Parameter, beta
from likelier.cards.margins import RATIO

_TAU = Parameter("tau", 0.1, "strength of the regulariser; the target margin is 1 / (2 tau)",
                 "0.01, 0.1, 0.5 or 1", 0, 100)  # fmt: skip

ANCHORED = (
    Card(
        "ipo_sum",
        "IPO over summed log-probs, as the paper writes it",
        "Azar et al. 2023, A General Theoretical Paradigm, arXiv 2310.12036, equation 17",
        f"({RATIO} - 1 / (2 * {{tau}}))^2",
        ("reference",),
        (_TAU,),
        "Labels without doubt (a rule, a checker), where DPO would run away.",
        "tau means nats per answer here and nats per token in ipo_mean: never carry it over. Loss "
        "values are large: clip gradients.",
        reward="tau",
        score="log-ratio",
    ),
    Card(
        "ipo_mean",
        "IPO over per-token means, as most trainers run it",
        "Azar et al. 2023, arXiv 2310.12036, equation 17, with each log-ratio divided by the "
        "answer's length",
        "((pc - rc) / nc - (pr - rr) / nr - 1 / (2 * {tau}))^2",
        ("reference", "lengths"),
        (_TAU,),
        "As ipo_sum, where lengths differ much.",
        "At tau 0.1 the target is 5 nats per token, which is out of reach: it then pushes without "
        "end. Larger tau gives a target that can be met.",
        reward="tau",
        score="log-ratio per token",
    ),
    Card(
        "sppo",
        "SPPO with hard labels",
        "Wu et al. 2024, Self-Play Preference Optimization, arXiv 2405.00675, practical objective",
        "(pc - rc - 1 / (2 * {beta}))^2 + (pr - rr + 1 / (2 * {beta}))^2",
        ("reference",),
        (beta(0.001, "0.001: targets of +500 and -500 nats"),),
        "Pairs from the policy's own samples.",
        "Loss values are huge at small beta: clip gradients and compare no losses.",
        ("sppo_hard",),
        score="log-ratio",
    ),
    Card(
        "cal_dpo",
        "Cal-DPO: rewards calibrated on an absolute scale",
        "Xiao et al. 2024, Cal-DPO, arXiv 2412.14516, main objective",
        f"-log sigmoid({RATIO}) + (pc - rc - 1 / (2 * {{beta}}))^2 "
        "+ (pr - rr + 1 / (2 * {beta}))^2",
        ("reference",),
        (beta(0.1, "0.1; smaller holds less"),),
        "The chosen answers fall under DPO.",
        "beta does not stand in the logistic term. The authors' code halves the squares.",
        score="log-ratio",
    ),
    Card(
        "nca",
        "Noise contrastive alignment with pairs",
        "Chen et al. 2024, Noise Contrastive Alignment, arXiv 2402.05369, two answers a prompt",
        "-log sigmoid(c) - log sigmoid(-c) / 2 - log sigmoid(-r) / 2, "
        "c = {beta} * (pc - rc), r = {beta} * (pr - rr)",
        ("reference",),
        (beta(0.01, "0.01"),),
        "The chosen answers fall under DPO and must not.",
        "It pulls the chosen reward towards ln 2 and no further.",
        ("nca_pair",),
    ),
    Card(
        "bco",
        "Binary classifier optimization with pairs",
        "Jung et al. 2024, Binary Classifier Optimization, arXiv 2404.04656, main objective",
        "-log sigmoid({beta} * (pc - rc) - {delta}) - log sigmoid({delta} - {beta} * (pr - rr))",
        ("reference", "whole step"),
        (
            beta(0.01, "0.01"),
            Parameter(
                "delta",
                "running",
                "the reward shift: the running mean of all rewards of the run, or a number",
                "running",
                -1e4,
                1e4,
                "[]",
            ),
        ),
        "As nca; also where pairs are really two independent thumbs.",
        "delta is state of the run: it is in the checkpoints, and a plain call takes 0 for it.",
        ("bco_pair",),
    ),
    Card(
        "apo_zero",
        "Anchored preference optimization, chosen up",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7",
        "1 - sigmoid({beta} * (pc - rc)) + sigmoid({beta} * (pr - rr))",
        ("reference",),
        (beta(),),
        "The chosen answers are better than what the model writes.",
        "The gradient dies where a reward is large, on the wrong side too.",
    ),
    Card(
        "apo_down",
        "Anchored preference optimization, both down",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8",
        f"sigmoid({{beta}} * (pc - rc)) + 1 - sigmoid({{beta}} * {RATIO})",
        ("reference",),
        (beta(),),
        "The model already writes better than the chosen answers.",
        "It lowers the chosen answer by design.",
    ),
)
