"""What a person sees in a terminal: a line, a progress bar, styled text."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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
from rich.segment import Segment
from rich.text import Text

from likelier.base.foreign import HarmlessStream, harmless, harmless_streams

PLAIN_LINES = 20  # that stand for a whole bar where there is no terminal


_speaks = True


def be_silent() -> None:
    """Print nothing from here on, nor warnings: another process of the same run speaks."""
    global _speaks
    _speaks = False
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def say(line: str) -> None:
    """Print one line for the person who waits, to stderr, so that results can be piped."""
    if _speaks:
        print(harmless(line), file=sys.stderr, flush=True)


class _Console(Console):
    """A console whose own styles and movements reach the terminal, and none of the text's."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        for part in super().render(*args, **kwargs):
            yield part if part.control else Segment(harmless(part.text, keep="\n"), part.style)


def console(stderr: bool = False) -> Console:
    """Where styled text is printed: all of it as it is, no markup in it, foreign text harmless."""
    stream = sys.stderr if stderr else sys.stdout
    behind = stream.behind if isinstance(stream, HarmlessStream) else stream
    return _Console(file=behind, highlight=False, markup=False, emoji=False)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show how many of ``total`` steps are done, of which ``done`` were done before this process.

    Yields ``advance(steps, text)``, to call with the steps just done and a text for under the bar.
    """
    terminal = console(stderr=True)
    if not (terminal.is_terminal and _speaks) or total == 0:
        yield _plain_lines(label, total, done)
        return
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=terminal,
        expand=True,
    )
    below = Text()
    # Lines printed meanwhile go through the display, which would read colours out of them.
    with Live(Group(progress, below), console=terminal), harmless_streams():
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
    terminal = console(stderr=True)
    if not (terminal.is_terminal and _speaks):
        yield lambda rows: None
        return
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:.0f} rows"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=terminal,
        transient=True,
    )
    with bars as shown, harmless_streams():
        task = shown.add_task(f"{label} {name}", total=None, speed="")

        def advance(rows: int) -> None:
            shown.update(task, advance=rows)
            current = shown.tasks[0]
            if current.elapsed:
                shown.update(task, speed=f"{current.completed / current.elapsed:.0f} a second")

        yield advance
