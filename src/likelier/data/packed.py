"""Token pairs as flat arrays: small enough to keep, to cache and to hand between processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from likelier.data.records import Answer, TokenPair


@dataclass(frozen=True)
class Packed:
    """Many token pairs. Attributes: ``ids`` (t,) int32, all tokens; ``scored`` (a,) bool, of the
    answers' tokens; ``lengths`` (n, 3) int32: prompt, chosen, rejected.
    """

    ids: np.ndarray
    scored: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[TokenPair]) -> "Packed":
        """Pairs as arrays; their sources are not kept."""
        sides = [(pair.prompt, pair.chosen.tokens, pair.rejected.tokens) for pair in pairs]
        scored = [mask for pair in pairs for mask in (pair.chosen.scored, pair.rejected.scored)]
        return cls(
            np.fromiter(chain.from_iterable(chain.from_iterable(sides)), dtype=np.int32),
            np.fromiter(chain.from_iterable(scored), dtype=np.bool_),
            np.array([[len(side) for side in three] for three in sides], np.int32).reshape(-1, 3),
        )

    def pairs(self, sources: Sequence[str], shared: "Shared") -> Iterator[TokenPair]:
        """The pairs again, with their sources; equal numbers and prompts become one object."""
        ids, scored = self.ids.tolist(), self.scored.tolist()
        at = mask = 0
        for source, (prompt, chosen, rejected) in zip(sources, self.lengths.tolist(), strict=True):
            middle, end = at + prompt + chosen, at + prompt + chosen + rejected
            half = mask + chosen
            yield TokenPair(
                shared.prompt(ids[at : at + prompt]),
                Answer(shared.tokens(ids[at + prompt : middle]), shared.mask(scored[mask:half])),
                Answer(shared.tokens(ids[middle:end]), shared.mask(scored[half : half + rejected])),
                source,
            )
            at, mask = end, half + rejected


class Shared:
    """One object for each number, each prompt and each mask: an eighth of the memory."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._prompts: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._masks: dict[tuple[bool, ...], tuple[bool, ...]] = {}

    def tokens(self, ids: list[int]) -> tuple[int, ...]:
        """The ids as a tuple."""
        number = self._numbers.setdefault
        return tuple([number(token, token) for token in ids])

    def prompt(self, ids: list[int]) -> tuple[int, ...]:
        """The same, and equal prompts are one object."""
        tokens = self.tokens(ids)
        return self._prompts.setdefault(tokens, tokens)

    def mask(self, scored: list[bool]) -> tuple[bool, ...]:
        """The flags as a tuple; equal ones are one object."""
        mask = tuple(scored)
        return self._masks.setdefault(mask, mask)
