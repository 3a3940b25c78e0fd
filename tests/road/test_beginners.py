"""The pages for beginners followed as they are typed, after a real demo, in a folder of ours."""

import shutil
from pathlib import Path

import pytest
from tests.support.console import Shell, commands_of, not_printed, shows_all
from tests.support.demo_base import demo_cache

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "ko" / f"{name}.md" for name in ("start", "report", "data", "train")]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Shell:
    """In a folder with the examples, as a clone has them after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", folder / "examples")
    cache = demo_cache(pytestconfig.cache.mkdir("demo"))
    shutil.copytree(cache / "demo", folder / "cache" / "demo")
    shell = Shell(folder)
    assert "report, after" in shell.run("likelier demo")
    return shell


@pytest.mark.slow
def test_the_pages_for_beginners_show_what_is_printed(shell: Shell) -> None:
    """From one page to the next, as a reader follows them."""
    wrong, times = [], dict[str, int]()
    for page in PAGES:
        for command, shown in commands_of(page.read_text("utf-8")):
            times[command] = times.get(command, -1) + 1
            printed = shell.run(command, times[command])
            lost = not_printed(shown, printed)
            if not lost and not shows_all(shown, printed):
                lost = [f"lines are left out and no … says so, of: {command}"]
            wrong += [f"{page.name}: {line}" for line in lost]
    assert not wrong, "\n".join(wrong)
    assert len(times) >= 12 and sum(times.values()) > 0


def test_what_a_page_shows_is_compared() -> None:
    page = "```console\n$ cat <<'END'\n> a\n> END\na\n$ ls\n…\nstep 1 of 2: 0.5 s\n```\n"
    commands = [("cat <<'END'\na\nEND", ["a"]), ("ls", ["…", "step 1 of 2: 0.5 s"])]
    assert list(commands_of(page)) == commands
    assert not_printed(["b", "a"], "a\nb\n") == ["a"]
    assert not_printed(["…", "step 1 of 2: 0.5 s"], "x\nstep 2 of 2: 3e-4 ms\n") == []
    assert not_printed(["step 1 of 2"], "stop 1 of 2\n") == ["step 1 of 2"]
    assert shows_all(["…", "step 2", "b"], "a\nstep 1\nstep 2\nb\n") and shows_all([], "")
    for shown in (["b"], ["a"], [], ["a", "…"]):
        assert shows_all(shown, "a\nb\n") == (shown == ["a", "…"])
