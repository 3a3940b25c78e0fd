"""A pair token by token in a terminal: coloured where there are colours, else as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from likelier.base.foreign import visible
from likelier.base.terminal import console
from likelier.pages.texts import text

# Letters and ground by level, so that both can be read on a dark and on a light terminal.
LIKELIER = ("", "black on #dce9f6", "black on #b4d1ec", "black on #82b3df", "white on #2a6fb0")
LESS_LIKELY = ("", "black on #fae1dc", "black on #f3bcb1", "black on #ea9384", "white on #c2402f")
WIDEST_TOKEN = 24  # columns of a table
MOST_PROMPT = 300  # characters of its end


def print_map(
    shown: Mapping[str, Any],
    row: Mapping[str, Any],
    steps: Sequence[tuple[str, str]],
    notes: Sequence[str],
    no_color: bool,
) -> None:
    """Print what `token_map` made of a pair; ``notes`` stand under its place."""
    terminal = console()
    coloured = terminal.is_terminal and not (no_color or terminal.no_color)

    def say(line: str | Text = "", style: str = "") -> None:
        terminal.print(line, style=style if coloured else "", soft_wrap=True)

    say(Text(visible(shown["source"]), "bold" if coloured else ""))
    for note in notes:
        say(visible(note), "dim")
    if prompt := row.get("prompt"):
        start = "… " if len(prompt) > MOST_PROMPT else ""
        say(start + visible(prompt[-MOST_PROMPT:], keep="\n"), "dim")
    say()
    for sentence in shown["sentences"]:
        say(visible(sentence))
    say()
    width = max(cell_len(term) for term, _ in steps)
    for term, said in steps:
        say(f"{term}{' ' * (width - cell_len(term))}  {said}")
    for side in shown["sides"]:
        say()
        key = "figures_alone" if side["reference"] is None else "figures"
        figures = text(f"explain.{key}", **_figures(side))
        say(f"{side['title']}, {side['counted']}: {figures}", "bold")
        if coloured:
            terminal.print(_painted(side["tokens"]), soft_wrap=True)
        else:
            for line in _table(side):
                say(line)
    if coloured:
        say()
        terminal.print(_legend(shown), soft_wrap=True)


def _figures(side: Mapping[str, Any]) -> dict[str, str]:
    names = ("policy", "reward") if side["reference"] is None else ("policy", "reference", "reward")
    return {name: side[name] for name in names}


def _style(one: Mapping[str, Any]) -> str:
    if not one["scored"]:
        return "dim"
    colours = LIKELIER if one["level"] > 0 else LESS_LIKELY
    return f"{'' if one['shared'] else 'bold '}{colours[abs(one['level'])]}".strip()


def _painted(tokens: Sequence[Mapping[str, Any]]) -> Text:
    line = Text()
    for one in tokens:
        if one["gap"]:
            line.append(f" {one['gap']} ", "dim")
        else:
            line.append(one["shown"], _style(one))
    return line


def _table(side: Mapping[str, Any]) -> Iterator[str]:
    """A line a token: its text, its numbers, what is to be said of it."""
    alone = side["reference"] is None
    names = ("policy", "reward") if alone else ("policy", "reference", "reward")
    tokens = [one for one in side["tokens"] if not one["gap"]]
    heads = {name: text(f"explain.{name}") for name in names}
    widths = {
        name: max(cell_len(heads[name]), *(cell_len(one[name]) for one in tokens)) for name in names
    }
    first = max(cell_len(text("explain.token")), *(cell_len(one["cell"]) for one in tokens))
    first = min(first, WIDEST_TOKEN)
    yield _line(text("explain.token"), first, [(heads[n], widths[n]) for n in names])
    for one in side["tokens"]:
        if one["gap"]:
            yield f"  {one['gap']}"
        else:
            marks = [name for name in ("end", "shared") if one[name]]
            marks = marks if one["scored"] else ["unscored"]
            said = ", ".join(text(f"explain.marks.{name}") for name in marks)
            line = _line(one["cell"], first, [(one[n], widths[n]) for n in names])
            yield f"{line}  {said}".rstrip()


def _line(cell: str, first: int, numbers: Sequence[tuple[str, int]]) -> str:
    padded = cell + " " * (first - cell_len(cell))
    right = "".join(f"  {' ' * (width - cell_len(value))}{value}" for value, width in numbers)
    return f"  {padded}{right}"


def _legend(shown: Mapping[str, Any]) -> Text:
    line = Text()
    for one in reversed(shown["legend"]):
        line.append(f" {one['below']} ", LESS_LIKELY[one["level"]])
    line.append(" 0 ")
    for one in shown["legend"]:
        line.append(f" {one['from']} ", LIKELIER[one["level"]])
    key = "legend" if shown["reads_reference"] else "legend_alone"
    line.append("\n" + text(f"explain.{key}_terminal"), "dim")
    if shown["paired"]:
        line.append(" " + text("explain.legend_bold"), "dim")
    return line
