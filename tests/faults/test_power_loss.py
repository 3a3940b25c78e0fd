"""What a loss of power may leave on a disk is resumed; missing syncs are found by it.

`python -m faults power_loss` tries every state; here are some of them, and bugs planted on purpose.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.disk import Disk, IncompleteRecording, State, read_events
from faults.native import build
from faults.power_loss import LORA, Plan, Recorded, faults_of, recorded
from tests.support.runs import make_place

from likelier.base.files import MANIFEST, sync, write_folder

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) here")

# ---- the recording -----------------------------------------------------------------------------

EVERY_WAY = """
import ctypes, os, shutil, tempfile
from pathlib import Path
os.makedirs("a/b/c"); os.chdir("a")
Path("text").write_text("hello\\n" * 9000)
with open("text", "a") as file: file.write("more"); file.flush(); os.fsync(file.fileno())
with open("text", "r+b") as file: file.seek(3); file.write(b"over"); file.truncate(40_000)
with open("new", "xb", buffering=0) as file: file.write(b"12345"); file.seek(9); file.write(b"9")
file = os.open("at", os.O_RDWR | os.O_CREAT)
os.pwrite(file, b"there", 100); os.writev(file, [b"one", b"two"])
os.pwritev(file, [b"x", b"y"], 50)
os.dup2(file, 90); os.close(file); os.write(90, b"dup"); os.posix_fallocate(90, 0, 4096)
os.ftruncate(90, 300); os.fdatasync(90); os.sendfile(90, os.open("text", os.O_RDONLY), 2, 77)
os.copy_file_range(os.open("text", os.O_RDONLY), 90, 50, 0, 7)
shutil.copyfile("text", "b/copied"); shutil.copytree("b", "c"); os.truncate("b/copied", 11)
os.replace("new", "b/moved"); os.rename("b", "renamed"); os.link("at", "linked"); os.unlink("at")
Path("linked").open("ab").write(b"the same file")
folder = os.open("renamed", os.O_RDONLY); os.mkdir("below", dir_fd=folder); os.fsync(folder)
os.close(os.open("./below/../here", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=folder))
os.rename("here", "below/there", src_dir_fd=folder, dst_dir_fd=folder)
tempfile.NamedTemporaryFile(dir=".").write(b"gone")
shutil.rmtree("c"); os.rmdir("renamed/c")
if os.fork() == 0:
    Path("forked").write_text("also"); os._exit(0)
