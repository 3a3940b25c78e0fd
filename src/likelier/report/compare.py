"""Runs beside each other, from their folders: what differs, what may be compared, which is best."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError
from likelier.config.strict_yaml import leaves
from likelier.evaluation.compare import (
    HeldOut,
    HeldOutLog,
    common,
    paired,
    same_reference,
    trained_prompts,
)
from likelier.evaluation.held_out import Figure
from likelier.pages.texts import percent, signed, text
from likelier.report.read import RunFiles, held_out_accuracy, progress, read_run, section
from likelier.report.summary import reads_reference

# What is shown of each run, in reading order; the drift is what decides between equals.
COMPARED_FIGURES = ("accuracy", "margin", "chosen", "rejected", "drift", "loss")


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs: its ``name`` among them, its folder, and its last ``figures``; of a run
    without a log of held-out pairs, those that its ``metrics.jsonl`` has.
    """

    name: str
    files: RunFiles
    figures: dict[str, Figure]

    @property
    def log(self) -> HeldOutLog:
        """Its log of held-out pairs."""
        return self.files.held_out_log

    @property
    def status(self) -> str:
        """``finished``, ``stopped`` or ``running``."""
        status = self.files.record.get("status")
        return status if status in ("finished", "stopped") else "running"

    @property
    def evaluated(self) -> int | None:
        """The step of its last evaluation."""
        if self.log.steps:
            return self.log.steps[-1]
        return int(self.files.held_out[-1]["step"]) if self.files.held_out else None


