"""From a file, arguments or a mapping to a Config, and from a Config to what a run reads of it."""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from likelier.base.errors import ConfigError, InputMissing
from likelier.config.explain import explain
from likelier.config.losses import live_loss
from likelier.config.schema import IN_MEMORY, Config
from likelier.config.strict_yaml import argument, document, leaves, parse

# Full tuning moves every weight, so its peak is lower: Rafailov et al. 2023 use 5e-7 to 1e-6.
AUTO_LR = {"none": 5e-7, "lora": 1e-5}
_SUFFIXES_OF_DATA = frozenset({".arrow", ".csv", ".gz", ".jsonl", ".ndjson", ".parquet"})
_COLUMNS = frozenset({"chosen", "completion", "completions", "messages", "prompt", "rejected"})
_AUTO_KEYS = frozenset({"dtype", "save_dtype", "lr", "tokens_per_batch", "checkpointing"})


def load_config(path: Path | str | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, then apply ``section.key=value`` in order; defaults fill the rest.

    Args:
        path: the file, or None where the overrides say everything.
        overrides: words of a command line. A value in brackets is YAML and replaces a section.

    Raises:
        InputMissing: the file is not there or cannot be read.
        ConfigError: anything wrong with what is written.
    """
    tree = {} if path is None else read_keys(Path(path).expanduser())
    override(tree, overrides)
    return config_from(tree)


def override(tree: dict[str, Any], words: Iterable[str]) -> None:
    """Write ``section.key=value`` into a tree, in order.

    Raises ConfigError for a word of another form, and for a key that is given twice.
    """
    seen: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise ConfigError(f"{word!r} is not key=value", hint="write for example loss.beta=0.2")
        if key in seen:
            raise ConfigError("is given twice", where=key, hint="keep one of the two")
        seen.add(key)
        _put(tree, key, argument(value, key))


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
        tree = read_keys(Path(given).expanduser())
    else:
        tree = _copied(live(given) if isinstance(given, Config) else given)
    written = [
        f"{section}.{key}"
        for section, below in tree.items()
        if isinstance(below, Mapping)
        for key, value in below.items()
        if value == IN_MEMORY
    ]
    if lacking := [key for key in written if key not in keys]:
        raise ConfigError(
            "this run was given a Python object here",
            where=lacking[0],
            hint="write a path, or call likelier.train with the object again",
        )
    for key in keys:
        _put(tree, key, IN_MEMORY)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, tree) from None


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


def read_keys(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; of an empty one none.

    Raises:
        InputMissing: it is not there or cannot be read.
        ConfigError: it is no strict YAML, holds no keys, or holds data.
    """
    try:
        is_file, what = (
            path.is_file(),
            "is not a file" if path.exists() else "there is no such file",
        )
    except OSError as error:  # a name that is too long, a folder that must not be entered
        is_file, what = False, f"cannot be read: {error.strerror}"
    if not is_file:
        raise InputMissing(what, where=str(path)[:200], hint=_instead_of_folder(path))
    if path.suffix in _SUFFIXES_OF_DATA:
        raise _data_given(path)
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        hint = "save it as plain UTF-8 text"
        raise ConfigError("is not UTF-8 text", where=str(path), hint=hint) from None
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise InputMissing(what, where=str(path), hint="name a config file") from None
    if tree is None:
        return {}
    if path.suffix == ".json" and (isinstance(tree, list) or _COLUMNS & set(tree)):
        raise _data_given(path)
    if not isinstance(tree, dict):
        raise ConfigError("holds no keys", where=str(path), hint="see `likelier schema`")
    return tree


def _data_given(path: Path) -> ConfigError:
    words = shlex.join(["model.path=MODEL", f"data.train={path}", "out=runs/first"])
    hint = f"look at them with `likelier check {shlex.quote(str(path))}`; train on them with"
    what = "these are data, and a config is needed here"
    return ConfigError(what, where=str(path), hint=f"{hint}\n  likelier train {words}")


def _instead_of_folder(path: Path) -> str:
    """What to give instead of a folder (or of nothing)."""
    if os.path.exists(path / "run.json"):  # which never raises
        return f"this is a run folder; its config is {path / 'config.yaml'}"
    if os.path.exists(path / "config.json"):
        return f"this is a model; write model.path={path} beside the other keys"
    return "give the path of a YAML config"


def learning_rate(config: Config) -> float:
    """The peak learning rate that ``optim.lr`` means."""
    return AUTO_LR[config.adapter.kind] if config.optim.lr == "auto" else config.optim.lr


def live(config: Config) -> dict[str, Any]:
    """The keys that a run with this config reads, as plain data, in the order of the tree."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree["loss"] = live_loss(config.loss)
    if config.reference.update_every is None:
        tree["reference"] = {"path": config.reference.path}
    if config.adapter.kind == "none":
        del tree["model"]["quantise"]
    train = tree["train"]
    del train["epochs" if config.train.epochs is None else "steps"]
    if config.train.best is None:  # as in configs from before there was such a key
        del train["best"], train["patience"]
    if config.data.eval is None:
        del train["eval_every"]
    if config.train.save_every is None:
        del train["keep"]
    if config.eval.samples == 0:
        del tree["eval"]["max_new_tokens"]
    return tree


def resolved(config: Config, **facts: Any) -> dict[str, Any]:
    """The live keys with every ``auto`` replaced by what was decided; it runs again as it is.

    Some stay: ``data.boundary`` is decided for every pair, ``model.stream`` by each machine,
    ``parallel`` at each start, ``lang`` when a report is written and ``eval.max_new_tokens`` when
    answers are asked for.

    Args:
        config: as read.
        facts: what the run decided, by the last word of the key: ``dtype``, ``save_dtype``,
            ``tokens_per_batch``, ``checkpointing``. A value that the user gave stays. ``lr``
            follows from the adapter.

    Raises:
        ValueError: an ``auto`` was left undecided, or what was decided could not run again.
        TypeError: a fact that no ``auto`` key asks for.
    """
    facts = {"lr": learning_rate(config), **facts}
    if strange := facts.keys() - _AUTO_KEYS:
        raise TypeError(f"no key of the config is decided by {sorted(strange)}")
    tree = live(config)
    for section in (section for section in tree.values() if isinstance(section, dict)):
        for key in _AUTO_KEYS & section.keys():
            if section[key] == "auto":
                if key not in facts:
                    raise ValueError(f"nothing was decided for {key}: auto")
                section[key] = facts[key]
    Config.model_validate(tree)
    return tree


def dump(config: Config | Mapping[str, Any]) -> str:
    """A config, or what ``resolved`` gave, as YAML."""
    return document(live(config) if isinstance(config, Config) else dict(config))


def difference(before: Config | Mapping[str, Any], after: Config | Mapping[str, Any]) -> list[str]:
    """Every key whose value differs: ``optim.lr: 5.0e-07 before, 1.0e-06 now``.

    An ``auto`` differs from the value it was decided to be: compare what ``resolved`` gave.
    """
    old, new = (leaves(live(c) if isinstance(c, Config) else c) for c in (before, after))
    return [
        f"{key}: {old.get(key, 'nothing')} before, {new.get(key, 'nothing')} now"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
