"""Pairs cut into batches, with everything that a loss reads but the policy's log-probs.

Axis letters: E entries of a batch, K scored tokens, R completions of a batch or step, P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from likelier.base.errors import RunFailed
from likelier.base.terminal import say
from likelier.batching.batch import Batch, Scored, completions_of, lay_out
from likelier.batching.pack import pack
from likelier.data.records import TokenPair, content_hash
from likelier.losses.modifiers import Weights, token_weights
from likelier.losses.registry import BoundLoss
from likelier.losses.values import StepValues
from likelier.model.policy import Policy
from likelier.model.recompute import runs_layers_again
from likelier.reference.moving import MovingReference, Reference
from likelier.training.dealing import deal
from likelier.training.memory import Costs, costs_of

_LEAST_TOKENS = 16  # of a batch, as the config allows
Weighted = tuple[Scored, Weights | None]  # a completion, and what its scored tokens count


class Batcher:
    """Turns pairs into batches of at most ``tokens_per_batch`` tokens; a pair is never cut.

    Of a team, each process gets the batches of its own share of the pairs. Where the memory of the
    device does not hold such batches, `halve` lowers the limit.
    """

    def __init__(
        self, policy: Policy, reference: Reference, loss: BoundLoss, tokens_per_batch: int
    ):
        self.policy, self.reference, self.loss = policy, reference, loss
        self.tokens_per_batch = tokens_per_batch
        self._ready: tuple[Sequence[TokenPair], int, list[Batch]] = ((), 0, [])
        self._costs: Costs | None = None

    def __call__(self, pairs: Sequence[TokenPair]) -> list[Batch]:
        """The batches of a step's pairs, with the reference as it is now."""
        if (self._ready[0], self._ready[1]) != (pairs, self.tokens_per_batch):
            self.prepare(pairs)
        return self.rescored(self._ready[2])

    def prepare(self, pairs: Sequence[TokenPair]) -> None:
        """Cut the pairs of a step and send them to the device; the next call may ask for them."""
        policy, team = self.policy, self.policy.team
        share = None
        if team.size > 1:
            model, full = policy.causal_lm, not policy.has_adapter
            costs = self._costs or costs_of(model).with_backward(full, runs_layers_again(model))
            self._costs = costs
            share = deal(pairs, team.size, costs, policy.backend)[team.rank]
        batches = cut_batches(
            pairs, self.reference, policy.backend, self.tokens_per_batch, self.loss.tokens, share
        )
        self._ready = pairs, self.tokens_per_batch, [batch.to(policy.device) for batch in batches]

    @property
    def moved_reference(self) -> dict[str, Tensor] | None:
        """The weights of a reference that has moved, which a checkpoint must hold."""
        if isinstance(self.reference, MovingReference) and self.reference.moved:
            return self.reference.masters
        return None

    def rescored(self, batches: Sequence[Batch]) -> list[Batch]:
        """Batches that were made before, with the reference as it is now.

        They are the same batches unless the reference is one that moves.
        """
        if isinstance(self.reference, MovingReference):
            return self.reference.rescored(batches)
        return list(batches)

    def halve(self, error: Exception, batches: Sequence[Batch]) -> None:
        """Make batches of half the size from here on.

        Raises RunFailed where each of the ``batches`` that did not fit held one pair alone.
        """
        alone = batches and all(len(batch.position_P) == 1 for batch in batches)
        # The others are in the middle of a batch that this process cannot begin again.
        alone = alone or self.policy.in_parts
        if alone or self.tokens_per_batch <= _LEAST_TOKENS:
            raise RunFailed(
                f"batches of {self.tokens_per_batch} tokens do not fit into the memory of the "
                "device",
                hint="set train.checkpointing: layers, or a smaller data.max_length; "
                "`likelier plan` says what a run needs",
            ) from error
        self.tokens_per_batch //= 2
        say(f"out of memory: from here on batches of at most {self.tokens_per_batch} tokens")


