"""`likelier check`: examine, print, write what is asked for, and say how it ended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from likelier.data.check import Reading
from likelier.data.ranked import Ranking
from likelier.doctor.examine import Examination, Question, examine
from likelier.doctor.fix import fix
from likelier.doctor.gates import pass_gates, read_gate
from likelier.doctor.page import write_page
from likelier.doctor.words import as_data, reference_lines, statistics_lines
from likelier.errors import ConfigError
from likelier.progress import say
from likelier.terminal import print_summary, visible

HOW = ("best-worst", "best-rest", "all")


def check(
    data: Path,
    model: str | None,
    columns: Mapping[str, str],
    chat: bool,
    template: Mapping[str, Any],
    pairs: str,
    min_gap: float,
    held_out: str | None,
    max_length: int | None,
    score: int,
    gates: Sequence[str],
    out: Path | None,
    html: Path | None,
    as_json: bool,
) -> int:
    """Examine data and print what was found; the exit code: 0, or 65 where there are errors.

    Raises GateMissed where a gate is missed and no row is in error, and what `examine` and `fix`
    raise.
    """
    if pairs not in HOW:
        mend = f"use {', '.join(HOW)}"
        raise ConfigError(f"{pairs!r} is not a choice", where="--pairs", mend=mend)
    for option, given in (
        ("--max-length", max_length),
        ("--score", score),
        ("--template", template),
    ):
        if given and model is None:
            raise ConfigError("would not be read without a model", where=option, mend="add --model")
    limits = [read_gate(gate) for gate in gates]
    ranking = Ranking(pairs, min_gap)  # type: ignore[arg-type]  # checked above
    question = Question(
        str(data),
        Reading(columns, chat, ranking),
        model,
        held_out,
        max_length,
        template=template,
        score=score,
    )
    found = examine(question)
    if score:
        from likelier.doctor.reference import view_reference  # loads weights

        view, notes = view_reference(question, found.summary.rows)
        found = found.joined(view, notes)
    if as_json:
        print(json.dumps(as_data(found), ensure_ascii=False))
    else:
        _print(found)
    if html is not None:
        write_page(found, str(data), html)
        say(f"page: {visible(str(html))}")
    if out is not None:
        fixed = fix(question, out)
        changes = ", ".join(f"{count} {code}" for code, count in fixed.changes.items())
        say(f"{fixed.written} pairs in {out}; {changes or 'no changes'}; ledger: {fixed.ledger}")
    if found.has_errors:
        return 65
    pass_gates(limits, found)
    return 0


def _print(found: Examination) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(visible(found.form.told), soft_wrap=True, style="dim")
    for line in (*statistics_lines(found.statistics), *reference_lines(found)):
        console.print(visible(line), soft_wrap=True)
    print_summary(found.summary)
