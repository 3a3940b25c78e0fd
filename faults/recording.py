"""Runs whose every change to a folder is written down, in processes that carry record.c."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.children import no_report

from faults.native import build

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """A run to record: its config file, the folder that is watched, and where to.

    The cache lies in the watched folder. ``patches`` replace functions by functions, by name;
    without ``report`` none is written, which takes longer than the run.
    """

    config: str
    folder: str
    log: str
    report: bool = False
    patches: Mapping[str, str] = field(default_factory=dict)


class RecordedRunFailed(Exception):
    """A recorded run did not end well."""


def record(jobs: Sequence[Job]) -> None:
    """Run each job, one after the other, forked from one process that imported everything.

    Raises NoCompiler where the library cannot be made, RecordedRunFailed for a run that failed.
    """
    environment = os.environ | {"LD_PRELOAD": str(build("record.c"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "faults.recording"],
        input=json.dumps([asdict(job) for job in jobs]),
        env=environment, cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RecordedRunFailed(done.stdout + done.stderr)


def note(text: str) -> None:
    """Say something in the log of the recording."""
    ctypes.CDLL(None).likelier_note(text.encode())


def saved_aloud(*arguments: Any, **named: Any) -> Path:
    """Save a checkpoint, then say so: from here on the run counts on it."""
    from likelier.training.checkpoint import save_checkpoint

    path = save_checkpoint(*arguments, **named)
    note(f"saved {int(path.name.removeprefix('step-'))}")
    return path


def reporting(report: bool) -> dict[str, Callable[..., Any]]:
    """The patches that keep a run from writing its report, or none."""
    return {} if report else {"likelier.run._write_report": no_report}


def _run(job: Job) -> None:
    """The job itself, in a process of its own; the exit code says how it ended."""
    import pkgutil

    from tests.support.children import command

    os.environ |= {
        "LIKELIER_RECORD_FOLDER": job.folder,
        "LIKELIER_RECORD_LOG": job.log,
        "LIKELIER_CACHE": f"{job.folder}/cache",
    }
    ctypes.CDLL(None).likelier_record()
    patches = {name: pkgutil.resolve_name(to) for name, to in job.patches.items()}
    patches = {"likelier.run.save_checkpoint": saved_aloud, **reporting(job.report), **patches}
    try:
        command("train", job.config, patches=patches)
    except SystemExit as ended:
        note(f"ended {ended.code or 0}")
        raise


def main() -> None:
    """The jobs of the standard input, each in a fork."""
    import tests.support.warm  # noqa: F401

    for job in (Job(**given) for given in json.load(sys.stdin)):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                _run(job)
            except SystemExit as ended:
                os._exit(ended.code if isinstance(ended.code, int) else bool(ended.code))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(70)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"a recorded run ended with {code}")


if __name__ == "__main__":
    main()