def cut_batches(
    pairs: Sequence[TokenPair],
    reference: Reference,
    backend: str,
    budget: int,
    tokens: Mapping[str, Any] | None = None,
    share: Sequence[int] | None = None,
) -> list[Batch]:
    """Cut the pairs of a step into batches of at most ``budget`` tokens; a pair is never cut.

    ``tokens`` is the rule by which tokens count, None where all count alike. ``share`` are the
    positions of the pairs to take, None for all; lengths are those of the whole step.
    """
    units = [completions_of(pair) for pair in pairs]
    mean_tokens = sum(chosen.num_scored for chosen, _ in units) / max(1, len(units))
    share = range(len(pairs)) if share is None else share
    batches = []
    for indices in pack([units[at] for at in share], budget, backend):
        positions = [share[index] for index in indices]
        some = [pairs[at] for at in positions]
        both = [_weighted(pairs[at], units[at], tokens) for at in positions]
        batch = _batch_of_pairs(some, both, reference, backend)
        batches.append(
            replace(
                batch,
                position_P=torch.tensor(positions),
                mean_tokens=mean_tokens,
                num_pairs=len(pairs),
            )
        )
    return batches


def _weighted(
    pair: TokenPair, unit: tuple[Scored, Scored], rule: Mapping[str, Any] | None
) -> tuple[Weighted, Weighted]:
    if rule is None:
        return (unit[0], None), (unit[1], None)
    key = f"{rule['seed']}/{content_hash([pair])}".encode()
    first, second = token_weights(rule, unit[0].num_scored, unit[1].num_scored, key)
    return (unit[0], first), (unit[1], second)


def _batch_of_pairs(
    pairs: Sequence[TokenPair],
    units: Sequence[tuple[Weighted, Weighted]],
    reference: Reference,
    backend: str,
) -> Batch:
    number: dict[Weighted, int] = {}  # completions that several pairs share stand once
    for unit in units:
        for completion in unit:
            number.setdefault(completion, len(number))
    logps = [reference.completion_logp(sequence, weights) for sequence, weights in number]
    weights = [weight for _, each in number for weight in each or ()]
    return replace(
        lay_out([sequence for sequence, _ in number], backend),
        reference_R=torch.tensor(logps, dtype=torch.float64),
        chosen_P=torch.tensor([number[chosen] for chosen, _ in units]),
        rejected_P=torch.tensor([number[rejected] for _, rejected in units]),
        columns={
            name: torch.tensor([getattr(pair, name) for pair in pairs], dtype=torch.float64)
            for name in ("margin", "weight", "label")
            if getattr(pairs[0], name) is not None
        },
        weight_K=torch.tensor(weights, dtype=torch.float64) if weights else None,
    )


def values_of(batch: Batch, policy_R: Tensor, wpo_log_weight_R: Tensor | None) -> StepValues:
    """What the loss reads of a batch, given the policy's log-probs of its completions."""
    return StepValues(
        policy_R,
        batch.reference_R,
        batch.length_R,
        batch.chosen_P,
        batch.rejected_P,
        wpo_log_weight_R=wpo_log_weight_R,
        mean_tokens=batch.mean_tokens,
        **{f"{name}_P": column for name, column in batch.columns.items()},
    )


def joined(values: Sequence[StepValues]) -> StepValues:
    """The values of several batches as one step's: R and P end to end."""
    first, starts = values[0], [0]
    for one in values:
        starts.append(starts[-1] + len(one.policy_R))
    whole: dict[str, Any] = {}
    for name, value in vars(first).items():
        if isinstance(value, Tensor):
            parts: list[Tensor] = [getattr(one, name) for one in values]
            if name in ("chosen_P", "rejected_P"):  # they index into R
                parts = [part + at for part, at in zip(parts, starts, strict=False)]
            whole[name] = torch.cat(parts)
    return replace(first, **whole)
