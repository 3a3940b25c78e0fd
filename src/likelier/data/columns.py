"""Numbers beside a pair in the data: how much better an answer is, how much the pair counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from likelier.base.errors import DataError
from likelier.config import Config
from likelier.data.check import Data, load_memory, load_pairs
from likelier.data.prepare import reading_of
from likelier.data.records import Labelled, Pair, TokenPair


def rows_by_source(
    config: Config, path: Data, rows: Iterable[Any] | None, name: str
) -> dict[str, Pair | Labelled]:
    """What every row of data holds, by its place."""
    reading = reading_of(config.data)
    loaded = load_pairs(path, reading) if rows is None else load_memory(rows, reading, name)
    found: list[Pair | Labelled] = [*loaded.pairs, *loaded.labelled]
    return {row.source: row for row in found}


def with_columns(
    pairs: Iterable[TokenPair], rows: Mapping[str, Pair | Labelled], names: Sequence[str]
) -> list[TokenPair]:
    """The pairs with the numbers of their rows.

    Raises DataError where a row has none: the loss reads them.
    """
    filled = []
    for pair in pairs:
        row = rows[pair.source]
        numbers: dict[str, Any] = {name: getattr(row, name, None) for name in names}
        for name, number in numbers.items():
            if number is None:
                raise DataError(
                    "the loss reads this column, and the row has none",
                    where=f"{pair.source} {name}",
                    hint=f"add a number {name} to every row, or set another loss",
                )
        filled.append(replace(pair, **numbers))
    return filled
