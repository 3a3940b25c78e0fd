"""What a person sees in a terminal: a line, a progress bar, foreign text made harmless."""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_LINES = 20  # that stand for a whole bar where there is no terminal


def say(line: str) -> None:
    """Print one line for the person who waits, to stderr, so that results can be piped."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show how many of ``total`` steps are done, of which ``done`` were done before this process.

    Yields ``advance(steps, text)``, to call with the steps just done and a text for under the bar.
    """
    console = Console(stderr=True)
    if not console.is_terminal or total == 0:
        yield _plain_lines(label, total, done)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )
    below = Text()
    with Live(Group(progress, below), console=console):
        task = progress.add_task(label, total=total, completed=done)

        def advance(steps: int, text: str = "") -> None:
            below.plain = text
            progress.update(task, advance=steps)

        yield advance


def _plain_lines(label: str, total: int, done: int) -> Callable[[int, str], None]:
    def advance(steps: int, text: str = "") -> None:
        nonlocal done
        before, done = done, done + steps
        if before * PLAIN_LINES // total != done * PLAIN_LINES // total or done == total:
            say(f"{label} {done}/{total}{'  ' + text if text else ''}")

    return advance


@contextmanager
def counting(label: str, name: str) -> Iterator[Callable[[int], None]]:
    """Show how many rows are done of an unknown number. Yields ``advance(rows)``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows: None
        return
    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.completed:.0f} rows"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as shown:
        task = shown.add_task(f"{label} {name}", total=None, speed="")

        def advance(rows: int) -> None:
            shown.update(task, advance=rows)
            current = shown.tasks[0]
            if current.elapsed:
                shown.update(task, speed=f"{current.completed / current.elapsed:.0f} a second")

        yield advance


def visible(text: str) -> str:
    """The text, control and reordering characters escaped: data must not drive a terminal."""
    return "".join(
        letter
        if not unicodedata.category(letter).startswith("C") or letter == "\u200d"
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )
