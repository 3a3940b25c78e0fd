"""Going on: past damaged checkpoints, without lost parts, and never with other inputs."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.support.runs import Place, bytes_of, differing, make_place
from tests.support.tiny import pair_rows, save_tiny, write_rows

from likelier.base.errors import LikelierError, OutputError, RunFailed
from likelier.base.files import MANIFEST, read_json, sealed, write_json
from likelier.reference.cache import StoredReference, load_reference
from likelier.run import due, train


class Crash(Exception):
    """What a run does not expect."""


def crash_after(step: int) -> Callable[[dict], None]:
    def on_step(row: dict) -> None:
        if row["step"] == step and "loss" in row:
            raise Crash

    return on_step


def stand_in_report(out: Path) -> None:
    """Reports take longer than these runs."""
    (out / "report.html").write_text("a report")


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    monkeypatch.setattr("likelier.run._write_report", stand_in_report)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Place]:
    """With ``whole``, a run that nobody disturbed, and ``crashed``, the same up to step 5 of 5.

    ``crashed`` has checkpoints of steps 2 and 4.
    """
    place = make_place(tmp_path_factory.mktemp("place"), rows=18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(cache))
        patch.setattr("likelier.run._write_report", stand_in_report)
        train(place.config("whole"))
        with pytest.raises(Crash):
            train(place.config("crashed"), on_step=crash_after(5))
    return place


@pytest.fixture
def crashed(place: Place, tmp_path: Path) -> Path:
    """A copy of the crashed run; where a run lies is no part of what it is."""
    return Path(shutil.copytree(place.folder / "crashed", tmp_path / "run"))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def flip_a_byte(folder: Path) -> None:
    file = folder / "masters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def swap_the_averages(folder: Path) -> None:
    """Both files are whole and belong here, but each under the other's name."""
    first, second = folder / "exp_avg.safetensors", folder / "exp_avg_sq.safetensors"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def truncate(folder: Path) -> None:
    os.truncate(folder / "exp_avg.safetensors", 100)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_byte,
    "swapped": swap_the_averages,
    "truncated": truncate,
    "emptied": lambda folder: (folder / "exp_avg_sq.safetensors").write_bytes(b""),
    "missing": lambda folder: (folder / "count.safetensors").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "empty manifest": lambda folder: (folder / MANIFEST).write_text(""),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text('{"files": {'),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "no object": lambda folder: (folder / MANIFEST).write_text('{"files": 3}'),
    "no files": lambda folder: (folder / MANIFEST).write_text('{"files": {}, "step": 4}'),
    "bytes": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "deep": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "another step": lambda folder: write_json(
        folder / MANIFEST, (read_json(folder / MANIFEST) or {}) | {"step": 3}
    ),
    "emptied folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    place: Place, crashed: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[damage](checkpoint(crashed, 4))
    train(place.config(crashed))
    assert "resuming from step 2\n" in capsys.readouterr().err
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_no_valid_checkpoint(place: Place, crashed: Path) -> None:
    flip_a_byte(checkpoint(crashed, 2))
    truncate(checkpoint(crashed, 4))
    with pytest.raises(RunFailed, match="none of the 2 checkpoints is whole") as failed:
        train(place.config(crashed))
    assert failed.value.exit_code == 1
    assert failed.value.where == str(crashed / "checkpoints")
    assert "delete" in str(failed.value)


def test_no_checkpoint_yet(place: Place, crashed: Path) -> None:
    shutil.rmtree(crashed / "checkpoints")
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


