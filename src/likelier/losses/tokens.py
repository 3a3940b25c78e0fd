"""Which tokens of an answer count, and how much: weights that depend on both lengths of a pair.

The weights apply to policy and reference alike. Applied to the policy alone, as some trainers do,
they leave the reference's whole log-prob in the margin.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

Weights = tuple[float, ...]


def token_weights(
    rule: Mapping[str, Any], chosen: int, rejected: int, key: bytes
) -> tuple[Weights, Weights]:
    """The weights of the scored tokens of the chosen and of the rejected answer.

    Args:
        rule: ``{kind: ld, alpha}`` (LD-DPO, Liu et al. 2024, arXiv 2409.06411): tokens beyond the
            shorter answer's length count alpha. ``{kind: sampo}`` (Lu et al. 2024, arXiv
            2406.10957): as many tokens of the longer answer as the shorter one has, drawn once a
            pair. ``{kind: decay, gamma}`` (D2PO, Shao et al. 2025, arXiv 2502.14340): gamma to the
            number of tokens before.
        chosen, rejected: the scored tokens of each answer.
        key: the content of the pair and the seed, which decide the draw.
    """
    shorter = min(chosen, rejected)
    kind = rule["kind"]
    if kind == "ld":
        first, second = (_tail(n, shorter, rule["alpha"]) for n in (chosen, rejected))
    elif kind == "decay":
        first, second = (tuple(rule["gamma"] ** t for t in range(n)) for n in (chosen, rejected))
    else:
        first, second = (_drawn(n, shorter, key) for n in (chosen, rejected))
    return first, second


def _tail(length: int, shared: int, alpha: float) -> Weights:
    return (1.0,) * shared + (alpha,) * (length - shared)


def _drawn(length: int, count: int, key: bytes) -> Weights:
    if length == count:
        return (1.0,) * length
    generator = np.random.default_rng(int.from_bytes(blake2b(key, digest_size=8).digest()))
    kept = set(generator.permutation(length)[:count].tolist())
    return tuple(1.0 if place in kept else 0.0 for place in range(length))
