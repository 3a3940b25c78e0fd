"""Runs to try things on: a tiny model and data in one place, configs for them, and their bytes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.data import load_pairs
from tests.support.tiny import pair_rows, save_tiny, write_rows
from transformers.models.exaone4.modeling_exaone4 import Exaone4RMSNorm

from likelier.chat.tokenizer import build_encoder
from likelier.data.encode import encode_pairs
from likelier.data.records import TokenPair
from likelier.model.policy import Policy


@dataclass(frozen=True)
class Place:
    """A folder with a base model in ``base`` and pairs in ``pairs.jsonl``; runs go beside them."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def data(self) -> Path:
        return self.folder / "pairs.jsonl"

    def config(self, out: str | Path, /, **changes: Any) -> dict[str, Any]:
        """A short run of full tuning; ``train__steps=3`` changes ``train.steps``."""
        tree: dict[str, Any] = {
            "model": {"path": str(self.base)},
            "data": {"train": str(self.data), "eval": "20%"},
            "adapter": {"kind": "none"},
            "optim": {"lr": 1e-3},
            "train": {"steps": 5, "pairs_per_step": 4, "tokens_per_batch": 256,
                      "eval_every": 2, "save_every": 2},
            "eval": {"samples": 0},
            "out": str(self.folder / out),
        }  # fmt: skip
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if not key:
                tree[section] = value
            elif value is MISSING:
                tree[section].pop(key, None)
            else:
                tree.setdefault(section, {})[key] = value
        return tree


MISSING = object()  # takes a key of `Place.config` away


def make_place(folder: Path, rows: int = 30, dtype: torch.dtype = torch.float32) -> Place:
    """A place with a tiny base model and chats to train it on."""
    place = Place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tiny(place.base, dtype)
    write_rows(place.data, pair_rows(rows))
    return place


@contextmanager
def exact_norms() -> Iterator[None]:
    """Norms that compute in the model's dtype: the stock ones round to float32 within float64."""

    def forward(self: Exaone4RMSNorm, states: torch.Tensor) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return self.weight * (states * torch.rsqrt(variance + self.variance_epsilon))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exaone4RMSNorm, "forward", forward)
        yield


def token_pairs(policy: Policy, data: Path) -> list[TokenPair]:
    """The pairs of a file as a model's tokens."""
    encoder = build_encoder(policy.tokenizer, policy.causal_lm.generation_config)
    pairs, findings = encode_pairs(encoder, load_pairs(data, {}).pairs)
    assert not findings
    return pairs


NOT_COMPARED = {"run.json", "timing.jsonl", "report.html", ".lock"}  # times, process ids


def bytes_of(run: Path) -> dict[str, bytes]:
    """Every file of a run that must be the same each time; the config without its ``out``."""
    found = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if name == "config.yaml":
            lines = file.read_text(encoding="utf-8").splitlines()
            found[name] = "\n".join(x for x in lines if not x.startswith("out:")).encode()
        elif name not in NOT_COMPARED:
            found[name] = file.read_bytes()
    return found


def differing(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
    """Names of the files that one of two runs lacks or has otherwise."""
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def training_rows(run: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl`` that steps wrote, without those of evaluations."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]
