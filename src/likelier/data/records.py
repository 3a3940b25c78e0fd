"""The records that travel: a row, the pair in it, the same pair as tokens, and what was found."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from likelier.chat.messages import Chat

MEMORY_AT_ONCE = 16 * 2**20  # bytes of rows as Python objects that stay together


@dataclass(frozen=True)
class Row:
    """One record as it was read; ``source`` is ``file:line``, or ``train[3]`` in memory.

    ``count`` is how many rows of the file it was made of.
    """

    source: str
    record: dict[str, Any]
    count: int = 1


@dataclass(frozen=True)
class Pair:
    """One preference as it was read.

    Text pairs hold three strings. Chat pairs hold three tuples of messages: the prompt's, and
    the messages that each completion adds to it. ``source`` is ``file:line`` (``train[3]`` for
    the fourth of rows given in memory; Parquet rows count from 1), with ``#2`` behind it for the
    second of several pairs made from one row.

    An unpaired example is a pair with a ``label``, true for a good completion: the completion is
    ``chosen``, and ``rejected`` is the same, or one that belongs to another prompt.

    ``tools`` are what the template may list for the model to call, ``origin`` is the data set that
    the row says it comes from. Where the row has them: ``scores`` of chosen and rejected,
    ``margin``, by how much chosen is better (else the difference of the scores), and ``weight``,
    how much the pair counts.
    """

    prompt: str | Chat
    chosen: str | Chat
    rejected: str | Chat
    source: str
    tools: Chat = ()
    origin: str | None = None
    scores: tuple[float, float] | None = None
    margin: float | None = None
    weight: float | None = None
    label: bool | None = None

    @property
    def sides(self) -> dict[str, str | Chat]:
        """The prompt and the completions that the row itself holds, by the names of columns."""
        if self.label is not None:
            return {"prompt": self.prompt, "completion": self.chosen}
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class Completion:
    """The tokens that follow a prompt: ``tokens`` ids and, for each, whether it is scored.

    Unscored tokens are context (later user turns, role headers). The stop token, where the
    completion has one, is the last of ``tokens``.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model sees it: one prompt, two completions, token ids.

    ``margin`` says how much better the chosen completion is and ``weight`` how much the pair
    counts, where the data say so and the loss reads it. ``label`` is that of an unpaired example:
    its completion is then ``chosen``, and ``rejected`` one that belongs to another prompt, or the
    same again where the loss needs none.
    """

    prompt: tuple[int, ...]
    chosen: Completion
    rejected: Completion
    source: str
    margin: float | None = None
    weight: float | None = None
    label: bool | None = None

    @property
    def length(self) -> int:
        """Tokens of the longer of both sequences, which ``data.max_length`` bounds."""
        return len(self.prompt) + max(len(self.chosen.tokens), len(self.rejected.tokens))

    @property
    def num_tokens(self) -> int:
        """Tokens of both sequences, the prompt counted twice."""
        return 2 * len(self.prompt) + len(self.chosen.tokens) + len(self.rejected.tokens)


def text_of(side: str | Chat) -> str:
    """Every text of a prompt or a completion, one turn a line."""
    if isinstance(side, str):
        return side
    turns = (turn.get("content", "") for turn in side)
    return "\n".join(turn for turn in turns if isinstance(turn, str))


def common_length(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    """How many first tokens two sequences share."""
    if ours == theirs:  # the usual case, compared in C
        return len(ours)
    together = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in together if a != b), min(len(ours), len(theirs)))


def content_hash(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 of the tokens of pairs in their order: the same content, the same hash."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen.tokens, pair.rejected.tokens):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        for scored in (pair.chosen.scored, pair.rejected.scored):
            digest.update(np.asarray(scored, dtype=np.bool_).tobytes())
        beside = (pair.margin, pair.weight, pair.label)
        if any(value is not None for value in beside):
            digest.update(repr(beside).encode())
    return digest.hexdigest()


def bytes_held(value: Any) -> int:
    """About how many bytes a row's value takes as Python objects, those inside it included."""
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        size += sys.getsizeof(one, 64)
        if isinstance(one, dict):
            waiting += one
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
    return size


def taken(items: Iterator[Any], most: int, most_memory: int = MEMORY_AT_ONCE) -> list[Any]:
    """The next rows, pairs or findings: at most so many, and fewer where they are large."""
    found: list[Any] = []
    for item in islice(items, most):
        found.append(item)
        held = item.record if isinstance(item, Row) else vars(item)
        if (most_memory := most_memory - bytes_held(held)) <= 0:
            break
    return found