@dataclass(frozen=True)
class Difference:
    """A run against the first one: paired ``figures`` over ``pairs`` of ``prompts`` that both have.

    ``note`` says against what, where that is not the reference of each, or why there are none.
    """

    name: str
    pairs: int
    prompts: int
    figures: dict[str, Figure]
    note: str


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of some runs.

    ``settings`` are the keys of the configs that differ, each with the value of every run;
    ``facts`` are sentences on what the runs have in common; ``best`` is the run to take, ``tied``
    those not distinguishable from the one of the highest accuracy, and ``verdict`` says so.
    """

    runs: tuple[ComparedRun, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    facts: tuple[str, ...]
    differences: tuple[Difference, ...]
    best: str | None
    tied: tuple[str, ...]
    verdict: str


def compare_runs(
    paths: Sequence[Path], names: Sequence[str] | None = None, known: Sequence[str] = ()
) -> Comparison:
    """Compare some run folders, finished or not; ``names`` are what to call them, and ``known``
    what else is to be said.

    Raises InputMissing where one is no run folder, ConfigError for fewer than two.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        what = "two different runs are needed" if len(paths) < 2 else "a run is given twice"
        raise ConfigError(what, where="RUN", hint="likelier compare runs/first runs/second")
    runs = tuple(map(_read, paths, names or _names(paths)))
    best, tied, verdict = best_of(runs)
    return Comparison(
        runs=runs,
        settings=tuple(differing_keys(runs)),
        facts=(*_facts(runs), *known),
        differences=tuple(_against(runs[0], other) for other in runs[1:]),
        best=best,
        tied=tied,
        verdict=verdict,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.resolve() for path in paths]
    for length in range(1, max(len(path.parts) for path in whole)):
        names = [os.path.join(*path.parts[-length:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return list(map(str, whole))


def _read(path: Path, name: str) -> ComparedRun:
    files = read_run(path)
    last = files.held_out_log.last(reads_reference(files))
    return ComparedRun(name, files, _logged(files) if last is None else last.figures())


def _logged(files: RunFiles) -> dict[str, Figure]:
    """What the last row of an evaluation says, where the pairs themselves are not known."""
    found: dict[str, Figure] = {}
    if files.held_out:
        row = files.held_out[-1]
        accuracy, pairs = held_out_accuracy(row), int(row.get("eval_pairs", 0))
        if accuracy is not None and reads_reference(files):
            found["accuracy"] = Figure(accuracy.value, accuracy.low, accuracy.high, pairs, pairs)
        if "eval_loss" in row:
            found["loss"] = Figure(row["eval_loss"], math.nan, math.nan, pairs, pairs)
    return found


# ---- what they have in common ------------------------------------------------------------------


def _config(run: ComparedRun) -> dict[str, Any]:
    return section(run.files.record, "resolved") or run.files.config


def differing_keys(runs: Sequence[ComparedRun]) -> list[tuple[str, tuple[str, ...]]]:
    """The keys whose resolved values are not the same in all runs, but for where each lies."""
    trees = [leaves(_config(run)) for run in runs]
    keys = dict.fromkeys(key for tree in trees for key in tree if key != "out")
    rows = ((key, tuple(tree.get(key, "–") for tree in trees)) for key in keys)
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _same_loss(one: ComparedRun, other: ComparedRun) -> bool:
    """Whether the values of their losses are of the same function."""
    return section(_config(one), "loss") == section(_config(other), "loss") != {}


def _same_data(one: ComparedRun, other: ComparedRun) -> bool:
    ours, theirs = (section(run.files.record, "inputs").get("data") for run in (one, other))
    return ours == theirs and ours is not None


def _same_model(one: ComparedRun, other: ComparedRun) -> bool:
    """By the hash of the weights: of the reference that was scored, which has no new adapter in
    it, or else of all.
    """
    for name, key in (("reference", "identity"), ("inputs", "model")):
        ours, theirs = (section(run.files.record, name).get(key) for run in (one, other))
        if ours == theirs and ours not in (None, "none"):
            return True
    return False


def _facts(runs: Sequence[ComparedRun]) -> Iterator[str]:
    first, *others = runs
    for fact, same in (("data", _same_data), ("model", _same_model), ("loss", _same_loss)):
        differ = [run.name for run in others if not same(first, run)]
        if differ:
            names = ", ".join(differ)
            yield text(f"compare.facts.{fact}.other", first=first.name, names=names)
        else:
            yield text(f"compare.facts.{fact}.same")
    for run in runs:
        done, planned = progress(run.files)
        if run.status != "finished":
            steps = {"done": done or 0, "planned": planned or "?"}
            yield text(f"compare.facts.{run.status}", name=run.name, **steps)
        for file in run.log.damaged:
            yield text("compare.facts.damaged", name=run.name, file=file)
        for gap in run.files.gaps:
            yield f"{run.name}: {gap}"


# ---- pair by pair ------------------------------------------------------------------------------


def _alike(runs: Sequence[ComparedRun]) -> tuple[list[HeldOut], str]:
    """The last evaluations of some runs on the pairs that all have and none trained on, and a note;
    none where nothing can be compared, and why.
    """
    for run in runs:
        if not run.log.steps:
            return [], text("compare.notes.no_log", name=run.name)
    without: set[str] = set()
    if not all(_same_data(runs[0], run) for run in runs):
        without = set().union(*(trained_prompts(run.files.path) for run in runs))
    own = [run.log.last() for run in runs if reads_reference(run.files)]
    initial = [run.log.last(reads_reference=False) for run in runs]
    for evaluations, note in ((own, ""), (initial, text("compare.notes.initial"))):
        there = [one for one in evaluations if one is not None]
        if len(there) < len(runs):
            continue
        alike = common(there, without)
        if not len(alike[0].pair_P):
            return [], text("compare.notes.no_pairs")
        if all(same_reference(alike[0], one) for one in alike):
            return alike, note
    return [], text("compare.notes.references")


def _against(first: ComparedRun, other: ComparedRun) -> Difference:
    alike, note = _alike([first, other])
    if not alike:
        return Difference(other.name, 0, 0, {}, note)
    figures = paired(alike[0], alike[1], _same_loss(first, other))
    pairs, prompts = len(alike[0].pair_P), len(set(alike[0].prompt_P))
    return Difference(other.name, pairs, prompts, figures, note)


# ---- which to take -----------------------------------------------------------------------------


def best_of(runs: Sequence[ComparedRun]) -> tuple[str | None, tuple[str, ...], str]:
    """The best of the finished runs, those it is tied with, and that in a sentence.

    By accuracy on the pairs that all have; of those whose paired interval against the highest holds
    0, the one that moved least from the reference, by mean absolute log-ratio a token.
    """
    ended = [run for run in runs if run.status == "finished"]
    if not ended:
        return None, (), text("compare.best.none_finished")
    if len(ended) == 1:
        return ended[0].name, (), text("compare.best.only", name=ended[0].name)
    alike, note = _alike(ended)
    if not alike:
        return None, (), text("compare.best.not_comparable", why=note)
    accuracies = [float(one.columns["accuracy"].mean()) for one in alike]
    highest = alike[accuracies.index(max(accuracies))]
    tied = [
        at for at, one in enumerate(alike)
        if not paired(highest, one, of_loss=False)["accuracy"].is_clear
    ]  # fmt: skip
    drift = {at: float(alike[at].columns["drift"].mean()) for at in tied}
    best = min(tied, key=drift.__getitem__)
    values = {
        "name": ended[best].name,
        "accuracy": percent(accuracies[best]),
        "drift": signed(drift[best], 3).lstrip("+"),
        "pairs": len(highest.pair_P),
        "prompts": len(set(highest.prompt_P)),
    }
    if len(tied) == 1:
        return ended[best].name, (), text("compare.best.clear", **values)
    names = tuple(ended[at].name for at in tied)
    return ended[best].name, names, text("compare.best.tied", names=", ".join(names), **values)
