"""Prompts held out and trained on: the same, near copies, or long stretches in common."""

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from likelier.data.look import text_of
from likelier.data.minhash import NEAR, bare, near_groups, signature
from likelier.data.records import Finding, Labelled, Pair

WORDS = 8  # the n of the n-grams
COVERED = 0.5  # share of a held-out prompt's words that lie in n-grams of training prompts
# Words; a Han or Kana character is a word of its own, because no spaces part them.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Rows = Iterable[Pair | Labelled]


def leaks(train: Rows, held_out: Sequence[Pair | Labelled]) -> list[Finding]:
    """A warning for each held-out pair whose prompt is trained on; it names both rows.

    ``held_out`` is kept in memory, ``train`` is gone through once. The strongest reason is named:
    the same prompt, a near copy, or more than half of its words in runs of eight that a training
    prompt has, too.
    """
    texts = [bare(text_of(pair.prompt)) for pair in held_out]
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    grams = {text: _grams(text) for text in distinct}
    wanted = {gram for found in grams.values() for gram in found}
    same: dict[str, str] = {}
    seen: dict[int, str] = {}
    signatures: list[np.ndarray] = [signature(text) for text in distinct]
    sources: list[str] = []
    done: set[str] = set()
    for pair in train:
        text = bare(text_of(pair.prompt))
        if text in done:
            continue
        done.add(text)
        if text in distinct:
            same.setdefault(text, pair.source)
        for gram in _grams(text):
            if gram in wanted:
                seen.setdefault(gram, pair.source)
        signatures.append(signature(text))
        sources.append(pair.source)
    near = _near(signatures, sources, len(distinct))
    findings = []
    for pair, text in zip(held_out, texts, strict=True):
        message = None
        if source := same.get(text):
            message = f"the prompt is also in the training data, at {source}"
        elif source := near.get(distinct[text]):
            message = f"nearly the same prompt is in the training data, at {source}"
        elif overlap := _overlap(grams[text], seen):
            share, source = overlap
            message = f"{share:.0%} of the prompt's words are in training prompts, as at {source}"
        if message:
            mend = "delete it from one of the two"
            findings.append(Finding("leak", "warning", pair.source, "prompt", message, mend))
    return findings


def _near(signatures: list[np.ndarray], sources: list[str], held: int) -> dict[int, str]:
    """For each held-out text with a near copy among the others, the place of one."""
    if not signatures:
        return {}
    groups = near_groups(np.stack(signatures), NEAR)
    first: dict[int, str] = {}
    for group, source in zip(groups[held:].tolist(), sources, strict=True):
        first.setdefault(group, source)
    return {n: first[group] for n, group in enumerate(groups[:held].tolist()) if group in first}


def _grams(text: str) -> list[int]:
    words = _WORD.findall(text)
    return [
        int.from_bytes(
            blake2b(" ".join(words[n : n + WORDS]).encode(errors="surrogatepass"), digest_size=8)
            .digest(),
            "little",
        )
        for n in range(len(words) - WORDS + 1)
    ]  # fmt: skip


def _overlap(grams: list[int], seen: dict[int, str]) -> tuple[float, str] | None:
    """The share of words covered by n-grams that are trained on, and where, if it is too much."""
    hits = [n for n, gram in enumerate(grams) if gram in seen]
    covered = {word for n in hits for word in range(n, n + WORDS)}
    share = len(covered) / (len(grams) + WORDS - 1) if grams else 0.0
    return (share, seen[grams[hits[0]]]) if share > COVERED else None
