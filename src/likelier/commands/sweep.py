"""`likelier sweep`: a grid of runs, one after the other, that ends in their comparison.

Each run is a process of its own: its memory is free when it ends, and where it crashes the others
run all the same. The reference log-probs are shared by the cache, which finds them by content.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from likelier.base.errors import InputMissing, Interrupted, OutputError, StoppedEarly
from likelier.base.files import output_errors, read_json, sealed, write_json, write_text
from likelier.base.foreign import masked
from likelier.base.terminal import say
from likelier.commands.compare import print_comparison
from likelier.commands.launch import stop_with
from likelier.commands.train import must_be_ready
from likelier.config import Config, config_from, difference, dump, live
from likelier.config.grid import GridRun
from likelier.evaluation.compare import (
    ERROR,
    STOP_SHARES,
    HeldOut,
    looks_at,
    num_comparisons,
    read_held_out,
    surely_lower,
)
from likelier.pages.texts import choose_language, in_language, percent, text
from likelier.report.compare import compare_runs
from likelier.report.compare_page import render_comparison
from likelier.training.run_folder import OnRow, RunFolder, asked, held_folder
from likelier.training.signals import handled_by

RECORD = "sweep.json"
_OURS = (RECORD, "comparison.html", "best.yaml", "best")
_FORMAT = 2
_ENDED = ("finished", "stopped")


@dataclass
class Sweep:
    """A grid in its folder. ``states`` has of each run its ``status`` (waiting, finished, stopped
    or failed), its config and what else is known; ``sweep.json`` holds them, whole at any time.
    """

    out: Path
    runs: Sequence[GridRun]
    stopping: bool
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, run: GridRun, **state: Any) -> None:
        """Write down what has become of a run. Raises OutputError where the disk refuses."""
        self.states[run.name] = {"values": run.values, **state, "config": live(run.config)}
        states = {run.name: found for run in self.runs if (found := self.states.get(run.name))}
        facts = {"format": _FORMAT, "stopping": self.stopping, "runs": states}
        write_json(self.out / RECORD, sealed(masked(facts)))

    def ended(self, run: GridRun) -> bool:
        """Whether a run has come to its end, or to where it was stopped."""
        return self.states.get(run.name, {}).get("status") in _ENDED

    def done(self, run: GridRun) -> bool:
        """Whether nothing is left to do of a run, as far as is noted."""
        stopped = self.states.get(run.name, {}).get("status") == "stopped"
        return self.ended(run) and (self.stopping or not stopped)


def run_sweep(out: Path, runs: Sequence[GridRun], stopping: bool, words: Sequence[str] = ()) -> int:
    """Train every run of a grid that is not done, compare them, and write down the best.

    ``words`` go to each process. Returns the exit code: 0, that of the runs that failed, or 1 where
    theirs differ. Raises OutputError where the folder holds something else, is in use or cannot be
    written, ConfigError and InputMissing for a run that cannot begin, StoppedEarly when stopped.
    """
    found = Sweep(out, runs, stopping, _states(out, runs))
    for run in runs:
        if not found.done(run) and not RunFolder(run.config).finished():
            must_be_ready(run.config)
    lock = held_folder(out)
    try:
        found.states = _states(out, runs)
        for run in runs:
            if not found.done(run):
                found.note(run, status="waiting")
        say(f"{len(runs)} runs in {out}")
        if stopping:
            say(_when_stopped(runs))
        failed: dict[str, int] = {}
        for number, run in enumerate(runs, start=1):
            label = f"[{number}/{len(runs)}] {run.name}"
            if code := _to_its_end(found, run, label, lock, words):
                failed[run.name] = code
            if number == 1 and stopping and (why := _never_looked_at(run)):
                say(why)
        _conclude(found)
    finally:
        os.close(lock)
    for name, code in failed.items():
        say(f"failed: {name} (exit code {code}); the same command tries it again")
    codes = set(failed.values())
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _states(out: Path, runs: Sequence[GridRun]) -> dict[str, dict[str, Any]]:
    """What ``sweep.json`` says; nothing where it is missing or damaged: the folders say it again.

    Raises OutputError where the folder holds another grid, or something else.
    """
    by_name = {run.name: run for run in runs}
    states = (read_json(out / RECORD) or {}).get("runs")
    hint = "give another out folder, or the grid of this one; it may have more values"
    if not isinstance(states, dict):
        other = sorted({path.name for path in out.glob("[!.]*")} - {*_OURS, *by_name})
        if other or (out.exists() and not out.is_dir()):
            what = f"this holds something else ({other[0] if other else 'a file'})"
            raise OutputError(what, where=f"out: {out}", hint="give a folder that is not there yet")
        return {}
    for name, state in states.items():
        if name not in by_name:
            what = f"this folder holds another grid, with {name}"
            raise OutputError(what, where=f"out: {out}", hint=hint)
        changed = difference(asked(config_from(state["config"])), asked(by_name[name].config))
        if changed:
            what = f"this folder holds another grid: {changed[0]}"
            raise OutputError(what, where=f"out: {out}", hint=hint)
    return dict(states)


def _when_stopped(runs: Sequence[GridRun]) -> str:
    """How runs are stopped early, or why none will be, as far as it is known before they begin."""
    config = runs[0].config
    if config.data.eval is None or config.train.eval_every is None:
        key = "data.eval" if config.data.eval is None else "train.eval_every"
        return f"no run is stopped early: {key} is null"
    shares = " and ".join(f"{share:.0%}" for share in STOP_SHARES)
    return (
        f"a run is stopped at the first evaluation from {shares} of its steps on where its "
        "held-out accuracy is surely below that of the best before it: by an interval of "
        f"{1 - ERROR:.0%} for all {num_comparisons(len(runs))} comparisons together (Bonferroni)"
    )


def _never_looked_at(run: GridRun) -> str | None:
    """What to say where the evaluations of a run leave no place to stop another like it."""
    planned, every = _planned(run.config.out), run.config.train.eval_every
    if planned is None or every is None or looks_at(list(range(0, planned, every)), planned):
        return None
    return (
        f"no run is stopped early: train.eval_every: {every} leaves no evaluation between half of "
        f"{planned} steps and the last"
    )


def _to_its_end(found: Sweep, run: GridRun, label: str, lock: int, words: Sequence[str]) -> int:
    """Have a run trained unless it is done; 0, or the exit code of one that failed.

    One that a signal killed begins once more, where it was.
    """
    code = 0
    for attempt in (1, 2):
        if _is_done(found, run):
            break
        say(f"{label}: training")
        code, received = run_child(["sweep", str(found.out), "--run", run.name, *words], lock)
        if received is not None:
            kind = Interrupted if received == signal.SIGINT else StoppedEarly
            hint = "the same command resumes from there"
            raise kind(f"stopped in {run.name}", where=str(found.out), hint=hint)
        if code >= 0 or attempt == 2:
            break
        say(f"{label}: killed by signal {-code}; once more, from its last checkpoint")
    if _is_done(found, run):
        state = found.states[run.name]
        say(f"{label}: {_in_words(state) if 'best' in state else state['status']}")
        return 0
    code = code if code > 0 else 1
    found.note(run, status="failed", code=code)
    say(f"{label}: failed with exit code {code}")
    return code


def _is_done(found: Sweep, run: GridRun) -> bool:
    """Whether a run is finished, or was stopped as surely worse; noted where it is."""
    record = read_json(run.config.out / "run.json") or {}
    if record.get("status") == "finished":
        found.note(run, status="finished")
        return True
    if not found.stopping:
        return False
    if found.done(run):  # as it was judged then, whoever has come to an end since
        return True
    saved = [int(path.name[5:]) for path in run.config.out.glob("checkpoints/step-" + 8 * "[0-9]")]
    lower = surely_worse(found, run.name, max(saved, default=0))
    if lower is None:
        return False
    if record.get("status") != "stopped":  # killed behind the checkpoint, before it could say so
        RunFolder(run.config).write_record(status="stopped", step=lower["step"])
    found.note(run, status="stopped", **lower)
    return True


def surely_worse(found: Sweep, name: str, step: int) -> dict[str, Any] | None:
    """By how much a run is lower than the best before it, where it is to be stopped after a step;
    None where it is not, or where nothing is looked at.

    A function of the logs alone: a sweep that was killed comes to the same.
    """
    names = [run.name for run in found.runs]
    planned = _planned(found.out / name)
    log = read_held_out(found.out / name)
    if planned is None or step not in looks_at(log.steps, planned):
        return None
    before: dict[str, HeldOut] = {}
    for run in found.runs[: names.index(name)]:
        # Half of other steps is another place on the way.
        if found.ended(run) and _planned(found.out / run.name) == planned:
            other = read_held_out(found.out / run.name)
            before |= {run.name: other.at(step)} if step in other.steps else {}
    lower = surely_lower(log.at(step), before, len(names))
    if lower is None:
        return None
    best, apart = lower
    return {"step": step, "best": best, "below": -apart.mean, "at_least": -apart.high}


def _in_words(state: Mapping[str, Any]) -> str:
    """Why a run was stopped."""
    below, least = (percent(state[name]) for name in ("below", "at_least"))
    values = {"step": state["step"], "best": state["best"], "below": below, "least": least}
    return text("compare.facts.surely_worse", **values)


def _planned(run: Path) -> int | None:
    planned = (read_json(run / "run.json") or {}).get("steps")
    return planned if isinstance(planned, int) else None


def _conclude(found: Sweep) -> None:
    """Print the comparison of all runs that have begun, and write its page and the best config."""
    begun = [run for run in found.runs if (run.config.out / "run.json").exists()]
    if len(begun) < 2:
        say("nothing to compare: fewer than two runs have begun")
        return
    with in_language(choose_language(None, found.runs[0].config.lang)):
        why = [
            f"{run.name}: {_in_words(state)}"
            for run in begun
            if "best" in (state := found.states[run.name])
        ]
        paths, names = zip(*((run.config.out, run.name) for run in begun), strict=True)
        compared = compare_runs(paths, names, why)
        write_text(found.out / "comparison.html", render_comparison(compared))
        print_comparison(compared)
    say(f"page: {found.out / 'comparison.html'}")
    best = next((run for run in begun if run.name == compared.best), None)
    if best is None:
        with output_errors(found.out / "best.yaml"):
            (found.out / "best.yaml").unlink(missing_ok=True)
        return
    settings = {**live(best.config), "out": str(found.out / "best")}
    write_text(found.out / "best.yaml", dump(masked(settings)))
    say(f"its config: {found.out / 'best.yaml'}")


# ---- one run, in a process of its own ----------------------------------------------------------


def run_child(words: Sequence[str], lock: int) -> tuple[int, int | None]:
    """Run ``likelier`` with some words; its exit code, and the signal that this process was sent
    meanwhile, which is passed on.
    """
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(sent: int, frame: FrameType | None) -> None:
        received.append(sent)
        for child in children:
            child.send_signal(sent)

    with handled_by(forward):
        child = start_run(words, lock)
        children.append(child)
        if received:  # before there was a child to hear it
            child.send_signal(received[0])
        return child.wait(), received[0] if received else None


def start_run(words: Sequence[str], lock: int) -> "subprocess.Popen[bytes]":
    """The process of a run. It is of a group of its own, so that Ctrl-C comes to it once, and stops
    where this one is killed; it holds the ``lock``, too, so that the folder is in use until then.
    """
    command, stops = [sys.executable, "-m", "likelier", *words], partial(stop_with, os.getpid())
    return subprocess.Popen(command, pass_fds=[lock], process_group=0, preexec_fn=stops)


def open_run(out: Path, name: str) -> tuple[Config, OnRow | None]:
    """The config of a run of a sweep, in its own process, and what is to hear its log: it stops the
    run where that is surely worse.

    Raises InputMissing where there is no such run.
    """
    record = read_json(out / RECORD) or {}
    states = record.get("runs", {})
    if name not in states:
        raise InputMissing("there is no such run in this sweep", where=f"{out}: {name}")
    runs = [GridRun(n, s["values"], config_from(s["config"])) for n, s in states.items()]
    found = Sweep(out, runs, bool(record["stopping"]), states)
    config = next(run.config for run in runs if run.name == name)
    return config, partial(_stop_if_worse, found, name) if found.stopping else None


def _stop_if_worse(found: Sweep, name: str, row: Mapping[str, float]) -> None:
    """Stop this run as a signal from outside would: it takes a checkpoint, and can be resumed."""
    if "eval_loss" in row and (lower := surely_worse(found, name, int(row["step"]))):
        say(_in_words(lower))
        os.kill(os.getpid(), signal.SIGTERM)
