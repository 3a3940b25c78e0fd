"""A cleaned copy of the data, and a ledger of every change; the data themselves stay untouched."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError, DataError, OutputError
from likelier.base.files import write_file
from likelier.checks.across import digest
from likelier.checks.examine import Question, encoder_of
from likelier.checks.pairs import repeats_prompt
from likelier.data.check import no_row, open_data, open_rows
from likelier.data.part import Task, work
from likelier.data.pool import BATCH
from likelier.data.records import Labelled, Message, Pair, Preference, text_of
from likelier.data.sources import files_of


@dataclass(frozen=True)
class Fixed:
    """What became of the rows: how many pairs were written, and the changes by code."""

    out: Path
    ledger: Path
    written: int
    changes: dict[str, int]


def fix(question: Question, out: Path) -> Fixed:
    """Write every usable pair as one line of JSON, and beside it ``OUT.ledger.jsonl``.

    Rows with an error and exact copies go; decomposed Hangul is composed (NFC); a prompt that both
    answers repeat is taken off them. Everything else stays: which of two conflicting rows is right
    is not for a program to say. Both files are written whole or not at all.

    Raises:
        OutputError: there is something at ``out`` already, or it cannot be written.
        ConfigError: ``out`` is no name of a JSONL file.
        DataError: no pair is left.
    """
    ledger = out.with_name(f"{out.name}.ledger.jsonl")
    _check_out(question, out, ledger)
    changes: Counter[str] = Counter()
    written = 0

    def write(pairs_file: Path, ledger_file: Path) -> None:
        nonlocal written
        with (
            pairs_file.open("w", encoding="utf-8") as pairs,
            ledger_file.open("w", encoding="utf-8") as told,
        ):
            for line, is_change in _lines(question):
                file = told if is_change else pairs
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                if is_change:
                    changes[line["code"]] += 1
                else:
                    written += 1
        if not written:
            hint = "look at the findings of `likelier check`"
            raise DataError("no pair is left", where=str(question.data), hint=hint)

    write_file(ledger, lambda told: write_file(out, lambda pairs: write(pairs, told)))
    return Fixed(out, ledger, written, dict(changes))


def _check_out(question: Question, out: Path, ledger: Path) -> None:
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out} is no JSONL file", where="--fix", hint="end its name in .jsonl")
    data = question.data
    names: list[str | Path] = list(data) if isinstance(data, Mapping) else [data]
    for name in names:
        for file in files_of(name):
            if file.exists() and out.exists() and file.samefile(out):
                what = "this is the data itself, which is never touched"
                raise OutputError(what, where=str(out), hint="name another file")
    for path in (out, ledger):
        if path.exists():
            raise OutputError("there is a file already", where=str(path), hint="name another file")
    if not out.parent.is_dir():
        raise OutputError("there is no such folder", where=str(out.parent), hint="make it first")


def _lines(question: Question) -> Iterator[tuple[dict[str, Any], bool]]:
    """Lines of the ledger (True) and of the cleaned copy (False), in the order of the rows."""
    form, rows = open_rows(open_data(question.data), question.reading)
    task = Task(
        form,
        question.reading.ranking,
        encoder_of(question),
        max_length=question.max_length,
        trim=question.trim,
        keep_pairs=True,
    )
    seen: dict[int, str] = {}
    count = 0
    while batch := list(islice(rows, BATCH)):
        count += len(batch)
        part = work(task, batch)
        kept = {pair.source for pair in part.pairs}
        for finding in part.findings:
            gone = finding.source not in kept and finding.severity == "error"
            if gone or finding.code in ("overlong", "tie", "weight"):
                yield _change(finding.source, finding.code, "dropped", finding.message), True
        for pair in part.pairs:
            pair, made = _mended(pair)
            for code, what in made:
                yield _change(pair.source, code, "changed", what), True
            key = digest(_record(pair, bare=True))
            if key in seen:
                told = f"the same as {seen[key]}"
                yield _change(pair.source, "duplicate", "dropped", told), True
                continue
            seen[key] = pair.source
            yield _record(pair), False
    no_row(count, str(question.data))


def _change(source: str, code: str, action: str, why: str) -> dict[str, Any]:
    return {"source": source, "code": code, "action": action, "why": why}


def _mended(pair: Preference) -> tuple[Preference, list[tuple[str, str]]]:
    """A pair with what can be fixed, and what was."""
    made = []
    composed = _map_text(pair, lambda text: unicodedata.normalize("NFC", text))
    if composed != pair:
        made.append(("decomposed", "composed to NFC"))
        pair = composed
    if isinstance(pair, Pair) and repeats_prompt(pair):
        prompt = (
            pair.prompt if isinstance(pair.prompt, str) else text_of(pair.prompt[-1:])
        ).strip()
        pair = replace(
            pair,
            chosen=_without(pair.chosen, prompt),
            rejected=_without(pair.rejected, prompt),
        )
        made.append(("doubled", "the prompt was taken off both answers"))
    return pair, made


def _map_text(pair: Preference, change: Any) -> Preference:
    def of(side: Any) -> Any:
        if isinstance(side, str):
            return change(side)
        return tuple(
            {**turn, "content": change(turn["content"])}
            if isinstance(turn.get("content"), str)
            else turn
            for turn in side
        )

    if isinstance(pair, Labelled):
        return replace(pair, prompt=of(pair.prompt), completion=of(pair.completion))
    sides = {name: of(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
    return replace(pair, **sides)


def _without(side: str | tuple[Message, ...], prompt: str) -> str | tuple[Message, ...]:
    """An answer without the prompt at its beginning, if something is left of it."""
    if isinstance(side, str):
        rest = side.lstrip().removeprefix(prompt)
        return rest if rest.strip() else side
    content = side[0]["content"].lstrip().removeprefix(prompt).lstrip()
    return ({**side[0], "content": content}, *side[1:]) if content else side


def _record(pair: Preference, bare: bool = False) -> dict[str, Any]:
    """A pair as a row that is read again as the same pair."""
    if isinstance(pair, Labelled):
        told: dict[str, Any] = {"prompt": pair.prompt, "completion": pair.completion}
        told["label"] = pair.label
    else:
        told = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if pair.tools:
        told["tools"] = pair.tools
    if bare:
        return told
    if isinstance(pair, Pair) and pair.scores:
        told["chosen_score"], told["rejected_score"] = pair.scores
    beside = {"margin": getattr(pair, "margin", None), "weight": pair.weight, "source": pair.origin}
    return told | {name: value for name, value in beside.items() if value is not None}
