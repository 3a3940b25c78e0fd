"""The config of a run: one strict tree, read from YAML, arguments or Python."""

from likelier.config.read import (
    config_from,
    difference,
    dump,
    learning_rate,
    live,
    load_config,
    resolved,
)
from likelier.config.schema import IN_MEMORY, Config, json_schema

__all__ = [
    "IN_MEMORY",
    "Config",
    "config_from",
    "difference",
    "dump",
    "json_schema",
    "learning_rate",
    "live",
    "load_config",
    "resolved",
]
