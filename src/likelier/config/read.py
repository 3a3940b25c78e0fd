"""From a file, arguments or a mapping to a Config, or to one clear error."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from likelier.base.errors import ConfigError, InputMissing
from likelier.config import text
from likelier.config.explain import explain
from likelier.config.resolve import live
from likelier.config.schema import IN_MEMORY, Config


def load_config(path: Path | str | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, then apply ``section.key=value`` in order; defaults fill the rest.

    Args:
        path: the file, or None where the overrides say everything.
        overrides: words of a command line. A value in brackets is YAML and replaces a section.

    Raises:
        InputMissing: the file is not there or cannot be read.
        ConfigError: anything wrong with what is written.
    """
    tree = {} if path is None else _read(Path(path).expanduser())
    seen: set[str] = set()
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise ConfigError(f"{word!r} is not key=value", hint="write for example loss.beta=0.2")
        if key in seen:
            raise ConfigError("is given twice", where=key, hint="keep one of the two")
        seen.add(key)
        _put(tree, key, text.argument(value, key))
    return config_from(tree)


def config_from(
    given: Config | Mapping[str, Any] | Path | str, in_memory: Iterable[str] = ()
) -> Config:
    """A Config from whatever a Python caller has.

    Args:
        given: a Config, its mapping, or the path of its file.
        in_memory: the dotted keys, such as ``model.path``, whose values are given as objects.
            They then read ``(in memory)`` and need not be in ``given``.

    Raises:
        ConfigError, InputMissing: as ``load_config``.
    """
    keys = tuple(in_memory)
    if isinstance(given, Config) and not keys:
        return given
    if isinstance(given, str | Path):
        tree = _read(Path(given).expanduser())
    else:
        tree = _copied(live(given) if isinstance(given, Config) else given)
    for key in _in_memory(tree):
        if key not in keys:
            raise ConfigError(
                "this run was given a Python object here",
                where=key,
                hint="write a path, or call likelier.train with the object again",
            )
    for key in keys:
        _put(tree, key, IN_MEMORY)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, tree) from None


def _in_memory(tree: Mapping[str, Any]) -> list[str]:
    """The dotted keys of a tree whose values were Python objects when it was written."""
    return [
        f"{section}.{key}"
        for section, below in tree.items()
        if isinstance(below, Mapping)
        for key, value in below.items()
        if value == IN_MEMORY
    ]


def _copied(tree: Any) -> Any:
    """Mappings as new dicts, so that the caller's stay as they are."""
    if not isinstance(tree, Mapping):
        return tree
    if strange := [key for key in tree if not isinstance(key, str)]:
        raise ConfigError(f"the key {strange[0]!r} is not text")
    return {key: _copied(value) for key, value in tree.items()}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for depth, name in enumerate(sections):
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            where = ".".join(sections[: depth + 1])
            raise ConfigError(f"holds {below!r}, not keys of its own", where=where)
        tree = below
    tree[last] = value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is not a file" if path.exists() else "there is no such file"
        raise InputMissing(what, where=str(path), hint="give the path of a YAML config")
    try:
        tree = text.parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise InputMissing(f"cannot be read: {error.strerror}", where=str(path)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError("holds no keys", where=str(path), hint="see `likelier schema`")
    return tree
