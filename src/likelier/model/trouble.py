"""What can be wrong with a model folder or Hub id, each said in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from likelier.base.errors import DataError, InputMissing, LikelierError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def must_exist(where: str) -> None:
    """Say early, and without a network, that a local folder is not there or not a model."""
    folder = Path(where)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputMissing(
                "this folder holds no model: neither config.json nor adapter_config.json",
                where=where,
                hint="give the folder that save_pretrained wrote, or a Hub id",
            )
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        if pickled and not any(folder.glob("*.safetensors")):
            raise DataError(
                f"only pickled weights here ({pickled[0]}), which can run code when read",
                where=where,
                hint="convert them: load with transformers and save_pretrained(…)",
            )
    elif folder.is_file():
        raise InputMissing("this is a file, not a model folder", where=where)
    elif not _HUB_ID.fullmatch(where) or where.startswith("."):
        raise InputMissing(
            "no such folder", where=where, hint="give a model folder or a Hub id such as org/name"
        )


@contextmanager
def told_plainly(where: str) -> Iterator[None]:
    """Turn the many ways in which reading others' files fails into one line each."""
    try:
        yield
    except LikelierError:
        raise
    except OSError as error:
        if Path(where).is_dir():
            raise DataError(_first_line(error), where=where) from error
        raise InputMissing(
            "no such folder here, and no such model could be had from the Hub",
            where=where,
            hint="check the spelling, the network and, for gated models, HF_TOKEN",
        ) from error
    except Exception as error:  # each format and library has its own kind
        damaged = "safetensor" in type(error).__name__.lower()
        what = "damaged weights" if damaged else "this model cannot be loaded"
        raise DataError(f"{what}: {_first_line(error)}", where=where) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if isinstance(error, KeyError):
        return f"unknown or missing: {error}"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def all_weights_came(where: str, report: dict[str, Any]) -> None:
    """transformers fills what does not come with random numbers; that must not pass silently."""
    hint = "the weights do not fit config.json; get the folder again"
    for name, found, wanted in sorted(report.get("mismatched_keys") or []):
        sizes = f"{tuple(found)} where config.json asks for {tuple(wanted)}"
        raise DataError(f"{name} has the shape {sizes}", where=where, hint=hint)
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        what = f"{len(missing)} tensors are not in the checkpoint, the first {missing[0]}"
        raise DataError(what, where=where, hint=hint)
