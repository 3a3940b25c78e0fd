"""A share of the prompts set aside for evaluation, chosen by content; near copies stay together."""

import json
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from likelier.base.errors import DataError
from likelier.data.near_duplicates import NEAR_LIKENESS, NUM_HASHES, bare, near_groups, signature
from likelier.data.records import Pair, TokenPair, text_of

# The likeness is an estimate with an error of about 0.04: what is truly alike by 0.8 is joined.
CLUSTER_LIKENESS = NEAR_LIKENESS - 0.1

P = TypeVar("P", Pair, TokenPair)


def split_by_prompt(pairs: Sequence[P], share: float, seed: int) -> tuple[list[P], list[P]]:
    """Part ``pairs`` into (train, eval) so that no prompt, and no near copy, is on both sides.

    The order within each side is the given one. Raises as `held_out`.
    """
    held = held_out(prompt_keys(pairs, seed), prompt_signatures(pairs), share)
    train = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    return train, [pair for pair, out in zip(pairs, held, strict=True) if out]


def held_out(keys: np.ndarray, signatures: np.ndarray, share: float) -> np.ndarray:
    """Which pairs go to ``eval``, (n,) bool, by their prompts.

    Prompts that are near copies make a cluster. The clusters with the smallest key go to ``eval``
    until they hold ``share`` of all distinct prompts; one that would be too many is passed over.
    At least one prompt goes and at least one stays. Row numbers and file order decide nothing.

    Args:
        keys: (n, 16) uint8 of `prompt_keys`.
        signatures: (n, NUM_HASHES) uint32 of `prompt_signatures`.

    Raises:
        DataError: there are fewer than two clusters.
    """
    _, first, prompt = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    prompt = prompt.ravel()  # numbered in the order of the keys
    groups = (
        near_groups(signatures[first], CLUSTER_LIKENESS) if len(first) else np.zeros(0, np.int64)
    )
    clusters: dict[int, list[int]] = {}
    for number, group in enumerate(groups.tolist()):
        clusters.setdefault(group, []).append(number)
    if len(clusters) < 2:
        near = f" that are no near copies, of {len(first)}" if len(first) > 1 else ""
        raise DataError(
            f"{len(clusters)} distinct prompt{near}: cannot be split into train and eval",
            where="data.eval",
            hint="give a file, or set data.eval: null",
        )
    wanted = max(1, round(share * len(first)))
    wanted = min(wanted, len(first) - min(map(len, clusters.values())))
    chosen: list[int] = []
    for members in clusters.values():
        if len(chosen) + len(members) <= wanted:
            chosen += members
    if not chosen:  # every cluster is larger than the share
        chosen = min(clusters.values(), key=len)
    return np.isin(prompt, chosen)


def prompt_keys(pairs: Sequence[Pair | TokenPair], seed: int) -> np.ndarray:
    """(n, 16) uint8: a hash of each prompt's content, keyed by the seed."""
    keys = b"".join(_key(pair, seed) for pair in pairs)
    return np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16)


def prompt_signatures(pairs: Sequence[Pair | TokenPair]) -> np.ndarray:
    """(n, NUM_HASHES) uint32: the MinHash of each prompt. Token ids are compared as they are."""
    texts = [_text(pair) for pair in pairs]
    made = {text: signature(text) for text in dict.fromkeys(texts)}
    return (
        np.stack([made[text] for text in texts]) if texts else np.zeros((0, NUM_HASHES), np.uint32)
    )


def _text(pair: Pair | TokenPair) -> str:
    if isinstance(pair, TokenPair):
        return "".join(chr(min(token + 1, 0x10FFFF)) for token in pair.prompt)
    return bare(text_of(pair.prompt))


def _key(pair: Pair | TokenPair, seed: int) -> bytes:
    # NFC, and no spaces at the ends: the same Korean question typed on two systems is one prompt
    prompt = pair.prompt.strip() if isinstance(pair.prompt, str) else pair.prompt
    content = unicodedata.normalize("NFC", json.dumps(prompt, ensure_ascii=False, sort_keys=True))
    salt = f"{seed}\n".encode()
    return blake2b(salt + content.encode(errors="surrogatepass"), digest_size=16).digest()
