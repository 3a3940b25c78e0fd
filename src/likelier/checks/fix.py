"""A cleaned copy of the data, and a list of every change; the data themselves stay untouched."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError, DataError, OutputError
from likelier.base.files import write_file
from likelier.chat.messages import Chat
from likelier.checks.across import digest
from likelier.checks.examine import Question
from likelier.checks.pairs import repeats_prompt
from likelier.data.load import no_row
from likelier.data.records import Pair, text_of
from likelier.data.shapes import recognised
from likelier.data.sources import files_of, names_of, read_data
from likelier.data.workers import chunks


def fix(question: Question, out: Path) -> tuple[int, Path, Mapping[str, int]]:
    """Write every usable pair as one line of JSON, and beside it ``OUT.ledger.jsonl``: one line
    for every change.

    Rows with an error and exact copies go; decomposed Hangul is composed (NFC); a prompt that both
    answers repeat is taken off them. Everything else stays: which of two conflicting rows is right
    is not for a program to say. Both files are written whole or not at all.

    Returns:
        How many pairs were written, the list of changes, and how many changes there are by code.

    Raises:
        OutputError: there is something at ``out`` already, or it cannot be written.
        ConfigError: the name of ``out`` does not end in .jsonl.
        DataError: no pair is left.
    """
    changes_file = out.with_name(f"{out.name}.ledger.jsonl")
    _check_out(question, out, changes_file)
    counts: Counter[str | None] = Counter()

    def write(to_pairs: Path, to_changes: Path) -> None:
        with (
            to_pairs.open("w", encoding="utf-8") as pairs,
            to_changes.open("w", encoding="utf-8") as changes,
        ):
            for line, code in _lines(question):
                file = changes if code else pairs
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[code] += 1
        if not counts[None]:
            hint = "look at the findings of `likelier check`"
            raise DataError("no pair is left", where=str(question.data), hint=hint)

    write_file(changes_file, lambda listed: write_file(out, lambda pairs: write(pairs, listed)))
    written = counts.pop(None)
    return written, changes_file, {str(code): count for code, count in counts.items()}


def _check_out(question: Question, out: Path, changes_file: Path) -> None:
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out} does not end in .jsonl", where="--fix", hint="rename it")
    data = question.data
    for file in (file for name in names_of(data) for file in files_of(name)):
        if file.exists() and out.exists() and file.samefile(out):
            what = "this file is the data itself, which is never changed"
            raise OutputError(what, where=str(out), hint="name another file")
    for path in (out, changes_file):
        if path.exists():
            raise OutputError("this file already exists", where=str(path), hint="name another file")
    if not out.parent.is_dir():
        raise OutputError(
            "there is no such folder", where=str(out.parent), hint="make the folder first"
        )


def _lines(question: Question) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Lines of the cleaned copy, and changes with their code, in the order of the rows."""
    form, rows = recognised(read_data(question.data), question.format)
    task = question.task(form, keep_pairs=True)
    first: dict[int, str] = {}  # where each pair stands first, by a hash of it
    count = 0
    for chunk in chunks(rows, task):
        count += chunk.rows
        kept = {pair.source for pair in chunk.pairs}
        for finding in chunk.findings:
            gone = finding.source not in kept and finding.severity == "error"
            if gone or finding.code in ("overlong", "tie", "weight"):
                yield _change(finding.source, finding.code, "dropped", finding.message)
        for pair in chunk.pairs:
            fixed, fixes = _fixed(pair)
            for code, why in fixes:
                yield _change(pair.source, code, "changed", why)
            key = digest(_content(fixed))
            if key in first:
                yield _change(pair.source, "duplicate", "dropped", f"the same as {first[key]}")
                continue
            first[key] = pair.source
            yield _row(fixed), None
    no_row(count, str(question.data))


def _change(source: str, code: str, action: str, why: str) -> tuple[dict[str, Any], str]:
    return {"source": source, "code": code, "action": action, "why": why}, code


def _fixed(pair: Pair) -> tuple[Pair, list[tuple[str, str]]]:
    """A pair with what can be fixed, and the code and reason of each change."""
    fixes = []
    composed = _composed(pair)
    if composed != pair:
        fixes.append(("decomposed", "composed to NFC"))
        pair = composed
    if pair.label is None and repeats_prompt(pair):
        prompt = pair.prompt if isinstance(pair.prompt, str) else text_of(pair.prompt[-1:])
        pair = replace(
            pair,
            chosen=_without(pair.chosen, prompt.strip()),
            rejected=_without(pair.rejected, prompt.strip()),
        )
        fixes.append(("doubled", "the prompt was taken off both answers"))
    return pair, fixes


def _composed(pair: Pair) -> Pair:
    """A pair with all its texts in NFC."""

    def of(side: Any) -> Any:
        if isinstance(side, str):
            return unicodedata.normalize("NFC", side)
        return tuple(
            {**turn, "content": of(turn["content"])}
            if isinstance(turn.get("content"), str)
            else turn
            for turn in side
        )

    return replace(pair, prompt=of(pair.prompt), chosen=of(pair.chosen), rejected=of(pair.rejected))


def _without(side: str | Chat, prompt: str) -> str | Chat:
    """An answer without the prompt at its beginning; unchanged where nothing would be left."""
    if isinstance(side, str):
        rest = side.lstrip().removeprefix(prompt)
        return rest if rest.strip() else side
    content = side[0]["content"].lstrip().removeprefix(prompt).lstrip()
    return ({**side[0], "content": content}, *side[1:]) if content else side


def _content(pair: Pair) -> dict[str, Any]:
    """What makes two pairs copies of each other, under the column names of a row."""
    content: dict[str, Any] = dict(pair.sides)
    if pair.label is not None:
        content["label"] = pair.label
    return content | ({"tools": pair.tools} if pair.tools else {})


def _row(pair: Pair) -> dict[str, Any]:
    """A pair as a row of JSON, from which the same pair is read again."""
    row = _content(pair)
    if pair.scores:
        row["chosen_score"], row["rejected_score"] = pair.scores
    beside = {"margin": pair.margin, "weight": pair.weight, "source": pair.origin}
    return row | {name: value for name, value in beside.items() if value is not None}
