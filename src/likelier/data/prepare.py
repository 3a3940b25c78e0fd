"""From a file (or rows in memory) to token pairs: read, check, tokenise, fit, split."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from likelier.base.errors import DataError
from likelier.checks.across import Content
from likelier.checks.leaks import HeldOutPrompts
from likelier.config import Config
from likelier.config.schema import DataConfig
from likelier.data.check import Data, Reading, no_row, open_data, open_rows, refuse
from likelier.data.encoder import Encoder
from likelier.data.fit import fit
from likelier.data.formats import Format
from likelier.data.packed import Shared
from likelier.data.part import Part, Task, row_of
from likelier.data.pool import parts
from likelier.data.ranked import Ranking
from likelier.data.read import rows_from_memory
from likelier.data.records import Preference, TokenPair
from likelier.data.split import held_out


@dataclass(frozen=True)
class Prepared:
    """The pairs of a run: to train on, and held out. ``counts`` says where every row went."""

    train: tuple[TokenPair, ...]
    eval: tuple[TokenPair, ...]
    counts: dict[str, Any]

    @property
    def pairs(self) -> tuple[TokenPair, ...]:
        """Both sides, the training pairs first."""
        return (*self.train, *self.eval)

    def told(self) -> str:
        """One line about where the rows went."""
        told = [f"{len(self.train)} training pairs, {len(self.eval)} held out"]
        for name in ("dropped", "trimmed"):
            if self.counts[name]:
                told.append(f"{self.counts[name]} of {self.counts['rows']} rows {name}")
        findings = ", ".join(f"{n} {code}" for code, n in self.counts["findings"].items())
        leaks = self.counts.get("eval", {}).get("findings", {}).get("leak", 0)
        if leaks:
            told.append(f"{leaks} held-out prompts are also trained on, or nearly")
        return "; ".join(told) + (f" ({findings})" if findings else "")


def prepare(
    config: Config,
    encoder: Encoder,
    train_rows: Iterable[Any] | None = None,
    eval_rows: Iterable[Any] | None = None,
) -> Prepared:
    """Read and tokenise what a config asks for; rows in memory replace its files.

    Raises DataError and InputMissing as the parts do: nothing is dropped without being counted.
    """
    share = config.data.eval_share if eval_rows is None else None
    held, watched = None, None
    if eval_rows is not None or config.data.eval_path:
        task = _task(config, encoder, keep_pairs=True)
        held = _read_tokens(config, task, config.data.eval_path or "", eval_rows, "eval")
        watched = HeldOutPrompts(held.pairs)
    split_seed = config.train.seed if share is not None or watched else None
    task = _task(config, encoder, split_seed=split_seed, watch=watched.watch if watched else None)
    train = _read_tokens(config, task, config.data.train, train_rows, "train")
    if held and watched:
        sources = [pair.source for pair in train.tokens]
        used = {pair.source for pair in held.tokens}
        found = watched.leaks(train.hits, train.prompts, sources)
        if leaked := sum(leak.source in used for leak in found):
            held.counts["findings"]["leak"] = leaked
        return Prepared(train.tokens, held.tokens, {**train.counts, "eval": held.counts})
    if share is None:
        return Prepared(train.tokens, (), train.counts)
    out = held_out(train.prompt_keys, train.prompts, share)
    return Prepared(
        train=tuple(pair for pair, held in zip(train.tokens, out, strict=True) if not held),
        eval=tuple(pair for pair, held in zip(train.tokens, out, strict=True) if held),
        counts=train.counts,
    )


@dataclass(frozen=True)
class _Tokens:
    """Pairs as tokens that fit, and what tells their prompts apart, where it is asked for."""

    tokens: tuple[TokenPair, ...]
    pairs: tuple[Preference, ...]
    prompt_keys: np.ndarray
    prompts: np.ndarray
    hits: dict[int, str]
    counts: dict[str, Any]


def _task(config: Config, encoder: Encoder, **wanted: Any) -> Callable[[Format], Task]:
    ranking = reading_of(config.data).ranking
    return lambda form: Task(form, ranking, encoder, keep_tokens=True, **wanted)


def _read_tokens(
    config: Config,
    task_for: Callable[[Format], Task],
    path: Data,
    rows: Iterable[Any] | None,
    name: str,
) -> _Tokens:
    read = open_data(path) if rows is None else rows_from_memory(rows, name)
    form, counted = open_rows(read, reading_of(config.data))
    if form.shape == "labelled":
        what = "these rows hold one labelled answer each, not pairs"
        hint = "use a loss for unpaired answers, or make pairs"
        raise DataError(what, where=name if rows is not None else str(path), hint=hint)
    encoder = task_for(form).encoder
    pairs: list[TokenPair] = []
    done: list[Part] = []
    shared = Shared()
    for part in parts(counted, task_for(form)):
        assert part.tokens is not None
        pairs += part.tokens.pairs(part.sources, shared)
        done.append(replace(part, tokens=None))
    rows_read = sum(part.rows for part in done)
    no_row(rows_read, name if rows is not None else str(path))
    found = [finding for part in done for finding in part.findings]
    refuse(found, config.data.on_bad_row, usable=len(pairs))
    fitted = fit(pairs, config.data.max_length, config.data.overlong, encoder)
    refuse(fitted.findings, config.data.on_bad_row, usable=len(fitted.pairs))
    content = Content()
    for part in done:
        content.add_part(part.sources, part.keys, part.nears)
    between = (finding for _, finding in content.findings())
    used = {pair.source for pair in fitted.pairs}
    keep = np.array([pair.source in used for pair in pairs], dtype=np.bool_)
    count = {row_of(s): n for part in done for s, n in zip(part.sources, part.counts, strict=True)}
    rows_used = sum(count[row] for row in {row_of(source) for source in used})
    return _Tokens(
        tokens=fitted.pairs,
        pairs=tuple(pair for part in done for pair in part.pairs),
        prompt_keys=_kept([part.prompt_keys for part in done], keep),
        prompts=_kept([part.prompts for part in done], keep),
        hits={hit: source for part in reversed(done) for hit, source in part.hits},
        counts={
            "rows": rows_read,
            "used": rows_used,
            "dropped": rows_read - rows_used,
            "trimmed": fitted.trimmed,
            "findings": dict(Counter(f.code for f in chain(found, between, fitted.findings))),
        },
    )


def _kept(arrays: Sequence[np.ndarray], keep: np.ndarray) -> np.ndarray:
    whole = np.concatenate(arrays)
    return whole[keep] if len(whole) else whole


def reading_of(data: DataConfig) -> Reading:
    """How a config says that rows are read."""
    ranking = Ranking(data.ranked.pairs, data.ranked.min_gap)
    return Reading({str(ours): theirs for ours, theirs in data.columns.items()}, data.chat, ranking)


def content_hash(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 of the tokens of pairs in their order: the same content, the same hash."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen.tokens, pair.rejected.tokens):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        for scored in (pair.chosen.scored, pair.rejected.scored):
            digest.update(np.asarray(scored, dtype=np.bool_).tobytes())
        beside = (pair.margin, pair.weight, pair.label)
        if any(value is not None for value in beside):
            digest.update(repr(beside).encode())
    return digest.hexdigest()
