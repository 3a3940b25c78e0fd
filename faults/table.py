"""What a section found: cases tried and held, kept with how and where they were tried."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.record import machine, versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """The cases of one kind: how many were tried and held, and a line for each that failed.

    ``of`` is how many such cases there are; None where they are drawn from more than can be tried.
    """

    what: str
    tried: int
    held: int
    failed: list[str] = field(default_factory=list)
    of: int | None = None

    def bound(self) -> str:
        """What the count says of cases not tried: the 95 % bound 3/n where none failed."""
        if self.tried == self.of:
            return "all there are"
        among = [f"of {self.of} there are"] if self.of else []
        if self.held == self.tried > 3:
            among.append(f"failures < {3 / self.tried:.1%}")
        return "; ".join(among)


def write(name: str, title: str, rows: Sequence[Row], seconds: float, command: str) -> Path:
    """Write ``faults/results/NAME.json``: how it was tried, then the rows."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "title": title,
        "command": command,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "versions": versions(),
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _commit() -> str:
    """The commit that was tried; with a plus where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table, and what failed under it."""
    width = max((len(row.what) for row in rows), default=0)
    for row in rows:
        counted = f"{row.held} of {row.tried}"
        print(f"{row.what.ljust(width)}  {counted.rjust(14)}  {row.bound()}", flush=True)
    for row in rows:
        for line in row.failed:
            print(f"  {row.what}: {line}", flush=True)
