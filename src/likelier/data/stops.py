"""Answers whose stop tokens are not scored: they stay context, and nobody learns to stop."""

from collections.abc import Iterable
from dataclasses import replace

from likelier.data.records import Answer, TokenPair


def without_stops(pairs: Iterable[TokenPair], ends: Iterable[int]) -> tuple[TokenPair, ...]:
    """The pairs with every scored token that ends a turn unscored; ``ends`` are those ids."""
    ends = frozenset(ends)

    def masked(answer: Answer) -> Answer:
        flags = zip(answer.tokens, answer.scored, strict=True)
        return replace(
            answer, scored=tuple(wanted and token not in ends for token, wanted in flags)
        )

    return tuple(
        replace(pair, chosen=masked(pair.chosen), rejected=masked(pair.rejected)) for pair in pairs
    )
