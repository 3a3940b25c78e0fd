"""From a name of data (or rows in memory) to token pairs: read, encode, fit, split."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from likelier.data.formats import first_pair, read_prompt, read_row
from likelier.data.records import (
    Flat,
    Pair,
    Places,
    PromptRow,
    Row,
    TokenBlock,
    TokenPair,
    TokenPairs,
    pack_tokens,
)
from likelier.data.shapes import Format, format_with, recognised
from likelier.data.sources import Data, read_data, rows_from_memory
from likelier.data.split import NUM_HASHES, held_out, prompt_keys, prompt_signatures
from likelier.data.stored import Spool, SpooledRows, stored_set
from likelier.data.workers import (
    MIN_CHUNKS,
    Chunk,
    Inspector,
    Item,
    Task,
    chunks,
    row_of,
)

_ROW = re.compile(r":\d+$|\[\d+\]$")  # at the end of the place of a row
MAX_BAD_ROWS = 1_000_000  # each is remembered, with its place
PACKED = ("ids", "scored", "sizes", "beside")  # arrays that become a `TokenBlock`


@dataclass(frozen=True)
class Dataset:
    """The pairs to train on and those held out.

    ``counts`` says how many rows were used, dropped and trimmed; ``findings`` are located in rows;
    ``form`` is the format of the training rows, and ``example`` the first pair that they gave.
    """

    train: Sequence[TokenPair]
    eval: Sequence[TokenPair]
    counts: dict[str, Any]
    findings: tuple[Finding, ...] = ()
    form: Format = field(default_factory=Format)
    example: Pair | None = None

    @property
    def pairs(self) -> Sequence[TokenPair]:
        """Both sides, the training pairs first."""
        if isinstance(self.train, TokenPairs) and isinstance(self.eval, TokenPairs):
            return self.train.followed_by(self.eval)
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
    limit, share = data.max_length if trim else None, data.eval_share
    task = Task(format_of(data), encoder, limit, trim, inspector=inspector, keep_tokens=True)
    kept = None
    if train is None and eval is None:
        kept = stored_set(_names(data), task, {
            "data": data.model_dump(mode="json"), "seed": seed,
            "reads": {name: needs(loss, name) for name in ("label", "margin", "mismatched")},
            "loss": [loss.name, loss.pair_weights, loss.stop_token],
        })  # fmt: skip
    if kept is not None and (found := kept.get()) is not None:
        return Dataset(**found)
    read = partial(_read_side, data, loss, seed)
    if eval is None and data.eval_path is None:
        task = replace(task, split_seed=None if share is None else seed)
        made = _split_off(read(data.train, train, "train", task), share, seed, loss)
    else:
        made = _both_sides(read, data, train, eval, task)
    if kept is not None:
        kept.put(**vars(made))
    return made


def _names(data: DataConfig) -> list[Data]:
    """The names of all the data of a config."""
    return [data.train, *([data.eval_path] if data.eval_path else [])]


def _both_sides(
    read: Callable[..., "_Side"],
    data: DataConfig,
    train: Iterable[Any] | None,
    eval: Iterable[Any] | None,
    task: Task,
) -> Dataset:
    """Training and held-out rows from sources of their own, and the prompts that both have."""
    inspector = task.inspector
    other = read(data.eval_path or "", eval, "eval", replace(task, keep_pairs=bool(inspector)))
    inspector = inspector and inspector.watching(other.pairs)
    side = read(data.train, train, "train", replace(task, inspector=inspector))
    leaks: list[Finding] = []
    if inspector is not None:
        trained_on = set(side.tokens.places)
        used = set(other.tokens.places)
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

    tokens: TokenPairs
    pairs: Sequence[Pair]
    chunks: Sequence[Chunk]
    signatures: Sequence[Flat]  # of the prompts of each chunk, flat
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
    blocks: list[TokenBlock] = []
    pairs: list[Pair] = []
    done: list[Chunk] = []
    signatures: list[Flat] = []
    used, found_in_fitting = _Used(), list[Finding]()
    bad = usable = 0
    spool = None
    assert task.encoder is not None
    for chunk in chunks(items, replace(task, form=form)):
        bad += sum(finding.severity == "error" for finding in chunk.findings)
        if bad > MAX_BAD_ROWS:
            what = f"more than {MAX_BAD_ROWS:,} rows cannot be used; the rest is not read"
            hint = "`likelier check` says what is wrong with them"
            raise DataError(what, where=where, hint=hint)
        block = _as_the_loss_reads(chunk, loss, task.encoder)
        _check_kind(TokenPairs([block])[:1], loss, where)
        fits = block.lengths <= task.encoder.at_most(data.max_length)
        too_long = TokenPairs([block]).take(~fits)
        found_in_fitting += fit(too_long, data.max_length, task.encoder)[1]
        usable += len(block)
        used.add(chunk, fits)
        if len(done) >= MIN_CHUNKS:  # many pairs: their tokens wait outside of memory
            spool = spool or Spool()
            block = spool.block(block)
        blocks.append(block)
        pairs += chunk.pairs
        arrays = {name: array for name, array in chunk.arrays.items() if name not in PACKED}
        flat = arrays.pop("split_signatures", np.zeros(0, np.uint32)).ravel()
        signatures.append(flat if spool is None else spool.put(flat))
        done.append(replace(chunk, sources=block.places, counts=(), arrays=arrays, pairs=()))
    num_rows = sum(chunk.rows for chunk in done)
    no_row(num_rows, where)
    findings = [finding for chunk in done for finding in chunk.findings]
    refuse(findings, data.on_bad_row, usable=usable)
    tokens = TokenPairs(blocks, np.flatnonzero(np.concatenate(used.fits)))
    all_found = [*findings, *found_in_fitting]
    refuse_dropped(len(tokens), all_found, data.max_length, data.overlong, task.encoder)
    refuse(found_in_fitting, data.on_bad_row, usable=len(tokens))
    findings += task.inspector.across(done) if task.inspector is not None else []
    counts = _count_rows(num_rows, used, tokens.places, found_in_fitting, findings)
    findings += found_in_fitting
    _must_have_numbers(tokens, loss)
    return _Side(tokens, pairs, done, signatures, tuple(findings), counts, form, example)


class _Used:
    """Which pairs fit, and the rows that they were made of: all used ones counted, the others
    remembered.
    """

    def __init__(self) -> None:
        self.fits: list[np.ndarray] = [np.zeros(0, np.bool_)]
        self.rows = 0
        self.unused: Counter[str] = Counter()  # by row of which no pair fits: its rows of the file

    def add(self, chunk: Chunk, fits: np.ndarray) -> None:
        """Take the usable pairs of a chunk; ``fits`` (n,) bool. The pairs of a row come together;
        copies of it, which count none, may come later.
        """
        self.fits.append(fits)
        made_of: Counter[str] = Counter()
        rows = [row_of(source) for source in chunk.sources]
        for row, n in zip(rows, chunk.counts, strict=True):
            made_of[row] += n
        used = {row for row, fit in zip(rows, fits.tolist(), strict=True) if fit}
        self.rows += sum(made_of[row] for row in used)
        self.unused.update({row: n for row, n in made_of.items() if row not in used})


def _count_rows(
    rows: int,
    used_rows: _Used,
    fitted: Iterable[str],
    found_in_fitting: Sequence[Finding],
    others: Sequence[Finding],
) -> dict[str, Any]:
    """What became of the rows of one side, each counted once; ``dropped_by`` adds up to
    ``dropped``, and ``beside`` are the findings that cost no row, by how grave they are.
    """
    found_in = {row_of(finding.source) for finding in (*others, *found_in_fitting)}
    used = {row for source in fitted if (row := row_of(source)) in found_in}
    dropped = rows - used_rows.rows
    errors = [finding for finding in others if finding.severity == "error"]
    notes = [finding for finding in others if finding.severity == "note"]
    reasons: dict[str, str] = {}  # by dropped row: the first and gravest
    for finding in (*errors, *found_in_fitting, *notes):
        if (row := row_of(finding.source)) not in used and _ROW.search(row):
            reasons.setdefault(row, finding.code)
    dropped_by = Counter[str]()
    for row, code in reasons.items():
        dropped_by[code] += used_rows.unused[row] or 1
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


def _as_the_loss_reads(chunk: Chunk, loss: Any, encoder: Encoder) -> TokenBlock:
    """The token pairs of a chunk, with the numbers that the loss reads and without others, their
    stop tokens scored as it says.
    """
    arrays = {name: chunk.arrays[name].copy() for name in PACKED}
    for column, is_read in enumerate((needs(loss, "margin"), loss.pair_weights)):
        if not is_read:
            arrays["beside"][:, column] = np.nan
    block = TokenBlock(**arrays, places=Places(chunk.sources))
    if loss.stop_token:
        return block
    pairs = without_stops(TokenPairs([block]), encoder.end_ids.values())
    return TokenBlock(**pack_tokens(pairs), places=block.places)


def _must_have_numbers(pairs: TokenPairs, loss: Any) -> None:
    """Raise DataError for a pair without a number that the loss reads."""
    for column, name in enumerate(("margin", "weight")):
        is_read = needs(loss, "margin") if name == "margin" else loss.pair_weights
        lacking = np.flatnonzero(np.isnan(pairs.beside[:, column]))
        if is_read and len(lacking):
            raise DataError(
                "the loss reads this column, and the row has none",
                where=f"{pairs[lacking[0]].source} {name}",
                hint=f"add a number {name} to every row, or set another loss",
            )


def read_pairs(data: Data, asked: Format) -> list[Pair]:
    """All pairs of data as they were read. Raises DataError where a row cannot be used."""
    form, rows = recognised(read_data(data), asked)
    done = list(chunks(rows, Task(form, keep_pairs=True)))
    no_row(sum(chunk.rows for chunk in done), str(data))
    refuse([finding for chunk in done for finding in chunk.findings], "error")
    pairs = [pair for chunk in done for pair in chunk.pairs]
    _check_kind(pairs, SigmoidLoss(), str(data))
    return pairs


def read_prompts(data: Data, asked: Format) -> list[PromptRow]:
    """The prompts of all rows of data, in their order; rows may hold answers, too.

    Raises DataError where a row has no prompt that can be used.
    """
    form, rows = recognised(read_data(data), asked)
    read = [read_prompt(row, form) if isinstance(row, Row) else row for row in rows]
    no_row(len(read), str(data))
    prompts = [one for one in read if isinstance(one, PromptRow)]
    if bad := [one for one in read if isinstance(one, Finding)]:
        more = f"\n  and {len(bad) - 1} more rows" if len(bad) > 1 else ""
        raise DataError(bad[0].message, where=bad[0].where, hint=bad[0].hint + more)
    return prompts


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


def _split_off(side: _Side, share: float | None, seed: int, loss: Any) -> Dataset:
    """The pairs to train on, and the share of them that is held out."""
    held = np.zeros(len(side.tokens), np.bool_)
    if share is not None and needs(loss, "label"):  # told apart by the tokens of their prompts
        tokens = side.tokens
        held = held_out(prompt_keys(tokens, seed), prompt_signatures(tokens), share)
    elif share is not None:
        order = side.tokens.order
        keys = [chunk.arrays["split_keys"] for chunk in side.chunks]
        signatures = SpooledRows(side.signatures, [*map(len, keys)], NUM_HASHES, order)
        held = held_out(np.concatenate(keys)[order], signatures, share)
    train, eval = side.tokens.take(~held), side.tokens.take(held)
    return Dataset(train, eval, side.counts, side.findings, side.form, side.example)


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
