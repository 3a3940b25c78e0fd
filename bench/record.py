"""What every benchmark writes down: command, versions, machine, date, figures and their spread."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("likelier", "torch", "transformers", "peft", "accelerate", "numpy")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and number of repeated measurements."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "n": len(values),
    }


def machine() -> dict[str, Any]:
    """Processor, its instructions, cores, memory, torch's threads, and the GPU if any."""
    import torch

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _processor(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # far above 1 before a run: somebody else computes
        "gpu": gpu,
        "system": platform.platform(),
    }


def _instructions() -> str:
    """What torch's kernels use of the processor, and whether it multiplies bfloat16."""
    import torch

    from likelier.base.environment import multiplies_bfloat16

    return torch.backends.cpu.get_cpu_capability() + (" bf16" if multiplies_bfloat16() else "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that decide speed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line, as one would type it in the repository."""
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a result that was measured on this kind of processor; [] where there are none."""
    try:
        before = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = before["rows"]
    return found if before["machine"]["cpu"] == _processor() else []


def write(name: str, figures: Mapping[str, Any]) -> Path:
    """Write ``bench/results/NAME.json``: how it was measured, then the figures."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        **figures,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a small table; columns are the keys of the first."""
    if not rows:
        return
    cells = [[str(key) for key in rows[0]], *([_cell(value) for value in r.values()] for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)), flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)
