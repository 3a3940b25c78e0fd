"""The Dockerfile, as far as no image is built: its files, its extras, its user, and no secret."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Its instructions in their order, each with its arguments on one line."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def arguments_of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def test_every_instruction_is_one() -> None:
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} == known
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"]


def test_what_it_copies_builds_the_package(tmp_path: Path) -> None:
    """From these files alone, as in the image: the wheel has the package and the notebook."""
    for arguments in arguments_of("COPY"):
        *sources, target = arguments.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            into = tmp_path / target
            if (ROOT / source).is_dir():
                leave = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, into, ignore=leave)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, into)
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "made"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "made").iterdir()
    with zipfile.ZipFile(wheel) as content:
        assert {"likelier/cli.py", "likelier/demo/walkthrough.ipynb"} <= set(content.namelist())


def test_the_context_is_what_it_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [source for words in arguments_of("COPY") for source in words.split()[:-1]]
    assert sorted(let_in) == sorted(copied)


def test_pip_is_given_the_constraints_and_extras_that_there_are() -> None:
    (install,) = [words for words in arguments_of("RUN") if "pip install" in words]
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints.txt" and words[-1] == ".[${EXTRAS}]"
    defaults = dict(argument.split("=", 1) for argument in arguments_of("ARG"))
    assert set(defaults["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"PIP_EXTRA_INDEX_URL={defaults['TORCH_INDEX']} " in readme
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert fnmatch.fnmatch(defaults["BASE"], f"python:{lowest}-*")  # that of constraints.txt
    assert arguments_of("FROM") == ["${BASE}"]


def test_it_runs_as_somebody_without_rights() -> None:
    names = [name for name, _ in instructions()]
    (user,) = arguments_of("USER")
    assert user not in ("root", "0") and any(f" {user}" in x for x in arguments_of("RUN"))
    last_root = max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))
    assert last_root < names.index("USER") < names.index("ENTRYPOINT")
    assert arguments_of("ENTRYPOINT") == ['["likelier"]']


@pytest.mark.parametrize("file", ["Dockerfile", ".dockerignore"])
def test_no_secret_stands_in_it(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert not re.search(r"(?i)token|password|passwd|api_?key|//[^/\s]*:[^/\s]*@", text)
