"""Reference log-probs: per token of each completion, computed once and found by content.

The same completion differs in its last bits when it shares a batch with others. The cache therefore
finds a value by its completion and by all the completions of the batch that made it: a run then
gets the bits that it would have made itself, whatever was scored here before.

The cache is a folder per fingerprint with one file for each set of new values. Files are written
whole and never changed; one that cannot be read is skipped.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from likelier.base.errors import NotFinite, OutputError, RunFailed
from likelier.base.files import cache_dir, make_folder, open_regular, sweep, write_file
from likelier.base.terminal import bar
from likelier.batching.batch import Scored, completions_of
from likelier.batching.pack import pack
from likelier.data.records import TokenPair
from likelier.model.adapters import adapters_off
from likelier.model.frozen import is_half
from likelier.model.policy import Policy, idle_batches, score_sequences
from likelier.model.running import freed_memory_kept
from likelier.model.team import ALONE, Team
from likelier.reference.fingerprint import hash_of, reference_identity

Groups = Sequence[Sequence[Scored]]  # completions that are scored in one batch
Score = Callable[[Groups], Iterator[tuple[Scored, Tensor]]]

KEY_BYTES = 16
_COMPLETIONS_PER_FILE = 4096
_SPOT_CHECKS = 8
# Mean nats a token between a cached value and a live batch: rounding, in other batches. Norms
# compute in float32 inside float64 models, too.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.1


def completion_key(sequence: Scored) -> bytes:
    """The content address of a sequence to score."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(np.asarray(sequence.tokens, dtype=np.int64).tobytes())
    digest.update(np.asarray(sequence.scored, dtype=np.bool_).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class StoredReference:
    """Log-probs, and the identity of the weights and settings that made them.

    ``values[key]`` holds one log-prob in nats per scored token, float32 (float64 where the model
    computes in it). A key is a hash of token ids and of which are scored, never a row or a path.
    """

    identity: str
    values: Mapping[bytes, Tensor]

    def completion_logp(self, sequence: Scored, weights: Sequence[float] | None = None) -> float:
        """Log-prob of a whole completion in nats, summed in float64.

        ``weights`` is what each scored token counts, None where all count alike.

        Raises KeyError where this completion is not there.
        """
        logps = self.values[completion_key(sequence)].double()
        if weights is not None:
            logps = logps * torch.tensor(weights, dtype=torch.float64)
        return float(logps.sum())

    def holds(self, sequences: Iterable[Scored]) -> bool:
        """Whether these are all the completions it has values of."""
        return {completion_key(sequence) for sequence in sequences} == self.values.keys()

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, in the order of the keys: same content, same bytes."""
        keys = sorted(self.values)
        flat = b"".join(keys)
        tensors = {
            "keys": torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(-1, KEY_BYTES),
            "lengths": torch.tensor([len(self.values[key]) for key in keys], dtype=torch.int32),
            "values": torch.cat([self.values[key] for key in keys]),
        }
        # One entry: safetensors writes several in an order of its own each time.
        sealed = {"identity": f"{self.identity} {_seal(tensors)}"}
        write_file(path, lambda file: save_file(tensors, file, sealed))


class NoReference:
    """The reference of losses that read none: nothing is scored, every value is 0.

    Rewards are then beta times the policy's own log-probs, as trainers log them for such losses.
    """

    identity = "none"
    values: Mapping[bytes, Tensor] = MappingProxyType({})

    def completion_logp(self, sequence: Scored, weights: Sequence[float] | None = None) -> float:
        """0: the log-ratio is the log-prob."""
        return 0.0


def load_reference(path: Path, identity: str | None = None) -> StoredReference | None:
    """Read stored log-probs; None where the file is damaged or belongs to another identity."""
    try:
        open_regular(path).close()  # a pipe would be waited for
        with safe_open(path, framework="pt") as file:
            of, _, seal = (file.metadata() or {}).get("identity", "").partition(" ")
            if identity is not None and of != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in ("keys", "lengths", "values")}
        if _seal(tensors) != seal:
            return None
        flat = tensors["keys"].numpy().tobytes()
        values = tensors["values"].split(tensors["lengths"].tolist())
        keys = [flat[i : i + KEY_BYTES] for i in range(0, len(flat), KEY_BYTES)]
        return StoredReference(of, dict(zip(keys, values, strict=True)))
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError):
        return None


def _seal(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of some tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reference_of_run(
    policy: Policy,
    pairs: Sequence[TokenPair],
    budget: int,
    run: Path,
    *,
    base_only: bool,
    resumes: bool,
    model: str | None = None,
) -> StoredReference:
    """The reference log-probs of a run's pairs, made before any update, and kept in the run.

    ``policy`` is the initial policy, or another model. ``base_only`` switches adapters off while
    it scores: a fresh one is no part of the initial policy, a trained one is. A run that
    ``resumes`` reads what it kept; in a new one's folder nothing is read. ``model`` is the
    `model_identity` of the policy, where that is known.

    Raises RunFailed where log-probs are not finite or the cache disagrees with a live batch.
    """
    sequences = {completion for pair in pairs for completion in completions_of(pair)}
    kept = run / "reference.safetensors"
    identity = reference_identity(policy, base_only, model)
    if resumes:
        before = load_reference(kept, identity)
        holds = before is not None and before.holds(sequences)
        if before is not None and all(policy.team.gathered(holds)):
            return before
    reference = cached_reference(policy, sequences, budget, base_only, identity)
    if policy.team.leads:
        reference.save(kept)
    return reference


def cached_reference(
    policy: Policy,
    sequences: set[Scored],
    budget: int,
    base_only: bool = False,
    identity: str | None = None,
) -> StoredReference:
    """The log-probs of some sequences: from the cache, and scored now where it lacks them.

    ``budget`` is the most tokens of a batch; ``base_only`` switches adapters off; ``identity`` is
    the `reference_identity` where that is known.
    """
    identity = identity or reference_identity(policy, base_only)
    # Sorted by tokens, neighbours share the most, and the order of the file does not matter.
    ordered = sorted(sequences, key=lambda completion: (completion.tokens, completion.scored))
    batches = pack([(sequence,) for sequence in ordered], budget, policy.backend)
    groups = [[ordered[index] for index in indices] for indices in batches]

    def score(wanted: Groups) -> Iterator[tuple[Scored, Tensor]]:
        bare = adapters_off(policy.model) if base_only else nullcontext()
        idle = idle_batches(policy, len(wanted))
        with freed_memory_kept(), bare, bar("log-probs", sum(map(len, wanted))) as advance:
            for completions in wanted:
                for index, logps in score_sequences(policy, completions, budget):
                    yield completions[index], logps
                advance(len(completions), "")
            with policy.running() as scorer, torch.no_grad():
                for batch in idle:
                    scorer(batch)

    tolerance = _HALF_TOLERANCE if is_half(policy.dtype) else _TOLERANCE
    # Another torch or number of threads rounds otherwise.
    made_by = hash_of(identity=identity, torch=torch.__version__, threads=torch.get_num_threads())
    return replace(fill(made_by, groups, score, tolerance, policy.team), identity=identity)


def cached_values(identity: str) -> dict[bytes, Tensor]:
    """All values that the cache holds for an identity."""
    values: dict[bytes, Tensor] = {}
    sweep(_folder(identity), alone=False)
    with suppress(OSError):  # a folder that cannot be read holds none
        for file in sorted(_folder(identity).glob("*.safetensors")):
            stored = load_reference(file, identity)
            if stored is not None:
                values.update(stored.values)
    return values


def fill(
    identity: str, groups: Groups, score: Score, tolerance: float, team: Team = ALONE
) -> StoredReference:
    """The log-probs of some groups under an identity; only what the cache lacks is scored, by each
    process of a team its share.

    ``score`` yields (completion, log-probs per token). New values are added to the cache as they
    come, so that an interrupted run has lost few. Some of the cached values are scored again;
    ``tolerance`` is the mean difference per token, in nats, that they may show.

    Raises RunFailed where a log-prob is not finite, or a cached value is not what a live batch
    gives.
    """
    values = cached_values(identity)
    keys = {s: key for group in groups for s, key in zip(group, _keys(group), strict=True)}
    lacking = {at for at, group in enumerate(groups) if any(keys[s] not in values for s in group)}
    missing = sorted(set[int]().union(*team.gathered(lacking)))  # by any of the caches
    known = set(missing)
    there = [s for at, group in enumerate(groups) if at not in known for s in group]
    _spot_check(there, [values[keys[s]] for s in there], score, tolerance)
    fresh: dict[bytes, Tensor] = {}
    made: dict[bytes, Tensor] = {}
    for sequence, logps in score([groups[at] for at in missing[team.rank :: team.size]]):
        if not logps.isfinite().all():
            raise NotFinite(
                "the reference gives a log-prob that is not finite",
                hint="its weights, which may overflow in this model.dtype",
                completion=sequence,
            )
        fresh[keys[sequence]] = logps
        if len(fresh) == _COMPLETIONS_PER_FILE:
            _keep(StoredReference(identity, fresh))
            made.update(fresh)
            fresh = {}
    if fresh:
        _keep(StoredReference(identity, fresh))
        made.update(fresh)
    for of_one in team.gathered(made):
        values.update(of_one)
    return StoredReference(identity, {completion_key(s): values[key] for s, key in keys.items()})


def _keys(group: Sequence[Scored]) -> list[bytes]:
    """The cache's keys of the completions of a group: each with all that share its batch."""
    alone = [completion_key(one) for one in group]
    together = hashlib.sha256(b"".join(alone)).digest()
    return [hashlib.blake2b(key + together, digest_size=KEY_BYTES).digest() for key in alone]


def _spot_check(
    cached: Sequence[Scored], values: Sequence[Tensor], score: Score, tolerance: float
) -> None:
    """Score a few cached completions, evenly out of all, again and compare."""
    every = max(1, len(cached) // _SPOT_CHECKS)
    some = dict(zip(cached[::every][:_SPOT_CHECKS], values[::every], strict=False))
    for sequence, logps in score([list(some)] if some else []):
        difference = float((logps - some[sequence]).abs().mean())
        if not difference <= tolerance:
            raise RunFailed(
                f"cached reference log-probs differ from a live batch by {difference:.2g} nats a "
                f"token; {tolerance:.2g} is allowed",
                hint=f"delete {cache_dir() / 'reference'}: it will be made again",
            )


def _folder(identity: str) -> Path:
    return cache_dir() / "reference" / identity[:32]


def _keep(stored: StoredReference) -> None:
    """Add values to the cache. A cache that cannot be written costs time later, not the run."""
    name = hashlib.sha256(b"".join(sorted(stored.values))).hexdigest()[:32]
    folder = _folder(stored.identity)
    try:
        make_folder(folder)
        stored.save(folder / f"{name}.safetensors")
    except (OSError, OutputError):
        return
