"""Cards of losses in which the answers of a step meet: transport, and thumbs without pairs."""

from likelier.cards.card import Card, Parameter, beta

_SMOOTH = Parameter("smoothing", 0.0, "the share of pairs whose labels are flipped", "0",
                    0, 0.5, "[)")  # fmt: skip
_WEIGHTS = (
    Parameter("desirable", 1.0, "weight of answers with thumbs up", "so that desirable * ups is 1 "
              "to 4/3 of undesirable * downs", 0, 100),
    Parameter("undesirable", 1.0, "weight of answers with thumbs down", "see desirable", 0, 100),
)  # fmt: skip

COUPLED = (
    Card(
        "aot",
        "Alignment by optimal transport, paired",
        "Melnyk et al. 2024, Distributional Alignment, arXiv 2406.05882, paired objective",
        "-log sigmoid({beta} * (sorted(pc - pr) - sorted(rc - rr))), with labels smoothed by "
        "{smoothing}",
        ("reference", "whole step"),
        (beta(0.01, "0.01"), _SMOOTH),
        "The distribution of margins matters more than each pair.",
        "Answers are sorted over the whole step, so train.pairs_per_step is part of the loss. With "
        "one pair a step it is DPO.",
        ("aot_pair",),
    ),
    Card(
        "aot_unpaired",
        "Alignment by optimal transport, unpaired",
        "Melnyk et al. 2024, arXiv 2406.05882, unpaired objective",
        "-log sigmoid({beta} * (sorted(pc - rc) - sorted(pr - rr))), with labels smoothed by "
        "{smoothing}",
        ("reference", "whole step"),
        (beta(0.01, "0.01"), _SMOOTH),
        "Chosen and rejected answers that do not belong together.",
        "As aot. Some versions of other trainers called this one aot_pair.",
    ),
    Card(
        "kto",
        "KTO",
        "Ethayarajh et al. 2024, KTO, arXiv 2402.01306, main objective",
        "{desirable} * (1 - sigmoid({beta} * (p - r - z0))) for thumbs up, "
        "{undesirable} * (1 - sigmoid({beta} * (z0 - p + r))) for thumbs down, "
        "z0 = max(0, mean log-ratio of mismatched answers)",
        ("reference", "label", "mismatched", "whole step"),
        (beta(), *_WEIGHTS),
        "Single answers with a thumb, no pairs.",
        "z0 is a mean over the step: use 16 rows a step or more. A mismatched answer is one "
        "of another prompt, drawn once from the seed and the data.",
        paired=False,
    ),
    Card(
        "bco_unpaired",
        "Binary classifier optimization of single answers",
        "Jung et al. 2024, arXiv 2404.04656, main objective, one answer at a time",
        "-log sigmoid({beta} * (p - r) - {delta}) for thumbs up, "
        "-log sigmoid({delta} - {beta} * (p - r)) for thumbs down",
        ("reference", "label", "whole step"),
        (
            beta(0.01, "0.01"),
            Parameter(
                "delta",
                "running",
                "the reward shift: the running mean of the run, or a number",
                "running",
                -1e4,
                1e4,
                "[]",
            ),
        ),
        "Single answers with a thumb; simpler than KTO.",
        "The paper's density-ratio weight for prompts that differ between the two thumbs is not "
        "applied.",
        paired=False,
    ),
    Card(
        "apo_zero_unpaired",
        "APO-zero of single answers",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, one answer at a time",
        "1 - sigmoid({beta} * (p - r)) for thumbs up, sigmoid({beta} * (p - r)) for thumbs down",
        ("reference", "label"),
        (beta(),),
        "Single answers with a thumb, the good ones better than what the model writes.",
        "The gradient dies where a reward is large.",
        paired=False,
    ),
)
