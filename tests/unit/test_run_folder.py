"""The run folder: whose it is, who works in it, and what it refuses."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
import yaml
from tests.support.runs import Place

from likelier.base.errors import OutputError
from likelier.base.files import read_json, read_lines, sealed, write_json
from likelier.config import config_from
from likelier.training.logs import Log, seals_of
from likelier.training.run_folder import RunFolder, asked, must_be_free, open_folder


def config(tmp_path: Path, out: str = "out", **changes: object):
    return config_from(Place(tmp_path).config(out, **changes))


def began(tmp_path: Path, **record: object) -> RunFolder:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    content = {"asked": asked(config(tmp_path)), "status": "running", "format": 2}
    write_json(out / "run.json", sealed(content | record))
    return RunFolder(config(tmp_path))


def test_a_folder_that_is_not_there_is_new(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    assert not folder.resumes
    assert not folder.finished()
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_record_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert not RunFolder(config(tmp_path)).finished()


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "tokenizer.json"])
def test_a_model_folder_is_never_written_into(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(OutputError, match="this holds something else") as found:
        RunFolder(config(tmp_path)).finished()
    assert name in str(found.value)


@pytest.mark.parametrize("name", ["config.yaml", "report.html", "model", "pair_texts.jsonl"])
def test_what_a_run_would_write_over_is_not_its_own(tmp_path: Path, name: str) -> None:
    """``out: .`` beside a config.yaml; but a run whose run.json is gone goes on."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(OutputError, match="this holds something else") as found:
        RunFolder(config(tmp_path)).finished()
    assert name in str(found.value)
    (tmp_path / "out" / "metrics.jsonl").touch()
    assert not RunFolder(config(tmp_path)).finished()


@pytest.mark.parametrize("out", ["base/out", "base", "rows/a/out"])
def test_no_run_inside_what_it_reads(tmp_path: Path, out: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "rows").mkdir()
    changes = {"data__train": {str(tmp_path / "rows"): 1.0}}
    with pytest.raises(OutputError, match="which is read") as found:
        RunFolder(config(tmp_path, out, **changes)).finished()
    assert found.value.where == f"out: {tmp_path / out}"


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="this holds something else"):
        RunFolder(config(tmp_path)).finished()


def test_the_same_config_resumes_or_is_finished(tmp_path: Path) -> None:
    assert began(tmp_path).resumes
    assert not began(tmp_path).finished()
    (tmp_path / "out" / "model").mkdir()
    assert began(tmp_path, status="finished").finished()
    assert not began(tmp_path, status="running").finished()


def test_where_it_lies_is_no_part_of_it(tmp_path: Path) -> None:
    began(tmp_path, status="finished")
    (tmp_path / "out" / "adapter").mkdir()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert RunFolder(config(tmp_path, "moved")).finished()


@pytest.mark.parametrize("status", ["running", "finished"])
def test_another_config_is_refused(tmp_path: Path, status: str) -> None:
    began(tmp_path, status=status)
    with pytest.raises(OutputError) as found:
        RunFolder(config(tmp_path, train__seed=1)).finished()
    assert found.value.what == "this folder holds another run: train.seed: 0 before, 1 now"


def test_changed_content_is_named(tmp_path: Path) -> None:
    before = {"data": "a", "model": "b", "loss": "c"}
    began(tmp_path, inputs=before).must_hold(**before)
    began(tmp_path).must_hold(**before)  # a new run
    with pytest.raises(OutputError, match=r"^out: .*out: the data and the loss changed since"):
        began(tmp_path, inputs=before).must_hold(data="x", model="b", loss="y")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with open_folder(config(tmp_path, "a/out")):
        with pytest.raises(OutputError) as found, open_folder(config(tmp_path, "a/out")):
            pass
        assert found.value.what.startswith(
            f"another process works in this folder (process {os.getpid()} on"
        )
        assert found.value.exit_code == 73
    with open_folder(config(tmp_path, "a/out")):
        pass


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """Also where the holder fails; the file stays, so that nobody locks a deleted one."""
    with pytest.raises(RuntimeError), open_folder(config(tmp_path)):
        raise RuntimeError
    assert (tmp_path / "out" / ".lock").exists()
    with open_folder(config(tmp_path)):
        pass


