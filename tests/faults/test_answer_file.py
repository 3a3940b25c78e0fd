"""`likelier sample` broken off, wherever, and started again: the bytes of one that was not."""

import fcntl
import json
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from faults.native import NO_COMPILER, has_compiler
from faults.shim import Fault
from tests.support.children import (
    KILLED,
    NO_HELPERS,
    PATIENCE,
    command,
    limited,
    start,
    with_fault,
)
from tests.support.runs import Place

from likelier.cli import main
from likelier.generation.answer_file import record_of

SETTINGS = ("-n", "2", "--max-new-tokens", "6", "--batch-size", "8", "--seed", "4")
ANSWERS = 36


def words(place: Place, out: Path, *more: str) -> list[str]:
    run, data = str(place.folder / "whole"), str(place.data)
    return ["sample", run, "--prompts", data, "--out", str(out), *SETTINGS, *more]


@pytest.fixture(scope="module")
def whole(place: Place) -> Path:
    """The answers of a run that nobody disturbed."""
    out = place.folder / "answers.jsonl"
    assert main(words(place, out)) == 0
    assert out.read_bytes().count(b"\n") == ANSWERS
    return out


def continue_to(place: Place, out: Path, whole: Path, log: Path) -> str:
    """Start it again; what it says."""
    child = start(command, *words(place, out), log=log)
    assert child.wait() == 0, child.output
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(record_of(out).read_text()) == json.loads(record_of(whole).read_text())
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, record_of(out).name]
    return child.output


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER)
def test_killed_at_every_file_call(place: Place, whole: Path, tmp_path: Path) -> None:
    sizes = set()
    for number in range(1, 100):
        out = tmp_path / str(number) / "answers.jsonl"
        out.parent.mkdir()
        fault = Fault(out.parent, tmp_path / "tally", number)
        log = tmp_path / "log"
        alone = partial(command, patches=NO_HELPERS)
        child = start(with_fault, fault, alone, *words(place, out), log=log)
        code = child.wait()
        sizes.add(out.stat().st_size if out.exists() else -1)
        if code == 0:
            break
        assert code == KILLED, child.output
        continue_to(place, out, whole, log)
    assert number > 15
    assert len(sizes) > 7, "no file, an empty one, every number of batches, halves of them"


def test_cut_anywhere(place: Place, whole: Path, tmp_path: Path) -> None:
    """A kill within a write, and pages that a power cut left empty."""
    written = whole.read_bytes()
    lines = written.splitlines(keepends=True)
    first = len(b"".join(lines[:16]))  # two batches
    tails = {
        "within a line": written[first : first + 50],
        "within a character": written[first : written.index("은".encode(), first) + 1],
        "behind a line": b"".join(lines[16:19]),
        "empty pages": b"".join(lines[16:18]) + b"\0" * 4096,
        "another line": lines[3],
        "no object": b"[]\n",
    }
    for number, (what, tail) in enumerate(tails.items()):
        out = tmp_path / str(number) / "answers.jsonl"
        out.parent.mkdir()
        out.write_bytes(written[:first] + tail)
        record_of(out).write_bytes(record_of(whole).read_bytes())
        said = continue_to(place, out, whole, tmp_path / "log")
        assert "sample 24/36" in said and "sample 16/36" not in said, what


def test_a_full_disk(place: Place, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "answers.jsonl"
    out.parent.mkdir()
    size = whole.stat().st_size * 2 // 3
    child = start(limited, size, *words(place, out), log=tmp_path / "log")
    assert child.wait() == 73, child.output
    assert f"error: {out}: cannot write: " in child.output and "Traceback" not in child.output
    assert "what was complete is kept" in child.output
    assert 0 < out.stat().st_size <= size
    continue_to(place, out, whole, tmp_path / "log")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, KILLED)])
def test_stopped_between(place: Place, whole: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out" / "answers.jsonl"
    out.parent.mkdir()
    child = start(slowly_sampled, *words(place, out), log=tmp_path / "log")
    end = time.monotonic() + PATIENCE
    while not (out.exists() and out.stat().st_size):
        assert time.monotonic() < end and child.process.is_alive(), child.output
        time.sleep(0.01)
    child.send(number)
    assert child.wait() == code, child.output
    if number == signal.SIGINT:
        assert "stopped after " in child.output and "the same command continues" in child.output
    assert 0 < out.stat().st_size < whole.stat().st_size
    continue_to(place, out, whole, tmp_path / "log")


def slowly_sampled(*given: str) -> None:
    """The command, its batches far apart."""
    from likelier.commands import sample as module

    draw = module.sample_batch

    def slow(*arguments: object) -> object:
        found = draw(*arguments)  # type: ignore[arg-type]
        time.sleep(0.3)
        return found

    module.sample_batch = slow  # type: ignore[assignment]
    command(*given)


def test_finished_is_left_alone(
    place: Place, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = whole.stat().st_mtime_ns
    assert main(words(place, whole)) == 0
    assert "finished: nothing to do" in capsys.readouterr().err
    assert whole.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--seed", "5"], "seed: 4 before, 5 now"),
        (["-n", "3"], "number: 2 before, 3 now"),
        (["--temperature", "0.5"], "decoding.temperature: 1.0 before, 0.5 now"),
        (["--max-new-tokens", "7"], "decoding.max_new_tokens: 6 before, 7 now"),
        (["--batch-size", "4"], "batch_size: 8 before, 4 now"),
        (["--only", "base"], "model: "),
    ],
)
def test_other_settings_are_refused_by_name(
    place: Place, whole: Path, capsys: pytest.CaptureFixture[str], changed: list[str], named: str
) -> None:
    before = whole.read_bytes(), record_of(whole).read_bytes()
    capsys.readouterr()
    assert main(words(place, whole, *changed)) == 73
    said = capsys.readouterr().err
    assert f"--out {whole}: this holds other answers: {named}" in said
    assert (whole.read_bytes(), record_of(whole).read_bytes()) == before


def test_other_prompts_are_refused(
    place: Place, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = place.data.read_text().splitlines(keepends=True)
    other = tmp_path / "pairs.jsonl"
    other.write_text("".join(rows[:-1]))
    assert main([*words(place, whole), "--prompts", str(other)]) == 73
    assert "this holds other answers: prompts: " in capsys.readouterr().err


def test_what_is_none_of_ours_is_not_touched(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    assert main(words(place, other)) == 73
    assert "does not say how it was made" in capsys.readouterr().err
    assert other.read_text() == "mine\n" and not record_of(other).exists()
    folder = tmp_path / "folder"
    folder.mkdir()
    assert main(words(place, folder)) == 73
    assert main(words(place, tmp_path / "nowhere" / "x.jsonl")) == 73
    assert main(words(place, place.data)) == 73
    assert "which is read" in capsys.readouterr().err
    linked = tmp_path / "link.jsonl"
    linked.symlink_to(tmp_path / "elsewhere")
    assert main(words(place, linked)) == 73
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_record_is_not_guessed(
    place: Place, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_bytes(whole.read_bytes()[:300])
    record_of(out).write_text(record_of(whole).read_text().replace('"seed": 4', '"seed": 5'))
    assert main(words(place, out)) == 73
    assert "does not say how it was made" in capsys.readouterr().err


def test_two_at_once_do_not_mix(
    place: Place, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_bytes(whole.read_bytes()[:300])
    record_of(out).write_bytes(record_of(whole).read_bytes())
    with out.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(words(place, out)) == 73
    assert "another process writes this file" in capsys.readouterr().err
    assert main(words(place, out)) == 0
    assert out.read_bytes() == whole.read_bytes()
