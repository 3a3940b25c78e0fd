"""What a config comes to: its live keys, its autos decided, and how two differ."""

from collections.abc import Mapping
from typing import Any

from likelier.config import text
from likelier.config.losses import live_loss
from likelier.config.schema import Config

# Full tuning moves every weight, so its peak is lower: Rafailov et al. 2023 use 5e-7 to 1e-6.
AUTO_LR = {"none": 5e-7, "lora": 1e-5}


def learning_rate(config: Config) -> float:
    """The peak learning rate that ``optim.lr`` means."""
    return AUTO_LR[config.adapter.kind] if config.optim.lr == "auto" else config.optim.lr


def live(config: Config) -> dict[str, Any]:
    """The keys that a run with this config reads, as plain data, in the order of the tree."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree["loss"] = live_loss(config.loss)
    if config.reference.update_every is None:
        tree["reference"] = {"path": config.reference.path}
    train = tree["train"]
    del train["epochs" if config.train.epochs is None else "steps"]
    if config.data.eval is None:
        del train["eval_every"]
    if config.train.save_every is None:
        del train["keep"]
    return tree


def resolved(config: Config, **facts: Any) -> dict[str, Any]:
    """The live keys with every ``auto`` replaced by what was decided; it runs again as it is.

    Args:
        config: as read.
        facts: what the run decided, by the last word of the key: ``dtype``, ``save_dtype``,
            ``tokens_per_batch``. A value that the user gave stays. ``lr`` follows from the adapter.

    Raises:
        ValueError: an ``auto`` was left undecided, or what was decided could not run again.
        TypeError: a fact that no ``auto`` key asks for.
    """
    facts = {"lr": learning_rate(config), **facts}
    tree = live(config)
    for section in tree.values():
        if not isinstance(section, dict):
            continue
        for key, value in section.items():
            if key in _AUTO_KEYS and value == "auto":
                if key not in facts:
                    raise ValueError(f"nothing was decided for {key}: auto")
                section[key] = facts[key]
    if strange := facts.keys() - _AUTO_KEYS:
        raise TypeError(f"no key of the config is decided by {sorted(strange)}")
    Config.model_validate(tree)
    return tree


_AUTO_KEYS = frozenset({"dtype", "save_dtype", "lr", "tokens_per_batch"})


def dump(config: Config | Mapping[str, Any]) -> str:
    """A config, or what ``resolved`` gave, as YAML."""
    return text.document(live(config) if isinstance(config, Config) else dict(config))


def difference(before: Config | Mapping[str, Any], after: Config | Mapping[str, Any]) -> list[str]:
    """Every key whose value differs: ``optim.lr: 5.0e-07 before, 1.0e-06 now``.

    An ``auto`` differs from the value it was decided to be: compare what ``resolved`` gave.
    """
    old, new = _leaves(before), _leaves(after)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {_shown(old, key)} before, {_shown(new, key)} now"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return text.flow(leaves[key]) if key in leaves else "nothing"


def _leaves(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    tree = live(config) if isinstance(config, Config) else config
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{key}": below for key, below in value.items()})
        else:
            found[name] = value
    return found
