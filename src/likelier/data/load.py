"""From a name of data (or rows in memory) to token pairs: read, encode, fit, split."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder
from likelier.config.losses import SigmoidLoss, needs
from likelier.config.schema import DataConfig
from likelier.data.encode import without_stops
from likelier.data.fit import fit, refuse_dropped
from likelier.data.formats import first_pair, read_row
from likelier.data.memory import rows_from_memory
from likelier.data.records import Pair, Row, TokenPair
from likelier.data.shapes import Format, format_with, recognised
from likelier.data.sources import Data, read_data
from likelier.data.split import held_out, parted, split_by_prompt
from likelier.data.workers import (
    Chunk,
    Inspector,
    Item,
    Shared,
    Task,
    chunks,
    row_of,
    unpack_tokens,
)

_ROW = re.compile(r":\d+$|\[\d+\]$")  # at the end of the place of a row
MAX_BAD_ROWS = 1_000_000  # each is remembered, with its place
PACKED = ("ids", "scored", "sizes", "beside")  # arrays that become token pairs


@dataclass(frozen=True)
class Dataset:
    """The pairs to train on and those held out.

    ``counts`` says how many rows were used, dropped and trimmed; ``findings`` are located in rows;
    ``form`` is the format of the training rows, and ``example`` the first pair that they gave.
    """

    train: tuple[TokenPair, ...]
    eval: tuple[TokenPair, ...]
    counts: dict[str, Any]
    findings: tuple[Finding, ...] = ()
    form: Format = field(default_factory=Format)
    example: Pair | None = None

    @property
    def pairs(self) -> tuple[TokenPair, ...]:
        """Both sides, the training pairs first."""
        return (*self.train, *self.eval)

    def describe(self) -> str:
        """One line about where the rows went."""
        held_out = self.counts.get("eval", {})
        parts = [f"{len(self.train)} training pairs, {len(self.eval)} held out"]
        parts += _describe_counts(self.counts, "rows")
        parts += _describe_counts(held_out, "held-out rows") if held_out else []
        leaks = held_out.get("findings", {}).get("leak", 0)
        if leaks:
            parts.append(f"{leaks} held-out prompts are also trained on, or nearly")
        return "; ".join(parts)


def load(
    data: DataConfig,
    encoder: Encoder,
    loss: Any = None,
    seed: int = 0,
    train: Iterable[Any] | None = None,
    eval: Iterable[Any] | None = None,
    inspector: Inspector | None = None,
) -> Dataset:
    """Read and encode the data of a config; rows in ``train`` and ``eval`` replace its files.

    Args:
        loss: the loss of a config. What it reads decides whether the rows must be pairs or
            unpaired examples, and which numbers they must hold. None is a loss of plain pairs.
        seed: of the held-out share, and of mismatched completions.
        inspector: finds what is wrong in the pairs, and prompts that are on both sides.

    Raises:
        DataError: a row cannot be used and ``data.on_bad_row`` is ``error``; no pair is left; the
            rows are of another kind than the loss reads, or lack a number that it reads.
        InputMissing: there is no such file.
        ConfigError: a key of ``data.columns`` that is none of ours.
    """
    loss = loss or SigmoidLoss()
    encoder = replace(encoder, boundary=data.boundary, turns=data.turns)
    trim = data.overlong == "trim"
    limit = data.max_length if trim else None
    task = Task(format_of(data), encoder, limit, trim, inspector=inspector, keep_tokens=True)
    read = partial(_read_side, data, loss, seed)
    if eval is None and data.eval_path is None:
        share = data.eval_share
        task = replace(task, split_seed=None if share is None else seed)
        side = read(data.train, train, "train", task)
        ours, held = _split_off(side, share, seed, needs(loss, "label"))
        return Dataset(
            tuple(ours), tuple(held), side.counts, side.findings, side.form, side.example
        )
    other = read(data.eval_path or "", eval, "eval", replace(task, keep_pairs=bool(inspector)))
    inspector = inspector and inspector.watching(other.pairs)
    side = read(data.train, train, "train", replace(task, inspector=inspector))
    leaks: list[Finding] = []
    if inspector is not None:
        trained_on = {pair.source for pair in side.tokens}
        used = {pair.source for pair in other.tokens}
        found = inspector.leaks(side.chunks, trained_on)
        leaks = [leak for leak in found if leak.source in used]
    if leaks:
        other.counts["findings"]["leak"] = len(leaks)
    counts = {**side.counts, "eval": other.counts}
    findings = (*side.findings, *other.findings, *leaks)
    return Dataset(side.tokens, other.tokens, counts, findings, side.form, side.example)


@dataclass(frozen=True)
class _Side:
    """The rows of one side: as token pairs that fit the loss, and the chunks that they came in,
    of which only the small arrays are kept.
    """

    tokens: tuple[TokenPair, ...]
    pairs: tuple[Pair, ...]
    chunks: tuple[Chunk, ...]
    findings: tuple[Finding, ...]
    counts: dict[str, Any]
    form: Format
    example: Pair | None


def _read_side(
    data: DataConfig,
    loss: Any,
    seed: int,
    path: Data,
    rows: Iterable[Any] | None,
    name: str,
    task: Task,
) -> _Side:
    where = str(path) if rows is None else name
    found = read_data(path) if rows is None else rows_from_memory(rows, name)
    items: Iterable[Item]
    form, items = recognised(found, task.form)
    if needs(loss, "mismatched"):
        items = _with_mismatched(items, form, data, loss, seed, where)
    example, items = first_pair(items, form)
    tokens: list[TokenPair] = []
    pairs: list[Pair] = []
    done: list[Chunk] = []
    shared, found_in_fitting = Shared(), list[Finding]()
    bad = usable = 0
    assert task.encoder is not None
    for chunk in chunks(items, replace(task, form=form)):
        bad += sum(finding.severity == "error" for finding in chunk.findings)
        if bad > MAX_BAD_ROWS:
            what = f"more than {MAX_BAD_ROWS:,} rows cannot be used; the rest is not read"
            hint = "`likelier check` says what is wrong with them"
            raise DataError(what, where=where, hint=hint)
        encoded = [*unpack_tokens(chunk, shared, needs(loss, "margin"), loss.pair_weights)]
        _check_kind(encoded[:1], loss, where)
        fitted, too_long = fit(encoded, data.max_length, task.encoder)
        usable += len(encoded)
        tokens += fitted  # what is too long is kept no longer than its chunk
        found_in_fitting += too_long
        pairs += chunk.pairs
        arrays = {name: array for name, array in chunk.arrays.items() if name not in PACKED}
        done.append(replace(chunk, arrays=arrays, pairs=()))
    num_rows = sum(chunk.rows for chunk in done)
    no_row(num_rows, where)
    findings = [finding for chunk in done for finding in chunk.findings]
    refuse(findings, data.on_bad_row, usable=usable)
    all_found = [*findings, *found_in_fitting]
    refuse_dropped(len(tokens), all_found, data.max_length, data.overlong, task.encoder)
    refuse(found_in_fitting, data.on_bad_row, usable=len(tokens))
    findings += task.inspector.across(done) if task.inspector is not None else []
    counts = _count_rows(done, tokens, found_in_fitting, findings)
    findings += found_in_fitting
    as_read = tuple(_as_the_loss_reads(tokens, loss, task.encoder))
    return _Side(as_read, tuple(pairs), tuple(done), tuple(findings), counts, form, example)


def _count_rows(
    done: Sequence[Chunk],
    fitted: Sequence[TokenPair],
    found_in_fitting: Sequence[Finding],
    others: Sequence[Finding],
) -> dict[str, Any]:
    """What became of the rows of one side, each counted once; ``dropped_by`` adds up to
    ``dropped``, and ``beside`` are the findings that cost no row, by how grave they are.
    """
    rows = sum(chunk.rows for chunk in done)
    made_of: Counter[str] = Counter()  # by usable row: how many rows of the file
    for chunk in done:
        for source, n in zip(chunk.sources, chunk.counts, strict=True):
            made_of[row_of(source)] += n
    used = {row_of(pair.source) for pair in fitted}
    dropped = rows - sum(made_of[row] for row in used)
    errors = [finding for finding in others if finding.severity == "error"]
    notes = [finding for finding in others if finding.severity == "note"]
    reasons: dict[str, str] = {}  # by dropped row: the first and gravest
    for finding in (*errors, *found_in_fitting, *notes):
        if (row := row_of(finding.source)) not in used and _ROW.search(row):
            reasons.setdefault(row, finding.code)
    dropped_by = Counter[str]()
    for row, code in reasons.items():
        dropped_by[code] += made_of[row] or 1
    if rest := dropped - dropped_by.total():  # rows that stood in one row with a dropped one
        dropped_by["grouped"] = rest
    beside: dict[str, Counter[str]] = {}
    for finding in (*others, *found_in_fitting):
        if row_of(finding.source) not in reasons and finding.code != "trimmed":
            beside.setdefault(f"{finding.severity}s", Counter())[finding.code] += 1
    codes = Counter(finding.code for finding in (*others, *found_in_fitting))
    return {
        "rows": rows,
        "used": rows - dropped,
        "dropped": dropped,
        "dropped_by": dict(dropped_by),
        "trimmed": codes["trimmed"],
        "beside": {severity: dict(found) for severity, found in sorted(beside.items())},
        "findings": dict(codes),
    }


def _describe_counts(counts: Mapping[str, Any], rows: str) -> list[str]:
    """Where the rows of one side went: the numbers behind a colon add up to those before it."""
    parts = []
    if counts["dropped"]:
        reasons = _listed(counts["dropped_by"])
        parts.append(f"{counts['dropped']} of {counts['rows']} {rows} dropped: {reasons}")
    if counts["trimmed"]:
        parts.append(f"{counts['trimmed']} of {counts['rows']} {rows} trimmed")
    return parts + [f"{name}: {_listed(found)}" for name, found in counts["beside"].items()]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {code}" for code, n in counts.items())


def _as_the_loss_reads(
    pairs: Sequence[TokenPair], loss: Any, encoder: Encoder
) -> Sequence[TokenPair]:
    """The pairs with every number that the loss reads, their stop tokens scored as it says."""
    reads = {"margin": needs(loss, "margin"), "weight": loss.pair_weights}
    for name in (name for name, wanted in reads.items() if wanted):
        for pair in pairs:
            if getattr(pair, name) is None:
                raise DataError(
                    "the loss reads this column, and the row has none",
                    where=f"{pair.source} {name}",
                    hint=f"add a number {name} to every row, or set another loss",
                )
    return pairs if loss.stop_token else without_stops(pairs, encoder.end_ids.values())


def read_pairs(data: Data, asked: Format) -> list[Pair]:
    """All pairs of data as they were read. Raises DataError where a row cannot be used."""
    form, rows = recognised(read_data(data), asked)
    done = list(chunks(rows, Task(form, keep_pairs=True)))
    no_row(sum(chunk.rows for chunk in done), str(data))
    refuse([finding for chunk in done for finding in chunk.findings], "error")
    pairs = [pair for chunk in done for pair in chunk.pairs]
    _check_kind(pairs, SigmoidLoss(), str(data))
    return pairs


def _check_kind(pairs: Sequence[Pair | TokenPair], loss: Any, where: str) -> None:
    """Refuse pairs where the loss reads unpaired examples, and the reverse."""
    if not pairs or (pairs[0].label is not None) == needs(loss, "label"):
        return
    what = "these rows hold one labelled answer each, not pairs"
    hint = "use a loss for unpaired answers, or make pairs"
    if needs(loss, "label"):
        what = f"{loss.name} learns from single answers with a label, these rows are pairs"
        hint = "give rows of prompt, completion and label, or choose a loss of pairs"
    raise DataError(what, where=where, hint=hint)


def _with_mismatched(
    rows: Iterable[Row | Finding],
    form: Format,
    data: DataConfig,
    loss: Any,
    seed: int,
    where: str,
) -> list[Pair | Finding]:
    """Unpaired examples with a completion that belongs to another prompt as the rejected one."""
    read: list[Pair | Finding] = []
    for row in rows:
        read += read_row(row, form) if isinstance(row, Row) else [row]
    pairs = [one for one in read if isinstance(one, Pair)]
    _check_kind(pairs, loss, where)
    bad = [one for one in read if isinstance(one, Finding)]
    refuse(bad, data.on_bad_row, usable=len(pairs))
    drawn = iter(mismatched(pairs, seed))
    return [
        replace(one, rejected=next(drawn).chosen) if isinstance(one, Pair) else one for one in read
    ]


def mismatched(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """For every unpaired example one of another prompt and with another completion.

    From them KTO estimates how far the policy is from the reference. The examples stand in a
    circle by a keyed hash of their content, so that neither their order nor their number in the
    file decides; each takes the next that fits.

    Raises DataError where there is none.
    """
    order = sorted(range(len(pairs)), key=lambda at: _place_in_circle(pairs[at], seed))
    found: dict[int, Pair] = {}
    for place, at in enumerate(order):
        for further in range(1, len(order)):
            other = pairs[order[(place + further) % len(order)]]
            if other.prompt != pairs[at].prompt and other.chosen != pairs[at].chosen:
                found[at] = other
                break
        else:
            raise DataError(
                "no other prompt has another answer, so none can be mismatched",
                where=pairs[at].source,
                hint="give rows of at least two prompts",
            )
    return [found[at] for at in range(len(pairs))]


def _place_in_circle(pair: Pair, seed: int) -> bytes:
    content = repr((seed, pair.prompt, pair.chosen, pair.label))
    return blake2b(content.encode(errors="surrogatepass"), digest_size=16).digest()


def _split_off(
    side: _Side, share: float | None, seed: int, is_labelled: bool
) -> tuple[Sequence[TokenPair], Sequence[TokenPair]]:
    """The pairs to train on, and the share of them that is held out."""
    if share is None:
        return side.tokens, ()
    if is_labelled:  # unpaired examples are told apart by the tokens of their prompts
        return split_by_prompt(side.tokens, share, seed)
    used = {pair.source for pair in side.tokens}
    keep = [source in used for chunk in side.chunks for source in chunk.sources]
    keys, signatures = (
        np.concatenate([chunk.arrays[name] for chunk in side.chunks])[keep]
        for name in ("split_keys", "split_signatures")
    )
    return parted(side.tokens, held_out(keys, signatures, share))


def refuse(
    findings: Sequence[Finding],
    on_bad_row: Literal["error", "drop"],
    usable: int | None = None,
) -> None:
    """Raise DataError where a finding is an error and ``on_bad_row`` is ``error``, or where errors
    leave no ``usable`` pair.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and (on_bad_row == "error" or usable == 0):
        first = errors[0]
        raise DataError(first.message, where=first.where, hint=first.hint + _others(errors))


def _others(errors: Sequence[Finding]) -> str:
    if len(errors) == 1:
        return ""
    kinds = len({error.code for error in errors})
    more = f"\n  and {len(errors) - 1} more of {kinds} kind{'s' if kinds > 1 else ''}"
    file, colon, _ = errors[0].source.rpartition(":")
    return f"{more}; `likelier check {file}` lists them" if colon else more


def no_row(count: int, where: str) -> None:
    """Raise DataError where there is no row at all."""
    if count == 0:
        raise DataError("the data hold no row", where=where, hint="give at least one row")


def format_of(data: DataConfig) -> Format:
    """What a config says of the format of its rows."""
    columns = {str(ours): theirs for ours, theirs in data.columns.items()}
    form = format_with(columns, data.chat)
    return replace(form, pairs=data.ranked.pairs, min_gap=data.ranked.min_gap)
