"""Python files that lie beside the data are never run: not by the command, and by no process that
it starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tiny import pair_rows, write_rows

from likelier.data.workers import MIN_CHUNKS, ROWS_AT_ONCE

COMMAND = Path(sys.executable).with_name("likelier")
HOSTILE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch(); raise SystemExit(9)\n"
NAMES = (
    "numpy",
    "json",
    "torch",
    "pickle",
    "yaml",
    "tokenizers",
    "transformers",
    "multiprocessing",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data for several processes, and beside them modules that would be found first."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(MIN_CHUNKS * ROWS_AT_ONCE, chat=False))
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    return tmp_path


def check(folder: Path, *words: str) -> None:
    settings = {**os.environ, "LIKELIER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    settings.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [*words, "check", "pairs.jsonl"], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert not (folder / "ran").exists()
    assert done.returncode in (0, 65) and "Traceback" not in done.stderr, done.stderr
    assert any((folder / "cache" / "data").iterdir())  # so it was worth several processes


def test_the_command_and_its_processes(folder: Path) -> None:
    (folder / "likelier").mkdir()
    (folder / "likelier" / "__init__.py").write_text(
        HOSTILE.replace(".with_name(", ".parent.with_name(")
    )
    check(folder, str(COMMAND))


def test_the_module_as_far_as_python_lets_it(folder: Path) -> None:
    """Python itself looks for the package there first, before any line of it runs."""
    check(folder, sys.executable, "-m", "likelier")


def test_interpreters_that_libraries_start(folder: Path) -> None:
    """As compilers do: they inherit the environment, and folders that a user names stay."""
    code = (
        "import sys; from likelier.cli import entry; sys.argv = ['likelier', '--version']\n"
        "try: entry()\nexcept SystemExit: pass\n"
        "import subprocess; print(subprocess.run([sys.executable, '-c', 'import numpy, ours']))"
    )
    (folder / "named").mkdir()
    (folder / "named" / "ours.py").touch()
    settings = {**os.environ, "PYTHONPATH": str(folder / "named")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert "returncode=0" in done.stdout and not (folder / "ran").exists(), done.stderr
