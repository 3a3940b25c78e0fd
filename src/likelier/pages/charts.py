"""Curves over steps: what a page needs to draw them, the same as a table, the same in words.

Only this module, and charts.html, charts.css and charts.js beside it, know the chart library.
"""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from likelier.pages import template_text
from likelier.pages.texts import short, text

MAX_POINTS = 1000  # of one line; beyond it each point is the mean of its neighbours
LONG = 100  # points of a line that are still read one by one; a longer line is also smoothed
SMOOTHED_SHARE = 0.02  # of a long line's points, in each mean
MAX_MARKED = 40  # points of a line with a marker, and an interval, of their own
MAX_TABLE_ROWS = 12
T = TypeVar("T")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"  # the page's own
# plotly adds a style element for maps when it starts, unless one with this id is there. The
# page forbids added styles, so it brings an empty element of that id (it changes by version).
STYLE_GUARD = re.compile(r'getElementById\("([0-9a-f]{64})"\)')
HARMLESS = str.maketrans("&<>", ",./")
# Mid-tones of a colour-blind-safe set, 3:1 or more on the light and the dark page; the dashes
# keep the lines apart in black and white.
LINE_STYLES: dict[str, dict[str, Any]] = {
    "train": {"mode": "lines", "line": {"color": "#8a8f98", "width": 1.5}},
    "held-out": {"mode": "lines+markers", "line": {"color": "#2f7fc1", "width": 2.5}},
    "chosen": {"mode": "lines", "line": {"color": "#2f7fc1", "width": 2}},
    "rejected": {"mode": "lines", "line": {"color": "#d0661b", "width": 2, "dash": "dash"}},
    "margin": {"mode": "lines", "line": {"color": "#8a8f98", "width": 1.5, "dash": "dashdot"}},
    "plain": {"mode": "lines", "line": {"color": "#2f7fc1", "width": 1.5}},
}
# Of runs over each other: eight colours of that kind, and dashes for eight more.
_OF_RUNS = ("#2f7fc1", "#d0661b", "#27926a", "#b3589b", "#8a7a1e", "#c2504a", "#7a6fc4", "#8a8f98")
LINE_STYLES |= {
    f"run{at}": {
        "mode": "lines+markers",
        "line": {"color": _OF_RUNS[at % 8], "width": 2, "dash": ("solid", "dash")[at // 8]},
    }
    for at in range(16)
}
SCALES: dict[str, dict[str, Any]] = {
    "any": {},
    "share": {"range": [-0.02, 1.02], "tickformat": ".0%"},
    "from zero": {"rangemode": "tozero"},
}
# Left to itself plotly writes 0.0001 as 100µ and 10000 as 10k.
TICKS = {"exponentformat": "e", "minexponent": 5, "separatethousands": True}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    ``style`` is a key of LINE_STYLES; ``low`` and ``high`` are the ends of an interval at each
    point, or empty. A ``faint`` line stands behind the means of its own points.
    """

    name: str
    style: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    ``reading`` says how to read the curves and ``alt`` what they show; ``header`` and ``rows``
    repeat it as a table; ``figure`` is what the chart library draws from, as plain data, and
    ``smoothed`` whether a line of it is.
    """

    id: str
    title: str
    reading: str
    alt: str
    header: list[str]
    rows: list[list[str]]
    figure: dict[str, Any]
    smoothed: bool


def draw_chart(
    id: str,
    title: str,
    reading: str,
    lines: list[Series],
    y_title: str,
    scale: str = "any",
    levels: Sequence[tuple[float, str]] = (),
) -> Chart | None:
    """A chart of the lines that have points, None where none has.

    ``scale`` is a key of SCALES; ``levels`` are values worth knowing, each a dotted horizontal
    line. What it stands for is said in the legend, where no curve can run through the words.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    header, rows = as_table(lines)
    bold = [line for line in lines if not line.faint]
    layout = _layout(y_title, SCALES[scale], legend=len(bold) + len(levels) > 1)
    layout["shapes"] = [_level_line(level, word) for level, word in levels]
    figure = {"data": [_trace(line) for line in lines], "layout": layout}
    smooth = len(bold) < len(lines)
    return Chart(id, title, reading, _in_words(bold), header, rows, figure, smooth)


def page_scripts(charts: list[Chart]) -> tuple[list[str], dict[str, Any]]:
    """The scripts that a page with these charts runs, and the content charts.html puts into it."""
    if not charts:
        return [], {"charts": []}
    library, packed_library, guards = _library()
    script = template_text("charts.js")
    figures = json.dumps({chart.id: chart.figure for chart in charts}, allow_nan=False)
    texts = {"library": packed_library, "figures": packed(figures), "script": script}
    written = {name: Markup(content) for name, content in texts.items()}
    return [library, script], {"charts": charts, "guards": guards, **written}


@cache
def _library() -> tuple[str, str, list[str]]:
    """The chart library as it runs, as it stands in the page, and the ids of its styles."""
    source = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    return source, packed(source), STYLE_GUARD.findall(source)


def packed(content: str) -> str:
    """A text compressed, in 85 letters that can stand in a script element; charts.js unpacks it.

    Base 85, a sixteenth shorter than base 64, with other letters for the three that HTML reads.
    """
    return base64.b85encode(zlib.compress(content.encode(), 9)).decode().translate(HARMLESS)


def thinned(line: Series) -> Series:
    """At most MAX_POINTS points: means over runs of neighbours, each at the last of them."""
    width = -(-len(line.x) // MAX_POINTS)
    if width <= 1:
        return line
    cuts = range(0, len(line.x), width)
    return replace(
        line,
        name=text("charts.means", name=line.name, n=width),
        x=tuple(line.x[min(i + width, len(line.x)) - 1] for i in cuts),
        y=tuple(_mean(line.y[i : i + width]) for i in cuts),
    )


def with_means(line: Series) -> list[Series]:
    """A long line as it is, but faint, and in front of it means of the points around each.

    A mean is over SMOOTHED_SHARE of the points; near an end of the line over fewer, as many on
    either side, so that a fall at the start is not flattened. A line of at most LONG points stays
    alone.
    """
    count = len(line.x)
    if count <= LONG:
        return [line]
    reach = max(1, round(count * SMOOTHED_SHARE / 2))
    kept = _spread(range(count), MAX_POINTS // 4)  # enough for the form of a smooth line
    near = [min(reach, i, count - 1 - i) for i in kept]
    means = replace(
        line,
        name=text("charts.smoothed", name=line.name, n=2 * reach + 1),
        x=tuple(line.x[i] for i in kept),
        y=tuple(_mean(line.y[i - n : i + n + 1]) for i, n in zip(kept, near, strict=True)),
    )
    return [replace(thinned(line), faint=True), means]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_table(lines: list[Series]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the same numbers, MAX_TABLE_ROWS of them and the ends of each line."""
    values = [dict(zip(line.x, _cells(line), strict=True)) for line in lines]
    # Steps where the rarest line has a value say most: held-out points stand beside training's.
    rarest = min((line.x for line in lines), key=len)
    ends = {x for line in lines for x in (line.x[0], line.x[-1])}
    steps = sorted(set(_spread(rarest, MAX_TABLE_ROWS)) | ends)
    body = [[f"{x:,.0f}", *(found.get(x, "") for found in values)] for x in steps]
    return [text("charts.step"), *(line.name for line in lines)], body


def _cells(line: Series) -> list[str]:
    """The values as a table shows them, with their intervals where there are any."""
    if not line.high:
        return [short(y) for y in line.y]
    ends = zip(line.y, line.low, line.high, strict=True)
    return [text("charts.with_interval", value=short(y), low=a, high=b) for y, a, b in ends]


def _spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(i * (len(items) - 1) / (most - 1))] for i in range(most))