@pytest.mark.parametrize("cached", [True, False])
def test_the_reference_column_is_made_again(
    place: Place, crashed: Path, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, never from the policy as it is after four steps."""
    (crashed / "reference.safetensors").unlink()
    if not cached:
        monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "empty"))
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_a_changed_reference_column_is_refused(place: Place, crashed: Path) -> None:
    """By less than the gate would see, in a file that is whole and says that it belongs here."""
    column = load_reference(crashed / "reference.safetensors")
    assert column is not None
    key = next(iter(column.values))
    StoredReference(column.identity, {**column.values, key: column.values[key] + 1e-6}).save(
        crashed / "reference.safetensors"
    )
    with pytest.raises(OutputError, match="the reference changed since this run began"):
        train(place.config(crashed))


def test_a_damaged_reference_column_is_made_again(place: Place, crashed: Path) -> None:
    content = bytearray((crashed / "reference.safetensors").read_bytes())
    content[-3] ^= 1
    (crashed / "reference.safetensors").write_bytes(content)
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_logs_of_steps_to_come_are_forgotten(place: Place, crashed: Path) -> None:
    """Also a last line that was cut short."""
    shutil.rmtree(checkpoint(crashed, 4))
    with open(crashed / "metrics.jsonl", "a") as log:
        log.write('{"step": 5, "loss": 0.')
    with pytest.raises(Crash):
        train(place.config(crashed), on_step=crash_after(3))
    rows = [json.loads(x) for x in (crashed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3]
    timing = [json.loads(x)["step"] for x in (crashed / "timing.jsonl").read_text().splitlines()]
    assert timing == [1, 2]  # a step is timed behind its log
    pair_rows = sorted(p.name for p in (crashed / "pair_log").iterdir())
    assert pair_rows == ["steps-00000001-00000002.parquet"]
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_temporary_files_of_the_dead_are_swept(place: Place, crashed: Path) -> None:
    half = crashed / "checkpoints" / ".step-00000006.99.tmp"
    half.mkdir()
    (half / "masters.safetensors").write_bytes(b"half")
    (crashed / "pair_log" / ".steps-00000005-00000005.parquet.99.tmp").write_bytes(b"half")
    (crashed / ".run.json.99.tmp").write_text("{")
    (crashed / "checkpoints" / ".step-00000002.99.trash").mkdir()
    train(place.config(crashed))
    assert [path.name for path in crashed.rglob(".*")] == [".lock"]


def state_of(run: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(run)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in run.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def test_finished(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(place.folder / "whole", tmp_path / "run"))
    before, lock = state_of(run), (run / ".lock").stat().st_mtime_ns
    time.sleep(0.01)
    result = train(place.config(run))
    assert state_of(run) == before
    assert (run / ".lock").stat().st_mtime_ns == lock
    assert capsys.readouterr().err == f"{run} is finished: nothing to do\n"
    assert result.model == run / "model"
    assert result.metrics[-1]["step"] == 5


def change_the_model(place: Place) -> None:
    save_tiny(place.base, seed=1)


def change_one_weight(place: Place) -> None:
    weights = load_file(place.base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, place.base / "model.safetensors", {"format": "pt"})


def change_the_architecture(place: Place) -> None:
    described = json.loads((place.base / "config.json").read_text())
    described["rope_parameters"]["rope_theta"] = 500.0
    (place.base / "config.json").write_text(json.dumps(described))


def change_one_word(place: Place) -> None:
    rows = pair_rows(18)
    rows[7]["chosen"][0]["content"] += "!"
    write_rows(place.data, rows)


def change_the_order(place: Place) -> None:
    write_rows(place.data, pair_rows(18)[::-1])


def change_the_template(place: Place) -> None:
    file = place.base / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|end|>", " <|end|>"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_the_model, "model"),
        (change_one_weight, "model"),
        (change_the_architecture, "model"),
        (change_one_word, "data"),
        (change_the_order, "data"),
        (change_the_template, "data"),
    ],
)
def test_other_content_behind_the_config_is_refused(
    place: Place, tmp_path: Path, change: Callable[[Place], None], what: str
) -> None:
    """And nothing in the folder changes, so that what was there can be put back."""
    copy = Place(tmp_path)
    shutil.copytree(place.base, copy.base)
    shutil.copy(place.data, copy.data)
    settings = copy.config("out")
    with pytest.raises(Crash):
        train(settings, on_step=crash_after(3))
    change(copy)
    before = state_of(copy.folder / "out")
    with pytest.raises(OutputError, match=f"^out: .*: the {what} changed since this run") as found:
        train(settings)
    assert found.value.exit_code == 73
    assert state_of(copy.folder / "out") == before


def test_another_config_is_refused(place: Place, crashed: Path) -> None:
    before = state_of(crashed)
    with pytest.raises(OutputError) as found:
        train(place.config(crashed, optim__lr=2e-3, loss={"beta": 0.2}))
    assert str(found.value).splitlines() == [
        f"out: {crashed}: this folder holds another run: loss.beta: 0.1 before, 0.2 now"
        " (and 1 more)",
        "  give another out folder, or the config of this run",
    ]
    assert state_of(crashed) == before


def test_another_loss_is_refused(place: Place, crashed: Path) -> None:
    def hinge(values):
        return (1 - values.log_ratio_margin_P).relu()

    with pytest.raises(OutputError, match="the loss changed"):
        train(place.config(crashed), loss=hinge)


def test_checkpoints_of_another_config_are_no_start(place: Place, crashed: Path) -> None:
    """A folder without run.json counts as empty, but its checkpoints are not taken on trust."""
    (crashed / "run.json").unlink()
    with pytest.raises(RunFailed, match="made with another config"):
        train(place.config(crashed, optim__lr=2e-3))
    (crashed / "run.json").unlink()
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_half_a_record_counts_as_none(place: Place, crashed: Path) -> None:
    record = crashed / "run.json"
    record.write_bytes(record.read_bytes()[:200])
    train(place.config(crashed))
    assert differing(bytes_of(crashed), bytes_of(place.folder / "whole")) == []


def test_leftovers_of_a_run_that_never_began(place: Place, tmp_path: Path) -> None:
    """A reference column without a run.json may be of other data: it is nothing."""
    out = tmp_path / "out"
    other = write_rows(tmp_path / "other.jsonl", pair_rows(30))
    settings = place.config(out, train__steps=1)
    settings["data"]["train"] = str(other)
    train(settings)
    for path in list(out.iterdir()):
        if path.name != "reference.safetensors":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(place.config(out))
    assert differing(bytes_of(out), bytes_of(place.folder / "whole")) == []


def test_other_threads_are_told(
    place: Place, crashed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((crashed / "run.json").read_text())
    record["threads"], record["versions"]["torch"] = 7, "2.0.0"
    write_json(crashed / "run.json", sealed(record))
    train(place.config(crashed))
    said = capsys.readouterr().err
    assert "the run began with threads 7 and resumes with 1: its last bits may differ\n" in said
    assert "began with torch 2.0.0 and resumes with" in said
    assert said.count("its last bits may differ") == 2


def test_no_checkpoints_wanted(place: Place, tmp_path: Path) -> None:
    """Then a stopped run starts again from the beginning."""
    settings = place.config(tmp_path / "out", train__save_every=None)
    with pytest.raises(Crash):
        train(settings, on_step=crash_after(3))
    assert not (tmp_path / "out" / "checkpoints").exists()
    train(settings)
    weights = "model/model.safetensors"
    whole = bytes_of(place.folder / "whole")
    assert bytes_of(tmp_path / "out")[weights] == whole[weights]


def test_a_separate_reference_does_not_hide_another_start(place: Place, tmp_path: Path) -> None:
    """With LoRA the checkpoint holds the adapter only: on another base it would be nonsense."""
    copy = Place(tmp_path)
    shutil.copytree(place.base, copy.base)
    shutil.copy(place.data, copy.data)
    settings = copy.config("out", adapter={"kind": "lora", "r": 2})
    settings["reference"] = {"path": str(place.base)}
    with pytest.raises(Crash):
        train(settings, on_step=crash_after(3))
    change_one_weight(copy)
    with pytest.raises(LikelierError, match="the model changed since this run began"):
        train(settings)


def test_due_never() -> None:
    assert [due(step, None) for step in (1, 200)] == [False, False]
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
