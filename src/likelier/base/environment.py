"""What this machine is and which packages are installed: facts for a bug report, no secrets."""

import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from likelier import __version__
from likelier.base.errors import ConfigError
from likelier.base.files import cache_dir

QUANTISE = "quantise"  # the extra with bitsandbytes

# Read by torch, the Hub client or us. Their values are harmless; no other variable is shown.
SHOWN_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
)


def processes_started() -> int:
    """How many processes, this one among them, a launcher such as torchrun started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def environment() -> dict[str, Any]:
    """Versions, hardware and settings, as plain data in the order to show.

    Imports torch. Memory is in bytes.
    """
    return {
        "likelier": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {one.name: one.installed for one in packages(QUANTISE)},
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
    return {"cores": usable, "threads": torch.get_num_threads(), "memory": main_memory()}


def main_memory() -> int | None:
    """Bytes of memory that this machine has, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
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


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether this processor or GPU has instructions for bfloat16 products; without, they are slow.

    torch has functions for it that are not public yet. Where it has none of them, True.
    """
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    supported = [bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name)]
    return not supported or any(supported)


@dataclass(frozen=True)
class Package:
    """A package that likelier needs: the version installed (None: it is not), and the range."""

    name: str
    installed: str | None
    wanted: str

    @property
    def fits(self) -> bool:
        """Whether the installed version is in the range; pre-releases count as versions."""
        specifier = Requirement(self.name + self.wanted).specifier
        return self.installed is not None and specifier.contains(self.installed, prereleases=True)


def packages(extra: str = "") -> list[Package]:
    """The dependencies of pyproject.toml, those of an extra too, and what is installed of them.

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
        if one.marker is None or one.marker.evaluate({"extra": extra})
    ]


def check_versions() -> None:
    """Check that no package is missing or outside its range.

    Raises:
        ConfigError: names every such package and the command that fixes it.
    """
    unfit = [package for package in packages() if not package.fits]
    if unfit:
        found = ", ".join(f"{one.name} {one.installed or 'missing'}" for one in unfit)
        names = " ".join(f'"{one.name}{one.wanted}"' for one in unfit)
        raise ConfigError(f"cannot run with {found}", hint=f"run: pip install {names}")


def needs_extra(extra: str, key: str) -> None:
    """Check, without importing anything, that a config key has the libraries that it needs: those
    of an extra. A name that is no extra needs none.

    Raises:
        ConfigError: one of them is missing or too old.
    """
    always = {package.name for package in packages()}
    for one in packages(extra):
        if one.name not in always and not one.fits:
            found = f"not {one.installed}" if one.installed else "which is not installed"
            hint = f"run: pip install 'likelier[{extra}]'"
            raise ConfigError(f"needs {one.name}{one.wanted}, {found}", where=key, hint=hint)


def needs_bitsandbytes(key: str) -> None:
    """Check, without importing anything, that a config key has bitsandbytes, as `needs_extra`."""
    needs_extra(QUANTISE, key)


def import_bitsandbytes() -> Any:
    """bitsandbytes, or None where it is not installed; to be called before peft imports it.

    On a processor with AVX-512 bfloat16 its import asks the Hub for a kernel, and warns where it
    gets none. Here it asks nobody: there is no package ``kernels`` while it is imported.
    """
    if find_spec("bitsandbytes") is None:
        return None
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hub = logger.level, {k: m for k, m in sys.modules.items() if k == "kernels"}
    sys.modules["kernels"] = None  # type: ignore[assignment]  # importing it then fails
    logger.setLevel(logging.CRITICAL)
    try:
        import bitsandbytes
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        sys.modules.update(hub)
    return bitsandbytes


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Let peft be imported, and adapt plain weights, as where bitsandbytes is not installed: its
    import takes a fifth of all others, and only quantised weights need it. Where these have had it
    imported already, nothing is hidden.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # importing it then fails
    _forget_what_peft_found()
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        _forget_what_peft_found()


def _forget_what_peft_found() -> None:
    """Have peft look for bitsandbytes anew: it remembers whether it is there."""
    if (found := sys.modules.get("peft.import_utils")) is not None:
        found.is_bnb_available.cache_clear()
        found.is_bnb_4bit_available.cache_clear()


@cache
def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
