"""Runs on the same held-out pairs: what each came to, paired differences, and who may be stopped.

Imports no torch: the log of the held-out pairs has all that is needed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from likelier.base.files import read_table
from likelier.evaluation.held_out import Figure, differences, figures_of, hits_of
from likelier.evaluation.intervals import bounded_mean_of_clusters

# Of the steps: a run may be stopped at the first evaluation from there on.
STOP_SHARES = (0.5, 0.75)
ERROR = 0.01  # of a whole sweep: how likely it is to stop a run that is no worse
# Nats a token, on average: what rounding makes of the same reference in other batches.
SAME_REFERENCE = 1e-3
_NAMES = ("pair", "prompt")
_SIDES = ("chosen", "rejected")
_NUMBERS = ("loss", *(f"{before}{side}{after}" for side in _SIDES for before, after in (
    ("", "_logp"), ("reference_", "_logp"), ("", "_tokens"))))  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs after a step, a row each, sorted by ``pair_P``, the hash of their tokens.

    ``policy_P2`` and ``reference_P2`` are the log-probs of chosen and rejected, nats an answer,
    ``tokens_P2`` their lengths. An unpaired example stands in the column of its label, beside NaN.
    """

    step: int
    pair_P: np.ndarray
    prompt_P: np.ndarray
    policy_P2: np.ndarray
    reference_P2: np.ndarray
    tokens_P2: np.ndarray
    loss_P: np.ndarray

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """What is compared of each pair, by name: ``accuracy`` (a tie is a half), the log-ratio
        ``margin`` in nats, the drift of ``chosen`` and ``rejected`` and the mean absolute ``drift``
        of both in nats a token, and the ``loss``; NaN where a pair has no such thing.
        """
        ratio_P2 = self.policy_P2 - self.reference_P2
        token_P2 = ratio_P2 / np.maximum(self.tokens_P2, 1)
        there_P2 = np.isfinite(ratio_P2)
        zero_P2 = np.where(there_P2, ratio_P2, 0.0)
        margin_P = zero_P2[:, 0] - zero_P2[:, 1]
        size_P2 = np.where(there_P2, np.abs(token_P2), 0.0)
        return {
            "accuracy": hits_of(margin_P),
            "margin": margin_P,
            "chosen": token_P2[:, 0],
            "rejected": token_P2[:, 1],
            "drift": size_P2.sum(1) / np.maximum(there_P2.sum(1), 1),
            "loss": self.loss_P,
        }

    def figures(self) -> dict[str, Figure]:
        """The mean of each column, with an interval that knows which pairs share a prompt."""
        return figures_of(self.columns, self.prompt_P.tolist())

    def means(self) -> dict[str, float]:
        """The mean of each column, without an interval."""
        there = {name: one[np.isfinite(one)] for name, one in self.columns.items()}
        return {name: float(one.mean()) for name, one in there.items() if len(one)}

    def only(self, rows: np.ndarray | slice) -> "HeldOut":
        """Some of the rows, by their numbers or by a mask."""
        _, *columns = (getattr(self, field.name) for field in fields(self))
        return HeldOut(self.step, *(column[rows] for column in columns))

    def against(self, initial: "HeldOut") -> "HeldOut":
        """The same, with the initial policy in the place of the reference."""
        return replace(self, reference_P2=initial.policy_P2)


@dataclass(frozen=True)
class HeldOutLog:
    """``held_out/`` of a run: its rows, and the names of files that could not be read."""

    rows: pa.Table
    damaged: tuple[str, ...] = ()

    @cached_property
    def steps(self) -> list[int]:
        """The steps after which the pairs were evaluated, in order; 0 is before the first."""
        return sorted(set(self.rows["step"].to_pylist()))

    def at(self, step: int) -> HeldOut:
        """The evaluation after a step that is one of ``steps``."""
        rows = self.rows.filter(pc.equal(self.rows["step"], step)).sort_by("pair")
        pair_P, prompt_P = (np.array(rows[name].to_pylist(), dtype=object) for name in _NAMES)
        found = {name: rows[name].to_numpy() for name in _NUMBERS}
        both = [
            np.stack([found[f"{before}{side}{after}"] for side in _SIDES], axis=1)
            for before, after in (("", "_logp"), ("reference_", "_logp"), ("", "_tokens"))
        ]
        label_P = rows["label"].to_numpy()
        of_label_P2 = np.stack([label_P > 0, label_P <= 0], axis=1)
        alone_P1 = np.isfinite(label_P)[:, None]  # what stands as rejected is of another prompt
        policy_P2, reference_P2, tokens_P2 = (
            np.where(alone_P1, np.where(of_label_P2, of_both[:, :1], np.nan), of_both)
            for of_both in both
        )
        return HeldOut(step, pair_P, prompt_P, policy_P2, reference_P2, tokens_P2, found["loss"])

    def last(self, reads_reference: bool = True) -> HeldOut | None:
        """The last evaluation, as `evaluations` gives it; None where there is none."""
        return next(self.evaluations(reads_reference, self.steps[-1:]), None)

    def evaluations(
        self, reads_reference: bool = True, steps: Sequence[int] | None = None
    ) -> Iterator[HeldOut]:
        """All evaluations, or those after some ``steps``.

        Where the loss reads no reference the initial policy takes its place; none come where that
        was not evaluated on the same pairs.
        """
        initial = self.at(self.steps[0]) if self.steps and not reads_reference else None
        for step in self.steps if steps is None else steps:
            found = self.at(step)
            if initial is None:
                yield found
            elif initial.step == 0 and np.array_equal(initial.pair_P, found.pair_P):
                yield found.against(initial)


