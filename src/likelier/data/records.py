"""The records that travel: a row, the pair in it, the same pair as tokens, and what was found."""

import hashlib
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice, pairwise, takewhile
from operator import eq
from typing import Any, NamedTuple, Protocol

import numpy as np

from likelier.chat.messages import Chat

MEMORY_AT_ONCE = 16 * 2**20  # bytes of rows as Python objects that stay together
PAIRS_AT_ONCE = 256  # that are read together where all are


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


class PromptRow(NamedTuple):
    """What is to be answered: text or messages, with the tools that its template may list."""

    source: str
    content: str | Chat
    tools: Chat = ()

    def asked(self) -> dict[str, Any]:
        """As a row of a file."""
        tools = {"tools": self.tools} if self.tools else {}
        return {"source": self.source, "prompt": self.content, **tools}


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


class Places(Sequence[str]):
    """The places of many rows, a few bytes each: what all of them begin with is kept once."""

    def __init__(self, sources: Sequence[str]):
        self.start = _shared_start([min(sources), max(sources)]) if sources else ""
        ends = (source[len(self.start) :] for source in sources)
        self.ends = np.array([end.encode(errors="surrogatepass") for end in ends], np.bytes_)

    @classmethod
    def of(cls, start: str, ends: np.ndarray) -> "Places":
        """Places again, from what another has of them."""
        places = cls(())
        places.start, places.ends = start, ends
        return places

    @classmethod
    def joined(cls, several: Sequence["Places"]) -> "Places":
        """The places of all, in their order."""
        start = _shared_start([places.start for places in several])
        between = (one.start[len(start) :].encode(errors="surrogatepass") for one in several)
        ends = [np.strings.add(b, one.ends) for b, one in zip(between, several, strict=True)]
        return cls.of(start, np.concatenate([np.zeros(0, np.bytes_), *ends]))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Places.of(self.start, self.ends[index])
        return self.start + bytes(self.ends[index]).decode(errors="surrogatepass")


