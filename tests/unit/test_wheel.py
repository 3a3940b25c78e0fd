"""The wheel: built, installed alone into an environment that knows no clone, and used."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from tests.support.tiny import pair_rows, write_rows

ROOT = Path(__file__).parents[2]


def build(kind: str, source: Path, folder: Path) -> Path:
    """A wheel or sdist of the project in ``source``."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``likelier`` in a fresh environment with this one's packages, but not its clone.

    A path in a .pth file is read without the .pth files there, one of which leads to the clone.
    """
    home = tmp_path_factory.mktemp("home")
    venv.create(home, symlinks=True)
    site = home / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    words = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    words += ["-q", "--no-deps", "--no-index", "--no-cache-dir", "--force-reinstall", str(wheel)]
    subprocess.run(words, check=True, capture_output=True)
    return home / "bin" / "likelier"


def say(command: Path, *words: str, **settings: str) -> str:
    """What it prints on stdout, away from the clone."""
    kept = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [command, *words], cwd=command.parent, env=kept | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package_and_the_notebook(wheel: Path) -> None:
    package = ROOT / "src" / "likelier"
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    wanted = {str(path.relative_to(package.parent)) for path in files}
    with zipfile.ZipFile(wheel) as content:
        held = {name for name in content.namelist() if ".dist-info/" not in name}
    assert held == wanted | {"likelier/demo/walkthrough.ipynb"}
    assert {"likelier/py.typed", "likelier/demo/world.yaml", "likelier/export/card.md"} <= held


def test_a_source_distribution_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    packed = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(packed) as content:
        content.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / packed.name.removesuffix(".tar.gz"), tmp_path / "again")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(again) as theirs:
        assert {x.filename: x.CRC for x in ours.infolist()} == {
            x.filename: x.CRC for x in theirs.infolist()
        }


def test_it_is_the_wheel_that_runs(command: Path) -> None:
    code = "import likelier, pathlib; print(pathlib.Path(likelier.__file__).parents[0])"
    words = [command.with_name("python"), "-c", code]
    home = subprocess.run(words, cwd=command.parent, capture_output=True, text=True, check=True)
    assert home.stdout.strip().startswith(str(command.parents[1]))


def test_commands_work_without_a_clone(command: Path, tmp_path: Path) -> None:
    assert "Start with: likelier demo" in say(command, "--help")
    assert "simpo" in say(command, "losses")
    assert '"title": "Config"' in say(command, "schema")
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(12))
    page = tmp_path / "check.html"
    assert "12 of 12 rows can be used" in say(command, "check", str(data), "--html", str(page))
    assert "<html" in page.read_text("utf-8")


def test_the_shell_completes(command: Path, tmp_path: Path) -> None:
    """In a real bash: its script, then what it answers at a tab; nothing is written into HOME."""
    script = tmp_path / "try.sh"
    script.write_text(
        "source <(likelier --show-completion bash)\n"
        "COMP_WORDS=(likelier tr); COMP_CWORD=1; _likelier_completion likelier\n"
        'echo "${COMPREPLY[*]}"\n'
        "COMP_WORDS=(likelier score --dtype fl); COMP_CWORD=3; _likelier_completion likelier\n"
        'echo "${COMPREPLY[*]}"\n'
    )
    (home := tmp_path / "home").mkdir()
    settings = os.environ | {"HOME": str(home), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", script], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["train", "float32", "float64"] and not done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(command: Path, shell: str) -> None:
    assert f"_LIKELIER_COMPLETE=complete_{shell} " in say(command, "--show-completion", shell)
