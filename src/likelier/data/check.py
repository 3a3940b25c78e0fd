"""What is wrong with the data: every row read once, every row counted."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

from likelier.data.read import Row, read_rows, rows_from_memory
from likelier.data.records import Finding, Message, Pair
from likelier.data.shapes import NAMES, nearest, to_pair
from likelier.errors import ConfigError, DataError

PLACES = 20  # how many findings a summary shows in full


@dataclass(frozen=True)
class Loaded:
    """What a file holds: ``rows == len(pairs) + number of rows with an error``."""

    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    rows: int


@dataclass(frozen=True)
class Kind:
    """How often one code was found."""

    code: str
    severity: str
    count: int


@dataclass(frozen=True)
class Summary:
    """What ``likelier check`` prints: counts by code, and the first places, errors first."""

    rows: int
    usable: int
    kinds: tuple[Kind, ...]
    places: tuple[Finding, ...]


def load_pairs(path: Path, columns: dict[str, str]) -> Loaded:
    """Read a file to its end and check every row.

    Raises:
        InputMissing: there is no such file.
        DataError: the file cannot be read at all, or holds no row.
        ConfigError: ``columns`` has a key that is none of ours.
    """
    return _load(read_rows(path), columns, str(path))


def load_memory(rows: Iterable[Any], columns: dict[str, str], name: str = "train") -> Loaded:
    """As `load_pairs`, for rows given in memory."""
    return _load(rows_from_memory(rows, name), columns, name)


def refuse(
    findings: Sequence[Finding], on_bad_row: str, usable: int | None = None
) -> dict[str, int]:
    """Stop at bad rows, or count them.

    Args:
        findings: of `load_pairs` or of tokenising; only errors are looked at.
        on_bad_row: ``error`` or ``drop``.
        usable: how many pairs are left, where the caller knows.

    Returns:
        With ``drop``, how many rows go, by code.

    Raises:
        DataError: there is an error and ``on_bad_row`` is ``error``, or no pair is left.
    """
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(
            f'"{on_bad_row}" is not a choice', where="data.on_bad_row", mend="use error or drop"
        )
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and (on_bad_row == "error" or usable == 0):
        first = errors[0]
        raise DataError(first.message, where=first.where, mend=first.mend + _others(errors))
    return dict(Counter(finding.code for finding in errors))


def summary(loaded: Loaded) -> Summary:
    """Counts by code and the first twenty places in file order; errors come first in both."""
    counts = Counter((finding.code, finding.severity) for finding in loaded.findings)
    kinds = [Kind(code, severity, count) for (code, severity), count in counts.items()]
    rank = {"error": 0, "warning": 1, "note": 2}
    kinds.sort(key=lambda kind: (rank[kind.severity], -kind.count, kind.code))
    places = sorted(loaded.findings, key=lambda finding: rank[finding.severity])[:PLACES]
    return Summary(loaded.rows, len(loaded.pairs), tuple(kinds), tuple(places))


def _load(rows: Iterable[Row | Finding], columns: dict[str, str], name: str) -> Loaded:
    _check_columns(columns)
    pairs: list[Pair] = []
    findings: list[Finding] = []
    count = 0
    seen: dict[bytes, str] = {}
    for row in rows:
        count += 1
        pair = to_pair(row, columns) if isinstance(row, Row) else row
        if isinstance(pair, Pair):
            pair = _same_answers(pair) or pair
        if isinstance(pair, Finding):
            findings.append(pair)
            continue
        pairs.append(pair)
        findings += _seen_before(pair, seen) + _look(pair)
    if count == 0:
        raise DataError("no row in it", where=name, mend="put at least one row in it")
    return Loaded(tuple(pairs), tuple(findings), count)


def _check_columns(columns: dict[str, str]) -> None:
    for name in columns:
        if name not in NAMES:
            meant = nearest(name, NAMES)
            mend = f'did you mean "{meant}"?' if meant else f"the keys are {', '.join(NAMES)}"
            raise ConfigError(f'unknown key "{name}"', where="data.columns", mend=mend)


def _others(errors: Sequence[Finding]) -> str:
    if len(errors) == 1:
        return ""
    kinds = len({error.code for error in errors})
    more = f"\n  and {len(errors) - 1} more of {kinds} kind{'s' if kinds > 1 else ''}"
    file, colon, _ = errors[0].source.rpartition(":")
    return f"{more}; `likelier check {file}` lists them" if colon else more


def _bare(side: str | tuple[Message, ...]) -> Any:
    """A side without the spaces around its texts: what two answers must differ in."""
    if isinstance(side, str):
        return side.strip()
    return [
        {key: value.strip() if isinstance(value, str) else value for key, value in turn.items()}
        for turn in side
    ]


def _same_answers(pair: Pair) -> Finding | None:
    if _bare(pair.chosen) != _bare(pair.rejected):
        return None
    message = "chosen and rejected are the same text"
    mend = "delete the row or set data.on_bad_row: drop"
    return Finding("identical", "error", pair.source, None, message, mend)


def _digest(*sides: Any) -> bytes:
    content = json.dumps(sides, ensure_ascii=False, sort_keys=True, default=str)
    return blake2b(content.encode(errors="surrogatepass"), digest_size=16).digest()


def _seen_before(pair: Pair, seen: dict[bytes, str]) -> list[Finding]:
    """Warn of a pair that an earlier row has, as it is or with its sides swapped."""
    findings = []
    key = _digest(pair.prompt, pair.chosen, pair.rejected)
    if before := seen.get(key):
        message = f"the same pair as {before}"
        mend = "delete one, unless it should count twice"
        findings.append(Finding("duplicate", "warning", pair.source, None, message, mend))
    if before := seen.get(_digest(pair.prompt, pair.rejected, pair.chosen)):
        message = f"the same pair as {before} with chosen and rejected swapped"
        findings.append(
            Finding("conflict", "warning", pair.source, None, message, "keep the right one")
        )
    seen.setdefault(key, pair.source)
    return findings


DECOMPOSED = re.compile("[\u1100-\u1112][\u1161-\u1175]")


def _look(pair: Pair) -> list[Finding]:
    """Warnings about one pair: turns out of order, broken or decomposed text."""
    findings = []
    for name in NAMES:
        side = getattr(pair, name)
        turns = [side] if isinstance(side, str) else [turn.get("content", "") for turn in side]
        text = "\n".join(turn for turn in turns if isinstance(turn, str))
        if DECOMPOSED.search(text):
            message, mend = "Hangul in decomposed form (NFD)", "convert the text to NFC"
            findings.append(Finding("decomposed", "warning", pair.source, name, message, mend))
        if "\ufffd" in text:
            message, mend = "the text was damaged before (U+FFFD)", "decode the original again"
            findings.append(Finding("damaged", "warning", pair.source, name, message, mend))
        if not isinstance(pair.prompt, str) and not isinstance(side, str):
            before = () if name == "prompt" else pair.prompt[-1:]
            if odd := _odd_turns((*before, *side)):
                mend = "check that no turn was lost; the template may refuse this"
                findings.append(Finding("turns", "warning", pair.source, name, odd, mend))
    return findings


def _odd_turns(chat: Sequence[Message]) -> str | None:
    for before, after in pairwise(chat):
        if before["role"] == after["role"] and after["role"] in ("user", "assistant"):
            return f"two {after['role']} turns in a row"
        if after["role"] == "system":
            return "a system turn that is not the first"
    return None
