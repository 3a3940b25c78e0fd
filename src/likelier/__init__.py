"""likelier: Direct Preference Optimization. The public names, each imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likelier.api import dpo_loss, kto_loss, preference_loss
    from likelier.config import Config
    from likelier.model.load import load
    from likelier.model.policy import get_logprob
    from likelier.run import train

__version__ = "0.1.0"
__all__ = [
    "Config",
    "__version__",
    "dpo_loss",
    "get_logprob",
    "kto_loss",
    "load",
    "preference_loss",
    "train",
]

# Lazy, because torch takes seconds to import and `likelier --help` must answer at once.
_HOMES = {
    "Config": "likelier.config",
    "dpo_loss": "likelier.api",
    "get_logprob": "likelier.model.policy",
    "kto_loss": "likelier.api",
    "load": "likelier.model.load",
    "preference_loss": "likelier.api",
    "train": "likelier.run",
}


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, and remember the name here."""
    if name == "testing":
        return import_module("likelier.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'likelier' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
