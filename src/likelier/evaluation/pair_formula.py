"""The formula of a loss with the numbers of one pair put in."""

import re
from typing import Any

from likelier.losses.registry import BoundLoss
from likelier.losses.values import StepValues

_PAIRED = re.compile(r"\b(pc|pr|rc|rr|nc|nr|margin|weight)\b")
_UNPAIRED = re.compile(r"\b(p|r)\b")


def pair_formula(loss: BoundLoss, values: StepValues) -> dict[str, Any]:
    """The formula of a loss for the first pair of ``values``, as plain data.

    ``formula`` holds the run's hyper-parameters, ``with_numbers`` the pair's figures as well: log-
    probs in nats, lengths in tokens. ``is_logistic``: the loss is ``-log sigmoid`` of the reward
    margin and nothing else. ``score`` says in words what the loss optimises where that is no
    reward, and ``scores`` are that of both completions. ``needs_whole_step``: in a step of several
    pairs the loss of this one depends on the others.
    """
    chosen, rejected = values.chosen, values.rejected
    figures = {
        "pc": chosen.policy_P, "rc": chosen.reference_P, "nc": chosen.tokens_P,
        "pr": rejected.policy_P, "rr": rejected.reference_P, "nr": rejected.tokens_P,
        "p": chosen.policy_P, "r": chosen.reference_P,
        "margin": values.margin_P, "weight": values.weight_P,
    }  # fmt: skip
    numbers = {name: float(column[0]) for name, column in figures.items() if column is not None}

    def number(match: re.Match[str]) -> str:
        value = numbers.get(match[0])
        if value is None:
            return match[0]
        written = f"{value:g}" if match[0] in ("nc", "nr") else f"{value:.4f}"
        return f"({written})" if value < 0 else written

    names = _UNPAIRED if values.label_P is not None else _PAIRED
    own = loss.losses[0] if len(loss.losses) == 1 else None
    plain = own is not None and loss.formula == own.objective(loss.fixed)
    scores = None
    if values.score_chosen_P is not None and values.score_rejected_P is not None:
        scores = [float(values.score_chosen_P[0]), float(values.score_rejected_P[0])]
    return {
        "name": loss.name,
        "formula": loss.formula,
        "with_numbers": names.sub(number, loss.formula),
        "is_logistic": plain and loss.name == "sigmoid" and scores is None,
        "score": own.score if own is not None and scores is not None else None,
        "scores": scores,
        "needs_whole_step": loss.needs_whole_step or "NLL(token)" in loss.formula,
    }
