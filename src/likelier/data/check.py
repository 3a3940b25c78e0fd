"""What is wrong with the data: every row read once, every row counted."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError, DataError
from likelier.checks.across import Content
from likelier.data.formats import NAMES, Format, look
from likelier.data.messages import nearest
from likelier.data.part import Counted, Task
from likelier.data.pool import parts
from likelier.data.ranked import Ranking, gather
from likelier.data.read import rows_from_memory
from likelier.data.records import Finding, Labelled, Pair, Row
from likelier.data.sources import read_mixture, read_source

Data = str | Path | Mapping[str, float]  # a name of data, or several with their weights


@dataclass(frozen=True)
class Reading:
    """How rows are read: ``data.columns``, ``data.chat`` and ``data.ranked``."""

    columns: Mapping[str, str] = field(default_factory=dict)
    chat: bool = False
    ranking: Ranking = field(default_factory=Ranking)


@dataclass(frozen=True)
class Loaded:
    """What data holds. ``rows`` is the rows used and the ``left_out``, each of which has an
    error, or a note that says why it holds nothing.
    """

    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    rows: int
    left_out: int
    form: Format
    labelled: tuple[Labelled, ...] = ()


def load_pairs(data: Data, columns: Mapping[str, str] | Reading) -> Loaded:
    """Read data to its end and check every row.

    Raises:
        InputMissing: there is no such file.
        DataError: a file cannot be read at all, or there is no row.
        ConfigError: ``columns`` has a key that is none of ours.
    """
    return _load(open_data(data), columns, str(data))


def load_memory(
    rows: Iterable[Any], columns: Mapping[str, str] | Reading, name: str = "train"
) -> Loaded:
    """As `load_pairs`, for rows given in memory."""
    return _load(rows_from_memory(rows, name), columns, name)


def open_data(data: Data) -> Iterator[Row | Finding]:
    """The rows of a name of data, or of several with weights."""
    return read_mixture(data) if isinstance(data, Mapping) else read_source(data)


def open_rows(rows: Iterable[Row | Finding], reading: Reading) -> tuple[Format, Iterator[Counted]]:
    """The format of rows, and the rows with how many each stands for.

    Raises ConfigError for a key of ``columns`` that is none of ours, and for a ranking that no
    list of answers would use.
    """
    _check_columns(reading.columns)
    form, rows = look(rows, reading.columns, reading.chat)
    if form.shape not in ("ranked", "scored") and reading.ranking != Ranking():
        what = f"would not be read: the data have {form.told}"
        raise ConfigError(what, where="data.ranked", hint="take data.ranked away")
    return form, gather(rows, form)


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
            f'"{on_bad_row}" is not a choice', where="data.on_bad_row", hint="use error or drop"
        )
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and (on_bad_row == "error" or usable == 0):
        first = errors[0]
        raise DataError(first.message, where=first.where, hint=first.hint + _others(errors))
    return dict(Counter(finding.code for finding in errors))


def _load(rows: Iterable[Row | Finding], columns: Mapping[str, str] | Reading, name: str) -> Loaded:
    reading = columns if isinstance(columns, Reading) else Reading(columns)
    form, counted = open_rows(rows, reading)
    done = list(parts(counted, Task(form, reading.ranking, keep_pairs=True)))
    no_row(sum(part.rows for part in done), name)
    content = Content(form.shape == "labelled")
    for part in done:
        content.add_part(part.sources, part.keys, part.nears)
    found = [finding for part in done for finding in part.findings]
    return Loaded(
        pairs=tuple(pair for part in done for pair in part.pairs if isinstance(pair, Pair)),
        findings=tuple(in_file_order([*(one for _, one in content.findings()), *found])),
        rows=sum(part.rows for part in done),
        left_out=sum(part.left_out for part in done),
        form=form,
        labelled=tuple(one for part in done for one in part.pairs if isinstance(one, Labelled)),
    )


def no_row(count: int, name: str) -> None:
    """Raise DataError where there is no row at all."""
    if count == 0:
        raise DataError("no row in it", where=name, hint="put at least one row in it")


_PLACE = re.compile(r"(?P<file>.*[:\[])(?P<row>\d+)\]?(#\d+)??(#(?P<part>\d+))?", re.DOTALL)


def in_file_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by file, row and pair; those of no row come last."""
    files: dict[str, int] = {}

    def place(finding: Finding) -> tuple[int, int, int]:
        found = _PLACE.fullmatch(finding.source)
        if found is None:
            return (2**62, 0, 0)
        number = files.setdefault(found["file"], len(files))
        return number, int(found["row"]), int(found["part"] or 0)

    return sorted(findings, key=place)


def _check_columns(columns: Mapping[str, str]) -> None:
    for name in columns:
        if name not in NAMES:
            meant = nearest(name, NAMES)
            hint = f'did you mean "{meant}"?' if meant else f"the keys are {', '.join(NAMES)}"
            raise ConfigError(f'unknown key "{name}"', where="data.columns", hint=hint)


def _others(errors: Sequence[Finding]) -> str:
    if len(errors) == 1:
        return ""
    kinds = len({error.code for error in errors})
    more = f"\n  and {len(errors) - 1} more of {kinds} kind{'s' if kinds > 1 else ''}"
    file, colon, _ = errors[0].source.rpartition(":")
    return f"{more}; `likelier check {file}` lists them" if colon else more
