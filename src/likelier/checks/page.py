"""What was examined, as a page."""

from pathlib import Path

from likelier.base.files import write_text
from likelier.base.terminal import visible
from likelier.checks.rules import cure, why
from likelier.checks.summary import Examination, describe
from likelier.pages.render import render_page


def write_page(found: Examination, name: str, path: Path) -> None:
    """Write what was found as a page, replacing ``path`` whole. Raises OutputError."""
    errors = found.count("error")
    verdict = f"{found.usable} of {found.rows} rows can be used"
    kinds = [
        {
            "code": kind.code,
            "severity": kind.severity,
            "count": kind.count,
            "why": why(kind.code),
            "cure": cure(kind.code),
            "places": [
                {"where": visible(finding.where), "message": visible(finding.message)}
                for finding in kind.first
            ],
        }
        for kind in found.kinds
    ]
    page = render_page(
        "check.html",
        name=visible(name),
        errors=errors,
        verdict=f"{verdict}; {errors} errors" if errors else verdict,
        form=visible(found.form.told),
        kinds=kinds,
        lines=[visible(line) for line in describe(found) if not line.startswith(" ")],
        clues=found.statistics.probe.clues if found.statistics.probe else (),
    )
    write_text(path, page)
