"""The work on a batch of rows: read, look, tokenise, and keep only what is asked for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from likelier.checks.across import digest, signature_of
from likelier.checks.leaks import Watch
from likelier.checks.pairs import look_at, said
from likelier.checks.shortcuts import FEATURES, features
from likelier.data.encoder import Encoder
from likelier.data.fit import fit_pair
from likelier.data.formats import Format
from likelier.data.near_duplicates import NUM_HASHES, bare
from likelier.data.packed import Packed
from likelier.data.ranked import Ranking
from likelier.data.records import Finding, Labelled, Pair, Preference, Row, TokenPair, text_of
from likelier.data.rows import read_row
from likelier.data.split import prompt_keys, prompt_signatures
from likelier.data.tokens import encode_pairs

_PART = re.compile(r"(#\d+)+$")
Counted = tuple[int, Row | Finding]  # how many rows of the file, and what they hold


@dataclass(frozen=True)
class Task:
    """What is done with every row.

    Attributes:
        encoder: also make tokens.
        max_length: also say which pairs are longer, and fit them (None: any length).
        trim: fit by trimming.
        keep_pairs: hand the pairs back as they were read.
        keep_tokens: hand their tokens back.
        split_seed: hand signatures and keyed hashes of the prompts back.
        watch: look for these in the prompts, because they are held out elsewhere.
        statistics: hand signatures and features of the pairs back.
    """

    form: Format
    ranking: Ranking = field(default_factory=Ranking)
    encoder: Encoder | None = None
    max_length: int | None = None
    trim: bool = False
    keep_pairs: bool = False
    keep_tokens: bool = False
    split_seed: int | None = None
    watch: Watch | None = None
    statistics: bool = False


@dataclass(frozen=True)
class Part:
    """What came of a batch of rows; arrays have one row a usable pair, in the order of the file.

    Attributes:
        rows: of the file.
        left_out: rows of which nothing can be used; each has an error or a note.
        counts: for each pair how many rows of the file its row stands for (0: a copy).
        hits: what was watched for, as hashes, and the place of each.
        keys: (n, 3) uint64, hashes of prompt, chosen and rejected.
        prompts: (n, NUM_HASHES) uint32 signatures, or (0, NUM_HASHES).
        prompt_keys: (n, 16) uint8 keyed hashes of prompts, or (0, 16).
        nears: (n, NUM_HASHES) uint32 signatures of whole pairs, or (0, NUM_HASHES).
        features: (n, 2, F) float32 of chosen and rejected, or (0, 2, 0).
        lengths: (n, 3) int32 tokens of prompt, chosen and rejected, or (0, 3).
    """

    rows: int
    left_out: int
    findings: tuple[Finding, ...]
    sources: tuple[str, ...]
    counts: tuple[int, ...]
    hits: tuple[tuple[int, str], ...]
    origins: tuple[str | None, ...]
    pairs: tuple[Preference, ...]
    keys: np.ndarray
    prompts: np.ndarray
    prompt_keys: np.ndarray
    nears: np.ndarray
    features: np.ndarray
    lengths: np.ndarray
    tokens: Packed | None


def work(task: Task, batch: Sequence[Counted]) -> Part:
    """Everything that a task asks of some rows."""
    findings: list[Finding] = []
    pairs: list[Preference] = []
    weight: dict[str, int] = {}  # by row: how many rows of the file it stands for
    place: dict[str, int] = {}
    for number, (count, row) in enumerate(batch):
        place.setdefault(row_of(row.source), number)
        weight[row_of(row.source)] = weight.get(row_of(row.source), 0) + count
        found = row if isinstance(row, Finding) else read_row(row, task.form, task.ranking)
        if isinstance(found, Finding):
            findings.append(found)
            continue
        for pair in found:
            noticed = look_at(pair)
            findings += noticed
            if all(finding.severity != "error" for finding in noticed):
                pairs.append(pair)
    tokens: list[TokenPair] = []
    if task.encoder is not None:
        tokens, found_in_tokens = _tokens(task, task.encoder, pairs)
        findings += found_in_tokens
        usable = {pair.source for pair in tokens}
        pairs = [pair for pair in pairs if pair.source in usable]
    used = {row_of(pair.source) for pair in pairs}
    findings.sort(key=lambda finding: place.get(row_of(finding.source), len(place)))
    asked = () if task.split_seed is None else pairs
    return Part(
        rows=sum(weight.values()),
        left_out=sum(count for source, count in weight.items() if source not in used),
        findings=tuple(findings),
        sources=tuple(pair.source for pair in pairs),
        counts=tuple(weight.get(row_of(pair.source), 0) for pair in pairs),
        hits=tuple(_hits(task.watch, pairs)) if task.watch else (),
        origins=tuple(pair.origin for pair in pairs),
        pairs=tuple(pairs) if task.keep_pairs else (),
        keys=_keys(pairs),
        prompts=prompt_signatures(asked),
        prompt_keys=prompt_keys(asked, task.split_seed or 0),
        nears=_nears(pairs if task.statistics else ()),
        features=_features(pairs if task.statistics else ()),
        lengths=_lengths(tokens),
        tokens=Packed.of(tokens) if task.keep_tokens else None,
    )


def row_of(source: str) -> str:
    """The place of the row that a pair was made from."""
    return source if source[-1:] in ":]" else _PART.sub("", source)


def _tokens(
    task: Task, encoder: Encoder, pairs: Sequence[Preference]
) -> tuple[list[TokenPair], list[Finding]]:
    encoded, findings = encode_pairs(encoder, pairs)
    if task.max_length is None:
        return encoded, findings
    fitted = []
    for pair in encoded:
        shorter, found = fit_pair(pair, task.max_length, encoder if task.trim else None)
        fitted += [shorter] if shorter else []
        findings += [found] if found else []
    return fitted, findings


def _hits(watch: Watch, pairs: Sequence[Preference]) -> Iterator[tuple[int, str]]:
    done: set[int] = set()
    for pair in pairs:
        for hit in watch.hits(bare(text_of(pair.prompt))):
            if hit not in done:
                done.add(hit)
                yield hit, pair.source


def _keys(pairs: Sequence[Preference]) -> np.ndarray:
    keys = [[digest([pair.prompt, pair.tools]), *map(digest, _told_apart(pair))] for pair in pairs]
    return np.array(keys, dtype=np.uint64).reshape(-1, 3)


def _told_apart(pair: Preference) -> tuple[object, object]:
    if isinstance(pair, Labelled):
        return pair.completion, pair.label
    return pair.chosen, pair.rejected


def _nears(pairs: Sequence[Preference]) -> np.ndarray:
    signatures = [signature_of(pair) for pair in pairs]
    return np.stack(signatures) if signatures else np.zeros((0, NUM_HASHES), np.uint32)


def _features(pairs: Sequence[Preference]) -> np.ndarray:
    both = [
        [features(said(pair.chosen)), features(said(pair.rejected))]
        for pair in pairs
        if isinstance(pair, Pair)
    ]
    return np.array(both, dtype=np.float32).reshape(len(both), 2, len(FEATURES))


def _lengths(tokens: Sequence[TokenPair]) -> np.ndarray:
    lengths = [
        [len(pair.prompt), len(pair.chosen.tokens), len(pair.rejected.tokens)] for pair in tokens
    ]
    return np.array(lengths, dtype=np.int32).reshape(-1, 3)
