"""What a command prints about data: a table of what was found, then the places, one a line."""

import unicodedata

from rich.console import Console
from rich.table import Table

from likelier.data.check import Summary
from likelier.data.records import Finding
from likelier.data.rules import why

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_summary(summary: Summary) -> None:
    """Print a table of the kinds of findings, then the first places of each."""
    console = Console(highlight=False, markup=False, emoji=False)
    if summary.kinds:
        table = Table("code", "severity", "count", "why it matters", title_justify="left")
        table.columns[2].justify = "right"
        for kind in summary.kinds:
            table.add_row(visible(kind.code), kind.severity, str(kind.count), why(kind.code))
        console.print(table)
    for kind in summary.kinds:
        for number, place in enumerate(kind.places):
            _print_place(console, place)
            following = kind.places[number + 1 : number + 2]
            if place.mend and all(other.mend != place.mend for other in following):
                console.print(visible(f"  {place.mend}"), style="dim", soft_wrap=True)
        hidden = kind.count - len(kind.places)
        if hidden:
            console.print(f"  and {hidden} more {visible(kind.code)}", soft_wrap=True)
    console.print(f"{summary.usable} of {summary.rows} rows can be used")


def _print_place(console: Console, place: Finding) -> None:
    # Not wrapped: a place must stay one piece, for editors and grep.
    colour = _COLOURS[place.severity]
    console.print(place.severity, style=colour, end=" ", soft_wrap=True)
    console.print(visible(f"{place.where}: {place.message}"), soft_wrap=True)


def visible(text: str) -> str:
    """Text with control and reordering characters as escapes: data must not drive a terminal."""
    return "".join(
        letter
        if not unicodedata.category(letter).startswith("C") or letter == "\u200d"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )
