"""`likelier check`: examine, print, write what is asked for, and say how it ended."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from likelier.base.terminal import say, visible
from likelier.checks.examine import Examination, Question, examine, name_of
from likelier.checks.fix import fix
from likelier.checks.gates import pass_gates, read_gate
from likelier.checks.page import write_page
from likelier.checks.words import as_data, print_summary, reference_lines, statistics_lines


def check(
    question: Question,
    gates: Sequence[str],
    out: Path | None,
    html: Path | None,
    as_json: bool,
) -> int:
    """Examine data and print what was found; the exit code: 0, or 65 where there are errors.

    Raises GateMissed where a gate is missed and no row is in error, and what `examine` and `fix`
    raise.
    """
    limits = [read_gate(gate) for gate in gates]
    found = examine(question)
    if question.score:
        from likelier.checks.reference import view_reference  # loads weights

        view, notes = view_reference(question, found.summary.rows)
        found = found.joined(view, notes)
    if as_json:
        print(json.dumps(as_data(found), ensure_ascii=False))
    else:
        _print(found)
    if html is not None:
        write_page(found, name_of(question.data), html)
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
