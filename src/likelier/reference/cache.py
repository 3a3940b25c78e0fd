"""Filling a column: what the cache holds is read, what it lacks is scored and added.

The cache is a folder per identity with one file per batch of new values, each written whole and
named by its content; nothing in it is ever changed. A file that cannot be read is passed over.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from likelier.batch.layout import Scored
from likelier.cache import cache_dir
from likelier.errors import OutputError, RunFailed
from likelier.reference.column import Column, answer_key, load_column

Score = Callable[[Sequence[Scored]], Iterator[tuple[int, Tensor]]]

_ANSWERS_PER_FILE = 4096
_SPOT_CHECKS = 8


def cached_values(identity: str) -> dict[bytes, Tensor]:
    """All values that the cache holds for an identity."""
    values: dict[bytes, Tensor] = {}
    for file in sorted(_folder(identity).glob("*.safetensors")):
        column = load_column(file, identity)
        if column is not None:
            values.update(column.values)
    return values


def fill(
    identity: str,
    sequences: Iterable[Scored],
    score: Score,
    tolerance: float,
) -> Column:
    """The column of some sequences under an identity; only what the cache lacks is scored.

    ``score`` yields (index, log-probs per token) as `model.score.score_sequences` does. New
    values are added to the cache as they come, so that a stopped pass is not lost. Some of the
    values that were there are scored again: ``tolerance`` is the mean difference per token, in
    nats, that is let pass.

    Raises RunFailed where a log-prob is not finite, or a cached value is not what a live pass
    gives.
    """
    values = cached_values(identity)
    wanted = {answer_key(sequence): sequence for sequence in sequences}
    missing = [(key, s) for key, s in wanted.items() if key not in values]
    _spot_check([(key, s) for key, s in wanted.items() if key in values], values, score, tolerance)
    fresh: dict[bytes, Tensor] = {}
    for index, logps in score([sequence for _, sequence in missing]):
        if not logps.isfinite().all():
            raise RunFailed(
                "the reference gives a log-prob that is not finite",
                mend="the weights may be damaged, or overflow in this model.dtype",
            )
        fresh[missing[index][0]] = logps
        if len(fresh) == _ANSWERS_PER_FILE:
            _keep(Column(identity, fresh))
            values.update(fresh)
            fresh = {}
    if fresh:
        _keep(Column(identity, fresh))
        values.update(fresh)
    return Column(identity, {key: values[key] for key in wanted})


def _spot_check(
    cached: Sequence[tuple[bytes, Scored]],
    values: dict[bytes, Tensor],
    score: Score,
    tolerance: float,
) -> None:
    some = cached[:: max(1, len(cached) // _SPOT_CHECKS)][:_SPOT_CHECKS]
    for index, logps in score([sequence for _, sequence in some]):
        difference = float((logps - values[some[index][0]]).abs().mean())
        if not difference <= tolerance:
            raise RunFailed(
                f"cached reference log-probs differ from a live pass by {difference:.2g} nats a "
                f"token; {tolerance:.2g} is allowed",
                mend=f"delete {cache_dir() / 'reference'}, which is then made again",
            )


def _folder(identity: str) -> Path:
    return cache_dir() / "reference" / identity[:32]


def _keep(column: Column) -> None:
    """Add values to the cache. A cache that cannot be written costs time later, not the run."""
    name = hashlib.sha256(b"".join(sorted(column.values))).hexdigest()[:32]
    folder = _folder(column.identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        column.save(folder / f"{name}.safetensors")
    except (OSError, OutputError):
        return
