"""Trackers show the log of a run, whatever happens to it; what happens to them is not its loss."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.children import KILLED, start
from tests.support.runs import Place, bytes_of, differing
from tests.support.trackers import logged, shown_by, tracked, tracked_and_killed

from likelier.base import environment
from likelier.base.errors import ConfigError
from likelier.base.files import read_json, read_lines
from likelier.cli import main
from likelier.run import train
from likelier.tracking import mirror
from likelier.tracking.mirror import Mirror

TRACKERS = ["tensorboard", "wandb", "trackio"]
FOLDERS = ("tensorboard/", "wandb/")


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


def same_run(out: Path, place: Place) -> bool:
    """Whether a run has the bytes of one without a tracker; the config says which tracker."""
    ours = {n: b for n, b in bytes_of(out).items() if not n.startswith(FOLDERS)}
    ours["config.yaml"] = ours["config.yaml"].replace(
        f"track: {track_of(out)}".encode(), b"track: none"
    )
    return differing(ours, bytes_of(place.folder / "whole")) == []


def track_of(out: Path) -> str:
    return yaml.safe_load((out / "config.yaml").read_text())["track"]


def test_a_tracker_shows_the_log_and_changes_nothing(
    place: Place, tracker: str, tmp_path: Path
) -> None:
    child = start(tracked, place.config(tmp_path / "out", track=tracker), log=tmp_path / "log")
    assert child.wait() == 0, child.output
    assert same_run(tmp_path / "out", place) and track_of(tmp_path / "out") == tracker
    assert "shows no more" not in child.output
    rows = logged(tmp_path / "out")
    assert [step for step, _ in rows] == [0, 1, 2, 3, 4, 5]
    assert shown_by(tracker, tmp_path / "out") == as_shown(tracker, rows)


def as_shown(tracker: str, rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, Any]]:
    """TensorBoard holds figures in single precision."""
    if tracker != "tensorboard":
        return rows
    return [(step, {n: pytest.approx(x, rel=1e-6) for n, x in row.items()}) for step, row in rows]


def test_a_run_that_was_killed_is_one_run_there(place: Place, tracker: str, tmp_path: Path) -> None:
    """It resumes from step 2, so step 3 is computed twice; the tracker had it already."""
    config = place.config(tmp_path / "out", track=tracker)
    child = start(tracked_and_killed, config, 4, log=tmp_path / "first.log")
    assert child.wait() == KILLED, child.output
    before = [step for step, _ in shown_by(tracker, tmp_path / "out")]
    assert 3 in before and 5 not in before
    key = read_json(tmp_path / "out" / "run.json")["tracked_as"]
    child = start(tracked, config, log=tmp_path / "second.log")
    assert child.wait() == 0, child.output
    assert "resuming from step 2" in child.output and "shows no more" not in child.output
    assert same_run(tmp_path / "out", place)
    assert read_json(tmp_path / "out" / "run.json")["tracked_as"] == key
    assert shown_by(tracker, tmp_path / "out") == as_shown(tracker, logged(tmp_path / "out"))


def test_a_tracker_that_comes_later_has_all_rows(place: Place, tmp_path: Path) -> None:
    """And ``track`` is no part of what a run is."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = place.config(tmp_path / "out")

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(config, on_step=stop)
    assert not (tmp_path / "out" / "tensorboard").exists()
    train(config | {"track": "tensorboard"})
    assert same_run(tmp_path / "out", place) and track_of(tmp_path / "out") == "tensorboard"
    rows = as_shown("tensorboard", logged(tmp_path / "out"))
    assert shown_by("tensorboard", tmp_path / "out") == rows


