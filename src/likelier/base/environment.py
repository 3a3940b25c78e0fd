"""What this machine is and which packages it has: facts for a run or a bug report, no secrets."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from likelier import __version__
from likelier.base.errors import ConfigError
from likelier.base.files import cache_dir

# Read by torch, the Hub client or us. Their values are harmless; no other variable is shown.
SHOWN_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and settings, as plain data in the order to show.

    Imports torch. Memory is in bytes.
    """
    return {
        "likelier": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {one.name: one.installed for one in packages()},
        "unfit": [f"{one.name}{one.wanted}" for one in packages() if not one.fits],
        "cpu": _cpu(),
        "accelerators": _accelerators(),
        "cache": _without_home(cache_dir()),
        "variables": {name: os.environ[name] for name in SHOWN_VARIABLES if name in os.environ},
    }


def _without_home(path: Path) -> str:
    """A path that does not say who the user is."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _cpu() -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": usable, "threads": torch.get_num_threads(), "memory": _memory()}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system tells
        return None


def _accelerators() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        {
            "name": torch.cuda.get_device_name(index),
            "memory": torch.cuda.get_device_properties(index).total_memory,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
            "cuda": torch.version.cuda,
        }
        for index in range(torch.cuda.device_count())
    ]


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; without, they are slow.

    torch tells by functions that are not public yet. Where it does not tell, True.
    """
    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    asked = [getattr(torch.cpu, name, None) for name in _BFLOAT16_INSTRUCTIONS]
    known = [bool(ask()) for ask in asked if ask is not None]
    return not known or any(known)


_BFLOAT16_INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@dataclass(frozen=True)
class Package:
    """A package we stand on: the version that is installed (None: it is not) and our range."""

    name: str
    installed: str | None
    wanted: str

    @property
    def fits(self) -> bool:
        """Whether the installed version is in our range; builds of our own choice count too."""
        if self.installed is None:
            return False
        return Requirement(self.name + self.wanted).specifier.contains(
            self.installed, prereleases=True
        )


def packages() -> list[Package]:
    """What pyproject.toml asks for, extras left out, with what is installed; no import needed.

    Raises:
        ConfigError: likelier itself is not installed, so that nothing says what it needs.
    """
    try:
        lines = requires("likelier") or []
    except PackageNotFoundError:
        raise ConfigError(
            "likelier is on the path but not installed", hint="run: pip install -e ."
        ) from None
    wanted = [Requirement(line) for line in lines]
    return [
        Package(one.name, _installed(one.name), str(one.specifier))
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]


def check_versions() -> None:
    """Stop before any work where a package is missing or outside its range.

    Raises:
        ConfigError: names every such package and the command that fixes it.
    """
    unfit = [package for package in packages() if not package.fits]
    if unfit:
        found = ", ".join(f"{one.name} {one.installed or 'missing'}" for one in unfit)
        names = " ".join(f'"{one.name}{one.wanted}"' for one in unfit)
        raise ConfigError(f"cannot run with {found}", hint=f"run: pip install {names}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