os.wait(); os.sync()
# Past the C library, as Rust does.
Path("temporary").write_text("x"); system = ctypes.CDLL(None).syscall
assert system(264, -100, b"temporary", -100, b"unseen") == 0  # renameat
Path("other").write_text("z")
assert system(263, -100, b"other", 0) == 0  # unlinkat
Path("unseen").open("ab").write(b"y")
"""
UNSEEN = {
    "stdio": "import ctypes; ctypes.CDLL(None).fopen(b'file', b'w')",
    "a file mapped for writing": (
        "import mmap, os; file = os.open('file', os.O_RDWR | os.O_CREAT); os.ftruncate(file, 9);"
        "mmap.mmap(file, 9)"
    ),
    "O_SYNC": "import os; os.open('file', os.O_WRONLY | os.O_CREAT | os.O_SYNC)",
    "a file without a name": "import os; os.open('.', os.O_WRONLY | os.O_TMPFILE)",
    "1 files were changed unseen": (
        "import ctypes, os; file = os.open('file', os.O_WRONLY | os.O_CREAT);"
        "ctypes.CDLL(None).syscall(1, file, b'unseen', 6)"  # write
    ),
}


def record_script(script: str, folder: Path) -> Disk:
    """What a script did in a folder."""
    (watched := folder / "watched").mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(build("record.c")),
        "LIKELIER_RECORD_FOLDER": str(watched),
        "LIKELIER_RECORD_LOG": str(folder / "log"),
    }
    subprocess.run([sys.executable, "-c", script], cwd=watched, env=environment, check=True)
    disk = Disk(watched, read_events(folder / "log"))
    disk.must_be_whole()
    return disk


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
def test_a_recording_holds_every_change(tmp_path: Path) -> None:
    disk = record_script(EVERY_WAY, tmp_path)
    assert (disk.folder / "a" / "unseen").read_text() == "xy"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize("why", UNSEEN)
def test_what_cannot_be_recorded_is_refused(why: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteRecording, match=why):
        record_script(UNSEEN[why], tmp_path)


# ---- the model ---------------------------------------------------------------------------------

IMPORTS = "from pathlib import Path; import os\n"
WRITE = IMPORTS + "Path('new').write_text('1234')\n"
SYNC = "\nfile = os.open('{}', os.O_RDONLY); os.fsync(file); os.close(file)\n"
OLD = IMPORTS + "Path('name').write_text('old')" + SYNC.format("name") + SYNC.format(".")
REPLACE = "os.replace('new', 'name')"
TORN = ("12", "\0\0\0\0")
# What a script did, and what may be there when it ended: names and contents.
MODEL: dict[str, tuple[str, list[dict[str, str]]]] = {
    "nothing synced": (WRITE, [{}, *({"new": text} for text in ("", "1234", *TORN))]),
    "file synced": (WRITE + SYNC.format("new"), [{}, {"new": "1234"}]),
    "folder synced": (
        WRITE + SYNC.format("."), [{"new": text} for text in ("", "1234", *TORN)],
    ),
    "both synced": (WRITE + SYNC.format("new") + SYNC.format("."), [{"new": "1234"}]),
    "all synced": (WRITE + "os.sync()", [{"new": "1234"}]),
    "replaced": (
        WRITE + SYNC.format("new") + OLD + REPLACE,
        [{"new": "1234", "name": "old"}, {"name": "1234"}],
    ),
    "replaced, file not synced": (
        WRITE + OLD + REPLACE + SYNC.format("."), [{"name": text} for text in ("", "1234", *TORN)],
    ),
    "replaced in another folder": (
        WRITE + SYNC.format("new") + "os.mkdir('sub'); os.sync(); os.replace('new', 'sub/new')",
        [{"new": "1234", "sub": "/"}, {"new": "1234", "sub": "/", "sub/new": "1234"},
         {"sub": "/", "sub/new": "1234"}, {"sub": "/"}],
    ),
    "deleted": (OLD + "os.unlink('name')", [{"name": "old"}, {}]),
    "folder above not synced": (
        WRITE + "os.makedirs('a/b')" + SYNC.format("a/b") + SYNC.format("a") + "os.unlink('new')"
        + SYNC.format("."),
        [{"a": "/", "a/b": "/"}],
    ),
    "a hole": (
        "import os; file = os.open('f', os.O_WRONLY | os.O_CREAT); os.sync();"
        "os.write(file, b'ab'); os.write(file, b'cd')",
        [{"f": text} for text in ("", "ab", "\0\0cd", "abcd", "abc", "ab\0\0")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODEL)
def test_the_model(case: str, tmp_path: Path) -> None:
    script, expected = MODEL[case]
    disk = record_script(script, tmp_path)
    last = [state for state in disk.states() if state.instant == len(disk.events) - 1]
    found = [
        {p: "/" if f is None else disk.content(f).decode() for p, f in disk.tree(state).items()}
        for state in last
    ]
    assert [tree for tree in found if tree not in expected] == []
    assert [tree for tree in expected if tree not in found] == []


# ---- runs --------------------------------------------------------------------------------------

_fsync = os.fsync


def sync_folders_only(descriptor: int) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        _fsync(descriptor)


def sync_files_only(descriptor: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        _fsync(descriptor)


def rename_before_the_last_file(
    path: Path, write: Callable[[Path], None], facts: dict[str, Any]
) -> None:
    early = path.with_name("early")
    write_folder(early, write, facts)
    manifest = (early / MANIFEST).read_bytes()
    (early / MANIFEST).unlink()
    sync(early)
    os.rename(early, path)
    sync(path.parent)
    (path / MANIFEST).write_bytes(manifest)
    sync(path / MANIFEST)
    sync(path)


def nothing(*_: Any) -> None:
    """In the place of a function that does something."""


# The state that shows a bug: once a checkpoint was saved, nothing that was not synced; or another.
SAVED = "saved"
PLANTED = {
    "files are not synced": ("os.fsync", sync_folders_only, SAVED),
    "folders are not synced": ("os.fsync", sync_files_only, SAVED),
    "renamed before the last file": (
        "likelier.training.checkpoint.write_folder", rename_before_the_last_file,
        f"before the sync of {(last := 'runs/out/checkpoints/step-00000002/MANIFEST.json')}, "
        f"alone lost: make {last}",
    ),
    "logs are not synced before a checkpoint": (
        "likelier.training.logs.Log.sync", nothing, SAVED,
    ),
}  # fmt: skip
HEALTHY = "nothing planted"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """A run as it is, and one with each bug."""
    plans = [Plan(HEALTHY, LORA)]
    for name, (replaced, by, _) in PLANTED.items():
        plans.append(Plan(name, LORA, {replaced: f"{__name__}.{by.__name__}"}))
    place = make_place(tmp_path_factory.mktemp("place").resolve())
    return {run.plan.name: run for run in recorded(place, plans)}


def state_of(run: Recorded, which: str) -> State:
    for state in run.disk.states():
        saved = run.promised(state)[1] and state.what.endswith("nothing that was not synced kept")
        if saved if which == SAVED else state.what == which:
            return state
    raise AssertionError(which)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_missing_sync_is_found(bug: str, runs: dict[str, Recorded], tmp_path: Path) -> None:
    state = state_of(runs[bug], PLANTED[bug][-1])
    assert list(faults_of(runs[bug], [state], tmp_path)) != [""]


ENDED = "at the end, nothing that was not synced kept"


def test_some_states(runs: dict[str, Recorded], tmp_path: Path) -> None:
    run = runs[HEALTHY]
    states = run.states()
    assert len(states) > 300
    tried = [state_of(run, SAVED), state_of(run, ENDED), *states[:: len(states) // 8]]
    assert [fault for fault in faults_of(run, tried, tmp_path, workers=2) if fault] == []
