"""The trackers, each with its own library: TensorBoard, Weights & Biases, Trackio.

None of them asks anything or uses the network of its own accord: files are written here. Libraries
are imported when a tracker is opened.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from likelier.base.files import make_folder

Figures = dict[str, float]
PROJECT = "likelier"


class Tracker(Protocol):
    """Where the rows of a run are shown. Both may raise anything."""

    def write(self, steps: Sequence[Figures]) -> None:
        """Add whole steps, in their order; those that it has from before are not doubled."""

    def close(self) -> None:
        """End the run as far as it got."""


def open_tracker(name: str, run: Path, key: str, settings: Mapping[str, Any]) -> Tracker:
    """The tracker of a run folder, new or as an earlier process left it.

    ``key`` is the run's own, the same whenever it resumes; ``settings`` are those to show with it.
    """
    if name == "tensorboard":
        return TensorBoard(run)
    if name == "wandb":
        return WeightsAndBiases(run, key, settings)
    return Trackio(run, key, settings)


def _figures(row: Figures) -> Figures:
    return {name: value for name, value in row.items() if name != "step"}


class TensorBoard:
    """Event files in ``RUN/tensorboard``: a new one for each process, whose first event says that
    what was there before begins anew. All rows follow, so nothing is lost, doubled or outdated.
    """

    def __init__(self, run: Path):
        # The record writer itself: the writer above it has a thread, whose errors are tracebacks.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        make_folder(folder := run / "tensorboard")
        number = 1 + sum("tfevents" in path.name for path in folder.iterdir())
        # Readers take the files in the order of their names.
        file = open(folder / f"events.out.tfevents.{number:010}", "xb")  # noqa: SIM115  # a run long
        self._records = RecordWriter(file)
        self._add(file_version="brain.Event:2")
        self._add(step=0, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def write(self, steps: Sequence[Figures]) -> None:
        """Add whole steps, and have them in the file."""
        for row in steps:
            values = [{"tag": name, "simple_value": x} for name, x in _figures(row).items()]
            self._add(step=row["step"], summary={"value": values})
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()


class WeightsAndBiases:
    """Offline files in ``RUN/wandb``, unless WANDB_MODE says otherwise: ``wandb sync`` sends them.

    The files of several processes are parts of one run: each begins behind the last step of those
    before it.
    """

    def __init__(self, run: Path, key: str, settings: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("WANDB_MODE is online, and nobody is logged in: run `wandb login`")
        self._last = max(
            (_last_step(file) for file in run.glob(f"wandb/*/run-{key}.wandb")), default=-1
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=key,
            name=os.environ.get("WANDB_NAME", str(run)),
            resume="allow",
            dir=run,
            mode=mode,
            config=dict(settings),
            settings=wandb.Settings(
                silent=True, console="off", finish_timeout=10, disable_git=True, disable_code=True,
                disable_job_creation=True, save_code=False, x_disable_meta=True,
                x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
                x_transaction_log_flush_interval=1,
            ),
        )  # fmt: skip
        if self._run.resumed:  # as the server knows it
            self._last = max(self._last, self._run.step - 1)

    def write(self, steps: Sequence[Figures]) -> None:
        """Add the steps that are not there yet."""
        for row in steps:
            if row["step"] > self._last:
                self._run.log(_figures(row), step=int(row["step"]), commit=True)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _last_step(file: Path) -> int:
    """The last step in a file of Weights & Biases, as its own command reads it; -1: none."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    records = (json.loads(line) for line in shown.stdout.splitlines())
    steps = [record["history"]["step"]["num"] for record in records if "history" in record]
    return max(steps, default=-1)


class Trackio:
    """The project ``likelier`` of the local Trackio, where ``trackio show`` finds it.

    Its storage ignores a log with an id that it has. Its ``init`` would print on stdout, watch the
    hardware, and hide what fails.
    """

    def __init__(self, run: Path, key: str, settings: Mapping[str, Any]):
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._name, self._key = SQLiteStorage, str(run), key
        self._settings: dict[str, Any] | None = dict(settings)

    def write(self, steps: Sequence[Figures]) -> None:
        """Add the steps that are not there yet."""
        self._storage.bulk_log(
            project=PROJECT,
            run=self._name,
            run_id=self._key,
            metrics_list=[_figures(row) for row in steps],
            steps=[int(row["step"]) for row in steps],
            log_ids=[f"{self._key}-{row['step']}" for row in steps],
            config=self._settings,
        )
        self._settings = None  # once

    def close(self) -> None:
        """Nothing is left to be written."""
