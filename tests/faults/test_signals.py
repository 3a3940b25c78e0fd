"""A signal in any phase of a run: the promised code, no traceback, a folder that resumes.

`faults.signals` sends them at random instants, to every command.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tests.support.children import KILLED, PATIENCE, command, no_report, reached, slowly, start
from tests.support.runs import Place, bytes_of, differing

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
NO_REPORT = {"likelier.run._write_report": no_report}
# What is slowed down in each phase by the name that it is called by there, its own name, the
# signal, and the exit code. Before the first step and behind the last there is nothing to finish.
PHASES = {
    "the model is loaded": ("likelier.model.load._load_weights", "", TERM, -TERM),
    "data are prepared": ("likelier.run.load", "likelier.data.load.load", INT, 130),
    "the reference is computed": (
        "likelier.reference.cache.score_sequences", "likelier.model.policy.score_sequences",
        HUP, -HUP),
    "the preflight": (
        "likelier.run.preflight", "likelier.training.preflight.preflight", TERM, -TERM),
    "a step": (
        "likelier.run.gradients_that_fit", "likelier.training.step.gradients_that_fit", HUP, 75),
    "pairs held out are evaluated": (
        "likelier.evaluation.evaluator.held_out_metrics",
        "likelier.evaluation.metrics.held_out_metrics", INT, 130),
    "a checkpoint is saved": (
        "likelier.run.save_checkpoint", "likelier.training.checkpoint.save_checkpoint", TERM, 75),
    "the model is saved": (
        "likelier.run.save_policy", "likelier.export.save.save_policy", HUP, 0),
    "the report is written": (
        "likelier.report.page.read_run", "likelier.report.read.read_run", INT, 130),
}  # fmt: skip


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    (cache / "reached").unlink(missing_ok=True)


def resumes(config: Path, place: Place, report: bool = False) -> None:
    """The same command comes to the same model, and to a report where one was asked for."""
    patches = {} if report else NO_REPORT
    again = start(command, "train", str(config), patches=patches, log=config.with_name("again.log"))
    assert again.wait() == 0, again.output
    ours, whole = bytes_of(config.with_name("out")), bytes_of(place.folder / "whole")
    # A stop cuts the pair logs once more, and keeps a checkpoint of its own.
    other = ("pair_log/", "held_out/", "checkpoints/")
    assert [name for name in differing(ours, whole) if not name.startswith(other)] == []
    assert not report or (config.with_name("out") / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_in_every_phase(
    place: Place, config: Path, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, own, number, code = PHASES[phase]
    if phase == "the reference is computed":  # from an empty cache
        (tmp_path / "cold").mkdir()
        monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cold"))
    patches = {} if "report" in phase else dict(NO_REPORT)
    patches[called] = partial(slowly, 1.0 if code in (75, 0) or "held" in phase else 600.0,
                              own or called)  # fmt: skip
    child = start(command, "train", str(config), patches=patches, log=tmp_path / "first.log")
    child.wait_for(reached())
    child.send(number)
    assert child.wait() == code, child.output
    assert "Traceback" not in child.output and "error: " not in child.output
    resumes(config, place, report="report" in phase)


def test_killed_after_it_was_asked_to_stop(place: Place, config: Path) -> None:
    """As systems do that shut down: SIGTERM, a moment, SIGKILL."""
    saves = {"likelier.run.save_checkpoint": partial(slowly, 600.0, "builtins.list")}
    child = start(command, "train", str(config), patches=NO_REPORT | saves,
                  log=config.with_name("first.log"))  # fmt: skip
    child.wait_for(config.with_name("out") / "metrics.jsonl")
    child.send(TERM)
    child.wait_for(reached())
    child.send(signal.SIGKILL)
    assert child.wait() == KILLED
    resumes(config, place)


def test_nobody_reads_what_a_run_says(place: Place, config: Path) -> None:
    """As in ``likelier train config.yaml 2>&1 | head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "likelier", "train", str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.stdout.close()
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        process.kill()
    assert first.startswith(b"loading ")
    assert process.returncode in (0, 141)
    resumes(config, place)
