"""Hostile surroundings: streams that are closed, no home, little of everything, code in the way."""

import os
import resource
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.hostile.case import CANARY, Room, hostile
from faults.hostile.models import PAYLOAD

surroundings = partial(hostile, "surroundings")
COMMAND = (str(Path(sys.executable).with_name("likelier")),)


def trained(room: Room) -> list[str]:
    return room.train()


def without(*names: str, **given: str) -> Callable[[Room], None]:
    def setting(room: Room) -> None:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(given)

    return setting


def closed(*descriptors: int) -> Callable[[Room], None]:
    def setting(room: Room) -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return setting


def limited(kind: int, to: int) -> Callable[[Room], None]:
    return lambda room: resource.setrlimit(kind, (to, to))


def gone(room: Room) -> None:
    """The folder that the command runs in is deleted before it starts."""
    place = room.folder / "gone"
    place.mkdir()
    os.chdir(place)
    place.rmdir()


def read_only(room: Room) -> None:
    """As root may write everywhere, another user reads here."""
    if os.getuid() == 0:
        for name in ("home", "tmp", "cache"):
            os.chown(room.folder / name, 65534, 65534)
        for folder in (room.folder, *room.folder.parents):
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)
        room.here.chmod(0o755)
        os.setgid(65534)
        os.setuid(65534)
    else:
        room.here.chmod(0o500)


program = {"program": COMMAND}
for _name, _code, _setting, _how in [
    ("no HOME", 0, without("HOME", "HF_HOME"), program),
    ("a HOME that is a file", 0, without("HF_HOME", HOME="/dev/null"), program),
    ("a HOME that is not there", 0, without("HF_HOME", HOME="/nowhere"), program),
    ("no TMPDIR", 0, without("TMPDIR"), program),
    ("a TMPDIR that is not there", 0, without(TMPDIR="/nowhere"), program),
    ("no cache of its own", 0, without("LIKELIER_CACHE"), program),
    ("a cache that is a file", (0, 73), without(LIKELIER_CACHE="/dev/null"), {}),
    ("an empty environment", 0, lambda room: os.environ.clear(), program),
    ("LANG=C", 0, without("PYTHONUTF8", LC_ALL="C", LANG="C"), program),
    ("ASCII", 0, without(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0",
                         PYTHONUTF8="0"), program),
    ("CP949", 0, without(LC_ALL="ko_KR.EUC-KR", PYTHONIOENCODING="cp949"), program),
    ("a locale of no kind", 0, without(LC_ALL="evil", LANG="evil"), program),
    ("umask 077", 0, lambda room: os.umask(0o077), {}),
    ("umask 777", (0, 73), lambda room: os.umask(0o777), {}),
    ("stdin closed", 0, closed(0), program),
    ("stdout closed", 0, closed(1), program),
    ("stderr closed", 0, closed(2), program | {"quiet": True}),
    ("all streams closed", 0, closed(0, 1, 2), program | {"quiet": True}),
    ("40 open files", (0, 73), limited(resource.RLIMIT_NOFILE, 40), {}),
    ("64 open files", 0, limited(resource.RLIMIT_NOFILE, 64), program),
    ("files of 1,000 bytes", 73, limited(resource.RLIMIT_FSIZE, 1_000), {"started": True}),
    ("files of nothing", 73, limited(resource.RLIMIT_FSIZE, 0), {"quiet": True, "started": True}),
    ("no stack for cores", 0, limited(resource.RLIMIT_CORE, 0), {}),
    ("the folder is gone", (66, 73), gone, {}),
    ("the folder cannot be written", 73, read_only, {}),
    ("a terminal of no kind", 0, without(TERM="\x1b[31m", COLUMNS="-1", LINES="x"), program),
    ("a terminal of one column", 0, without(COLUMNS="1"), program),
    ("colours forced", 0, without(FORCE_COLOR="1", PY_COLORS="1"), program | {"quiet": True}),
    ("threads of no kind", (0, 2), without(OMP_NUM_THREADS="evil"), program),
    ("threads of -1", (0, 2), without(OMP_NUM_THREADS="-1"), program),
    ("seeds of hashes", 0, without(PYTHONHASHSEED="12345"), program),
    ("a path of Python that is not there", 0, without(PYTHONPATH="/nowhere"), program),
    ("no cache of bytecode", 0, without(PYTHONDONTWRITEBYTECODE="1", PYTHONOPTIMIZE="1"), program),
    ("no docstrings", 2, without(PYTHONOPTIMIZE="2"), program),
    ("a secret in the environment", 0, without(HF_TOKEN=CANARY, OPENAI_API_KEY=CANARY), {}),
    ("a time zone of no kind", 0, without(TZ="evil/evil"), {}),
]:  # fmt: skip
    surroundings(_name, _code, setting=_setting, **_how)(trained)


NAMES = ("numpy.py", "json.py", "torch.py", "likelier/__init__.py", "sitecustomize.py",
         "tokenizers.py", "pickle.py", "usercustomize.py",
         "multiprocessing/__init__.py")  # fmt: skip


def with_code(room: Room) -> None:
    for name in NAMES:
        path = room.here / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PAYLOAD)


def many(room: Room) -> None:
    """So many rows that worker processes start."""
    from tests.support.tiny import pair_rows

    room.data(pair_rows(2_600))


for _name, _words in {
    "train": ["train", "config.yaml", "train.steps=1"],
    "check": ["check", "pairs.jsonl", "--model", "base"],
    "score": ["show", "pairs.jsonl", "--model", "base"],
}.items():

    @surroundings(f"modules in the current folder, {_name}", (0, 65), program=COMMAND)
    def _(room: Room, words: list[str] = _words) -> list[str]:
        many(room)
        room.train()
        with_code(room)
        return words


@surroundings("modules beside the data", (0, 65), program=COMMAND)
def _(room: Room) -> list[str]:
    many(room)
    with_code(room)
    shutil.move(room.here / "pairs.jsonl", room.here / "likelier" / "pairs.jsonl")
    return ["check", "likelier/pairs.jsonl"]


@surroundings("code in HOME", 0)
def _(room: Room) -> list[str]:
    for name in ("hf/modules/__init__.py", "hf/modules/transformers_modules/__init__.py"):
        path = room.folder / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAYLOAD)
    return room.train()


@surroundings("a cache that links to itself", (0, 73))
def _(room: Room) -> list[str]:
    (room.folder / "cache").rmdir()
    (room.folder / "cache").symlink_to("cache")
    return room.train()


@surroundings("caches that are pipes", (0, 73))
def _(room: Room) -> list[str]:
    for name in ("data", "reference"):
        os.mkfifo(room.folder / "cache" / name)
    return room.train()
