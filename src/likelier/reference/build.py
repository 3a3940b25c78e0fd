"""Building the column of a run: by the start itself, or by another model that is then let go."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from likelier.batch.layout import Scored, answers_of
from likelier.data.records import TokenPair
from likelier.model.adapters import adapters_off
from likelier.model.load import Policy
from likelier.model.score import Ready, score_sequences
from likelier.progress import bar
from likelier.reference.cache import fill
from likelier.reference.column import (
    Column,
    answer_key,
    column_identity,
    load_column,
    weights_identity,
)

# Mean nats a token between a cached value and a live pass: rounding, in other passes.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.1


def reference_identity(ready: Ready, base_only: bool) -> str:
    """The identity of the values that this model gives with this backend and dtype."""
    model = ready.policy.causal_lm
    return column_identity(
        weights_identity(model, base_only),
        dtype=str(model.dtype),
        backend=ready.backend,
        head="own" if ready.scorer.rule.own else "chunked",
        device=ready.policy.device.type,
        format=1,
    )


def reference_column(
    ready: Ready, start: Policy, pairs: Sequence[TokenPair], budget: int, run: Path
) -> Column:
    """The column of a run's pairs, made by ``ready`` before any update, and kept in the run.

    ``ready`` is the start as it will be trained, or another model. A fresh adapter is switched
    off for the pass; a start that came with a trained adapter is scored with it.

    Raises RunFailed where log-probs are not finite or the cache disagrees with a live pass.
    """
    # In the order of their tokens, neighbours share the most, and the file's order is nothing.
    distinct = {answer for pair in pairs for answer in answers_of(pair)}
    sequences = sorted(distinct, key=lambda answer: (answer.tokens, answer.scored))
    base_only = ready.policy.has_adapter and not start.has_adapter
    identity = reference_identity(ready, base_only)
    kept = run / "reference.safetensors"
    before = load_column(kept, identity)
    if before is not None and all(answer_key(s) in before.values for s in sequences):
        return before
    column = cached_column(ready, identity, sequences, budget, base_only)
    column.save(kept)
    return column


def cached_column(
    ready: Ready, identity: str, sequences: Sequence[Scored], budget: int, base_only: bool
) -> Column:
    """The column of some sequences: from the cache, and scored now where it lacks them."""

    def score(missing: Sequence[Scored]) -> Iterator[tuple[int, Tensor]]:
        with ExitStack() as stack:
            if base_only:
                stack.enter_context(adapters_off(ready.policy.model))
            advance = stack.enter_context(bar("log-probs", len(missing)))
            yield from score_sequences(
                ready, missing, budget, on_pass=lambda answers: advance(answers, "")
            )

    tolerance = _TOLERANCE.get(ready.policy.causal_lm.dtype, _HALF_TOLERANCE)
    return fill(identity, sequences, score, tolerance)
