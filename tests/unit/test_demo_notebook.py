"""`likelier demo --notebook`: a copy of the walk-through, handed to JupyterLab."""

import os
import sys
import tomllib
from pathlib import Path

import pytest

from likelier.cli import main
from likelier.demo import notebook

ORIGINAL = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"


class Replaced(Exception):
    """This process would be another program now."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    calls: list[list[str]] = []

    def execv(program: str, words: list[str]) -> None:
        calls.append(words)
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(notebook, "find_spec", lambda name: object())
    monkeypatch.chdir(tmp_path)
    return calls


def test_it_opens_a_copy_and_keeps_one_that_is_there(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "walkthrough.ipynb"
    for _ in range(2):
        with pytest.raises(Replaced):
            notebook.open_notebook(tmp_path)
    assert started == [[sys.executable, "-P", "-m", "jupyterlab", str(copy)]] * 2
    assert copy.read_bytes() == ORIGINAL.read_bytes()
    copy.write_text("mine")
    with pytest.raises(Replaced):
        notebook.open_notebook(tmp_path)
    assert copy.read_text() == "mine"
    assert "stays as it is" in capsys.readouterr().err


def test_without_jupyterlab_it_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--notebook"]) == 2
    assert "pip install 'likelier[notebook]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_it_would_not_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--notebook", "--seed", "3"]) == 2
    assert "--out, --seed or --lang: has no effect" in capsys.readouterr().err


def test_a_wheel_brings_the_original() -> None:
    project = tomllib.loads((ORIGINAL.parents[1] / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    place = (
        Path(notebook.__file__).with_name(notebook.NAME).relative_to(ORIGINAL.parents[1] / "src")
    )
    assert wheel["force-include"] == {"examples/walkthrough.ipynb": place.as_posix()}
