"""Which versions of other packages this one runs with: every version check is here."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from likelier.errors import ConfigError


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
            "likelier is on the path but not installed", mend="run: pip install -e ."
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
        ConfigError: names every such package and the command that mends it.
    """
    unfit = [package for package in packages() if not package.fits]
    if unfit:
        found = ", ".join(f"{one.name} {one.installed or 'missing'}" for one in unfit)
        names = " ".join(f'"{one.name}{one.wanted}"' for one in unfit)
        raise ConfigError(f"cannot run with {found}", mend=f"run: pip install {names}")


def checkpoint_activations(model: Any) -> None:
    """Let a transformers model recompute activations in the backward.

    The method got a new name in transformers 5.2x; the old one warns there.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
