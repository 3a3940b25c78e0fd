"""Runs in a small place: started with a fault, started again, compared with one left alone."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice, product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tests.support import children
from tests.support.children import Child
from tests.support.runs import Place, bytes_of, differing, make_place

from faults import Options
from faults.shim import CHANGES, Fault, Tally, tally_of
from faults.table import Row
from likelier.base.terminal import bar

Case = TypeVar("Case")
_LORA = {"kind": "lora", "r": 4, "alpha": 8}
ANSWERS = {"samples": 1, "max_new_tokens": 4}
# What of a config they change. They share out what a run may do besides: each case is a whole run.
KINDS: dict[str, dict[str, Any]] = {
    "full": {"adapter": {"kind": "none"}, "train__best": "eval_loss"},
    "LoRA": {"adapter": _LORA, "eval": ANSWERS},
}
FEW_BITS: dict[str, dict[str, Any]] = {
    "full, eight bits": {"adapter": {"kind": "none"}, "optim__kind": "adamw8bit"},
    "LoRA, four bits": {"adapter": _LORA, "model__quantise": "nf4"},
}
PATIENCE = 120  # seconds for a run that takes one: what takes longer hangs
ROWS = 18


@dataclass
class Trial:
    """A run folder and a cache in one folder, the command of the run, and what it said last."""

    lab: "Lab"
    kind: str
    folder: Path
    keep: int  # checkpoints
    output: str = ""
    steps: ClassVar[int] = 5

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.work = self.folder / "work"  # all that the run may change
        self.out, self.cache = self.work / "out", self.work / "cache"
        self.config = self.folder / "run.json"
        changes: dict[str, Any] = {"train__steps": self.steps, "train__keep": self.keep}
        changes |= (KINDS | FEW_BITS)[self.kind]
        self.config.write_text(json.dumps(self.lab.place.config(self.out, **changes)))

    def start(self, fault: Fault | None = None) -> Child:
        """The command in a process of its own."""
        words = (partial(children.command, patches=self.lab.patches), "train", str(self.config))
        work = (children.with_fault, fault, *words) if fault else words
        return children.start(*work, log=self._log(), cache=self.cache)

    def start_until_step(self, step: int) -> Child:
        """The run in a process that is killed as soon as a step is in the log."""
        config = json.loads(self.config.read_text())
        work = (children.run_until_step, config, step)
        return children.start(*work, log=self._log(), cache=self.cache)

    def _log(self) -> Path:
        return self.folder / f"{time.monotonic_ns()}.log"

    def train(self, fault: Fault | None = None) -> int | None:
        """The exit code of the command; None where it had to be ended because it hangs."""
        return self.ended(self.start(fault))

    def ended(self, child: Child, patience: float = PATIENCE) -> int | None:
        """The exit code of a process of this run; None where it is ended after some seconds."""
        code: int | None = child.code_within(patience)
        if code is None:
            child.send(9)
            child.code_within(PATIENCE)
        self.output = child.output
        return code

    def fault(self, **how: Any) -> Fault:
        """A fault at a file call of this run: see `Fault`."""
        return Fault(self.work, self.folder / "tally", **how)

    def tally(self) -> Tally:
        """The file calls of the run that a fault was made in."""
        return tally_of(self.folder / "tally")

    def wrong(self) -> list[str]:
        """What is otherwise than in the run that was left alone: files, or what is left behind."""
        if not (self.out / "run.json").is_file():
            return ["there is no run"]
        there, whole = bytes_that_stay(self.out), self.lab.whole[self.kind, self.keep]
        wrong = [f"{name} differs" for name in differing(whole, there)]
        report = self.out / "report.html"
        if not report.is_file() or not report.read_bytes().rstrip().endswith(b"</html>"):
            wrong.append("there is no whole report")
        left = [path for path in self.work.rglob(".*") if path.name != ".lock"]
        return wrong + [f"{path.relative_to(self.work)} is left" for path in left]

    def unless(self, expected: int, got: int | None, what: str) -> list[str]:
        """A line where an exit code is another than expected, with the last line that was said."""
        return [] if got == expected else [f"{what}: exit {got}: {self.said()}"]

    def badly_said(self, code: int | None) -> list[str]:
        """What is wrong in the words of a run that ended with a code."""
        errors = sum(line.startswith("error:") for line in self.output.splitlines())
        wrong = ["a traceback"] if "Traceback" in self.output else []
        if code and errors != 1:
            wrong.append(f"{errors} errors are said")
        return wrong

    def said(self) -> str:
        """The error that was printed, or the last line, without paths of this machine."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1].replace(str(self.lab.folder), "")[:200]

    def remove(self) -> None:
        """Its files are needed no longer."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Lab:
    """A tiny model with data, and of each kind of tuning what a run that was left alone makes."""

    folder: Path
    place: Place
    whole: dict[tuple[str, int], dict[str, bytes]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # of the file calls of that run
    seconds: float = 0.0  # that the slower of them took
    numbers: Iterator[int] = field(default_factory=count)
    patches: dict[str, Any] = field(default_factory=dict)  # of every run, see `children.command`

    def trial(self, kind: str, keep: int = 1) -> Trial:
        """A new folder for a run that keeps some checkpoints."""
        return Trial(self, kind, self.folder / str(next(self.numbers)), keep)


def bytes_that_stay(out: Path) -> dict[str, bytes]:
    """What every run of a config leaves: all but clock values; ``out`` and the command vary."""
    record = json.loads((out / "run.json").read_text("utf-8"))
    for varies in ("command", "seal"):  # the seal is over the rest
        record.pop(varies, None)
    record.get("resolved", {}).pop("out", None)
    return {**bytes_of(out), "run.json": json.dumps(record, sort_keys=True).encode()}


def make_lab(
    options: Options,
    kinds: str = CHANGES,
    runs: Iterable[str] = tuple(KINDS),
    patches: Mapping[str, Any] | None = None,
) -> Lab:
    """A lab for some kinds of runs, in which file calls of some kinds are counted.

    Raises NoCompiler where there is none to make the shim with.
    """
    os.environ.setdefault("LIKELIER_CACHE", str(options.folder / "cache"))
    lab = Lab(options.folder, make_place(options.folder / "place", ROWS))
    lab.patches |= patches or {}
    lab.trial("full").train()  # starts the server, so that what is timed is not that
    for kind, keep in product(runs, (1, 2)):
        trial, began = lab.trial(kind, keep), time.monotonic()
        code = trial.train(trial.fault(kinds=kinds))
        lab.seconds = max(lab.seconds, time.monotonic() - began)
        if code != 0:
            raise RuntimeError(f"a run that is left alone ends with {code}: {trial.output}")
        lab.whole[kind, keep] = bytes_that_stay(trial.out)
        if keep == 1:
            lab.kinds[kind] = trial.tally().kinds
        if wrong := trial.wrong():
            raise RuntimeError(f"a run that is left alone: {wrong}")
    return lab


def every(
    what: str, cases: Mapping[str, Case], try_: Callable[[Case], list[str]], options: Options
) -> Row:
    """Try every so-many-th of some named cases; ``try_`` gives what is wrong in one.

    What a case raises is wrong with it.
    """
    chosen = dict(islice(cases.items(), options.seed % options.stride, None, options.stride))

    def tried(case: Case) -> list[str]:
        try:
            return try_(case)
        except Exception as error:  # the others are tried all the same
            return [f"{type(error).__name__}: {error}"]

    failed = []
    with ThreadPoolExecutor(options.workers) as threads, bar(what, len(chosen)) as show:
        for name, wrong in zip(chosen, threads.map(tried, chosen.values()), strict=True):
            failed += [f"{name}: {'; '.join(wrong)}"] if wrong else []
            show(1, f"{len(failed)} failed")
    return Row(what, len(chosen), len(chosen) - len(failed), failed, len(cases))


def at_every_call(
    lab: Lab, try_: Callable[[Lab, str, int], list[str]], options: Options
) -> list[Row]:
    """Every counted file call of a run, by its number from 1: a row for each kind of tuning."""
    return [
        every(
            f"run folder and cache, {kind}",
            {f"call {number}": number for number in range(1, len(calls) + 1)},
            partial(try_, lab, kind),
            options,
        )
        for kind, calls in lab.kinds.items()
    ]
