"""Held-out figures: the same scoring on pairs that no step sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from likelier.data.records import TokenPair
from likelier.evaluation.intervals import wilson
from likelier.evaluation.metrics import hits, metrics
from likelier.losses.registry import BoundLoss
from likelier.model.score import Ready
from likelier.model.scorer import Scorer
from likelier.reference.column import Reference
from likelier.training.step import PairPass, PairValues, cut_passes, step_values


@dataclass(frozen=True)
class HeldOut:
    """Pairs set aside, cut into passes once."""

    pairs: tuple[TokenPair, ...]
    passes: tuple[PairPass, ...]

    @classmethod
    def of(
        cls,
        pairs: Sequence[TokenPair],
        column: Reference,
        ready: Ready,
        budget: int,
        tokens: Mapping[str, Any] | None = None,
    ) -> "HeldOut | None":
        """Pairs cut into passes for a model; None where there are no pairs."""
        if not pairs:
            return None
        passes = cut_passes(pairs, column, ready.backend, budget, ready.policy.device, tokens)
        return cls(tuple(pairs), tuple(passes))

    def evaluate(self, scorer: Scorer, loss: BoundLoss) -> dict[str, float]:
        """The metrics of all pairs, prefixed ``eval_``, with a 95 % interval of the accuracy.

        Means run over pairs, never over batches. No gradient, nothing of the training changes.
        """
        values = step_values(scorer, self.passes, loss)
        low, high = accuracy_interval(self.pairs, values, loss.beta)
        row = {f"eval_{name}": value for name, value in metrics(values, loss.beta).items()}
        row["eval_rewards/accuracies_low"], row["eval_rewards/accuracies_high"] = low, high
        row["eval_pairs"] = len(self.pairs)
        return row


def accuracy_interval(
    pairs: Sequence[TokenPair], values: PairValues, beta: float
) -> tuple[float, float]:
    """95 % interval of the accuracy. Pairs of one prompt hang together: prompts are the trials."""
    prompts = {pair.prompt for pair in pairs}
    return wilson(float(hits(values, beta).mean()), len(prompts))
