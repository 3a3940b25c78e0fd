"""A run that is killed, wherever, and started again gives the bytes of one that was not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.native import NO_COMPILER, has_compiler
from faults.shim import Fault
from tests.support.children import (
    KILLED,
    command,
    run,
    run_until_step,
    save_a_checkpoint,
    start,
    with_fault,
)
from tests.support.runs import Place, bytes_of, differing, make_place

from likelier.base.files import read_manifest, sweep
from likelier.training.checkpoint import latest_checkpoint, steps_saved

STEPS = 5


@dataclass(frozen=True)
class Whole:
    """A kind of tuning and the bytes of its run."""

    kind: str
    bytes: dict[str, bytes]


KINDS = {"full": {"kind": "none"}, "lora": {"kind": "lora", "r": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))


def config(place: Place, out: Path, kind: str) -> dict:
    return place.config(out, adapter=KINDS[kind], train__steps=STEPS)


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, place: Place, cache: Path) -> Iterator[Whole]:
    """The bytes of a run that nobody disturbed, for each kind of tuning."""
    out = place.folder / f"whole-{request.param}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(cache))
        go_on(config(place, out, request.param), place.folder / "whole.log")
    yield Whole(request.param, bytes_of(out))


def go_on(settings: dict, log: Path) -> str:
    child = start(run, settings, log=log)
    assert child.wait() == 0, child.output
    return child.output


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_after_a_step(place: Place, whole: Whole, tmp_path: Path, step: int) -> None:
    settings = config(place, tmp_path / "out", whole.kind)
    child = start(run_until_step, settings, step, log=tmp_path / "first.log")
    assert child.wait() == KILLED, child.output
    said = go_on(settings, tmp_path / "second.log")
    saved = (step - 1) // 2 * 2  # the kill comes before the checkpoint of the step itself
    assert (f"resuming from step {saved}" in said) == bool(saved)
    assert differing(bytes_of(tmp_path / "out"), whole.bytes) == []


def test_twice(place: Place, whole: Whole, tmp_path: Path) -> None:
    settings = config(place, tmp_path / "out", whole.kind)
    for step in (3, 4, 3):  # the third time it goes on from step 2 as the second time did
        child = start(run_until_step, settings, step, log=tmp_path / "killed.log")
        assert child.wait() == KILLED, child.output
    go_on(settings, tmp_path / "last.log")
    assert differing(bytes_of(tmp_path / "out"), whole.bytes) == []


def test_what_is_left_beside_a_finished_run_goes(
    place: Place, whole: Whole, tmp_path: Path
) -> None:
    """A kill after the last rename, or a disk that failed, leaves a folder of a temporary name."""
    out = place.folder / f"whole-{whole.kind}"
    (out / ".report.html.1.1.tmp").mkdir()
    (out / "pair_log" / ".steps-00000001-00000002.parquet.1.1.tmp").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config(place, out, whole.kind)))
    child = start(command, "train", str(file), log=tmp_path / "log")
    assert child.wait() == 0, child.output
    assert [path.name for path in out.rglob(".*")] == [".lock"]


@pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER)
def test_while_a_checkpoint_is_saved(tmp_path: Path) -> None:
    """At every file call: two valid checkpoints stay, and the next attempt succeeds."""
    valid = []
    for number in range(1, 200):
        folder = tmp_path / str(number)
        for step in (1, 2):
            save_a_checkpoint(str(folder), step)
        fault = Fault(folder, tmp_path / "tally", number)
        child = start(with_fault, fault, save_a_checkpoint, str(folder), 3, log=tmp_path / "log")
        code = child.wait()
        whole = [step for step in steps_saved(folder) if is_valid(folder, step)]
        valid.append(whole)
        assert len(whole) >= 2, number
        path, manifest, _ = latest_checkpoint(folder, {"data": "abc"})
        assert (manifest["step"], path) == (whole[0], path_of(folder, whole[0]))
        if code == 0:
            break
        assert code == KILLED, child.output
        sweep(folder)
        if whole[0] == 2:
            save_a_checkpoint(str(folder), 3)
        assert is_valid(folder, 3), number
    assert number > 20
    assert valid[0] == [2, 1]
    assert [3, 2, 1] in valid  # killed while the oldest goes
    assert valid[-1] == [3, 2]


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def is_valid(folder: Path, step: int) -> bool:
    return read_manifest(path_of(folder, step)) is not None
