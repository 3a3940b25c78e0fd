"""What a run must find unchanged when it goes on: its config, data, model and loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likelier.base.errors import OutputError
from likelier.config import Config, difference, live
from likelier.data.encode import content_hash
from likelier.data.load import Dataset
from likelier.losses.registry import BoundLoss
from likelier.model.score import Ready
from likelier.reference.identity import hash_of, model_identity


def asked(config: Config) -> dict[str, Any]:
    """The live keys of a config; where a run lies is no part of what it is."""
    return {key: value for key, value in live(config).items() if key != "out"}


def hashes(config: Config, data: Dataset, ready: Ready, loss: BoundLoss) -> dict[str, str]:
    """The content behind a run, by one hash each; ``ready`` is the policy before training."""
    return {
        "config": hash_of(**asked(config)),
        "data": content_hash(data.pairs),
        "model": model_identity(ready.policy.causal_lm),
        "loss": loss.name,
    }


def refuse_other_config(before: Mapping[str, Any], now: Config, out: Path) -> None:
    """Raise OutputError with the first key that differs from those a run was asked for."""
    changed = difference(before, asked(now))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise OutputError(
            f"this folder holds another run: {changed[0]}{more}",
            where=f"out: {out}",
            hint="give another out folder, or the config of this run",
        )


def refuse_changes(before: Mapping[str, str], now: Mapping[str, str], out: Path) -> None:
    """Raise OutputError where the content behind the config changed since a run began."""
    changed = [name for name, value in now.items() if before.get(name, value) != value]
    if changed:
        raise OutputError(
            f"the {' and the '.join(changed)} changed since this run began",
            where=f"out: {out}",
            hint="give another out folder, or put back what was there",
        )
