"""What is declared is what is imported, what is installed fits it, and make installs it once."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import likelier
from likelier.base import environment as compat
from likelier.base.environment import Package, check_versions, environment, packages
from likelier.base.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _canonical(distribution: str) -> str:
    return re.sub("[-._]+", "-", distribution.lower())


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(equals for _, equals, _ in pinned), "every constraint is exact"
    return {_canonical(name): exact for name, _, exact in pinned}


def _imported() -> set[str]:
    """The distributions that the modules under src import, at their top or inside functions."""
    modules: set[str] = set()
    for path in (ROOT / "src" / "likelier").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    names = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    owners = packages_distributions()
    return {_canonical(owners.get(name, [name])[0]) for name in names - {"likelier"}}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    extras = PROJECT["optional-dependencies"]
    users = extras.keys() - {"all", "dev", "docs", "notebook"}
    lines = [line for extra in users for line in extras[extra]]
    declared = {_canonical(Requirement(line).name) for line in (*PROJECT["dependencies"], *lines)}
    imported = _imported()
    assert imported - declared == set(), "imported under src, not declared in pyproject.toml"
    assert declared - imported == set(), "declared in pyproject.toml, imported nowhere under src"


def test_every_requirement_is_pinned_inside_its_range():
    pinned = _constraints()
    extras = {**PROJECT["optional-dependencies"]}
    del extras["notebook"], extras["all"]  # a hundred packages, for a person who looks
    lines = [line for extra in extras.values() for line in extra]
    for line in [*PROJECT["dependencies"], *lines, "hatchling>=1.27"]:
        wanted = Requirement(line)
        exact = pinned[_canonical(wanted.name)]
        assert wanted.specifier.contains(exact), f"{line} does not allow {exact}"


def test_all_is_every_extra_of_a_user():
    extras = PROJECT["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.name == "likelier"
    assert everything.extras == extras.keys() - {"all", "dev", "docs"}


def test_the_promised_oldest_versions_are_what_pyproject_says():
    assert _constraints()["torch"] == "2.13.0"
    assert PROJECT["requires-python"] == ">=3.11"
    lines = set(PROJECT["dependencies"])
    assert {"torch>=2.11", "transformers>=5.17"} <= lines


def test_the_version_is_the_installed_one():
    assert version("likelier") == likelier.__version__


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = likelier.trian
    assert {"load", "get_logprob", "dpo_loss", "train", "Config"} <= set(dir(likelier))


@pytest.mark.parametrize("name", ["Config", "dpo_loss", "get_logprob", "load", "train"])
def test_public_names_come_from_their_homes(name):
    value = getattr(likelier, name)
    assert callable(value)
    assert value is vars(likelier)[name], "remembered after the first use"
    assert value.__name__ == name


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, likelier, likelier.cli, likelier.config, likelier.base.environment\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'pandas', 'plotly', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- versions ----------------------------------------------------------------------------------


def test_the_installed_packages_fit():
    names = {package.name for package in packages()}
    assert {"torch", "transformers", "peft"} <= names
    assert "pytest" not in names, "extras are not needed to run"
    check_versions()


@pytest.mark.parametrize(
    ("installed", "fits"),
    [
        ("2.10.0", False),
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("2.14.0.dev20260101", True),
        (None, False),
    ],
)
def test_versions_in_and_out_of_range(installed, fits):
    assert Package("torch", installed, ">=2.11").fits is fits


def test_old_and_missing_packages_are_named_with_the_command_that_mends_it(monkeypatch):
    found = {"torch": "2.10.0", "peft": None}
    real = compat._installed
    monkeypatch.setattr(compat, "_installed", lambda name: found.get(name, real(name)))
    with pytest.raises(ConfigError) as raised:
        check_versions()
    message = str(raised.value)
    assert "torch 2.10.0" in message and "peft missing" in message
    assert 'pip install "peft>=' in message and '"torch>=2.11"' in message
    assert "transformers" not in message


def test_environment_says_versions_and_keeps_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = environment()
    assert told["packages"]["torch"] == version("torch")
    assert told["packages"]["bitsandbytes"] == version("bitsandbytes")  # of an extra
    assert told["variables"]["OMP_NUM_THREADS"] == "1"
    assert told["cpu"]["cores"] >= 1 and told["cpu"]["memory"] > 2**28
    assert "canary" not in str(told)
    assert str(Path.home()) not in told["cache"]


# ---- the Makefile, with a stand-in for python that only writes down what it was asked ----------

STAND_IN = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
*"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
    echo "$PWD/$folder" > "$folder/bin/activate" ;;
*purelib*) echo "$PWD/.venv" ;;
*"pip install"*) exit "${PIP_EXIT:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def _make(folder: Path, target: str, **settings: str) -> tuple[int, list[str]]:
    """Exit status, and what python was asked: venv, pip with its extras, the work."""
    log = folder.parent / "log"
    log.write_text("")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", target, f"PYTHON={folder.parent / 'python'}"],
        cwd=folder,
        env={**kept, "LOG": str(log), **settings},
        capture_output=True,
        text=True,
    )
    words = {"-m venv --without-pip": "converter", "-m venv": "venv"}
    words |= {"-e .[dev]": "pip dev", "-e .[docs]": "pip docs", "-e .": "pip"}
    words |= {"-m likelier demo": "demo", "-m pytest": "pytest", "-m sphinx": "sphinx"}
    lines = [line for line in log.read_text().splitlines() if "--version" not in line]
    said = [next((w for key, w in words.items() if key in line), None) for line in lines]
    return done.returncode, [word for word in said if word]


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_demo_makes_the_environment_once(checkout):
    assert _make(checkout, "demo") == (0, ["venv", "pip", "demo"])
    assert _make(checkout, "demo") == (0, ["demo"])
    assert _make(checkout, "test") == (0, ["pip dev", "converter", "pytest"])
    assert _make(checkout, "test") == (0, ["pytest"])
    assert _make(checkout, "demo") == (0, ["demo"]), "the development extras hold all of it"


@needs_make
def test_the_site_needs_little_and_the_development_extras_hold_it(checkout):
    assert _make(checkout, "docs") == (0, ["venv", "pip docs", "sphinx"])
    assert _make(checkout, "docs") == (0, ["sphinx"])
    extras = PROJECT["optional-dependencies"]
    assert set(extras["docs"]) <= set(extras["dev"])


@needs_make
def test_a_changed_constraint_installs_again(checkout):
    _make(checkout, "test")
    assert _make(checkout, "demo") == (0, ["demo"])
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# newer\n")
    assert _make(checkout, "demo") == (0, ["pip", "demo"])
    assert _make(checkout, "test") == (0, ["pip dev", "converter", "pytest"])


@needs_make
def test_an_install_that_did_not_end_is_made_again_from_nothing(checkout):
    status, said = _make(checkout, "demo", PIP_EXIT="1")
    assert status != 0 and said == ["venv", "pip"]
    assert _make(checkout, "demo") == (0, ["venv", "pip", "demo"])
    status, said = _make(checkout, "test", PIP_EXIT="1")
    assert status != 0 and said == ["pip dev"]
    assert _make(checkout, "demo") == (0, ["venv", "pip", "demo"]), "half of dev is in it"


@needs_make
def test_an_environment_that_was_moved_or_gutted_is_made_again(checkout):
    _make(checkout, "demo")
    moved = checkout.rename(checkout.parent / "moved")
    assert _make(moved, "demo") == (0, ["venv", "pip", "demo"])
    (moved / ".venv/bin/python").unlink()
    assert _make(moved, "demo") == (0, ["venv", "pip", "demo"])
