"""The power is lost: every state that `faults.disk` says a disk may hold then is resumed.

A run is recorded, from an empty disk or from a checkpoint on. Each distinct state is laid out and
resumed with the same command. It holds where

- the run ends with exit code 0 and the bytes of the recorded one, and every step is timed;
- it starts from the newest checkpoint that had been saved when the power was lost, or a newer one:
  a checkpoint counts as saved once `save_checkpoint` has returned;
- it says that nothing is to do where the recorded run had ended.

No state may be refused: where nothing is left of a run, it starts anew.
"""

import json
import os
import random
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.support.children import KILLED, NO_HELPERS, Child, command, run_until_step, start
from tests.support.runs import Place, bytes_of, differing, make_place

from faults import Options
from faults.disk import Disk, Event, IncompleteRecording, State, events_of, read_events
from faults.lab import ANSWERS
from faults.native import NoCompiler
from faults.recording import Job, RecordedRunFailed, record, reporting
from faults.table import Row
from likelier.base.terminal import bar

STEPS, SAVE_EVERY = 5, 2
OUT = "runs/out"  # two folders that the run makes itself
RANDOM_STATES = 100  # of each recording, beside those that are listed
FULL = {"adapter": {"kind": "none"}}
LORA = {"adapter": {"kind": "lora", "r": 4, "alpha": 8}, "eval": ANSWERS}


@dataclass(frozen=True)
class Plan:
    """A run to record: what its config changes, which functions are replaced by which.

    ``killed_at`` has a first run killed at that step, so that the recorded one resumes. With
    ``report`` the report is written, and the power is lost after the last checkpoint only.
    """

    name: str
    changes: Mapping[str, Any]
    patches: Mapping[str, str] = field(default_factory=dict)
    killed_at: int | None = None
    report: bool = False


PLANS = (
    Plan("full tuning", FULL),
    Plan("LoRA", LORA),
    Plan("LoRA, resumed", LORA, killed_at=4),
    Plan("LoRA, the end with its report", LORA, report=True),
)


@dataclass(frozen=True)
class Recorded:
    """A recorded run, and what it left on a disk that never lost power."""

    plan: Plan
    place: Place
    disk: Disk
    begin: int  # the event that the run itself begins with
    bytes: Mapping[str, bytes] = field(repr=False)

    def states(self, seed: int = 1) -> list[State]:
        """One state for each tree that may be on disk, at the last instant that may leave it."""
        found: dict[bytes, State] = {}
        listed = [s for s in self.disk.states(self.begin) if not self._is_idle(s)]
        for state in (*listed, *self._drawn(listed, random.Random(seed))):
            tree = self.disk.digest(self.disk.tree(state))
            if tree not in found or self.promised(found[tree]) < self.promised(state):
                found[tree] = state
        return list(found.values())

    def _is_idle(self, state: State) -> bool:
        """Whether it differs in the cache or the lock alone, and the run has its log-probs."""
        varied = "" if state.change is None else self.disk.changes[state.change].what
        if " cache/" not in varied and not varied.endswith("/.lock"):
            return False
        reference = f" {OUT}/reference.safetensors"
        taken = [c.durable for c in self.disk.changes if c.what.endswith(reference)]
        return state.instant > max(taken)

    def _drawn(self, listed: Sequence[State], draw: random.Random) -> Iterator[State]:
        whole = [state for state in listed if state.what.endswith("everything kept")]
        for state in draw.choices(whole, k=RANDOM_STATES):
            kept = tuple(
                number
                for number in state.kept
                if self.disk.changes[number].durable <= state.instant or draw.random() < 0.5
            )
            what = state.what.replace("everything kept", "half of the changes kept")
            yield State("half of the changes, drawn", what, state.instant, kept)

    def promised(self, state: State) -> tuple[bool, int]:
        """Whether the run had ended by then, and the step that had been saved."""
        said = [text.split() for number, text in self.disk.notes if number <= state.instant]
        saved = [int(number) for word, number in said if word == "saved"]
        return any(word == "ended" for word, _ in said), max(saved, default=0)


def config(plan: Plan, place: Place, disk: Path) -> dict[str, Any]:
    """The config of a run whose folder and cache lie on a disk."""
    short = {"train__steps": STEPS, "train__save_every": SAVE_EVERY, "train__keep": 1}
    return place.config(disk / OUT, **short, **plan.changes)


def recorded(place: Place, plans: Sequence[Plan]) -> list[Recorded]:
    """Record runs, each on a disk of its own.

    Raises NoCompiler where nothing can be recorded here, RecordedRunFailed where a run fails,
    IncompleteRecording where something wrote past the recording.
    """
    jobs, before = [], []
    for number, plan in enumerate(plans):
        disk, settings, log = (place.folder / f"{number}{end}" for end in ("", ".json", ".log"))
        disk.mkdir()
        settings.write_text(json.dumps(config(plan, place, disk)))
        before.append(_killed(plan, place, disk))
        jobs.append(Job(str(settings), str(disk), str(log), plan.report, plan.patches))
    record(jobs)
    return [_read(place, *each) for each in zip(plans, jobs, before, strict=True)]


