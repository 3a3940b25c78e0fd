"""Train mode without chance: every dropout and jitter probability at 0, put back afterwards."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CHANCE = re.compile(r"drop|jitter", re.IGNORECASE)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every probability of a model, its modules and its configuration to 0.

    The model can then stay in train mode (some models switch activation checkpointing off
    otherwise) and two forwards give the same bits. On leaving, all values stand as before, so
    that a saved configuration is the original one.
    """
    before: list[tuple[Any, str, float]] = []
    for holder in _holders(model):
        for name, value in vars(holder).items():
            chance = _CHANCE.search(name) or (name == "p" and isinstance(holder, nn.Module))
            if chance and type(value) is float and value != 0.0:
                before.append((holder, name, value))
    for holder, name, _ in before:
        setattr(holder, name, 0.0)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def _holders(model: nn.Module) -> list[Any]:
    """Modules, and the configurations some of them read at every call; each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        found[id(module)] = module
        config = getattr(module, "config", None)
        if hasattr(config, "__dict__"):
            found[id(config)] = config
    return list(found.values())
