"""A share of the prompts set aside for evaluation, chosen by content; near copies stay together.

Near copies are texts that share most of their five-letter pieces, found by MinHash.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np

from likelier.base.errors import DataError
from likelier.data.records import Pair, TokenPair, text_of

PIECE_CHARACTERS = 5
NUM_HASHES = 128  # of a signature; the estimate errs by about 0.035 at a likeness of 0.8
BAND_HASHES = 4  # of a band: a likeness of 0.8 is missed once in 10 million, 0.5 found in 87 %
NEAR_LIKENESS = 0.8  # Jaccard likeness of near copies
# The likeness is an estimate with an error of about 0.04: what is truly alike by 0.8 is joined.
CLUSTER_LIKENESS = NEAR_LIKENESS - 0.1
MAX_COMPARED = 200_000  # texts that are compared; of more, a sample
_PIECES_AT_ONCE = 4096  # pieces hashed together, which bounds the memory

_RANDOM = np.random.default_rng(20240229)
_HALVES = _RANDOM.integers(0, 2**31, size=(NUM_HASHES, 1), dtype=np.uint32)
_FACTORS = _HALVES * np.uint32(2) + np.uint32(1)
_OFFSETS = _RANDOM.integers(0, 2**32, size=(NUM_HASHES, 1), dtype=np.uint32)
_POWERS = np.array([pow(0x100000001B3, n, 2**64) for n in range(PIECE_CHARACTERS)], dtype=np.uint64)
_SPACES = re.compile(r"\s+")


class Table(Protocol):
    """Rows that are asked for by their numbers."""

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray: ...


def held_out(keys: np.ndarray, signatures: Table, share: float) -> np.ndarray:
    """Which pairs go to ``eval``, (n,) bool, by their prompts.

    Prompts that are near copies make a cluster. The clusters with the smallest key go to ``eval``
    until they hold ``share`` of all distinct prompts; one that would be too many is passed over.
    At least one prompt goes and at least one stays. Row numbers and file order decide nothing.

    Args:
        keys: (n, 16) uint8 of `prompt_keys`.
        signatures: (n, NUM_HASHES) uint32 of `prompt_signatures`; of each prompt once is asked.

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
        near = f" ({len(first)} are near copies of each other)" if len(first) > 1 else ""
        raise DataError(
            f"{len(clusters)} distinct prompt{near} cannot be split into train and eval",
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


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers, (n,) uint32; half surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def bare(text: str) -> str:
    """A text as it is compared: NFC, small letters, single spaces."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip().casefold()


def pieces(text: str) -> np.ndarray:
    """A hash of every five-letter piece of a bare text, (n,) uint32, n at least 1."""
    codes = code_points(text).astype(np.uint64) + np.uint64(1)
    if len(codes) < PIECE_CHARACTERS:
        codes = np.pad(codes, (0, PIECE_CHARACTERS - len(codes)))
    windows = np.lib.stride_tricks.sliding_window_view(codes, PIECE_CHARACTERS)
    hashed = windows @ _POWERS
    hashed ^= hashed >> np.uint64(29)
    return ((hashed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(np.uint32)


def signature(text: str) -> np.ndarray:
    """(NUM_HASHES,) uint32 of a bare text: the share of equal entries estimates the likeness."""
    hashed = np.unique(pieces(text))
    lowest = np.full(NUM_HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashed), _PIECES_AT_ONCE):
        mixed = _FACTORS * hashed[start : start + _PIECES_AT_ONCE] + _OFFSETS
        mixed ^= mixed >> np.uint32(15)  # an odd factor alone keeps the order of low bits
        mixed *= np.uint32(0x2C1B3C6D)
        np.minimum(lowest, mixed.min(axis=1), out=lowest)
    return lowest


def near_groups(signatures: np.ndarray, near: float = NEAR_LIKENESS) -> np.ndarray:
    """Which texts are near copies of each other.

    Args:
        signatures: (n, NUM_HASHES) uint32.
        near: the least estimated likeness.

    Returns:
        (n,) int64: for each text the first of its group, itself where it stands alone. Groups are
        connected: a near copy of a near copy belongs to them.
    """
    # Equal signatures are one text; groups are named by the one that stands first.
    _, firsts, inverse = np.unique(_row_hashes(signatures), return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    distinct = firsts[order]
    root = np.arange(len(distinct))
    for band in range(0, NUM_HASHES, BAND_HASHES):
        keys = np.ascontiguousarray(signatures[distinct, band : band + BAND_HASHES])
        flat = keys.view(np.dtype((np.void, keys.shape[1] * 4))).ravel()
        sorted_ = np.argsort(flat, kind="stable")
        same = flat[sorted_][1:] == flat[sorted_][:-1]
        for start, stop in _runs(same):
            _join(sorted_[start:stop], distinct, signatures, near, root)
    groups = distinct[[_find(root, n) for n in range(len(root))]]
    return groups[place[inverse.ravel()]].astype(np.int64)


def _row_hashes(signatures: np.ndarray) -> np.ndarray:
    """(n,) uint64: a hash of each row, made a few rows at a time."""
    factors = _FACTORS.ravel().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    hashes = np.empty(len(signatures), dtype=np.uint64)
    for start in range(0, len(signatures), _PIECES_AT_ONCE):
        rows = signatures[start : start + _PIECES_AT_ONCE].astype(np.uint64)
        rows *= factors
        rows ^= rows >> np.uint64(31)
        hashes[start : start + _PIECES_AT_ONCE] = (rows * factors).sum(axis=1)
    return hashes


def _runs(same: np.ndarray) -> list[tuple[int, int]]:
    """Stretches [start, stop) of equal neighbours."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    return [(int(a), int(b) + 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _join(
    bucket: np.ndarray,
    distinct: np.ndarray,
    signatures: np.ndarray,
    near: float,
    root: np.ndarray,
) -> None:
    """Join what is alike in a bucket: every text with the first, then the rest among themselves."""
    left = bucket
    while len(left) > 1:
        first, others = left[0], left[1:]
        alike = np.concatenate([
            (signatures[distinct[some]] == signatures[distinct[first]]).mean(axis=1) >= near
            for some in np.array_split(others, len(others) // _PIECES_AT_ONCE + 1)
        ])  # fmt: skip
        for other in others[alike]:
            a, b = _find(root, int(first)), _find(root, int(other))
            root[max(a, b)] = min(a, b)
        left = others[~alike]


def _find(root: np.ndarray, n: int) -> int:
    while root[n] != n:
        root[n] = root[root[n]]
        n = int(root[n])
    return n
