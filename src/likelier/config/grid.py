"""A grid of configs: every combination of the values that keys are given, each with a name."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError
from likelier.config.read import config_from, override, read_keys
from likelier.config.schema import Config
from likelier.config.strict_yaml import argument, flow

MAX_NAME = 100  # characters of the name of a folder
_NOT_IN_NAMES = re.compile(r"[^\w.+=,-]+")
_OPEN, _CLOSED, _QUOTES = "[{", "]}", "\"'"


@dataclass(frozen=True)
class GridRun:
    """One combination: its readable ``name``, the values that the others do not share, its config,
    whose ``out`` is the folder of that name in the folder of the grid."""

    name: str
    values: dict[str, Any]
    config: Config


def read_grid(path: Path | None, words: Sequence[str]) -> tuple[Path, list[GridRun]]:
    """The folder of a grid, and its runs: each value of a key with each of every other key.

    ``words`` are ``section.key=a,b``. A comma outside of brackets and quotes parts two values; what
    stands in brackets is one value, as everywhere. The last key changes fastest.

    Raises:
        InputMissing: the file cannot be read.
        ConfigError: no key has several values, a value is given twice, or a config is wrong.
    """
    choices = [(key, _split(values)) for key, values in map(_key_and_values, words)]
    several = [key for key, values in choices if len(values) > 1]
    if not several:
        raise ConfigError(
            "no key has several values",
            where="KEY=VALUE",
            hint="write for example loss.beta=0.05,0.1, or use `likelier train`",
        )
    if "out" in several:
        what, hint = "is one folder, in which every run has its own", "name one"
        raise ConfigError(what, where="out", hint=hint)
    runs = []
    for texts in product(*(values for _, values in choices)):
        named = dict(zip((key for key, _ in choices), texts, strict=True))
        values = {key: argument(named[key], key) for key in several}
        tree = {} if path is None else read_keys(path.expanduser())
        override(tree, [f"{key}={text}" for (key, _), text in zip(choices, texts, strict=True)])
        name = _name(values)
        if isinstance(tree.get("out"), str):
            tree["out"] = str(Path(tree["out"]) / name)
        try:
            config = config_from(tree)
        except ConfigError as error:
            given = ", ".join(f"{key}={text}" for key, text in named.items() if key in several)
            what = f"{error.what} (with {given})"
            raise ConfigError(what, where=error.where, hint=error.hint) from None
        runs.append(GridRun(name, values, config))
    twice = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
    if twice:
        what, hint = f"two runs are the same: {twice[0]}", "give each value once"
        raise ConfigError(what, where="KEY=VALUE", hint=hint)
    return runs[0].config.out.parent, runs


def _key_and_values(word: str) -> tuple[str, str]:
    key, equals, values = word.partition("=")
    if not equals:
        override({}, [word])  # says what is wrong with it
    return key, values


def _split(text: str) -> list[str]:
    """The values of a word, at the commas outside of brackets and quotes."""
    found, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and (depth or not text[start:at].strip()):
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSED:
            depth -= 1
        elif letter == "," and depth <= 0:
            found.append(text[start:at])
            start = at + 1
    return [value.strip() if len(found) else value for value in [*found, text[start:]]]


def _name(values: dict[str, Any]) -> str:
    """``beta=0.05,lr=1e-05``: a name for a folder, by the last word of each key where that tells
    them apart. What a name cannot hold is left out, and a hash of all stands behind it.
    """
    leaves = Counter(key.rpartition(".")[2] for key in values)
    short = {key: leaf if leaves[leaf := key.rpartition(".")[2]] == 1 else key for key in values}
    whole = ",".join(f"{short[key]}={_written(value)}" for key, value in values.items())
    name = _NOT_IN_NAMES.sub("-", whole)
    if name == whole and len(name) <= MAX_NAME:
        return name
    digest = blake2b(whole.encode(), digest_size=3).hexdigest()
    return f"{name[:MAX_NAME].strip('-')}-{digest}"


def _written(value: Any) -> str:
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return str(value) if plain else flow(value)
