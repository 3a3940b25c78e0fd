"""What rows say about each other: copies, contradictions, circles, held-out prompts trained on."""

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import compress, groupby
from operator import itemgetter
from typing import Any

import numpy as np

from likelier.base.findings import Finding
from likelier.checks.rules import finding
from likelier.data.records import Pair, Places, text_of
from likelier.data.split import MAX_COMPARED, bare, near_groups, signature
from likelier.data.workers import Chunk, row_of

GRAM_WORDS = 8  # the n of the n-grams
MIN_COVERED = 0.5  # share of a held-out prompt's words that lie in n-grams of training prompts
# Words; a Han or Kana character is a word of its own, because no spaces part them.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class EvenSample:
    """At most ``most`` of the rows added, evenly spaced over all of them.

    Every ``step``-th row is kept. Where the sample grows too large, every second row leaves it
    and ``step`` doubles.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.step = 1
        self._added = 0
        self._rows: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, (n, …)."""
        self._rows.append(rows[-self._added % self.step :: self.step].copy())
        self._added += len(rows)
        while len(self) > self.most:
            self.step *= 2
            count = 0
            for n, before in enumerate(self._rows):  # one by one: they are large together
                self._rows[n] = before[count % 2 :: 2].copy()
                count += len(before)

    @property
    def numbers(self) -> np.ndarray:
        """(n,) int64: which rows the sample holds, counted from 0 over all that were added."""
        return np.arange(len(self)) * self.step

    @property
    def rows(self) -> np.ndarray:
        """(n, …): the rows of the sample; raises ValueError where nothing was ever added."""
        return np.concatenate(self._rows)


