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
from likelier.data.records import TokenPair
from likelier.data.split import split_by_prompt
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
    train, counts = _token_pairs(config, encoder, config.data.train, train_rows, "train")
    if eval_rows is not None or config.data.eval_path:
        held, held_counts = _token_pairs(
            config, encoder, config.data.eval_path or "", eval_rows, "eval"
        )
        counts["eval"] = held_counts
    elif config.data.eval_share:
        train, held = split_by_prompt(train, config.data.eval_share, config.train.seed)
    else:
        held = []
    return Prepared(tuple(train), tuple(held), counts)


def _token_pairs(
    config: Config, encoder: Encoder, path: str, rows: Iterable[Any] | None, name: str
) -> tuple[list[TokenPair], dict[str, Any]]:
    loaded = read(path, config.data.columns, rows, name)
    bad = refuse(loaded.findings, config.data.on_bad_row, usable=len(loaded.pairs))
    encoded, found = encode_pairs(encoder, loaded.pairs)
    bad_tokens = refuse(found, config.data.on_bad_row, usable=len(encoded))
    fitted = fit(encoded, config.data.max_length, config.data.overlong, encoder)
    findings = Counter(f.code for f in (*loaded.findings, *found, *fitted.findings))
    return list(fitted.pairs), {
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
    return digest.hexdigest()
