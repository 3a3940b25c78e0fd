"""Planted bugs: each alone is put into a copy of the source, and the test that it names must fail.

    python -m faults planted                    all of them; exit code 1 where one survives
    python -m faults.planted --only M04,M07     some of them
    python -m faults.planted --suite            survivors of their test meet the whole suite

`planted.yaml` is the list. A test that no planted bug makes fail proves nothing, and a bug that no
test sees is a hole in the tests: both are looked for here. Nothing is changed in the tree that this
runs from. Every run of pytest is forked from this process, which has imported what is slow to
import, but never likelier itself.
"""

import argparse
import ast
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing import connection
from pathlib import Path
from typing import Any

import yaml

from faults import Options
from faults.table import Row

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("planted.yaml")
TEST_SECONDS = 300  # for the one test of a bug; a real one takes a few
SUITE_SECONDS = 3600
_FORKS = multiprocessing.get_context("fork")
# anyio is a plugin of pytest, and transformers has imported it.
_OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_SLOW_TO_IMPORT = (
    "torch._dynamo", "torch.nn.attention.flex_attention", "peft", "pyarrow.parquet", "rich",
    "typer",
    "transformers.models.exaone4.modeling_exaone4", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "pydantic", "jinja2", "mpmath", "hypothesis",
)  # fmt: skip


@dataclass(frozen=True)
class Bug:
    """One edit of one file. ``find`` stands there exactly once; ``test`` must fail afterwards."""

    id: str
    bug: str
    file: str
    find: str
    replace: str
    test: str


@dataclass(frozen=True)
class Outcome:
    """What became of a bug: ``caught``, or in words how it was not."""

    bug: Bug
    words: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether the test that should fail did."""
        return self.words == "caught"


# ---- the list ----------------------------------------------------------------------------------


def planted() -> list[Bug]:
    """The bugs of the list that have a place in the present source."""
    return [Bug(**entry) for entry in _entries() if "without" not in entry]


def without_a_place() -> dict[str, str]:
    """Those of the catalogue that the present source has no place for, and why, by their ids."""
    return {entry["id"]: entry["without"] for entry in _entries() if "without" in entry}


def _entries() -> list[dict[str, str]]:
    entries: list[dict[str, str]] = yaml.safe_load(LIST.read_text("utf-8"))
    return entries


def wrong_with(bug: Bug) -> str | None:
    """Why a bug cannot be planted, or its test not be run; None where both can."""
    source = ROOT / bug.file
    count = source.read_text("utf-8").count(bug.find) if source.is_file() else 0
    if count != 1:
        return f"what it replaces stands {count} times in {bug.file}"
    file, _, name = bug.test.partition("::")
    if not (ROOT / file).is_file():
        return f"there is no {file}"
    if bug.find == bug.replace:
        return "it changes nothing"
    function = name.partition("[")[0]
    return None if function in _tests_in(file) else f"{file} has no test {function!r}"


@cache
def _tests_in(file: str) -> set[str]:
    nodes = ast.parse((ROOT / file).read_text("utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


# ---- running it --------------------------------------------------------------------------------


def run(options: Options) -> list[Row]:
    """Every so-many-th bug of the list, in two rows: those of the catalogue, and our own."""
    every = planted()
    tried = every[:: options.stride]
    found = list(outcomes(tried, options.workers, folder=options.folder))
    rows = []
    for what, is_listed in (
        ("bugs of the catalogue (M01 to M36)", True),
        ("bugs of our own", False),
    ):
        ours = [one for one in found if is_of_the_catalogue(one.bug.id) == is_listed]
        failed = [f"{one.bug.id}: {one.bug.bug} {one.words}" for one in ours if not one.caught]
        among = sum(is_of_the_catalogue(bug.id) == is_listed for bug in every)
        rows.append(Row(what, len(ours), len(ours) - len(failed), failed, among))
    return rows


def is_of_the_catalogue(name: str) -> bool:
    """Whether a bug is one of the 36 that the design lists: ``M01``, ``M18b``."""
    return name[:1] == "M" and name[1:3].isdigit()


def main() -> None:
    """Some bugs, or survivors before the whole suite; the exit code is 1 where one survives."""
    asked = argparse.ArgumentParser(prog="python -m faults.planted", description=main.__doc__)
    asked.add_argument("--only", help="ids with commas between them")
    asked.add_argument("--suite", action="store_true", help="survivors meet all tests")
    asked.add_argument("--workers", type=int, default=2)
    given = asked.parse_args()
    bugs = planted()
    if given.only:
        wanted = given.only.split(",")
        if unknown := set(wanted) - {bug.id for bug in bugs}:
            asked.error(f"no such bug: {', '.join(sorted(unknown))}")
        bugs = [bug for bug in bugs if bug.id in wanted]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        for one in outcomes(bugs, given.workers, given.suite, folder=Path(folder)):
            print(f"{one.bug.id:18} {one.seconds:5.0f} s  {one.words}", flush=True)
            if not one.caught:
                print(f"    {one.bug.bug} {one.bug.test}", flush=True)
            survived += not one.caught
    print(f"{len(bugs) - survived} of {len(bugs)} caught")
    sys.exit(survived > 0)


def outcomes(
    bugs: Sequence[Bug], workers: int, suite: bool = False, *, folder: Path
) -> Iterator[Outcome]:
    """Plant each bug and run its test, as they end; ``suite``: survivors meet all tests.

    A test that fails without any bug proves nothing either, so all of them are run once before.
    ``folder`` is where the copies of the tree go.
    """
    # Read when torch and huggingface_hub are imported, here and in what is forked from here.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in _SLOW_TO_IMPORT:
        import_module(name)
    copies = [_copy_of_tree(folder / f"copy-{number}") for number in range(workers)]
    failing = _failing_already(bugs, copies)
    ready = [bug for bug in bugs if not _is_among(bug.test, failing)]
    for bug in bugs:
        if bug not in ready:
            yield Outcome(bug, "its test fails without it", 0.0)
    jobs = [((bug.test,), bug, TEST_SECONDS) for bug in ready]
    for bug, code, seconds, output in _in_turns(jobs, copies):
        assert bug is not None
        if code == 0 and suite:
            (whole,) = _in_turns([((), bug, SUITE_SECONDS)], [_copy_of_tree(folder / "whole")])
            code, seconds, output = whole[1], seconds + whole[2], whole[3]
        yield Outcome(bug, in_words(code, output), seconds)


def in_words(code: int | None, output: str) -> str:
    """What became of a bug, from the exit code of pytest (None: it was ended) and its output."""
    last = (output.splitlines() or ["it printed nothing"])[-1]
    match code:
        case 1:
            return "caught"
        case 0:
            ran = re.search(r"\d passed", output)
            return "survived" if ran else f"the test was not run: {last}"
        case None:
            return "ran out of time"
    return f"the test did not run (exit code {code}): {last}"


def _failing_already(bugs: Sequence[Bug], copies: Sequence[Path]) -> set[str]:
    """The names of tests that fail in the source as it is."""
    nodes = sorted({bug.test for bug in bugs})
    shares = [nodes[number :: len(copies)] for number in range(len(copies))]
    jobs = [(tuple(share), None, SUITE_SECONDS) for share in shares if share]
    failing: set[str] = set()
    for _, code, _, output in _in_turns(jobs, copies, ("-rfE", "--maxfail=1000")):
        lines = [line.split(" - ")[0].split() for line in output.splitlines()]
        named = {words[1] for words in lines if len(words) > 1 and words[0] in ("FAILED", "ERROR")}
        if code not in (0, 1) or (code == 1 and not named):
            raise RuntimeError(f"the tests do not run without any bug:\n{output[-2000:]}")
        failing |= named
    return failing


def _is_among(node: str, failing: set[str]) -> bool:
    return any(name == node or name.startswith(f"{node}[") for name in failing)


def _copy_of_tree(target: Path) -> Path:
    """The files that git knows or would take, as they are in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


