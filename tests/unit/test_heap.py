"""A process that starts itself again, once, with the same words; and where it does not."""

import os
import subprocess
import sys

import pytest

from likelier.base import heap

SHOW = (
    "import os, sys; from likelier.base.heap import without_small_caches; print('x', flush=True);"
    "{change} without_small_caches(); print(os.getpid() == {pid}, sys.argv[1:],"
    " os.environ.get('GLIBC_TUNABLES'))"
)

pytestmark = pytest.mark.skipif(not heap._is_glibc(), reason="the C library is not glibc")


def shown(change: str = "", **settings: str) -> list[str]:
    """What a process prints that may start itself again: ``x`` each time that it starts."""
    before = {name: x for name, x in os.environ.items() if name != heap.TUNABLES}
    program = SHOW.format(
        change=change, pid="int(os.environ.setdefault('FIRST', str(os.getpid())))"
    )
    words = [sys.executable, "-c", program, "a b", "--c=다"]
    done = subprocess.run(words, env=before | settings, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_starts_again_as_the_same_process_with_the_same_words() -> None:
    *starts, last = shown()
    assert starts == ["x", "x"]
    assert last == "True ['a b', '--c=다'] glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def test_other_settings_of_glibc_stay() -> None:
    *starts, last = shown(GLIBC_TUNABLES="glibc.rtld.nns=4")
    assert starts == ["x", "x"]
    assert last.endswith("glibc.rtld.nns=4:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0")


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ("", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}),  # the user's own
        ("sys.argv = ['likelier', 'train', 'x'];", {}),  # the process is somebody else's
        ("sys.argv = ['likelier'];", {}),
        ("sys.executable = '/no/python';", {}),
        ("os.confstr = lambda name: None;", {}),  # musl
        ("sys.platform = 'darwin';", {}),
    ],
)
def test_it_stays_as_it_is(change: str, settings: dict[str, str]) -> None:
    *starts, last = shown(change, **settings)
    assert starts == ["x"] and last.startswith("True ")
    assert last.endswith(settings.get("GLIBC_TUNABLES", "None"))


def test_the_command_trains_and_plans_without_those_caches() -> None:
    """Seen by the variable in the process that refuses its config; a plan holds what a run does."""
    program = (
        "import os, sys; import likelier.cli as cli;"
        "cli.main = lambda: print(os.environ.get('GLIBC_TUNABLES')) or 0; cli.entry()"
    )
    before = {name: x for name, x in os.environ.items() if name != heap.TUNABLES}
    off = "tcache_count=0"
    for words, said in ((["train", "x"], off), (["plan", "x"], off), (["losses"], "None")):
        done = subprocess.run([sys.executable, "-c", program, *words], env=before,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert said in done.stdout
