"""What trackers hold of a run, read with each library's own reader; and runs that one watches."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.children import run

from likelier.base.files import read_lines

Shown = list[tuple[int, dict[str, float]]]  # steps with their figures, in the order of the tracker

_TRACKIO = """
import json
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
runs = list(Api().runs("likelier"))
rows = SQLiteStorage.get_logs("likelier", run_id=runs[0].id) if runs else []
print(json.dumps({"runs": [run.name for run in runs], "rows": rows}))
"""


def shown_by(tracker: str, out: Path) -> Shown:
    """Everything that a tracker has of a run; its Trackio lies beside the run folder."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[tracker](out)


def _tensorboard(out: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert len(steps) == len(set(steps)), name  # doubled
        for event in events.Scalars(name):
            rows.setdefault(event.step, {})[name] = event.value
    return sorted(rows.items())


def _wandb(out: Path) -> Shown:
    rows = []
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        for record in map(json.loads, printed.splitlines()):
            if "history" in record:
                item = record["history"]["item"]
                figures = {name: x for name, x in item.items() if not name.startswith("_")}
                rows.append((record["history"]["step"]["num"], figures))
    return rows


def _trackio(out: Path) -> Shown:
    settings = os.environ | {"TRACKIO_DIR": str(out.parent / "trackio")}
    words = [sys.executable, "-c", _TRACKIO]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] in ([], [str(out)])
    return [
        (row.pop("step"), {name: x for name, x in row.items() if name != "timestamp"})
        for row in found["rows"]
    ]


def logged(out: Path) -> Shown:
    """The log of a run in the same form: all of a step together."""
    rows: dict[int, dict[str, float]] = {}
    for row in read_lines(out / "metrics.jsonl"):
        rows.setdefault(row["step"], {}).update(row)
    return [
        (step, {name: x for name, x in row.items() if name != "step"}) for step, row in rows.items()
    ]


def tracked(config: Mapping[str, Any]) -> None:
    """A run in a process of its own whose Trackio lies beside the run folder."""
    os.environ["TRACKIO_DIR"] = str(Path(config["out"]).parent / "trackio")
    run(config)


def tracked_and_killed(config: Mapping[str, Any], step: int) -> None:
    """As `tracked`, killed at a step, once the tracker has all steps before it."""
    from likelier.run import train

    out = Path(config["out"])
    os.environ["TRACKIO_DIR"] = str(out.parent / "trackio")

    def kill(row: Mapping[str, float]) -> None:
        if row["step"] == step and "loss" in row:
            end = time.monotonic() + 60
            while not _has(config["track"], out, step - 1) and time.monotonic() < end:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, on_step=kill)


def _has(tracker: str, out: Path, step: int) -> bool:
    try:
        shown = shown_by(tracker, out)
    except Exception:  # it has not begun
        return False
    return bool(shown) and shown[-1][0] >= step
