"""Prompts held out and trained on: the same, near copies, or long stretches in common."""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from likelier.checks.rules import finding
from likelier.data.records import Finding, Pair, text_of
from likelier.data.split import bare, near_groups, signature

WORDS = 8  # the n of the n-grams
MIN_COVERED = 0.5  # share of a held-out prompt's words that lie in n-grams of training prompts
# Words; a Han or Kana character is a word of its own, because no spaces part them.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def text_hash(text: str) -> int:
    """64 bits of a text, the same in every process."""
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hashes_of(prompt: str) -> list[int]:
    """A hash of a bare prompt, and one of each of its n-grams."""
    return [text_hash(prompt), *_grams(prompt)]


def hashes_watched(held_out: Iterable[Pair]) -> frozenset[int]:
    """What to look for in training prompts: the hashes of held-out ones."""
    texts = {bare(text_of(pair.prompt)) for pair in held_out}
    return frozenset(found for text in texts for found in hashes_of(text))


def find_leaks(
    held_out: Sequence[Pair],
    hits: Mapping[int, str],
    signatures: np.ndarray,
    sources: Sequence[str],
) -> list[Finding]:
    """A warning for each held-out pair whose prompt is trained on; it names both rows.

    The strongest reason is named: the same prompt, a near copy, or more than half of its
    words in runs of eight that training prompts have, too.

    Args:
        hits: the hashes watched for that training prompts have, and where first.
        signatures: (n, NUM_HASHES) of training prompts, and their ``sources``.
    """
    texts = [bare(text_of(pair.prompt)) for pair in held_out]
    distinct = list(dict.fromkeys(texts))
    near = _near([signature(text) for text in distinct], signatures, sources)
    messages = {text: _message(text, hits, near.get(n)) for n, text in enumerate(distinct)}
    return [
        finding("leak", pair.source, message, "prompt")
        for pair, text in zip(held_out, texts, strict=True)
        if (message := messages[text])
    ]


def _message(text: str, hits: Mapping[int, str], near: str | None) -> str | None:
    if source := hits.get(text_hash(text)):
        return f"the prompt is also in the training data, at {source}"
    if near:
        return f"nearly the same prompt is in the training data, at {near}"
    grams = _grams(text)
    found = [n for n, gram in enumerate(grams) if gram in hits]
    covered = {word for n in found for word in range(n, n + WORDS)}
    share = len(covered) / (len(grams) + WORDS - 1) if grams else 0.0
    if share <= MIN_COVERED:
        return None
    return f"{share:.0%} of its words stand in training prompts, as at {hits[grams[found[0]]]}"


def _near(
    held: Sequence[np.ndarray], trained: np.ndarray, sources: Sequence[str]
) -> dict[int, str]:
    """For each held-out prompt with a near copy in training, the source of the first."""
    if not held or not len(trained):
        return {}
    groups = near_groups(np.concatenate([np.stack(held), trained])).tolist()
    first: dict[int, str] = {}
    for group, source in zip(groups[len(held) :], sources, strict=True):
        first.setdefault(group, source)
    return {n: first[group] for n, group in enumerate(groups[: len(held)]) if group in first}


def _grams(text: str) -> list[int]:
    words = _WORD.findall(text)
    return [text_hash(" ".join(words[n : n + WORDS])) for n in range(len(words) - WORDS + 1)]
