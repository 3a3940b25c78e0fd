"""Put the figures of faults/results into docs/reliability.md, between its markers.

python -m faults.page            write the page
python -m faults.page --check    fail where it is not what the results say
"""

import json
from pathlib import Path
from typing import Any

from bench.page import filled, table, write_or_check

from faults import SECTIONS
from faults.table import RESULTS, Row

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
MAX_FAILURES = 20  # lines of one kind of case


def rendered(name: str) -> str:
    """The figures of a section, what failed, and how it was tried; or of all, one line each."""
    if name == "all":
        return table([_in_one_line(section) for section in SECTIONS])
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "Not measured."
    record = json.loads(file.read_text("utf-8"))
    rows = [Row(**row) for row in record["rows"]]
    figures = [
        {"what": row.what, "tried": f"{row.tried}", "held": f"{row.held}", "": row.bound()}
        for row in rows
    ]
    failed = [f"- {row.what}: {line}" for row in rows for line in row.failed[:MAX_FAILURES]]
    parts = [table(figures)]
    if failed:
        parts += ["What did not hold:", "\n".join(failed)]
    return "\n\n".join([*parts, _how(record)])


def _in_one_line(name: str) -> dict[str, str]:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return {"section": SECTIONS[name], "tried": "", "held": "not measured", "failed": ""}
    rows = [Row(**row) for row in json.loads(file.read_text("utf-8"))["rows"]]
    tried, held = sum(row.tried for row in rows), sum(row.held for row in rows)
    return {
        "section": SECTIONS[name],
        "tried": f"{tried:,}",
        "held": f"{held:,}",
        "failed": f"{tried - held:,}",
    }


def _how(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    processor = f"{machine['cpu']} {machine['instructions']}".strip()
    seconds = record["seconds"]
    took = f"{seconds} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return (
        f"`{record['command']}`, {took}, commit {record['commit']}, "
        f"{machine['cores']} cores of {processor}, Python {versions['python']}, "
        f"torch {versions['torch']}, {record['date'][:10]}"
    )


def page(text: str) -> str:
    """The text with the figures between its markers made anew."""
    return filled(text, "figures", rendered)


def main() -> None:
    """Write the page, or compare it."""
    write_or_check(PAGE, page, "faults/results", "python -m faults.page")


if __name__ == "__main__":
    main()