def _shared_start(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len({*letters}) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


class Flat(Protocol):
    """An array of one axis, of which only slices are asked for: in memory, or in a file."""

    def __getitem__(self, part: slice) -> np.ndarray: ...


class TokenBlock:
    """Token pairs as flat arrays.

    ``ids`` (t,) int32, all tokens; ``scored`` (c,) bool, of the completions' tokens; ``sizes``
    (n, 3) int32: prompt, chosen, rejected; ``beside`` (n, 3) float64: margin, weight and label,
    NaN where there is none.
    """

    def __init__(
        self, ids: Flat, scored: Flat, sizes: np.ndarray, beside: np.ndarray, places: Places
    ):
        self.ids, self.scored, self.sizes, self.beside, self.places = (
            ids, scored, sizes, beside, places,
        )  # fmt: skip
        # Where the tokens of each pair begin, and its flags.
        self.starts = np.zeros((len(sizes) + 1, 2), np.int64)
        np.cumsum(sizes.sum(1), out=self.starts[1:, 0])
        np.cumsum(sizes[:, 1:].sum(1), out=self.starts[1:, 1])

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def lengths(self) -> np.ndarray:
        """(n,): tokens of the longer of both sequences of each pair."""
        lengths: np.ndarray = self.sizes[:, 0] + self.sizes[:, 1:].max(1, initial=0)
        return lengths

    def flat(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and the flags of neighbours, end to end."""
        (ids, flags), (last_id, last_flag) = self.starts[first].tolist(), self.starts[stop].tolist()
        return self.ids[ids:last_id], self.scored[flags:last_flag]

    def records(self, first: int, stop: int) -> Iterator[TokenPair]:
        """The pairs of some numbers, in their order. Their token ids are shared objects."""
        ids, scored = self.flat(first, stop)
        tokens, flags = _as_numbers(ids), scored.tolist()
        at = flag = 0
        for number, sizes in enumerate(self.sizes[first:stop].tolist(), start=first):
            prompt = tuple(tokens[at : at + sizes[0]])
            at += sizes[0]
            both = []
            for size in sizes[1:]:
                some = tuple(tokens[at : at + size]), tuple(flags[flag : flag + size])
                both.append(Completion(*some))
                at, flag = at + size, flag + size
            yield TokenPair(prompt, both[0], both[1], self.places[number], *self.numbers(number))

    def numbers(self, number: int) -> tuple[float | None, float | None, bool | None]:
        """Margin, weight and label of a pair."""
        margin, weight, label = (None if x != x else x for x in self.beside[number].tolist())
        return margin, weight, None if label is None else bool(label)


def pack_tokens(pairs: Sequence[TokenPair]) -> dict[str, np.ndarray]:
    """Token pairs as the arrays of a `TokenBlock`, small enough to keep and to send elsewhere."""
    sides = [(pair.prompt, pair.chosen.tokens, pair.rejected.tokens) for pair in pairs]
    scored = [mask for pair in pairs for mask in (pair.chosen.scored, pair.rejected.scored)]
    beside = [(pair.margin, pair.weight, pair.label) for pair in pairs]
    return {
        "ids": np.fromiter(chain.from_iterable(chain.from_iterable(sides)), dtype=np.int32),
        "scored": np.fromiter(chain.from_iterable(scored), dtype=np.bool_),
        "sizes": np.array([[len(side) for side in s] for s in sides], np.int32).reshape(-1, 3),
        "beside": np.array(beside, dtype=np.float64).reshape(-1, 3),
    }


def _as_numbers(ids: np.ndarray) -> list[int]:
    """Token ids as Python's numbers, equal ones as one object: a fifth of the memory."""
    if not len(ids):
        return []
    shared: list[int] = _numbers(int(ids.max()).bit_length())[ids].tolist()
    return shared


@lru_cache
def _numbers(bits: int) -> np.ndarray:
    return np.arange(2**bits).astype(object)


class TokenPairs(Sequence[TokenPair]):
    """Token pairs that lie in blocks; each becomes a record, a new one, when it is asked for.

    ``order`` (n,) int64 says which pairs of all blocks these are; None for all.
    """

    def __init__(self, blocks: Sequence[TokenBlock], order: np.ndarray | None = None):
        self.blocks = tuple(blocks)
        ends = np.cumsum([len(block) for block in self.blocks], dtype=np.int64)
        self._begins: list[int] = [0, *ends.tolist()]  # the number of each block's first pair
        self.order = np.arange(self._begins[-1]) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(index)
        number = int(self.order[index])
        at = bisect_right(self._begins, number) - 1
        first = number - self._begins[at]
        return next(self.blocks[at].records(first, first + 1))

    def __iter__(self) -> Iterator[TokenPair]:
        for block, first, stop in self.stretches():
            yield from block.records(first, stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def take(self, which: Any) -> "TokenPairs":
        """Some of the pairs, by a slice, a mask or numbers."""
        return TokenPairs(self.blocks, self.order[which])

    def followed_by(self, other: "TokenPairs") -> "TokenPairs":
        """These pairs, and the others behind them."""
        if other.blocks == self.blocks:
            return TokenPairs(self.blocks, np.concatenate([self.order, other.order]))
        order = np.concatenate([self.order, other.order + self._begins[-1]])
        return TokenPairs((*self.blocks, *other.blocks), order)

    def stretches(self) -> Iterator[tuple[TokenBlock, int, int]]:
        """The pairs in their order, as neighbours of one block from one number to another."""
        at = np.searchsorted(self._begins, self.order, side="right") - 1
        apart = (np.diff(self.order) != 1) | (np.diff(at) != 0)
        for start, end in pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(self)]):
            for here in range(start, end, PAIRS_AT_ONCE):
                block = int(at[here])
                first = int(self.order[here]) - self._begins[block]
                yield self.blocks[block], first, first + min(PAIRS_AT_ONCE, end - here)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(n, 3) int32: tokens of prompt, chosen, rejected."""
        return self._of_each([block.sizes for block in self.blocks], np.int32)

    @cached_property
    def beside(self) -> np.ndarray:
        """(n, 3) float64: margin, weight and label, NaN where there is none."""
        return self._of_each([block.beside for block in self.blocks], np.float64)

    @property
    def places(self) -> Places:
        """The sources of the pairs."""
        return Places.joined([block.places[a:b] for block, a, b in self.stretches()])

    def _of_each(self, arrays: Sequence[np.ndarray], kind: Any) -> np.ndarray:
        return np.concatenate([np.zeros((0, 3), kind), *arrays])[self.order]


def content_hash(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 of the tokens of pairs in their order: the same content, the same hash."""
    digest = hashlib.sha256()
    for content in _contents(pairs) if isinstance(pairs, TokenPairs) else map(_content, pairs):
        digest.update(content)
    return digest.hexdigest()


def _content(pair: TokenPair) -> bytes:
    """All that makes a pair what it is, as bytes."""
    sides = (pair.prompt, pair.chosen.tokens, pair.rejected.tokens)
    numbers = [number for ids in sides for number in (len(ids), *ids)]
    flags = (*pair.chosen.scored, *pair.rejected.scored)
    content = np.asarray(numbers, np.int64).tobytes() + np.asarray(flags, np.bool_).tobytes()
    beside = (pair.margin, pair.weight, pair.label)
    return content + (repr(beside).encode() if beside != (None, None, None) else b"")


def _contents(pairs: TokenPairs) -> Iterator[bytes | memoryview]:
    """The `_content` of each pair, from the arrays of many."""
    for block, first, stop in pairs.stretches():
        ids, flags = block.flat(first, stop)
        sizes = block.sizes[first:stop].ravel().astype(np.int64)
        numbers = np.empty(len(ids) + len(sizes), np.int64)
        heads = np.cumsum(sizes) - sizes + np.arange(len(sizes))  # where the lengths stand
        is_id = np.ones(len(numbers), np.bool_)
        is_id[heads] = False
        numbers[heads], numbers[is_id] = sizes, ids
        starts = block.starts[first : stop + 1] - block.starts[first]
        starts[:, 0] += 3 * np.arange(len(starts))
        both = numbers.data, flags.data
        has_numbers = (block.beside[first:stop] == block.beside[first:stop]).any(1)
        for at, ((number, flag), (last_number, last_flag)) in enumerate(pairwise(starts.tolist())):
            yield both[0][number:last_number]
            yield both[1][flag:last_flag]
            if has_numbers[at]:
                yield repr(block.numbers(first + at)).encode()


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