def test_a_last_record_cut_short_is_written_again(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = place.config(tmp_path / "out", track="tensorboard")
    with pytest.raises(RuntimeError):
        train(config, on_step=crash)
    (file,) = (tmp_path / "out" / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 7)
    train(config)
    rows = as_shown("tensorboard", logged(tmp_path / "out"))
    assert shown_by("tensorboard", tmp_path / "out") == rows


def crash(row: dict[str, float]) -> None:
    if row["step"] == 4:
        raise RuntimeError


# ---- a tracker that fails ------------------------------------------------------------------------


def the_one_line(said: str) -> str:
    (line,) = [line for line in said.splitlines() if "shows no more of this run" in line]
    return line


def test_a_folder_that_cannot_be_made(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tensorboard").write_text("a file")
    train(place.config(tmp_path / "out", track="tensorboard"))
    line = the_one_line(capsys.readouterr().err)
    assert line.startswith("tensorboard shows") and "exists" in line
    assert line.endswith("; metrics.jsonl has every row")
    (tmp_path / "out" / "tensorboard").unlink()
    assert same_run(tmp_path / "out", place)


def test_a_full_disk(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.summary.writer.record_writer import RecordWriter

    write: Callable[..., None] = RecordWriter.write
    written = []

    def fill(self: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", fill)
    train(place.config(tmp_path / "out", track="tensorboard"))
    assert "No space left on device" in the_one_line(capsys.readouterr().err)
    assert len(written) == 5  # it is not tried again
    assert same_run(tmp_path / "out", place)


def test_a_tracker_that_hangs_slows_nothing(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    answer = threading.Event()
    monkeypatch.setattr(mirror, "open_tracker", lambda *_: answer.wait())
    monkeypatch.setattr(mirror, "SECONDS_AT_THE_END", 0.2)
    train(place.config(tmp_path / "out", track="tensorboard"))
    answer.set()
    assert "it took over 0.2 seconds to end" in the_one_line(capsys.readouterr().err)
    assert same_run(tmp_path / "out", place)


class Slow:
    """A tracker that takes what it is given once it may."""

    def __init__(self) -> None:
        self.may, self.steps, self.closed = threading.Event(), [], False

    def write(self, steps: list[dict[str, float]]) -> None:
        self.may.wait()
        self.steps += steps

    def close(self) -> None:
        self.closed = True


def test_rows_are_handed_on_by_whole_steps() -> None:
    slow = Slow()
    slow.may.set()
    mirrored = Mirror("slow", lambda: slow)
    mirrored.add([{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}])
    mirrored.add([{"step": 2, "loss": 1.5}])
    mirrored.add([{"step": 2, "eval_loss": 1.0}])
    for _ in range(1000):
        if len(slow.steps) == 2:
            break
        time.sleep(0.01)
    assert slow.steps == [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}]
    mirrored.close()
    assert slow.steps[2:] == [{"step": 2, "loss": 1.5, "eval_loss": 1.0}] and slow.closed


def test_a_tracker_far_behind_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "MAX_WAITING", 3)
    slow = Slow()
    mirrored = Mirror("slow", lambda: slow)
    began = time.monotonic()
    for step in range(100):
        mirrored.add([{"step": step}])
    mirrored.close()
    assert time.monotonic() - began < 5
    assert "slow shows no more of this run: it is 3 rows behind" in the_one_line(
        capsys.readouterr().err
    )
    slow.may.set()


# ---- a tracker that is not there -----------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_named_before_anything_is_loaded(
    name: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    known = environment._installed
    monkeypatch.setattr(environment, "_installed", lambda one: None if one == name else known(one))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(place.config(tmp_path / "out", track=name)))
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: track: needs {name}>=") and "which is not installed\n" in said
    assert f"  run: pip install 'likelier[{name}]'\n" in said and "loading" not in said
    with pytest.raises(ConfigError, match="which is not installed"):
        train(place.config(tmp_path / "out", track=name))
    assert not (tmp_path / "out").exists()


def test_online_without_a_login_asks_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    child = start(
        online, place.config(tmp_path / "out", track="wandb"), str(tmp_path), log=tmp_path / "log"
    )
    assert child.wait() == 0, child.output
    assert "run `wandb login`" in the_one_line(child.output)
    assert len(read_lines(tmp_path / "out" / "metrics.jsonl")) > 5


def online(config: dict[str, Any], home: str) -> None:
    os.environ |= {"HOME": home, "WANDB_MODE": "online"}
    os.environ.pop("WANDB_API_KEY", None)
    tracked(config)
