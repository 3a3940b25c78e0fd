"""One hostile input: what is laid out, the command that meets it, and what must come of that."""

import atexit
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tests.support.tiny import pair_rows, write_rows

MAX_SECONDS = 30.0  # more where other work waits for the processor, too
MAX_MEGABYTES = 2_000  # of memory, at its peak, all processes of a command together
TOO_MUCH = 3_000  # where it is killed: other work on the machine is not to suffer
CANARY = "hf_CaNaRyCaNaRyCaNaRy"  # a secret: it may stand in nothing that is written or said
MARKER = "payload-ran"  # the file that every payload would make
KEPT = re.compile(r"[^\x20-\x7e\n\u00a0-\u200a\u2010-\u2027\u202f-\u2065\u206a-\ufdcf\ufdf0-\ufffd"
                  r"\U00010000-\U000dffff]")  # fmt: skip
ERROR = re.compile(r"^error: \S[^\n]*?: \S", re.MULTILINE)


class Room:
    """The folder of one case: the command runs in ``here``; everything else is beside it."""

    def __init__(self, folder: Path, common: Path) -> None:
        self.folder, self._common = folder, common
        self.here = folder / "here"
        for name in ("here", "home", "tmp", "cache"):
            (folder / name).mkdir(parents=True)
        self.environment = {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "LIKELIER_CACHE": str(folder / "cache"),
            "HF_HOME": str(folder / "home" / "hf"),
            "HF_HUB_OFFLINE": "1",
            "MARKER": str(self.marker),
        }

    @property
    def marker(self) -> Path:
        """The file that says that a payload ran."""
        return self.folder / MARKER

    def base(self, name: str = "base", kind: str = "base") -> Path:
        """A copy of a good model, to be spoiled; of the ``packed`` kind, one in four bits."""
        return Path(shutil.copytree(self._common / kind, self.here / name))

    def adapter(self) -> Path:
        """A copy of a good adapter on a copy of its base, to be spoiled."""
        self.base()
        return Path(shutil.copytree(self._common / "adapter", self.here / "adapter"))

    def data(self, rows: Sequence[Any] | None = None, name: str = "pairs.jsonl") -> Path:
        """Good pairs, or these rows."""
        return write_rows(self.here / name, list(rows if rows is not None else pair_rows(18)))

    def train(self, **changes: Any) -> list[str]:
        """A run of two steps: what is missing of its model and data is laid out good.

        ``data__eval="20%"`` changes ``data.eval``.
        """
        tree: dict[str, Any] = {
            "model": {"path": "base"},
            "data": {"train": "pairs.jsonl", "eval": None},
            "adapter": {"kind": "none"},
            "optim": {"lr": 1e-3},
            "train": {"steps": 2, "pairs_per_step": 4, "tokens_per_batch": 256},
            "out": "out",
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                tree.setdefault(section, {})[name] = value
            else:
                tree[section] = value
        self.lay_out_the_rest()
        (self.here / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
        return ["train", "config.yaml"]

    def lay_out_the_rest(self) -> None:
        """A good model and good pairs, where the case has made none."""
        if not os.path.lexists(self.here / "base"):
            self.base()
        if not os.path.lexists(self.here / "pairs.jsonl"):
            self.data()


Build = Callable[[Room], list[str]]


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        kind: models, data, …: a row of the table.
        name: what is hostile.
        code: the exit code that the command must have, or several that will do.
        build: lays it out and returns the words of the command line.
        started: whether the run folder may exist all the same.
        setting: what is done in the new process before the command, in its folder.
        program: start a new interpreter, for what depends on how it starts.
        quiet: the command says nothing on its own: its streams are closed or go elsewhere.
    """

    kind: str
    name: str
    code: int | tuple[int, ...]
    build: Build
    started: bool = False
    setting: Callable[[Room], None] | None = None
    program: Sequence[str] | None = None
    quiet: bool = False

    @property
    def codes(self) -> tuple[int, ...]:
        return (self.code,) if isinstance(self.code, int) else self.code


@dataclass
class Outcome:
    """What came of a case; it held where there are no problems."""

    kind: str
    name: str
    code: int | None
    seconds: float
    megabytes: float
    problems: list[str] = field(default_factory=list)
    said: str = ""


FINDING = re.compile(r"^(error )?\S.*: \S.*\n  \S", re.MULTILINE)
USAGE = ("  see `likelier --help`", "  write for example ")  # of words, which are their own place
LISTS = ("check", "show")  # commands that list what they find in the data
CASES: list[Case] = []


def hostile(kind: str, name: str, code: int | tuple[int, ...], **how: Any) -> Any:
    """Put a function that lays out a case into the table."""

    def put(build: Build) -> Build:
        CASES.append(Case(kind, name, code, build, **how))
        return build

    return put


def meet(case: Case, folder: Path, common: Path) -> Outcome:
    """Run a case in a process of its own and look at everything it left."""
    room = Room(folder, common)
    try:
        words = case.build(room)
    except Exception as error:
        return Outcome(case.kind, case.name, None, 0.0, 0.0, [f"it is not laid out: {error}"])
    before = everything(folder)
    log = folder.with_suffix(".log")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(case, room, words, log)
    status, megabytes, late = _watch(pid, began)
    code = None if late else os.waitstatus_to_exitcode(status)
    outcome = Outcome(case.kind, case.name, code, time.monotonic() - began, megabytes)
    outcome.said = log.read_bytes().decode("utf-8", "backslashreplace")
    outcome.problems = [late] if late else []
    left = processes_of(pid)
    for process in left:
        os.kill(process, signal.SIGKILL)
    if left:
        outcome.problems.append(f"{len(left)} processes stay behind")
    outcome.problems += _problems(case, room, outcome, before, words[0] in LISTS)
    return outcome


def _child(case: Case, room: Room, words: Sequence[str], log: Path) -> None:
    """The process that meets it; never returns."""
    code: Any = 99
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(room.environment)
        os.chdir(room.here)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if case.setting is not None:
            case.setting(room)
        if case.program is not None:
            os.execve(case.program[0], [*case.program, *words], dict(os.environ))
        from tests.support.children import command

        command(*words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        print(f"Traceback: escaped from the command: {error!r}", file=sys.stderr)
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            pass
        finally:
            os._exit(code if isinstance(code, int) else 99)


def _watch(pid: int, began: float) -> tuple[int, float, str | None]:
    """Wait for it: its status, its peak of memory, and why it was ended where it had to be."""
    seen, looked, why = 0.0, 0.0, None
    while True:
        got, status, used = os.wait4(pid, os.WNOHANG)
        if got:
            return status, max(seen, used.ru_maxrss / 1024), why
        time.sleep(0.01)
        now = time.monotonic()
        if now - looked > 0.25:
            looked = now
            seen = max(seen, sum(map(resident, processes_of(pid))))
        allowed = MAX_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if why is None and (now - began > allowed or seen > TOO_MUCH):
            why = f"takes {seen:.0f} MB" if seen > TOO_MUCH else f"no end in {allowed:.0f} s"
            for process in {pid, *processes_of(pid)}:
                os.kill(process, signal.SIGKILL)


def processes_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, its = stat.rpartition(")")[2].split()[:4]
        if int(its) == session and state != "Z":
            found.append(int(name))
    return found


def resident(process: int) -> float:
    """Its memory in megabytes, with its part of what it shares with others."""
    try:
        counts = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", counts, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder below one, with its kind, size and time."""
    found = {}
    for path, _, files in os.walk(folder):
        for name in (".", *files):
            seen = os.lstat(os.path.join(path, name))
            size, when = (0, 0) if name == "." else (seen.st_size, seen.st_mtime_ns)
            found[os.path.relpath(os.path.join(path, name), folder)] = (seen.st_mode, size, when)
    return found


MAY_CHANGE = ("here/out", "cache", "home/hf", "home/.cache")


def _problems(
    case: Case,
    room: Room,
    outcome: Outcome,
    before: Mapping[str, tuple[int, int, int]],
    lists: bool,
) -> list[str]:
    found = []
    if outcome.code not in case.codes:
        found.append(f"exit code {outcome.code}, not {' or '.join(map(str, case.codes))}")
    found += [] if case.quiet else _wrong_words(outcome, lists)
    if outcome.megabytes > MAX_MEGABYTES:
        found.append(f"{outcome.megabytes:.0f} MB of memory")
    if room.marker.exists():
        found.append("the payload ran")
    after = everything(room.folder)
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
        and not any(name == free or name.startswith(free + "/") for free in MAY_CHANGE)
    )
    if changed:
        found.append(f"touched {', '.join(changed[:3])}")
    if outcome.code != 0 and not case.started and (room.here / "out").exists():
        found.append("out exists, although nothing was started")
    if CANARY in outcome.said or _holds_canary(room, before, after):
        found.append("a secret is shown or written")
    return found


def _wrong_words(outcome: Outcome, lists: bool) -> list[str]:
    """What is wrong with its words; ``lists``: what is bad about data may be said as a list."""
    said, found = outcome.said, []
    if "Traceback" in said or "Exception ignored" in said:
        found.append("traceback")
    if raw := KEPT.search(said):
        found.append(f"raw {raw[0]!r} in the output")
    errors = re.findall(r"^error: ", said, re.MULTILINE)
    if outcome.code in (0, 3, 75, 130):
        if errors:
            found.append("an error is said, and the exit code is another")
    elif lists and outcome.code == 65 and not errors:
        found += [] if FINDING.search(said) else ["no place and no cure is listed"]
    elif len(errors) != 1:
        found.append(f"{len(errors)} error blocks")
    else:
        block = said[said.index("error: ") :].rstrip("\n").split("\n")
        if not ERROR.match(block[0]) and not "".join(block[1:]).startswith(USAGE):
            found.append("the error names no place")
        says = "; " in block[0] or len(block) > 1
        if not says or not all(line.startswith("  ") for line in block[1:]):
            found.append("the error names no cure")
        if max(map(len, block)) > 1000:
            found.append("a line of the error is endless")
    return found


def _holds_canary(
    room: Room, before: Mapping[str, Any], after: Mapping[str, tuple[int, int, int]]
) -> bool:
    return any(
        CANARY.encode() in (room.folder / name).read_bytes()
        for name, (mode, size, _) in after.items()
        if name not in before and size and not mode & 0o040000
    )


def meet_all(numbers: Sequence[int], scratch: str, results: str) -> None:
    """Meet some of the `CASES`, one after the other; a line of JSON for each. Runs in a child."""
    import faults.hostile  # noqa: F401  # fills the table

    with open(results, "a", encoding="utf-8") as lines:
        for number in numbers:
            folder = Path(scratch) / f"case-{number:03}"
            outcome = meet(CASES[number], folder, Path(scratch) / "common")
            print(json.dumps([number, vars(outcome)]), file=lines, flush=True)
            if not outcome.problems:
                shutil.rmtree(folder, ignore_errors=True)
