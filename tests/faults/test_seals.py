"""Damage to what a run trusts, and the end of a run: the same bytes, or a line that says why."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.faults.test_resume import Crash, checkpoint, crash_after, stand_in_report, state_of
from tests.support.runs import Place, bytes_of, differing, make_place

from likelier.base.errors import OutputError, RunFailed
from likelier.base.files import MANIFEST, read_json, read_lines, sealed, write_json
from likelier.cli import main
from likelier.run import train
from likelier.training import checkpoint as checkpoints
from likelier.training import logs
from likelier.training.checkpoint import steps_saved
from likelier.training.run_folder import RunFolder

BCO = {"name": "bco", "beta": 0.5}  # its checkpoints hold a figure of its own


@pytest.fixture(autouse=True)
def shared_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
    monkeypatch.setattr("likelier.run._write_report", stand_in_report)


def settings(place: Place, out: str | Path, **changes: Any) -> dict[str, Any]:
    lora = {"kind": "lora", "r": 2, "alpha": 4}
    return place.config(out, adapter=lora, loss=BCO, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With ``whole``, a run that nobody disturbed, and ``crashed``, the same up to step 5 of 5.

    ``crashed`` has checkpoints of steps 2 and 4.
    """
    place = make_place(tmp_path_factory.mktemp("place"), rows=18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", stand_in_report)
        train(settings(place, "whole"))
        with pytest.raises(Crash):
            train(settings(place, "crashed"), on_step=crash_after(5))
    return place


@pytest.fixture
def crashed(place: Place, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place.folder / "crashed", tmp_path / "run"))


@pytest.fixture
def whole(place: Place, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place.folder / "whole", tmp_path / "run"))


def is_whole(place: Place, run: Path, *but: str) -> bool:
    """Whether a run has the bytes of the undisturbed one, but for some files."""
    different = differing(bytes_of(run), bytes_of(place.folder / "whole"))
    return [name for name in different if not name.startswith(but or ("-",))] == []


def flip(file: Path, at: bytes) -> None:
    """Change the last bit of the byte behind some bytes."""
    content = bytearray(file.read_bytes())
    content[content.index(at) + len(at)] ^= 1
    file.write_bytes(content)


