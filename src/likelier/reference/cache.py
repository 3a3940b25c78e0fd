"""Filling a column: what the cache holds is read, what it lacks is scored and added.

The same answer differs in its last bits when it shares a pass with others. A cached value is
therefore found by its answer and by all the answers of the pass that made it: a run then gets
the bits that it would have made itself, whatever was scored here before.

The cache is a folder per identity with one file per batch of new values, each written whole;
nothing in it is ever changed. A file that cannot be read is passed over.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from likelier.base.errors import OutputError, RunFailed
from likelier.base.files import cache_dir
from likelier.batching.layout import Scored
from likelier.reference.column import KEY_BYTES, Column, answer_key, load_column

Passes = Sequence[Sequence[Scored]]
Score = Callable[[Passes], Iterator[tuple[Scored, Tensor]]]

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


def fill(identity: str, passes: Passes, score: Score, tolerance: float) -> Column:
    """The column of some passes under an identity; only those that the cache lacks are scored.

    ``score`` yields (answer, log-probs per token). New values are added to the cache as they
    come, so that a stopped work is not lost. Some of the values that were there are scored
    again: ``tolerance`` is the mean difference per token, in nats, that is let pass.

    Raises RunFailed where a log-prob is not finite, or a cached value is not what a live pass
    gives.
    """
    values = cached_values(identity)
    keys = {s: key for answers in passes for s, key in zip(answers, _keys(answers), strict=True)}
    missing = [answers for answers in passes if any(keys[s] not in values for s in answers)]
    there = [s for answers in passes for s in answers if keys[s] in values]
    _spot_check(there, [values[keys[s]] for s in there], score, tolerance)
    fresh: dict[bytes, Tensor] = {}
    for sequence, logps in score(missing):
        if not logps.isfinite().all():
            raise RunFailed(
                "the reference gives a log-prob that is not finite",
                hint="the weights may be damaged, or overflow in this model.dtype",
            )
        fresh[keys[sequence]] = logps
        if len(fresh) == _ANSWERS_PER_FILE:
            _keep(Column(identity, fresh))
            values.update(fresh)
            fresh = {}
    if fresh:
        _keep(Column(identity, fresh))
        values.update(fresh)
    return Column(identity, {answer_key(s): values[key] for s, key in keys.items()})


def _keys(answers: Sequence[Scored]) -> list[bytes]:
    """Where the cache keeps the answers of a pass."""
    alone = [answer_key(answer) for answer in answers]
    together = hashlib.sha256(b"".join(alone)).digest()
    return [hashlib.blake2b(key + together, digest_size=KEY_BYTES).digest() for key in alone]


def _spot_check(
    cached: Sequence[Scored], values: Sequence[Tensor], score: Score, tolerance: float
) -> None:
    every = max(1, len(cached) // _SPOT_CHECKS)
    some = dict(zip(cached[::every][:_SPOT_CHECKS], values[::every], strict=False))
    for sequence, logps in score([list(some)] if some else []):
        difference = float((logps - some[sequence]).abs().mean())
        if not difference <= tolerance:
            raise RunFailed(
                f"cached reference log-probs differ from a live pass by {difference:.2g} nats a "
                f"token; {tolerance:.2g} is allowed",
                hint=f"delete {cache_dir() / 'reference'}, which is then made again",
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