def _killed(plan: Plan, place: Place, disk: Path) -> list[Event]:
    """What is on the disk when the recording begins."""
    if plan.killed_at is None:
        return []
    log = disk.with_suffix(".killed")
    child = start(until_killed, str(disk), config(plan, place, disk), plan.killed_at, log=log)
    if child.wait() != KILLED:
        raise RecordedRunFailed(child.output)
    saved = (plan.killed_at - 1) // SAVE_EVERY * SAVE_EVERY
    return [*events_of(disk), Event("N", first=f"saved {saved}")]


def until_killed(disk: str, settings: Mapping[str, Any], step: int) -> None:
    """A run that is killed as soon as a step is in its log, in a process of its own."""
    os.environ["LIKELIER_CACHE"] = f"{disk}/cache"
    run_until_step(settings, step)


def _read(place: Place, plan: Plan, job: Job, before: Sequence[Event]) -> Recorded:
    folder = Path(job.folder)
    disk = Disk(folder, [*before, *read_events(Path(job.log))])
    disk.must_be_whole()
    begin = disk.notes[-2][0] if plan.report else len(before) - 1  # the last note: it ended
    return Recorded(plan, place, disk, begin, bytes_of(folder / OUT))


# ---- resuming ----------------------------------------------------------------------------------


def resume(cache: str, settings: str, report: bool) -> None:
    """The same command again, in a process of its own."""
    os.environ["LIKELIER_CACHE"] = cache
    command("train", settings, patches=NO_HELPERS | reporting(report))


@dataclass(frozen=True)
class Resumed:
    """A state that is being resumed in a folder of its own."""

    recorded: Recorded
    state: State
    folder: Path
    child: Child

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def fault(self) -> str:
        """What is wrong at its end, or "" where all is as it must be."""
        wrong = _wrong_end(self.child) or _lost(self) or _other(self)
        shutil.rmtree(self.folder)
        return wrong and f"{self.state.what}: {wrong}".replace(f"{self.folder}/", "")


def _begin(recorded: Recorded, state: State, folder: Path) -> Resumed:
    disk, settings = folder / "disk", folder / "config.json"
    recorded.disk.lay_out(recorded.disk.tree(state), disk)
    settings.write_text(json.dumps(config(recorded.plan, recorded.place, disk)))
    words = (str(disk / "cache"), str(settings), recorded.plan.report)
    child = start(resume, *words, log=folder / "output.txt")
    return Resumed(recorded, state, folder, child)


def faults_of(
    recorded: Recorded, states: Sequence[State], folder: Path, workers: int = 1
) -> Iterator[str]:
    """What is wrong with each of some states once it was resumed; "" where nothing is."""
    running: deque[Resumed] = deque()
    for state in states:
        running.append(_begin(recorded, state, Path(mkdtemp(dir=folder))))
        if len(running) == workers:
            yield running.popleft().fault()
    yield from (each.fault() for each in running)


def _wrong_end(child: Child) -> str:
    code = child.wait()
    if code == 0:
        return ""
    lines = [line for line in child.output.splitlines() if "error" in line.lower()]
    return f"exit code {code}: {lines[-1] if lines else child.output[-200:]}"


def _lost(resumed: Resumed) -> str:
    """What had been said to be safe and is done again."""
    ended, saved = resumed.recorded.promised(resumed.state)
    said = resumed.child.output
    if "is finished: " in said:
        return ""
    if ended:
        return "the run had ended, and trains again"
    began = re.search(r"resuming from step (\d+)", said)
    step = int(began[1]) if began else 0
    return f"step {saved} had been saved, and it starts from {step}" if step < saved else ""


def _other(resumed: Resumed) -> str:
    """Files that are not as those of the run that nobody disturbed."""
    run = resumed.disk / OUT
    other = differing(bytes_of(run), dict(resumed.recorded.bytes))
    if other:
        return f"{len(other)} files differ: {other}"
    if resumed.recorded.plan.report and not (run / "report.html").exists():
        return "the report is missing"
    rows = (run / "timing.jsonl").read_text().splitlines()
    timed = [json.loads(row)["step"] for row in rows]
    return "" if timed == list(range(1, STEPS + 1)) else f"the steps timed are {timed}"


# ---- the section -------------------------------------------------------------------------------


def run(options: Options) -> list[Row]:
    """Resume every distinct state; one row for each recording and kind of state."""
    os.environ.setdefault("LIKELIER_CACHE", str(options.folder / "cache"))
    place = make_place(options.folder / "place")
    try:
        runs = recorded(place, PLANS)
    except (NoCompiler, IncompleteRecording, RecordedRunFailed) as error:
        return [Row("recording a run", 1, 0, [str(error)])]
    return [row for one in runs for row in _rows(one, options)]


def _rows(one: Recorded, options: Options) -> Iterator[Row]:
    states = one.states(options.seed)
    tried = states[:: options.stride]
    wrong: list[str] = []
    with bar(one.plan.name, len(tried)) as show:
        for fault in faults_of(one, tried, options.folder, options.workers):
            wrong.append(fault)
            show(1, f"{sum(map(bool, wrong))} failed")
    for family in dict.fromkeys(state.family for state in states):
        found = [w for w, state in zip(wrong, tried, strict=True) if state.family == family]
        failed = [line for line in found if line]
        of = sum(state.family == family for state in states)
        counted = len(found), len(found) - len(failed)
        drawn = family.endswith("drawn")
        yield Row(f"{one.plan.name}: {family}", *counted, failed, None if drawn else of)
