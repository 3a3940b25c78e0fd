"""The pairs of a step cut into passes, with all that the loss reads of them but the policy.

Axis letters: E entries of a pass, K scored tokens, R answers of a pass or step, P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from likelier.batching.layout import Pass, Scored, answers_of
from likelier.batching.pack import layout, pack
from likelier.data.encode import content_hash
from likelier.data.records import TokenPair
from likelier.losses.modifiers import Weights, token_weights
from likelier.losses.values import StepValues
from likelier.reference.column import Reference

Weighted = tuple[Scored, Weights | None]  # an answer, and what its scored tokens count
COLUMNS = ("margin", "weight", "label")


@dataclass(frozen=True)
class PairPass:
    """Some pairs of a step in one pass.

    ``reference_R`` summed log-probs (float64); ``chosen_P`` and ``rejected_P`` index the answers
    of the pass; ``place_P`` is each pair's place in the step. ``columns`` are those of `COLUMNS`
    that the data brings, shape (P,). ``token_K`` is what each scored token counts, None where all
    count alike. ``mean_tokens`` is the mean length of the chosen answers of the whole step.
    """

    batch: Pass
    reference_R: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    place_P: Tensor
    columns: Mapping[str, Tensor]
    token_K: Tensor | None
    mean_tokens: float

    @property
    def length_R(self) -> Tensor:
        """How many tokens each answer counts as."""
        if self.token_K is None:
            return self.batch.length_R
        return self._summed(self.token_K)

    def answer_logps(self, logp_E: Tensor) -> Tensor:
        """Log-prob of each answer in nats, shape (R,), summed in float64."""
        if self.token_K is None:
            return self.batch.answer_logps(logp_E)
        return self._summed(self.token_K * logp_E.double()[self.batch.entry_K])

    def entry_gradients(self, grad_R: Tensor) -> Tensor:
        """The gradient of every entry, shape (E,), from that of every answer's log-prob."""
        if self.token_K is None:
            return self.batch.entry_gradients(grad_R)
        grad_K = grad_R.double()[self.batch.answer_K] * self.token_K
        total_E = grad_K.new_zeros(len(self.batch.row_E))
        return total_E.index_add(0, self.batch.entry_K, grad_K)

    def mean_over_tokens(self, value_K: Tensor) -> Tensor:
        """The mean over each answer's scored tokens, shape (R,)."""
        return self._summed(value_K) / self.batch.length_R

    def _summed(self, value_K: Tensor) -> Tensor:
        total_R = value_K.new_zeros(len(self.batch.length_R), dtype=torch.float64)
        return total_R.index_add(0, self.batch.answer_K, value_K.double())

    def values(self, policy_R: Tensor, wpo_log_weight_R: Tensor | None = None) -> StepValues:
        """What the loss reads, for the policy's log-probs of the answers of this pass."""
        return StepValues(
            policy_R,
            self.reference_R,
            self.length_R,
            self.chosen_P,
            self.rejected_P,
            wpo_log_weight_R=wpo_log_weight_R,
            mean_tokens=self.mean_tokens,
            **{f"{name}_P": column for name, column in self.columns.items()},
        )


def cut_passes(
    pairs: Sequence[TokenPair],
    column: Reference,
    backend: str,
    budget: int,
    device: torch.device | str = "cpu",
    tokens: Mapping[str, Any] | None = None,
) -> list[PairPass]:
    """Cut the pairs of a step into passes of at most ``budget`` tokens; a pair is never cut.

    ``tokens`` is the rule by which tokens count, None where all count alike.
    """
    units = [answers_of(pair) for pair in pairs]
    mean_tokens = sum(chosen.num_scored for chosen, _ in units) / max(1, len(units))
    passes = []
    for places in pack(units, budget, backend):
        some = [pairs[place] for place in places]
        answers = [_weighted(pairs[place], units[place], tokens) for place in places]
        passes.append(_pair_pass(places, some, answers, column, backend, device, mean_tokens))
    return passes


def _weighted(
    pair: TokenPair, unit: tuple[Scored, Scored], rule: Mapping[str, Any] | None
) -> tuple[Weighted, Weighted]:
    if rule is None:
        return (unit[0], None), (unit[1], None)
    key = f"{rule.get('seed', 0)}/{content_hash([pair])}".encode()
    first, second = token_weights(rule, unit[0].num_scored, unit[1].num_scored, key)
    return (unit[0], first), (unit[1], second)


def _pair_pass(
    places: Sequence[int],
    pairs: Sequence[TokenPair],
    units: Sequence[tuple[Weighted, Weighted]],
    column: Reference,
    backend: str,
    device: torch.device | str,
    mean_tokens: float,
) -> PairPass:
    number: dict[Weighted, int] = {}  # answers that several pairs share stand once
    for unit in units:
        for answer in unit:
            number.setdefault(answer, len(number))
    reference = [column.answer_logp(sequence, weights) for sequence, weights in number]
    weights = [w for _, own in number for w in own or ()]
    return PairPass(
        layout(backend)([sequence for sequence, _ in number]).to(device),
        torch.tensor(reference, dtype=torch.float64, device=device),
        torch.tensor([number[chosen] for chosen, _ in units], device=device),
        torch.tensor([number[rejected] for _, rejected in units], device=device),
        torch.tensor(places),
        {
            name: torch.tensor(
                [getattr(pair, name) for pair in pairs], dtype=torch.float64, device=device
            )
            for name in COLUMNS
            if getattr(pairs[0], name) is not None
        },
        torch.tensor(weights, dtype=torch.float64, device=device) if weights else None,
        mean_tokens,
    )


def joined(
    passes: Sequence[PairPass],
    policy: Sequence[Tensor],
    wpo_log_weight: Sequence[Tensor | None] = (),
) -> StepValues:
    """The answers of several passes as one step's."""
    starts = [0]
    for item in passes:
        starts.append(starts[-1] + len(item.reference_R))
    sure = [value for value in wpo_log_weight if value is not None]
    return StepValues(
        torch.cat(list(policy)),
        torch.cat([item.reference_R for item in passes]),
        torch.cat([item.length_R for item in passes]),
        torch.cat([item.chosen_P + at for item, at in zip(passes, starts, strict=False)]),
        torch.cat([item.rejected_P + at for item, at in zip(passes, starts, strict=False)]),
        wpo_log_weight_R=torch.cat(sure) if sure else None,
        mean_tokens=passes[0].mean_tokens,
        **{
            f"{name}_P": torch.cat([item.columns[name] for item in passes])
            for name in passes[0].columns
        },
    )
