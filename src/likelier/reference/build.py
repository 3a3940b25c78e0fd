"""Building the column of a run: by the start itself, or by another model that is then let go."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from likelier.base.terminal import bar
from likelier.batching.layout import Scored, answers_of
from likelier.batching.pack import pack
from likelier.data.records import TokenPair
from likelier.model.adapters import adapters_off
from likelier.model.heap import freed_memory_kept
from likelier.model.score import Ready, score_sequences
from likelier.reference.cache import Passes, fill
from likelier.reference.column import Column, load_column
from likelier.reference.identity import hash_of, reference_identity

# Mean nats a token between a cached value and a live pass: rounding, in other passes. Norms
# compute in float32 inside float64 models, too.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.1


def reference_column(
    ready: Ready,
    pairs: Sequence[TokenPair],
    budget: int,
    run: Path,
    *,
    base_only: bool,
    goes_on: bool,
) -> Column:
    """The column of a run's pairs, made by ``ready`` before any update, and kept in the run.

    ``ready`` is the start as it will be trained, or another model. ``base_only`` switches
    adapters off for the pass: a fresh one is no part of the start, a trained one is. A run that
    ``goes_on`` reads the column it kept; what stands in the folder of a new one is nothing.

    Raises RunFailed where log-probs are not finite or the cache disagrees with a live pass.
    """
    sequences = {answer for pair in pairs for answer in answers_of(pair)}
    identity = reference_identity(ready, base_only)
    kept = run / "reference.safetensors"
    before = load_column(kept, identity) if goes_on else None
    if before is not None and before.holds(sequences):
        return before
    column = cached_column(ready, identity, sequences, budget, base_only)
    column.save(kept)
    return column


def cached_column(
    ready: Ready, identity: str, sequences: set[Scored], budget: int, base_only: bool
) -> Column:
    """The column of some sequences: from the cache, and scored now where it lacks them."""
    # In the order of their tokens, neighbours share the most, and the file's order is nothing.
    ordered = sorted(sequences, key=lambda answer: (answer.tokens, answer.scored))
    plan = pack([(sequence,) for sequence in ordered], budget, ready.backend)
    passes = [[ordered[index] for index in indices] for indices in plan]

    def score(wanted: Passes) -> Iterator[tuple[Scored, Tensor]]:
        with ExitStack() as stack:
            stack.enter_context(freed_memory_kept())
            if base_only:
                stack.enter_context(adapters_off(ready.policy.model))
            advance = stack.enter_context(bar("log-probs", sum(map(len, wanted))))
            for answers in wanted:
                for index, logps in score_sequences(ready, answers, budget):
                    yield answers[index], logps
                advance(len(answers), "")

    is_half = ready.policy.causal_lm.dtype in (torch.bfloat16, torch.float16)
    tolerance = _HALF_TOLERANCE if is_half else _TOLERANCE
    # Another torch or number of threads rounds otherwise.
    made_by = hash_of(identity=identity, torch=torch.__version__, threads=torch.get_num_threads())
    return Column(identity, fill(made_by, passes, score, tolerance).values)