# ---- the manifest and run.json ----------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    ["a figure", '"config": "', '"data": "', '"step": ', '"rows": ', '"seal": "'],
)
def test_a_flipped_bit_of_a_manifest_falls_back(
    place: Place, crashed: Path, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that still is a manifest: another figure, another config, another row count."""
    manifest = checkpoint(crashed, 4) / MANIFEST
    figures = json.loads(manifest.read_text())["figures"]
    assert figures
    flip(manifest, (f'"{next(iter(figures))}": ' if at == "a figure" else at).encode())
    train(settings(place, crashed))
    said = capsys.readouterr().err
    assert f"{checkpoint(crashed, 4)} is damaged: passed over\nresuming from step 2\n" in said
    assert is_whole(place, crashed)


FORGED: dict[str, Any] = {
    "figures": [1, 2],
    "files": {"/dev/zero": {"size": 0, "sha256": ""}},
    "step": 10**400,
    "format": "2",
    "logs": {"metrics.jsonl": 7, "timing.jsonl": None, "pair_log": []},
}


@pytest.mark.parametrize("name", FORGED)
def test_wrong_types_under_a_right_seal(place: Place, crashed: Path, name: str) -> None:
    manifest = checkpoint(crashed, 4) / MANIFEST
    write_json(manifest, sealed({**json.loads(manifest.read_text()), name: FORGED[name]}))
    train(settings(place, crashed))
    assert is_whole(place, crashed)


def test_a_checkpoint_of_an_older_version(place: Place, crashed: Path) -> None:
    for step in (2, 4):
        manifest = checkpoint(crashed, step) / MANIFEST
        content = {**json.loads(manifest.read_text()), "format": 1}
        for name in ("seal", "logs"):
            del content[name]
        write_json(manifest, content)
    with pytest.raises(RunFailed) as failed:
        train(settings(place, crashed))
    assert str(failed.value).splitlines() == [
        f"{checkpoint(crashed, 4)}: the checkpoint was made by an older version, which sealed no "
        "manifest",
        "  finish the run with that version, or start again with another out folder",
    ]


def tokens_per_batch(record: Path) -> None:
    flip(record, b'"tokens_per_batch": 25')


def lists(record: Path) -> None:
    content = json.loads(record.read_text())
    write_json(record, sealed({**content, "asked": [], "resolved": [1], "inputs": 3}))


def resolved_to_nothing(record: Path) -> None:
    write_json(record, sealed({**json.loads(record.read_text()), "resolved": {"train": [4]}}))


@pytest.mark.parametrize("damage", [tokens_per_batch, lists, resolved_to_nothing])
def test_a_damaged_record_counts_as_none(
    place: Place, crashed: Path, damage: Callable[[Path], None]
) -> None:
    damage(crashed / "run.json")
    train(settings(place, crashed))
    assert is_whole(place, crashed)


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_record_that_cannot_be_read_is_not_taken_for_none(
    place: Place, crashed: Path, put: Callable[[Path], None]
) -> None:
    (crashed / "run.json").unlink()
    put(crashed / "run.json")
    with pytest.raises(OutputError, match=r"run.json: cannot be read: Not a regular file"):
        train(settings(place, crashed))


@pytest.mark.parametrize("name", ["checkpoints", "pair_log", ".lock"])
def test_something_else_in_the_place_of_a_folder_or_a_lock(
    place: Place, crashed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = crashed / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if name == ".lock" else path.write_text("mine")
    (tmp_path / "config.yaml").write_text(json.dumps(settings(place, crashed)))
    assert main(["train", str(tmp_path / "config.yaml")]) == 73
    said = capsys.readouterr().err
    assert said.startswith(f"error: out: {crashed}: cannot be written: ") and said.count("\n") == 2
    with pytest.raises(OutputError, match="cannot be written"):
        train(settings(place, crashed))


# ---- logs -------------------------------------------------------------------------------------


def without(steps: set[int]) -> Callable[[Path], None]:
    def damage(log: Path) -> None:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(r) + "\n" for r in rows if r["step"] not in steps))

    return damage


def another_loss_at_step_3(log: Path) -> None:
    flip(log, b'"step": 3, "loss": ')


def last_file(folder: Path) -> Path:
    return sorted(folder.glob("steps-*-00000004.parquet"))[0]


AGAIN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "rows": ("metrics.jsonl", without({3, 4, 5})),
    "a row": ("metrics.jsonl", without({3})),
    "a figure": ("metrics.jsonl", another_loss_at_step_3),
    "timing": ("timing.jsonl", without({4})),
    "pairs": ("pair_log", lambda folder: last_file(folder).unlink()),
    "damaged pairs": ("pair_log", lambda folder: flip(last_file(folder), b"PAR1")),
    "a folder": ("pair_log", lambda folder: (last_file(folder).unlink(), last_file_made(folder))),
}


def last_file_made(folder: Path) -> None:
    (folder / "steps-00000003-00000004.parquet").mkdir()


@pytest.mark.parametrize("kind", AGAIN)
def test_lost_rows_are_made_again(
    place: Place, crashed: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the newest checkpoint that the logs agree with: two more steps, and nothing is lost."""
    name, damage = AGAIN[kind]
    damage(crashed / name)
    train(settings(place, crashed))
    said = capsys.readouterr().err
    assert "resuming from step 2\n" in said and " lost" not in said
    assert is_whole(place, crashed)
    timing = [row["step"] for row in read_lines(crashed / "timing.jsonl")]
    assert timing == [1, 2, 3, 4, 5]
    assert (read_json(crashed / "run.json") or {})["lost"] == []


LOST: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "all rows": ("metrics.jsonl", Path.unlink,
                 "metrics.jsonl: 7 of the 7 rows up to step 4 are lost; nothing is left of step "
                 "1 to 4"),
    "first rows": ("metrics.jsonl", without({1, 3}),
                   "metrics.jsonl: 2 of the 7 rows up to step 4 are lost; nothing is left of step "
                   "1, 3"),
    "an evaluation": ("metrics.jsonl", without({0}),
                      "metrics.jsonl: 1 of the 7 rows up to step 4 are lost"),
    "a figure": ("metrics.jsonl", lambda log: flip(log, b'"step": 1, "loss": '),
                 "metrics.jsonl: rows up to step 4 are not as they were written"),
    "a pipe": ("metrics.jsonl", lambda log: (log.unlink(), os.mkfifo(log)),
               "metrics.jsonl: 7 of the 7 rows up to step 4 are lost; nothing is left of step "
               "1 to 4"),
    "timing": ("timing.jsonl", without({2}),
               "timing.jsonl: 1 of the 4 rows up to step 4 are lost; nothing is left of step 2"),
    "pairs": ("pair_log", lambda folder: sorted(folder.iterdir())[0].unlink(),
              "pair_log: the rows of step 1 to 2 are lost"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_rows_that_no_checkpoint_can_make_again_are_said(
    place: Place, crashed: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And kept for the report; the model is what it would have been."""
    name, damage, what = LOST[kind]
    damage(crashed / name)
    train(settings(place, crashed))
    said = capsys.readouterr().err
    assert f"resuming from step 4\n{what}; no checkpoint is left to make them again from\n" in said
    assert is_whole(place, crashed, name, "adapter/README.md", "pair_texts", "adapter/MANIFEST")
    assert (read_json(crashed / "run.json") or {})["lost"] == [what]
    if name == "metrics.jsonl":  # the next checkpoint seals what is there
        assert (crashed / "adapter").is_dir()


def test_a_log_that_cannot_be_replaced(place: Place, crashed: Path) -> None:
    (crashed / "metrics.jsonl").unlink()
    (crashed / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot write: Is a directory"):
        train(settings(place, crashed))


def test_logs_are_on_disk_before_a_checkpoint_says_so(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row: a power cut may take what is not synced, and leave the checkpoint."""
    out, on_disk, sealed_rows = tmp_path / "out", {}, []
    sync, save = logs.sync, checkpoints.save_checkpoint

    def count_and_sync(path: Path) -> None:
        sync(path)
        on_disk[path.name] = len(path.read_text().splitlines())

    def save_and_count(folder: Path, step: int, optimizer: Any, facts: dict, *more: Any) -> Path:
        for name, rows in on_disk.items():
            assert rows == facts["logs"][name]["rows"], name
            sealed_rows.append((step, name, rows))
        return save(folder, step, optimizer, facts, *more)

    monkeypatch.setattr(logs, "sync", count_and_sync)
    monkeypatch.setattr("likelier.run.save_checkpoint", save_and_count)
    train(settings(place, out))
    assert sealed_rows == [
        (2, "metrics.jsonl", 4), (2, "timing.jsonl", 2),
        (4, "metrics.jsonl", 7), (4, "timing.jsonl", 4),
    ]  # fmt: skip


# ---- the end of a run -------------------------------------------------------------------------


def killed(out: Path) -> None:
    """Stand in for a report that is killed while it is written."""
    (out / ".report.html.1.1.tmp").mkdir()
    (out / ".report.html.1.1.tmp" / "report.html").write_text("<html")
    raise KeyboardInterrupt


def test_killed_while_the_report_is_written(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    def report(row: Mapping[str, float]) -> None:
        (out / "report.html").write_text("as `likelier report` wrote it while the run went on")

    with monkeypatch.context() as patch:
        patch.setattr("likelier.run._write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings(place, out), on_step=report)
    assert (read_json(out / "run.json") or {})["status"] == "finished"
    capsys.readouterr()
    (tmp_path / "config.yaml").write_text(json.dumps(settings(place, out)))
    for said in ("report.html to be written", "nothing to do"):
        assert main(["train", str(tmp_path / "config.yaml")]) == 0
        assert capsys.readouterr().err == f"{out} is finished: {said}\n"
        assert (out / "report.html").read_text() == "a report"
        assert [path.name for path in out.rglob(".*")] == [".lock"]
    assert is_whole(place, out)


def test_texts_and_report_that_are_gone(place: Place, whole: Path) -> None:
    """Nothing is trained for them."""
    trained = state_of(whole)
    (whole / "pair_texts.jsonl").unlink()
    (whole / "report.html").unlink()
    train(settings(place, whole), on_step=crash_after(5))
    assert (whole / "report.html").exists() and is_whole(place, whole)
    same = {name for name, state in state_of(whole).items() if trained.get(name) == state}
    assert {name for name in trained if name.startswith(("adapter", "check"))} <= same


def test_texts_are_there_before_a_run_is_finished(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, they are not forgotten."""

    def finish(folder: Any, step: int) -> None:
        assert (folder.path / "pair_texts.jsonl").exists()
        raise Crash

    monkeypatch.setattr("likelier.training.run_folder.RunFolder.finish", finish)
    with pytest.raises(Crash):
        train(settings(place, tmp_path / "out"))


def test_a_model_that_is_gone_comes_again(
    place: Place, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(whole / "adapter")
    train(settings(place, whole))
    said = capsys.readouterr().err
    assert f"the model of {whole} is gone: the last checkpoint gives it once more\n" in said
    assert "resuming from step 4\n" in said
    assert is_whole(place, whole)


def test_a_model_that_was_changed_is_said(place: Place, whole: Path) -> None:
    """It may be somebody's work: it is left alone. Its card may be edited."""
    (whole / "adapter" / "README.md").write_text("my own card")
    train(settings(place, whole))
    weights = whole / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunFailed) as failed:
        train(settings(place, whole))
    assert str(failed.value).splitlines() == [
        f"{whole / 'adapter'}: not as it was saved: adapter_model.safetensors",
        "  put it back, or delete this folder and run the same command again: the last checkpoint "
        "gives it once more",
    ]
    assert weights.read_bytes() == bytes(content)


def test_a_model_that_is_gone_with_its_checkpoints(place: Place, whole: Path) -> None:
    """The run is not trained over in silence."""
    shutil.rmtree(whole / "adapter")
    shutil.rmtree(whole / "checkpoints")
    with pytest.raises(RunFailed, match="its model is gone, and so are its checkpoints") as failed:
        train(settings(place, whole))
    assert "put the model back, or delete the folder" in str(failed.value)


def test_a_finished_run_of_an_older_version_stays_finished(
    place: Place, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record has no seal, it may have no texts, and its model's manifest has none."""
    record = {**json.loads((whole / "run.json").read_text()), "format": 1}
    manifest = {**json.loads((whole / "adapter" / MANIFEST).read_text()), "format": 1}
    del record["seal"], manifest["seal"]
    write_json(whole / "run.json", record)
    write_json(whole / "adapter" / MANIFEST, manifest)
    (whole / "pair_texts.jsonl").unlink()
    train(settings(place, whole))
    assert capsys.readouterr().err == f"{whole} is finished: nothing to do\n"


@pytest.mark.parametrize("row", ['{"step": 5}', "[1]", '{"tokens": "a", "step": null}', "{"])
def test_whatever_the_timing_log_holds_in_the_end(
    place: Place, crashed: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is lost for it."""
    finish = RunFolder.finish

    def spoiled(folder: RunFolder, step: int) -> None:
        (folder.path / "timing.jsonl").write_text(row + "\n")
        finish(folder, step)

    monkeypatch.setattr(RunFolder, "finish", spoiled)
    train(settings(place, crashed))
    assert is_whole(place, crashed)
    assert (read_json(crashed / "run.json") or {})["tokens"]["plain"] == 0


def test_an_evaluation_of_which_half_is_left(place: Place, crashed: Path) -> None:
    """It is in the log, and no row of the card."""

    def spoil(logged: dict[str, float]) -> None:
        if logged["step"] == 5:
            with (crashed / "metrics.jsonl").open("a") as log:
                log.write('{"step": 5, "eval_loss": 0.5}\n{"step": 5, "eval_loss": "x"}\n')

    train(settings(place, crashed), on_step=spoil)
    assert (crashed / "adapter" / "README.md").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_checkpoints_are_kept_as_asked_after_a_kill(
    place: Place, tmp_path: Path, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the oldest goes; no other checkpoint follows that would delete it."""
    out, prune = tmp_path / "out", checkpoints.prune
    config = settings(place, out, train__save_every=1, train__steps=3, train__keep=keep)

    def dies(folder: Path, keep: int, ended: bool = False) -> None:
        if steps_saved(folder)[0] == 3:
            raise Crash
        prune(folder, keep, ended)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "prune", dies)
        with pytest.raises(Crash):
            train(config)
    assert len(steps_saved(out / "checkpoints")) == keep + 1
    train(config)
    assert steps_saved(out / "checkpoints") == [3, 2, 1][:keep]


def test_what_libraries_leave_in_a_run_is_swept(place: Place, crashed: Path) -> None:
    (crashed / ".tmpa1B2c3").write_bytes(b"half a file of safetensors")
    (crashed / ".reference.safetensors.99.99.tmp").mkdir()
    (crashed / ".reference.safetensors.99.99.tmp" / ".tmpXyZ012").write_bytes(b"half")
    train(settings(place, crashed))
    assert [path.name for path in crashed.rglob(".*")] == [".lock"]


@pytest.mark.parametrize("name", ["reference.safetensors", "config.yaml", "timing.jsonl"])
def test_a_pipe_in_the_place_of_a_file(place: Place, crashed: Path, name: str) -> None:
    """Nothing waits for it: it is replaced."""
    (crashed / name).unlink()
    os.mkfifo(crashed / name)
    train(settings(place, crashed))
    assert is_whole(place, crashed)
