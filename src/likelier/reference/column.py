"""The reference column: log-probs per token of each answer, found by content.

An answer's key is a hash of its token ids and of which of them are scored: never a row number
or a path. One column belongs to one identity: the weights and settings that made its values.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from likelier.base.files import write_file
from likelier.batching.layout import Scored

KEY_BYTES = 16


def answer_key(sequence: Scored) -> bytes:
    """The content address of a sequence to score."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(np.asarray(sequence.tokens, dtype=np.int64).tobytes())
    digest.update(np.asarray(sequence.scored, dtype=np.bool_).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Column:
    """Values of one identity: ``values[key]`` one log-prob in nats per scored
    token, float32 (float64 where the model computes in it)."""

    identity: str
    values: Mapping[bytes, Tensor]

    def answer_logp(self, sequence: Scored, weights: Sequence[float] | None = None) -> float:
        """Log-prob of a whole answer in nats, summed in float64.

        ``weights`` is what each scored token counts, None where all count alike.

        Raises KeyError where the column lacks this answer.
        """
        logps = self.values[answer_key(sequence)].double()
        if weights is not None:
            logps = logps * torch.tensor(weights, dtype=torch.float64)
        return float(logps.sum())

    def holds(self, sequences: Iterable[Scored]) -> bool:
        """Whether these are all the answers it has values of."""
        return {answer_key(sequence) for sequence in sequences} == self.values.keys()

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
    """The column of losses that read no reference: nothing is scored, every value is 0.

    Rewards are then beta times the policy's own log-probs, as trainers log them for such losses.
    """

    identity = "none"
    values: Mapping[bytes, Tensor] = MappingProxyType({})

    def answer_logp(self, sequence: Scored, weights: Sequence[float] | None = None) -> float:
        """0: the log-ratio is the log-prob."""
        return 0.0


Reference = Column | NoReference


def load_column(path: Path, identity: str | None = None) -> Column | None:
    """Read a column; None where the file is damaged or belongs to another identity."""
    try:
        with safe_open(path, framework="pt") as file:
            of, _, seal = (file.metadata() or {}).get("identity", "").partition(" ")
            if identity is not None and of != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in ("keys", "lengths", "values")}
        if _seal(tensors) != seal:
            return None
        flat = tensors["keys"].numpy().tobytes()
        values = tensors["values"].split(tensors["lengths"].tolist())
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return None
    keys = [flat[i : i + KEY_BYTES] for i in range(0, len(flat), KEY_BYTES)]
    return Column(of, dict(zip(keys, values, strict=True)))


def _seal(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
