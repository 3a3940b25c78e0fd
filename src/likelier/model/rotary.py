"""Rotary tables that depend on the length of a forward: which rows may share one.

Most tables are constant. ``longrope`` has one for forwards of at most the original length and
one for longer ones. ``dynamic`` is constant up to the original length and beyond it grows with
the longest sequence that was ever computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from likelier.base.errors import DataError


@dataclass(frozen=True)
class RotaryTables:
    """``longrope``: the lengths up to which a forward uses the short table. ``max_length``:
    how long a sequence may be, None for any length.
    """

    longrope: tuple[int, ...] = ()
    max_length: int | None = None


def rotary_tables(config: object) -> RotaryTables:
    """Read from a model's text configuration, where layers of each kind may have a table."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = given and all(isinstance(value, Mapping) for value in given.values())
    tables = list(given.values()) if nested else [given]
    kinds = {table.get("rope_type") for table in tables}
    original = [
        int(table["original_max_position_embeddings"])
        for table in tables
        if table.get("rope_type") == "longrope"
    ]
    max_length = getattr(config, "max_position_embeddings", None) if "dynamic" in kinds else None
    return RotaryTables(tuple(sorted(set(original))), max_length)


def check_length(tables: RotaryTables, depth_BL: Tensor) -> None:
    """Raise DataError where a sequence is longer than ``max_length``.

    Its log-probs would depend on what the model computed before.
    """
    if tables.max_length is None:
        return
    longest = int(depth_BL.max()) + 1
    if longest > tables.max_length:
        raise DataError(
            f"a sequence of {longest} tokens: beyond {tables.max_length} this model's rotary table "
            "depends on what was computed before",
            hint=f"set data.max_length: {tables.max_length}, or shorten the text",
        )


def rows_by_table(tables: RotaryTables, keep_BL: Tensor) -> list[tuple[Tensor, int]]:
    """Padded rows that may go through a ``longrope`` model together, with the longest's length."""
    length_B = keep_BL.sum(1)
    limits = torch.tensor(tables.longrope, device=keep_BL.device)
    side_B = (length_B[:, None] > limits).sum(1)
    groups = [torch.nonzero(side_B == side).flatten() for side in side_B.unique()]
    return [(rows, int(length_B[rows].max())) for rows in groups]
