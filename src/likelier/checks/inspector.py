"""What is looked for in data while it is read: in single pairs, across pairs, and for leaks."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder
from likelier.checks.across import Content, digest, hashes_of, hashes_watched
from likelier.checks.pairs import (
    assistant_text,
    findings_as_read,
    findings_as_rendered,
    findings_as_tokens,
)
from likelier.checks.rules import RULES, cure
from likelier.checks.shortcuts import FEATURES, features
from likelier.data.records import Pair, TokenPair, text_of
from likelier.data.split import NUM_HASHES, bare, prompt_signatures, signature
from likelier.data.workers import Chunk


@dataclass(frozen=True)
class PairInspector:
    """Finds what `likelier.data.load` does not need, and hands back what says more together.

    Arrays of a chunk: ``keys`` (n, 3) uint64, hashes of prompt, chosen and rejected (of an
    unpaired example prompt, completion and label). With ``held_out``, ``hits`` (h, 2) uint64, what
    was watched for and in which pair of the chunk, and ``prompts`` (n, NUM_HASHES) signatures.
    With ``statistics``, ``pairs`` (n, NUM_HASHES) signatures of whole pairs, ``features``
    (m, 2, F) of the completions of pairs, ``origins`` (n,) text, and ``lengths`` (n, 3) int32
    tokens where there are tokens.
    """

    statistics: bool = False
    held_out: tuple[Pair, ...] = ()  # left behind where the inspector goes to other processes
    watched: frozenset[int] | None = None  # hashes of the held-out prompts

    @property
    def key(self) -> str:
        """All that decides what is found, and the words of the hints."""
        hints = [cure(code) for code in RULES]
        return repr((self.statistics, self.watched and sorted(self.watched), hints))

    def __getstate__(self) -> dict[str, object]:
        return {"statistics": self.statistics, "held_out": (), "watched": self.watched}

    def as_read(self, pair: Pair) -> Iterator[Finding]:
        """What a pair shows by itself."""
        return findings_as_read(pair)

    def as_tokens(
        self, encoder: Encoder, pair: Pair, texts: Sequence[str], tokens: TokenPair
    ) -> Iterator[Finding]:
        """What a pair shows as tokens."""
        return findings_as_tokens(encoder, pair, texts, tokens)

    def as_rendered(self, encoder: Encoder, pairs: Sequence[Pair]) -> Iterator[Finding]:
        """What of the pairs of a chunk the chat template does not read."""
        return findings_as_rendered(encoder, pairs)

    def arrays(self, pairs: Sequence[Pair], tokens: Sequence[TokenPair]) -> dict[str, np.ndarray]:
        """What is kept of the pairs, to be compared with others."""
        found: dict[str, np.ndarray] = {}
        found["keys"] = np.array([_keys(pair) for pair in pairs], np.uint64).reshape(-1, 3)
        if self.watched is not None:
            found["hits"] = np.array(list(self._hits(pairs)), np.uint64).reshape(-1, 2)
            found["prompts"] = prompt_signatures(pairs)
        if self.statistics:
            whole = ["\n".join(map(text_of, pair.sides.values())) for pair in pairs]
            nears = [signature(bare(text)) for text in whole]
            both = [
                [features(assistant_text(side)) for side in (pair.chosen, pair.rejected)]
                for pair in pairs
                if pair.label is None
            ]
            found["pairs"] = np.array(nears, np.uint32).reshape(-1, NUM_HASHES)
            found["features"] = np.array(both, np.float32).reshape(-1, 2, len(FEATURES))
            found["origins"] = np.array([pair.origin or "" for pair in pairs], np.str_)
            lengths = [
                [len(t.prompt), len(t.chosen.tokens), len(t.rejected.tokens)] for t in tokens
            ]
            found["lengths"] = np.array(lengths, np.int32).reshape(-1, 3)
        return found

    def across(self, chunks: Sequence[Chunk]) -> list[Finding]:
        """Pairs that stand twice, contradict each other, or go in a circle."""
        return Content(chunks).findings()

    def watching(self, held_out: Sequence[Pair]) -> "PairInspector":
        """The same, for data that must not hold the prompts of these pairs."""
        return replace(self, held_out=tuple(held_out), watched=hashes_watched(held_out))

    def leaks(self, chunks: Sequence[Chunk], used: Collection[str]) -> list[Finding]:
        """The held-out prompts that pairs with these sources are trained on, or nearly."""
        return Content(chunks).leaks(self.held_out, used)

    def _hits(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
        """What is watched for, and the number of the first pair that has it."""
        done: set[int] = set()
        for number, pair in enumerate(pairs):
            for found in hashes_of(bare(text_of(pair.prompt))):
                if found in (self.watched or ()) and found not in done:
                    done.add(found)
                    yield found, number


def _keys(pair: Pair) -> list[int]:
    other = pair.rejected if pair.label is None else pair.label
    return [digest([pair.prompt, pair.tools]), digest(pair.chosen), digest(other)]