def read_held_out(run: Path) -> HeldOutLog:
    """The log of a run's held-out pairs; without rows where there is none, as in old ones."""
    schema = pa.schema(
        {"step": pa.int64()}
        | dict.fromkeys(_NAMES, pa.string())
        | dict.fromkeys((*_NUMBERS, "label"), pa.float64())
    )
    tables, damaged = [schema.empty_table()], []
    for file in sorted(run.glob("held_out/*.parquet*")):
        table = _read(file, schema)
        if table is None or file.suffix != ".parquet":
            damaged.append(file.name)
        else:
            tables.append(table)
    return HeldOutLog(pa.concat_tables(tables), tuple(damaged))


def _read(file: Path, schema: pa.Schema) -> pa.Table | None:
    """The rows of a file whose numbers are finite; None where it cannot be read, or lacks some."""
    try:
        table = read_table(file)
        if "label" not in table.column_names:
            table = table.append_column("label", pa.nulls(len(table), pa.float64()))
        table = table.select(schema.names).cast(schema, safe=False)
    except (OSError, KeyError, pa.ArrowException):
        return None
    finite = [pc.is_finite(table[name]) for name in _NUMBERS]
    whole = finite[0]
    for one in finite[1:]:
        whole = pc.and_(whole, one)
    return table.filter(whole)


def trained_prompts(run: Path) -> set[str]:
    """The names of all prompts that a run has visited, as far as its log can be read."""
    found: set[str] = set()
    for file in run.glob("pair_log/*.parquet"):
        with suppress(OSError, KeyError):
            found.update(read_table(file, ["prompt"])["prompt"].unique().to_pylist())
    return found


# ---- pair by pair --------------------------------------------------------------------------


def common(runs: Sequence[HeldOut], without: Collection[str] = ()) -> list[HeldOut]:
    """The pairs that are in all of some runs, row by row, each once, but for those of the prompts
    ``without``: one of the runs trained on them.
    """
    shared = reduce(np.intersect1d, [run.pair_P for run in runs])
    alike = [run.only(np.searchsorted(run.pair_P, shared)) for run in runs]
    kept_P = ~np.isin(alike[0].prompt_P, list(without)) if without else slice(None)
    return [run.only(kept_P) for run in alike]


def paired(first: HeldOut, other: HeldOut, of_loss: bool) -> dict[str, Figure]:
    """``other`` less ``first`` by figure, with paired 95 % intervals clustered by prompt.

    Both are what `common` gave. The loss is there where it is the same function in both.
    """
    apart = differences(other.columns, first.columns)
    if not of_loss:
        del apart["loss"]
    return figures_of(apart, first.prompt_P.tolist(), least=-1.0)


def same_reference(one: HeldOut, other: HeldOut) -> bool:
    """Whether the log-ratios of two runs on the pairs of `common` are against the same values."""
    apart_P2 = np.abs(one.reference_P2 - other.reference_P2) / np.maximum(one.tokens_P2, 1)
    return bool(np.nanmean(apart_P2) <= SAME_REFERENCE)


# ---- stopping early ------------------------------------------------------------------------


def num_comparisons(runs: int) -> int:
    """All that a sweep of so many runs could ever make: each pair of runs, at each look."""
    return len(STOP_SHARES) * runs * (runs - 1) // 2


def looks_at(steps: list[int], planned: int) -> list[int]:
    """Those of some evaluations at which a run may be stopped: the first at or after each share of
    the steps that are planned, but for the last step."""
    coming = [
        [step for step in steps if share * planned <= step < planned] for share in STOP_SHARES
    ]
    return sorted({min(after) for after in coming if after})


def surely_lower(
    this: HeldOut, before: Mapping[str, HeldOut], runs: int
) -> tuple[str, Figure] | None:
    """The best of the runs ``before`` it, by accuracy on the pairs of both after the same step, and
    by how much a run is lower; None where it may be as good.

    The interval of the difference misses it in at most ``ERROR`` of all sweeps of so many ``runs``,
    over all comparisons (Bonferroni), also those with a best that chance has chosen.
    """
    both = {name: common([other, this]) for name, other in before.items()}
    means = {
        name: float(other.columns["accuracy"].mean())
        for name, (other, _) in both.items()
        if len(other.pair_P)
    }
    if not means:
        return None
    name = max(means, key=means.__getitem__)
    other, own = both[name]
    apart_P = own.columns["accuracy"] - other.columns["accuracy"]
    error = ERROR / num_comparisons(runs)
    found = bounded_mean_of_clusters(apart_P, own.prompt_P.tolist(), error)
    return (name, Figure(*found, len(apart_P), len(set(own.prompt_P)))) if found[2] < 0 else None