def text_hash(text: str) -> int:
    """64 bits of a text, the same in every process."""
    hashed = blake2b(text.encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


def digest(side: Any) -> int:
    """64 bits of a side's content: equal for equal content, whatever the order of its keys."""
    return text_hash(json.dumps(side, ensure_ascii=False, sort_keys=True, default=str))


class Content:
    """The content of many pairs as hashes: 24 bytes and a source each, signatures of a sample.

    Of unpaired examples the third hash is that of the label.
    """

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        self._starts: list[int] = []  # the number of the first pair of each chunk
        self._sources: list[Places] = []  # of each chunk
        self._keys = array("Q")  # prompt, chosen, rejected of each pair
        self._signatures, self._prompts = EvenSample(MAX_COMPARED), EvenSample(MAX_COMPARED)
        self._hits: dict[int, str] = {}  # hashes of held-out prompts that are here, and where first
        for chunk in chunks:
            self.add(chunk)

    def add(self, chunk: Chunk) -> None:
        """Take the pairs of one more chunk."""
        self._starts.append(len(self._keys) // 3)
        self._sources.append(Places(chunk.sources))
        keys = np.ascontiguousarray(chunk.arrays["keys"], dtype=np.uint64)
        self._keys.frombytes(keys.tobytes())
        if "pairs" in chunk.arrays:
            self._signatures.add(chunk.arrays["pairs"])
        if "hits" in chunk.arrays:
            self._prompts.add(chunk.arrays["prompts"])
            for hit, number in chunk.arrays["hits"].tolist():
                self._hits.setdefault(hit, chunk.sources[number])

    def source(self, index: int) -> str:
        """Where the pair of this number stands."""
        chunk = bisect_right(self._starts, index) - 1
        source: str = self._sources[chunk][index - self._starts[chunk]]
        return source

    @property
    def sampled(self) -> int:
        """How many pairs are compared for near copies."""
        return len(self._signatures)

    @property
    def keys(self) -> np.ndarray:
        """(n, 3) uint64: prompt, chosen, rejected."""
        return np.frombuffer(self._keys, dtype=np.uint64).reshape(-1, 3)

    def findings(self) -> list[Finding]:
        """What the pairs say about each other, in their order."""
        last = self.keys[:, 2]
        unpaired = bool(((last == digest(True)) | (last == digest(False))).all())
        against = self._labels() if unpaired else self._conflicts()
        found = [*self._duplicates(), *against, *self._near_copies()]
        return [one for _, one in sorted(found, key=itemgetter(0))]

    def leaks(self, held_out: Sequence[Pair], used: Collection[str] | None = None) -> list[Finding]:
        """A warning for each held-out pair whose prompt stands here too; it names both rows.

        The strongest reason is named: the same prompt, a near copy (of pairs whose source is in
        ``used`` only, where that is given), or more than half of its words in runs of eight that
        stand in prompts here.
        """
        sources = [self.source(number) for number in self._prompts.numbers]
        keep = [used is None or source in used for source in sources]
        texts = [bare(text_of(pair.prompt)) for pair in held_out]
        distinct = list(dict.fromkeys(texts))
        signatures = [signature(text) for text in distinct]
        near = _near(signatures, self._prompts.rows[keep], list(compress(sources, keep)))
        messages = {text: self._leak(text, near.get(n)) for n, text in enumerate(distinct)}
        return [
            finding("leak", pair.source, message, "prompt")
            for pair, text in zip(held_out, texts, strict=True)
            if (message := messages[text])
        ]

    def _leak(self, text: str, near: str | None) -> str | None:
        """How a held-out prompt stands here, where it does; ``near`` is where a near copy is."""
        if source := self._hits.get(text_hash(text)):
            return f"the prompt is also in the training data, at {source}"
        if near:
            return f"nearly the same prompt is in the training data, at {near}"
        grams = _grams(text)
        found = [n for n, gram in enumerate(grams) if gram in self._hits]
        covered = {word for n in found for word in range(n, n + GRAM_WORDS)}
        share = len(covered) / (len(grams) + GRAM_WORDS - 1) if grams else 0.0
        if share <= MIN_COVERED:
            return None
        first = self._hits[grams[found[0]]]
        return f"{share:.0%} of its words stand in training prompts, as at {first}"

    def _duplicates(self) -> Iterator[tuple[int, Finding]]:
        first, again = _first_of(self.keys)
        for index in again:
            before = self.source(first[index])
            if row_of(before) == row_of(self.source(index)):  # a copy by its weight
                continue
            yield self._finding("duplicate", index, f"the same pair as {before}")

    def _conflicts(self) -> Iterator[tuple[int, Finding]]:
        """In the graph of which answer beats which, prompt by prompt: opposites and circles."""
        keys = self.keys
        counts = np.unique(keys[:, 0], return_inverse=True, return_counts=True)
        several = np.flatnonzero(counts[2][counts[1].ravel()] > 1)
        order = several[np.argsort(keys[several, 0], kind="stable")]
        for _, group in groupby(order.tolist(), key=lambda index: keys[index, 0]):
            yield from self._of_prompt(list(group))

    def _of_prompt(self, group: list[int]) -> Iterator[tuple[int, Finding]]:
        edges: dict[tuple[int, int], int] = {}
        for index in group:
            _, chosen, rejected = self.keys[index].tolist()
            opposite = edges.get((rejected, chosen))
            if opposite is not None:
                before = self.source(opposite)
                message = f"the same pair as {before} with chosen and rejected swapped"
                yield self._finding("conflict", index, message)
            edges.setdefault((chosen, rejected), index)
        component = _components(list(edges))
        for (chosen, rejected), index in edges.items():
            circle = component[chosen] == component[rejected]
            if circle and (rejected, chosen) not in edges:
                size = sum(number == component[chosen] for number in component.values())
                message = f"part of a circle of {size} answers, each preferred to the next"
                yield self._finding("cycle", index, message)

    def _labels(self) -> Iterator[tuple[int, Finding]]:
        """The same answer to the same prompt, once good and once bad."""
        first, again = _first_of(self.keys[:, :2])
        for index in again:
            if self.keys[index, 2] != self.keys[first[index], 2]:
                message = f"the same answer as {self.source(first[index])} with the other label"
                yield self._finding("conflict", index, message)

    def _near_copies(self) -> Iterator[tuple[int, Finding]]:
        if not self.sampled:
            return
        numbers = self._signatures.numbers
        groups = near_groups(self._signatures.rows)
        first, _ = _first_of(self.keys[numbers])
        for n, group in enumerate(groups.tolist()):
            if group != n and first[n] == n:  # not a plain copy
                index = int(numbers[n])
                message = f"nearly the same pair as {self.source(numbers[group])}"
                yield self._finding("near", index, message)

    def _finding(self, code: str, index: int, message: str) -> tuple[int, Finding]:
        return index, finding(code, self.source(index), message)


def _first_of(keys: np.ndarray) -> tuple[list[int], list[int]]:
    """For each row the first row equal to it, and the rows that are not the first."""
    rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1] * 8))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    firsts = first[inverse.ravel()]
    return firsts.tolist(), np.flatnonzero(firsts != np.arange(len(rows))).tolist()


def _components(edges: list[tuple[int, int]]) -> dict[int, int]:
    """The strongly connected component of each answer (Tarjan's, without recursion)."""
    after: dict[int, list[int]] = {}
    for one, other in edges:
        after.setdefault(one, []).append(other)
        after.setdefault(other, [])
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    path: list[int] = []
    for start in after:
        stack = [(start, iter(after[start]))] if start not in number else []
        while stack:
            node, rest = stack[-1]
            if node not in number:
                number[node] = low[node] = len(number)
                path.append(node)
            for other in rest:
                if other not in number:
                    stack.append((other, iter(after[other])))
                    break
                if other not in component:
                    low[node] = min(low[node], number[other])
            else:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[node])
                if low[node] == number[node]:
                    while node not in component:
                        component[path.pop()] = number[node]
    return component


# ---- held-out prompts that are trained on -------------------------------------------------------


def hashes_of(prompt: str) -> list[int]:
    """A hash of a bare prompt, and one of each of its n-grams."""
    return [text_hash(prompt), *_grams(prompt)]


def hashes_watched(held_out: Iterable[Pair]) -> frozenset[int]:
    """What to look for in training prompts: the hashes of held-out ones."""
    texts = {bare(text_of(pair.prompt)) for pair in held_out}
    return frozenset(found for text in texts for found in hashes_of(text))


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
    return [
        text_hash(" ".join(words[n : n + GRAM_WORDS])) for n in range(len(words) - GRAM_WORDS + 1)
    ]
