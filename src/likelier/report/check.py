"""One thing examined of a run: what was found, why it matters, and what to do."""

from dataclasses import dataclass
from typing import Any, Literal

from likelier.pages.texts import text


@dataclass(frozen=True)
class Check:
    """``warning``: something was found; ``unknown``: the files do not say. ``name`` is the same in
    all languages.
    """

    name: str
    state: Literal["warning", "fine", "unknown"]
    title: str
    reason: str
    fix: str = ""


def unknown(name: str, case: str = "unknown", **values: Any) -> Check:
    """Nothing can be said; ``case`` is the key of the sentence that says why."""
    title = text(f"report.health.{name}.title")
    return Check(name, "unknown", title, text(f"report.health.{name}.{case}", **values))


def fine(name: str, case: str = "fine", **values: Any) -> Check:
    """Nothing needs a closer look."""
    title = text(f"report.health.{name}.title")
    return Check(name, "fine", title, text(f"report.health.{name}.{case}", **values))


def warning(name: str, case: str = "warning", **values: Any) -> Check:
    """Something was found; ``case`` is the key of its title, reason and fix."""
    title = text(f"report.health.{name}.{case}.title")
    reason = text(f"report.health.{name}.{case}.reason", **values)
    fix = text(f"report.health.{name}.{case}.fix", **values)
    return Check(name, "warning", title, reason, fix)
