"""The page of `likelier check`: what was found, and the text that stands at each of its places."""

import gzip
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from likelier.base.files import write_text
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder
from likelier.checks.examine import Question
from likelier.checks.pairs import DECOMPOSED, last_words
from likelier.checks.rules import cure, why
from likelier.checks.shortcuts import SHORTCUT_ACCURACY, Lengths
from likelier.checks.summary import Examination, describe, describe_feature, tells_apart
from likelier.data.formats import read_row
from likelier.data.read import kind_of
from likelier.data.records import Pair, Row
from likelier.data.shapes import Format, recognised
from likelier.data.sources import Data, read_data
from likelier.data.workers import row_of
from likelier.pages import render_page
from likelier.pages.excerpts import as_json, excerpt, plain_text
from likelier.pages.texts import in_language, text, text_or

MAX_ALONE = 320  # characters of the one text that a finding is about
MAX_OF_SIDE = 160  # of the prompt and of each answer, where it is about the pair
MAX_LINE = 2**16  # bytes of a line that is no row
TEXT_FILES = (".jsonl", ".ndjson", ".json", ".csv")
_LINE = re.compile(r"(?P<file>.+):(?P<line>\d+)", re.DOTALL)
_PART = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
_BAD = {  # what is wrong with a text of these kinds
    "decomposed": re.compile(f"(?:{DECOMPOSED.pattern}[\u11a8-\u11c2]?)+"),
    "damaged": re.compile("\ufffd+"),
}
_ODD = re.compile(
    r"\ufffd|\\u(?:0000|fdd0|d[89a-f][0-9a-f]{2})", re.IGNORECASE
)  # as JSON writes it
_COLUMN = re.compile(r"at column (\d+)")
Said = dict[str, Any]  # an excerpt, with the name of the side that it is of


def write_page(found: Examination, question: Question, path: Path, lang: str = "en") -> None:
    """Write what was found as a page in a language, replacing ``path`` whole.

    The data are read once more, for the texts at the places shown. Raises OutputError, and what
    reading the data raises.
    """
    with in_language(lang):
        write_text(path, _page(found, question))


def _page(found: Examination, question: Question) -> str:
    places = [finding for kind in found.kinds for finding in kind.first]
    texts = _texts(question, found.form, places)
    kinds = {kind.code for kind in found.kinds}
    aside = [said for code, said in tells_apart(found.statistics).items() if code in kinds]
    errors = found.count("error")
    return render_page(
        "check.html",
        ["page.css", "bars.css"],
        name=question.name,
        found=found,
        errors=errors,
        tone="bad" if errors else "warn" if aside else "good",
        tells_apart=aside,
        form=found.form.describe(),
        lines=[line for line in describe(found) if not line.startswith(" ")],
        said={finding: texts.get(finding, []) for finding in places},
        strong=SHORTCUT_ACCURACY,
        histograms=_histograms(found.statistics.lengths, question.max_length),
        why=why,
        cure=cure,
        named=describe_feature,
    )


def _histograms(lengths: Lengths | None, max_length: int | None) -> list[dict[str, Any]]:
    """What the macro ``histogram`` draws: the lengths of the answers, and those of whole pairs."""
    if lengths is None:
        return []
    found = {"answers": (lengths.answers, None), "pairs": (lengths.pairs, max_length)}
    return [
        {
            "title": text(
                f"check.histogram.{name}", unit=text_or(f"check.units.{lengths.unit}", lengths.unit)
            ),
            "bars": {text(f"check.histogram.{one}"): n for one, n in drawn.counts.items()},
            "width": drawn.width,
            "longest": drawn.longest,
            "limit": limit,
        }
        for name, (drawn, limit) in found.items()
        if drawn is not None
    ]


def _texts(
    question: Question, form: Format, places: Iterable[Finding]
) -> dict[Finding, list[Said]]:
    """What stands at the places, for those that are in a row."""
    wanted: dict[str, list[Finding]] = defaultdict(list)
    for finding in places:
        if finding.source[-1:].isdigit() or finding.source.endswith("]"):
            wanted[row_of(finding.source)].append(finding)
    shown: dict[Finding, list[Said]] = {}
    for data in (question.data, question.held_out):
        if data is not None and wanted:
            for row in _rows(data, question.format, wanted):
                for finding in wanted.pop(row_of(row.source)):
                    shown[finding] = _said(finding, row, form, question.encoder)
    lines = _raw_lines(wanted)
    return shown | {one: [_line(one, raw)] for one, raw in lines.items()}


