"""The reference column: log-probs per token of each answer, found by content.

An answer's key is a hash of its token ids and of which of them are scored: never a row number
or a path. One column belongs to one identity: the weights and settings that made its values.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from likelier.batch.layout import Scored
from likelier.files import write_file

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

    def answer_logp(self, sequence: Scored) -> float:
        """Log-prob of a whole answer in nats, summed in float64.

        Raises KeyError where the column lacks this answer.
        """
        return float(self.values[answer_key(sequence)].double().sum())

    def only(self, sequences: Iterable[Scored]) -> "Column":
        """The part of a column that some sequences use."""
        keys = {answer_key(sequence) for sequence in sequences}
        return Column(self.identity, {key: self.values[key] for key in keys})

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, in the order of the keys: same content, same bytes."""
        keys = sorted(self.values)
        flat = b"".join(keys)
        tensors = {
            "keys": torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(-1, KEY_BYTES),
            "lengths": torch.tensor([len(self.values[key]) for key in keys], dtype=torch.int32),
            "values": torch.cat([self.values[key] for key in keys]),
        }
        write_file(path, lambda file: save_file(tensors, file, {"identity": self.identity}))


def load_column(path: Path, identity: str | None = None) -> Column | None:
    """Read a column; None where the file is damaged or belongs to another identity."""
    try:
        with safe_open(path, framework="pt") as file:
            of = (file.metadata() or {}).get("identity", "")
            if identity is not None and of != identity:
                return None
            flat = file.get_tensor("keys").numpy().tobytes()
            lengths = file.get_tensor("lengths").tolist()
            values = file.get_tensor("values").split(lengths)
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return None
    keys = [flat[i : i + KEY_BYTES] for i in range(0, len(flat), KEY_BYTES)]
    return Column(of, dict(zip(keys, values, strict=True)))


def weights_identity(model: nn.Module, base_only: bool = False) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and saved buffers.

    ``base_only`` leaves LoRA's own tensors out and gives what the bare base gives.
    """
    digest = hashlib.sha256()
    named = {
        name.replace(".base_layer", "") if base_only else name: tensor
        for name, tensor in model.state_dict().items()
        if not (base_only and ".lora_" in name)
    }
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def column_identity(weights: str, **settings: object) -> str:
    """The identity of the values that given weights make under given scoring settings."""
    content = json.dumps({"weights": weights, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
