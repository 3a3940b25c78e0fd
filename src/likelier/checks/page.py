"""What was examined, as a page."""

from pathlib import Path

from likelier.base.files import write_text
from likelier.checks.rules import cure, why
from likelier.checks.summary import Examination, describe
from likelier.pages import render_page
from likelier.pages.texts import text


def write_page(found: Examination, name: str, path: Path) -> None:
    """Write what was found as a page, replacing ``path`` whole. Raises OutputError."""
    errors = found.count("error")
    verdict = text("check.usable", usable=found.usable, rows=found.rows)
    if errors:
        verdict = text("check.errors", usable=found.usable, rows=found.rows, n=errors)
    kinds = [
        {
            "code": kind.code,
            "severity": kind.severity,
            "count": kind.count,
            "why": why(kind.code),
            "cure": cure(kind.code),
            "places": [{"where": f.where, "message": f.message} for f in kind.first],
        }
        for kind in found.kinds
    ]
    page = render_page(
        "check.html",
        ["page.css"],
        name=name,
        errors=errors,
        verdict=verdict,
        form=found.form.describe(),
        kinds=kinds,
        lines=[line for line in describe(found) if not line.startswith(" ")],
        clues=found.statistics.probe.clues if found.statistics.probe else (),
    )
    write_text(path, page)