def _rows(data: Data, asked: Format, sources: Iterable[str]) -> Iterator[Row]:
    """The rows of these sources, which are all that is left to be found."""
    left = set(sources)
    for row in recognised(read_data(data), asked)[1]:
        if row_of(row.source) in left:
            left.discard(row_of(row.source))
            # What is odd in a cell stands there as a finding: the line itself shows it.
            if isinstance(row, Row) and not any(
                isinstance(x, Finding) for x in row.record.values()
            ):
                yield row
        if not left:
            return


def _said(finding: Finding, row: Row, form: Format, encoder: Encoder | None) -> list[Said]:
    """The text that a finding in a row is about, or those of the whole pair."""
    pairs = [one for one in read_row(row, form) if isinstance(one, Pair)]
    same = [one for one in pairs if one.source == finding.source]
    sides = (same or pairs)[0].sides if pairs else _columns(row, form)
    field = finding.field or ""
    for tree in (sides, row.record):
        known, value = _at(tree, field)
        if known:
            value = "null" if value is None else value
            value = value.message if isinstance(value, Finding) else value  # a cell that is none
            bad = _bad(finding, value, sides, encoder)
            return [{"side": "", **excerpt(value, MAX_ALONE, bad)}]
    return [
        {
            "side": text_or(f"report.pairs.sides.{name}", name),
            **excerpt(side, MAX_OF_SIDE, _bad(finding, side, sides, encoder)),
        }
        for name, side in sides.items()
    ]


def _columns(row: Row, form: Format) -> dict[str, Any]:
    """The columns used of a row that holds no pair; all of it where it has none of them."""
    used = {name: row.record[key] for name, key in form.columns.items() if key in row.record}
    return used or {"": as_json(row.record)}


def _at(tree: Any, field: str) -> tuple[bool, Any]:
    """Whether there is such a field as ``chosen[1].content``, and its value. Of a role it is the
    whole turn.
    """
    for index, key in _PART.findall(field.removesuffix(".role")):
        try:
            tree = tree[int(index) if index else key]
        except (LookupError, TypeError):
            return False, None
    return bool(field), [tree] if field.endswith(".role") else tree


def _bad(
    finding: Finding, value: Any, sides: Mapping[str, Any], encoder: Encoder | None
) -> tuple[int, int] | None:
    """Where the bad part of a value stands, as a text, where the kind of finding says it."""
    whole = plain_text(value)
    pattern = _BAD.get(finding.code)
    if finding.code == "control" and encoder is not None:
        pattern = encoder.control_text
    if finding.code == "doubled" and value is not sides.get("prompt"):
        pattern = re.compile(re.escape(last_words(sides["prompt"])))
    if finding.code == "role" and (finding.field or "").endswith(".role"):
        pattern = re.compile("[^:]*")
    found = pattern.search(whole) if pattern else None
    return found.span() if found else None


def _line(finding: Finding, raw: bytes) -> Said:
    """A line that is no row, the column marked at which it breaks."""
    line = raw.decode(errors="replace").rstrip("\r\n")
    column, escape = _COLUMN.search(finding.message), _ODD.search(line)
    bad = (int(column[1]) - 1, int(column[1])) if column else escape and escape.span()
    return {"side": "", **excerpt(line, MAX_ALONE, bad)}


def _raw_lines(wanted: Mapping[str, list[Finding]]) -> dict[Finding, bytes]:
    """The lines at the places that no row was found for, where they are lines of a text file."""
    files: dict[Path, dict[int, list[Finding]]] = defaultdict(dict)
    for source, findings in wanted.items():
        found = _LINE.fullmatch(source)
        path = Path(found["file"] if found else source)
        if found and kind_of(path) in TEXT_FILES and path.is_file():
            files[path][int(found["line"])] = findings
    return {
        one: raw
        for path, lines in files.items()
        for number, raw in _first_bytes(path, max(lines))
        for one in lines.get(number, [])
    }


def _first_bytes(path: Path, last: int) -> Iterator[tuple[int, bytes]]:
    """Every line up to ``last`` with its number; of a long line the beginning."""
    number, begun = 1, False
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while number <= last and (piece := file.readline(MAX_LINE)):
            if not begun:
                yield number, piece
            begun = not piece.endswith(b"\n")
            number += not begun