Job = tuple[Sequence[str], Bug | None, float]  # nodes for pytest, the bug, seconds


def _in_turns(
    jobs: Sequence[Job], copies: Sequence[Path], options: Sequence[str] = ()
) -> Iterator[tuple[Bug | None, int | None, float, str]]:
    """Run jobs, one at a time in each copy: the bug, pytest's exit code (None: it took too long),
    the seconds and the output of each as it ends.
    """
    waiting, free = list(jobs), list(copies)
    running: dict[int, tuple[Any, Bug | None, Path, float, float]] = {}
    before: dict[Path, str] = {}  # the text of each edited file as it was
    while waiting or running:
        while waiting and free:
            nodes, bug, limit = waiting.pop(0)
            copy = free.pop()
            if bug is not None:
                before[copy] = (copy / bug.file).read_text("utf-8")
                _write(copy / bug.file, before[copy].replace(bug.find, bug.replace))
            process = _FORKS.Process(target=_pytest, args=(copy, [*options, *nodes]))
            process.start()
            began = time.monotonic()
            running[process.sentinel] = process, bug, copy, began, began + limit
        soonest = min(end for *_, end in running.values())
        connection.wait(list(running), max(0.0, soonest - time.monotonic()))
        for sentinel, (process, bug, copy, began, end) in list(running.items()):
            if process.is_alive() and time.monotonic() < end:
                continue
            code = None if process.is_alive() else process.exitcode
            _end(process.pid)
            process.join()
            del running[sentinel]
            if bug is not None:
                _write(copy / bug.file, before[copy])
            free.append(copy)
            output = _log(copy).read_text("utf-8", "replace")
            yield bug, code, time.monotonic() - began, output


def _write(file: Path, text: str) -> None:
    """Also forget what Python compiled of it, which may be of the same second and size."""
    file.write_text(text, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def _log(copy: Path) -> Path:
    return copy.with_suffix(".log")


def _pytest(copy: Path, words: Sequence[str]) -> None:
    """In a process of its own: run pytest on a copy, and end with its exit code."""
    os.setsid()
    out = os.open(_log(copy), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False  # in the copy it saves seconds a run
    sys.path[:0] = [str(copy / "src"), str(copy)]
    code = 70  # pytest itself ended early
    try:
        import pytest

        code = int(pytest.main([*_OPTIONS, *words]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(group: int) -> None:
    """What a test left running ends with it."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