def _in_words(lines: list[Series]) -> str:
    """The chart in one sentence, for those who cannot see it."""
    return "; ".join(_line_in_words(line) for line in lines) + "."


def _line_in_words(line: Series) -> str:
    first, last = short(line.y[0]), short(line.y[-1])
    if len(line.x) == 1:
        return text("charts.point", name=line.name, value=first, step=line.x[0])
    steps = {"first_step": line.x[0], "last_step": line.x[-1]}
    return text("charts.first_and_last", name=line.name, first=first, last=last, **steps)


def _layout(y_title: str, scale: dict[str, Any], legend: bool) -> dict[str, Any]:
    """How the figure is laid out. Colours of text and grid come from the style sheet."""
    axis = {"zeroline": False, "ticklabelstandoff": 6, "automargin": True, **TICKS}
    letters = {"font": {"size": 12}}
    x_title = {"text": text("charts.step"), **letters}
    return {
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "margin": {"l": 56, "r": 12, "t": 34, "b": 40},
        "hovermode": "x unified",
        "dragmode": False,
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"},
        "xaxis": {"title": x_title, "rangemode": "tozero", **axis},
        "yaxis": {"title": {"text": y_title, "standoff": 10, **letters}, **axis, **scale},
    }


def _level_line(level: float, word: str) -> dict[str, Any]:
    line = {"width": 1, "dash": "dot", "color": "#8a8f98"}
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}
    legend = {"name": word, "showlegend": True}
    return {"type": "line", **ends, **legend, "layer": "below", "line": line}


def _trace(line: Series) -> dict[str, Any]:
    style = LINE_STYLES[line.style]
    colour, mode = style["line"]["color"], style["mode"]
    if len(line.x) == 1:
        mode = "lines+markers"  # a point draws no line
    elif len(line.x) > MAX_MARKED:
        mode = "lines"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": line.name,
        "x": list(line.x),
        "y": [float(f"{y:.6g}") for y in line.y],  # more digits than anyone sees weigh much
        "mode": mode,
        "line": style["line"],
        "marker": {"size": 6, "color": colour},
        "hovertemplate": "%{y:.4~g}",
    }
    if line.faint:
        thin = {"color": colour, "width": 1}  # no dashes: they would not be seen
        trace |= {"line": thin, "opacity": 0.35, "showlegend": False}
    if line.high:
        marked = set(_spread(line.x, MAX_MARKED))
        ends = list(zip(line.x, line.y, line.low, line.high, strict=True))
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - y if x in marked else None for x, y, _, high in ends],
            "arrayminus": [y - low if x in marked else None for x, y, low, _ in ends],
            "thickness": 1,
            "width": 3,
            "color": colour,
        }
    return trace
