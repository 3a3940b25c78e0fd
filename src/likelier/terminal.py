"""What a command prints about data: a table of what was found, then the places, one a line."""

import json
import unicodedata
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from likelier.data.check import Summary
from likelier.data.records import Finding

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_summary(summary: Summary, *, as_json: bool) -> None:
    """Print what ``likelier check`` found, as one JSON object or for people."""
    if as_json:
        print(json.dumps(asdict(summary), ensure_ascii=False))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if summary.kinds:
        table = Table("code", "severity", "count", title_justify="left")
        table.columns[2].justify = "right"
        for kind in summary.kinds:
            table.add_row(visible(kind.code), kind.severity, str(kind.count))
        console.print(table)
    for place in summary.places:
        _print_place(console, place)
    hidden = sum(kind.count for kind in summary.kinds) - len(summary.places)
    if hidden:
        console.print(f"and {hidden} more")
    console.print(f"{summary.usable} of {summary.rows} rows can be used")


def _print_place(console: Console, place: Finding) -> None:
    # Not wrapped: a place must stay one piece, for editors and grep.
    colour = _COLOURS[place.severity]
    console.print(place.severity, style=colour, end=" ", soft_wrap=True)
    console.print(visible(f"{place.where}: {place.message}"), soft_wrap=True)
    console.print(visible(f"  {place.mend}"), style="dim", soft_wrap=True)


def visible(text: str) -> str:
    """Text with control and reordering characters as escapes: data must not drive a terminal."""
    return "".join(
        letter
        if not unicodedata.category(letter).startswith("C") or letter == "\u200d"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )
