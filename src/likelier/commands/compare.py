"""`likelier compare`: runs beside each other in the terminal, as JSON and as a page."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from likelier.base.files import must_be_apart, write_text
from likelier.base.foreign import visible
from likelier.base.terminal import console, say
from likelier.evaluation.held_out import Figure
from likelier.pages.texts import choose_language, in_language, text
from likelier.report.compare import COMPARED_FIGURES, Comparison, Difference, compare_runs
from likelier.report.compare_page import (
    render_comparison,
    write_change,
    write_figure,
    write_steps,
    write_title,
)


def show_comparison(
    runs: Sequence[Path],
    html: Path | None = None,
    as_json: bool = False,
    lang: str | None = None,
) -> None:
    """Compare runs by their folders and print what is found, in the language that `choose_language`
    finds; ``html`` is a page to write, too.

    Raises InputMissing where one is no run folder, ConfigError for fewer than two, and OutputError
    where the page cannot be written.
    """
    if html is not None:
        must_be_apart(html, f"--html {html}", runs)
    with in_language(choose_language(lang)):
        found = compare_runs(runs)
        if html is not None:
            write_text(html, render_comparison(found))
        if as_json:
            print(json.dumps(comparison_as_data(found), ensure_ascii=False, indent=2))
        else:
            print_comparison(found)
    if html is not None:
        say(f"page: {html}")


def print_comparison(found: Comparison) -> None:
    """Print what was found: what differs, every figure of every run and how far it is from that of
    the first one, and the best.
    """
    terminal, first = console(), found.runs[0].name
    notes = [f"{one.name}: {one.note}" for one in found.differences if one.note]
    for line in (*found.facts, *notes):
        terminal.print(visible(line), soft_wrap=True)
    if found.settings:
        settings = Table(box=None, pad_edge=False)
        for head in (text("compare.columns.key"), *(run.name for run in found.runs)):
            settings.add_column(visible(head), overflow="fold")
        for key, values in found.settings:
            settings.add_row(*map(visible, (key, *values)))
        terminal.print()
        terminal.print(settings)
    table = Table(box=None, pad_edge=False)
    heads = (text("compare.columns.run"), "", text("compare.columns.against", first=first))
    for head in heads:
        table.add_column(visible(head), overflow="fold")
    for run in found.runs:
        over = next((_over(one) for one in found.differences if one.name == run.name), "")
        table.add_row(visible(run.name), write_steps(run), over)
    changes = {one.name: one.figures for one in found.differences}
    for name in (one for one in COMPARED_FIGURES if any(one in run.figures for run in found.runs)):
        table.add_row("")
        table.add_row(write_title(name))
        for run in found.runs:
            change = changes.get(run.name, {}).get(name)
            said = "" if change is None else write_change(name, change)
            table.add_row(f"  {visible(run.name)}", write_figure(name, run.figures.get(name)), said)
    terminal.print()
    terminal.print(table)
    terminal.print()
    terminal.print(visible(found.verdict), soft_wrap=True)


def _over(one: Difference) -> str:
    return text("compare.over", pairs=one.pairs, prompts=one.prompts) if one.pairs else ""


def comparison_as_data(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON can hold it; what is not known is null."""
    return {
        "runs": [
            {
                "name": run.name,
                "path": str(run.files.path),
                "status": run.status,
                "evaluated_after_step": run.evaluated,
                "figures": _as_data(run.figures),
            }
            for run in found.runs
        ],
        "config": {key: list(values) for key, values in found.settings},
        "facts": list(found.facts),
        "differences": [
            {
                "run": one.name,
                "against": found.runs[0].name,
                "pairs": one.pairs,
                "prompts": one.prompts,
                "note": one.note or None,
                "figures": _as_data(one.figures),
            }
            for one in found.differences
        ],
        "best": found.best,
        "tied": list(found.tied),
        "verdict": found.verdict,
    }


def _as_data(figures: dict[str, Figure]) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            end: value if math.isfinite(value) else None
            for end, value in (("mean", found.mean), ("low", found.low), ("high", found.high))
        }
        for name, found in figures.items()
    }