def test_a_link_in_the_place_of_the_lock(tmp_path: Path) -> None:
    """What it points to is not emptied."""
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "theirs")
    for attempt in (lambda: must_be_free(tmp_path / "out"), lambda: hold(tmp_path)):
        with pytest.raises(OutputError, match="cannot be written: Too many levels of symbolic"):
            attempt()
    assert (tmp_path / "theirs").read_text() == "theirs"


def hold(tmp_path: Path) -> None:
    with open_folder(config(tmp_path)):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks(
    tmp_path: Path,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said, and not taken for another process."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    hold(tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    must_be_free(tmp_path / "out")
    assert capsys.readouterr().err == ""
    hold(tmp_path)
    assert capsys.readouterr().err == (
        f"{tmp_path / 'out'}: this file system has no locks: nothing keeps a second process out\n"
    )


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal is made up."""
    hold(tmp_path)
    opened = os.open

    def refuse(path: object, *more: object, **named: object) -> int:
        if str(path).endswith(("run.json", ".lock")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"run\.json: cannot be read: Permission denied"):
        RunFolder(config(tmp_path))
    for attempt in (lambda: must_be_free(tmp_path / "out"), lambda: hold(tmp_path)):
        with pytest.raises(OutputError, match=r"out: .*: cannot be written: Permission denied"):
            attempt()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    got: list[bool] = []
    ready, done = threading.Barrier(8), threading.Barrier(8)

    def contend() -> None:
        ready.wait()
        try:
            with open_folder(config(tmp_path)):
                got.append(True)
                done.wait()
        except OutputError:
            done.wait()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written"), open_folder(config(tmp_path)):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot be written: .*file is no folder"),
        open_folder(config(tmp_path, "file/out")),
    ):
        pass


def test_logs_are_cut_back(tmp_path: Path) -> None:
    """To the rows up to a checkpoint; to nothing where there is none."""
    folder = began(tmp_path)
    for log in (folder.metrics, folder.timing):
        for step in range(4):
            log.append({"step": step, "loss": 0.5})
        log.cut_back(2, {})
        assert [row["step"] for row in read_lines(log.path)] == [0, 1, 2]
        log.cut_back(0, {})
        assert read_lines(log.path) == []
        assert log.seal() == Log(log.path).seal()


def test_the_record_grows(tmp_path: Path) -> None:
    folder = began(tmp_path)
    folder.write_record(step=3)
    folder.write_record(status="finished")
    record = read_json(folder.path / "run.json")
    assert record is not None
    assert (record["step"], record["status"]) == (3, "finished")
    assert "asked" in record


def test_out_is_in_the_config_of_the_folder_though(tmp_path: Path) -> None:
    """It runs again as it is."""
    settings = config(tmp_path)
    assert "out" not in asked(settings)
    assert yaml.safe_dump(asked(settings))


def test_logs_are_on_the_disk_before_they_are_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that a power cut leaves without its log rows would be a lie."""
    done: list[str] = []
    logs = [Log(tmp_path / "metrics.jsonl"), Log(tmp_path / "timing.jsonl")]
    for log in logs:
        log.append({"step": 1})
    monkeypatch.setattr(
        "likelier.training.logs.sync", lambda path: done.append(f"sync {path.name}")
    )
    seal = Log.seal
    monkeypatch.setattr(Log, "seal", lambda log: done.append(f"seal {log.name}") or seal(log))
    assert seals_of(logs).keys() == {"metrics.jsonl", "timing.jsonl"}
    assert done == [f"{what} {log.name}" for what in ("sync", "seal") for log in logs]
