"""Which pairs each step sees: a pure function of seed, epoch and content, so nothing to save.

Prompts are shuffled and their pairs laid end to end, epoch after epoch; the stream is cut every
``pairs_per_step``. A prompt's pairs stay together except at a cut, and every step but the last
holds exactly ``pairs_per_step`` pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np

from likelier.config.schema import TrainConfig
from likelier.data.records import TokenPair


@dataclass(frozen=True, eq=False)  # hashed by identity: `_epoch` is remembered for it
class Order:
    """The order of a run over ``num_pairs`` pairs, of which ``total`` visits are made."""

    groups: tuple[tuple[int, ...], ...]  # indices of the pairs of each prompt
    keys: tuple[bytes, ...]  # the content of each prompt
    seed: int
    pairs_per_step: int
    total: int

    @cached_property
    def num_pairs(self) -> int:
        """Distinct pairs: the length of an epoch."""
        return sum(len(group) for group in self.groups)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run; the last may hold fewer pairs."""
        return -(-self.total // self.pairs_per_step)

    def step(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index of pair) of every visit of a step; the first step is 1."""
        first = (step - 1) * self.pairs_per_step
        visits = range(first, min(first + self.pairs_per_step, self.total))
        return [
            (at // self.num_pairs, _epoch(self, at // self.num_pairs)[at % self.num_pairs])
            for at in visits
        ]

    def visits(self, step: int, pairs: Sequence[TokenPair]) -> list[tuple[int, TokenPair]]:
        """`step` with the pairs themselves; nothing behind the last step."""
        return [(epoch, pairs[index]) for epoch, index in self.step(step)]


@lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> tuple[int, ...]:
    """All pairs in the order of one epoch: prompts by a keyed hash of their content."""

    def place(group: int) -> bytes:
        text = f"{order.seed}/{epoch}/".encode() + order.keys[group]
        return blake2b(text, digest_size=16).digest()

    shuffled = sorted(range(len(order.groups)), key=place)
    return tuple(index for group in shuffled for index in order.groups[group])


def make_order(pairs: Sequence[TokenPair], config: TrainConfig) -> Order:
    """The order of a run: ``steps`` steps, or ``epochs`` times all of the pairs."""
    groups: dict[bytes, list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(np.asarray(pair.prompt, dtype=np.int64).tobytes(), []).append(index)
    if config.steps is not None:
        total = config.steps * config.pairs_per_step
    else:
        assert config.epochs is not None  # the config has one of them
        total = max(1, round(config.epochs * len(pairs)))
    return Order(
        groups=tuple(tuple(group) for group in groups.values()),
        keys=tuple(groups),
        seed=config.seed,
        pairs_per_step=config.pairs_per_step,
        total=total,
    )
