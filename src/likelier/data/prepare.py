"""From a file (or rows in memory) to token pairs: read, check, tokenise, fit, split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from likelier.config import Config
from likelier.data.check import Loaded, load_memory, load_pairs, refuse
from likelier.data.encoder import Encoder
from likelier.data.fit import fit
from likelier.data.records import Pair, TokenPair
from likelier.data.split import shared_prompts, split_by_prompt
from likelier.data.tokens import encode_pairs


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
        parts = [f"{len(self.train)} training pairs, {len(self.eval)} held out"]
        for name in ("dropped", "trimmed"):
            if self.counts[name]:
                parts.append(f"{self.counts[name]} of {self.counts['rows']} rows {name}")
        findings = ", ".join(f"{n} {code}" for code, n in self.counts["findings"].items())
        leaks = self.counts.get("eval", {}).get("findings", {}).get("leak", 0)
        if leaks:
            parts.append(f"{leaks} held-out prompts are also trained on")
        return "; ".join(parts) + (f" ({findings})" if findings else "")


def prepare(
    config: Config,
    encoder: Encoder,
    train_rows: Iterable[Any] | None = None,
    eval_rows: Iterable[Any] | None = None,
) -> Prepared:
    """Read and tokenise what a config asks for; rows in memory replace its files.

    Raises DataError and InputMissing as the parts do: nothing is dropped without being counted.
    """
    train, counts = _read_tokens(config, encoder, config.data.train, train_rows, "train")
    if eval_rows is not None or config.data.eval_path:
        path = config.data.eval_path or ""
        held, counts["eval"] = _read_tokens(config, encoder, path, eval_rows, "eval")
        leaks = shared_prompts(train.pairs, held.pairs)
        if leaks:
            counts["eval"]["findings"]["leak"] = len(leaks)
        return Prepared(train.tokens, held.tokens, counts)
    if config.data.eval_share is None:
        return Prepared(train.tokens, (), counts)
    # By the text of the prompts, so that copies that differ in spaces stay on one side.
    _, held_out = split_by_prompt(train.pairs, config.data.eval_share, config.train.seed)
    rows = {pair.source for pair in held_out}
    return Prepared(
        train=tuple(pair for pair in train.tokens if pair.source not in rows),
        eval=tuple(pair for pair in train.tokens if pair.source in rows),
        counts=counts,
    )


@dataclass(frozen=True)
class _Tokens:
    """Pairs as read, and those of them that became tokens and fit."""

    pairs: tuple[Pair, ...]
    tokens: tuple[TokenPair, ...]


def _read_tokens(
    config: Config, encoder: Encoder, path: str, rows: Iterable[Any] | None, name: str
) -> tuple[_Tokens, dict[str, Any]]:
    loaded = read(path, config.data.columns, rows, name)
    bad = refuse(loaded.findings, config.data.on_bad_row, usable=len(loaded.pairs))
    encoded, found = encode_pairs(encoder, loaded.pairs)
    bad_tokens = refuse(found, config.data.on_bad_row, usable=len(encoded))
    fitted = fit(encoded, config.data.max_length, config.data.overlong, encoder)
    findings = Counter(f.code for f in (*loaded.findings, *found, *fitted.findings))
    used = {pair.source for pair in fitted.pairs}
    return _Tokens(tuple(p for p in loaded.pairs if p.source in used), fitted.pairs), {
        "rows": loaded.rows,
        "used": len(fitted.pairs),
        "dropped": sum(bad.values()) + sum(bad_tokens.values()) + fitted.dropped,
        "trimmed": fitted.trimmed,
        "findings": dict(findings),
    }


def read(
    path: str | Path, columns: Any, rows: Iterable[Any] | None = None, name: str = "train"
) -> Loaded:
    """The pairs of a file, or of rows in memory."""
    if rows is not None:
        return load_memory(rows, dict(columns), name)
    return load_pairs(Path(path), dict(columns))


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
