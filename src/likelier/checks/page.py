"""What was examined, as a page."""

from pathlib import Path

from likelier.base.files import write_text
from likelier.base.terminal import visible
from likelier.checks.examine import Examination
from likelier.checks.rules import cure, why
from likelier.checks.words import reference_lines, statistics_lines
from likelier.pages.render import render_page


def write_page(found: Examination, name: str, path: Path) -> None:
    """Write what was found as a page, replacing ``path`` whole. Raises OutputError."""
    summary = found.summary
    errors = sum(kind.count for kind in summary.kinds if kind.severity == "error")
    told = f"{summary.usable} of {summary.rows} rows can be used"
    kinds = [
        {
            "code": kind.code,
            "severity": kind.severity,
            "count": kind.count,
            "why": why(kind.code),
            "cure": cure(kind.code),
            "places": [
                {"where": visible(place.where), "message": visible(place.message)}
                for place in kind.places
            ],
        }
        for kind in summary.kinds
    ]
    lines = (*statistics_lines(found.statistics), *reference_lines(found))
    page = render_page(
        "check.html",
        name=visible(name),
        errors=errors,
        verdict=f"{told}; {errors} errors" if errors else told,
        form=visible(found.form.told),
        kinds=kinds,
        lines=[visible(line) for line in lines if not line.startswith(" ")],
        clues=found.statistics.probe.clues if found.statistics.probe else (),
    )
    write_text(path, page)
