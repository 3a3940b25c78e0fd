"""A disk that is full: exit code 73, and what was complete stays and is gone on from."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from tests.support.children import command, limited, start
from tests.support.runs import Place, bytes_of, differing

from likelier.base.files import read_manifest
from likelier.cli import main


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


def told(said: str, path: Path) -> None:
    lines = said[said.index("error: ") :].splitlines()
    assert lines[0].startswith(f"error: {path}: cannot write: ")
    assert lines[1:] == ["  make room or choose another folder; what was complete is kept"]
    assert "Traceback" not in said


NO_ROOM = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("name", "original", "error"),
    [
        ("os.fsync", os.fsync, OSError(errno.ENOSPC, NO_ROOM)),
        ("likelier.training.checkpoint.save_file", save_file,
         SafetensorError(f"I/O error: {NO_ROOM} (os error 28)")),
    ],
)  # fmt: skip
def test_at_the_second_checkpoint(
    place: Place,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    original: Callable[..., None],
    error: Exception,
) -> None:
    out = config.with_name("out")
    first = out / "checkpoints" / "step-00000002"

    def fails(*arguments: object) -> None:
        if first.exists():
            raise error
        original(*arguments)

    with monkeypatch.context() as full:
        full.setattr(name, fails)
        assert main(["train", str(config)]) == 73
    said = capsys.readouterr().err
    assert f"cannot write: {NO_ROOM}\n" in said
    assert "Traceback" not in said
    assert list((out / "checkpoints").iterdir()) == [first]
    assert read_manifest(first) is not None
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    assert main(["train", str(config)]) == 0
    assert differing(bytes_of(out), bytes_of(place.folder / "whole")) == []


@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_for_real(place: Place, config: Path, what: str) -> None:
    """No file may be larger than the weights: the writers in Rust hit this limit, too."""
    out = config.with_name("out")
    if what == "model":
        settings = yaml.safe_load(config.read_text())
        settings["train"]["save_every"] = None
        config.write_text(yaml.safe_dump(settings))
    size = (place.base / "model.safetensors").stat().st_size
    log = config.with_name("log")
    child = start(limited, size // 2, "train", str(config), log=log)
    assert child.wait() == 73, child.output
    path = out / "checkpoints" / "step-00000002" if what == "checkpoint" else out / "model"
    told(child.output, path)
    assert not path.exists()
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    child = start(command, "train", str(config), log=log)
    assert child.wait() == 0, child.output
    weights = Path("model/model.safetensors")
    assert (out / weights).read_bytes() == (place.folder / "whole" / weights).read_bytes()


def test_a_cache_that_cannot_be_written_costs_nothing(
    place: Place, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where its folder should be."""
    config.with_name("cache").write_text("")
    monkeypatch.setenv("LIKELIER_CACHE", str(config.with_name("cache")))
    assert main(["train", str(config)]) == 0
    assert differing(bytes_of(config.with_name("out")), bytes_of(place.folder / "whole")) == []
