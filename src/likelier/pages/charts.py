"""Curves over steps: what a page needs to draw them, the same as a table, the same in words.

Only this module, and charts.html, charts.css and charts.js beside it, know the chart library.
"""

import base64
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from likelier.pages import template_text
from likelier.pages.texts import short, text

MAX_POINTS = 1000  # of one line; beyond it each point is the mean of neighbouring steps
MAX_TABLE_ROWS = 12
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
    "margin": {"mode": "lines", "line": {"color": "#8a8f98", "width": 1.5, "dash": "dot"}},
    "plain": {"mode": "lines", "line": {"color": "#2f7fc1", "width": 1.5}},
}
SCALES: dict[str, dict[str, Any]] = {
    "any": {},
    "share": {"range": [-0.02, 1.02], "tickformat": ".0%"},
    "from zero": {"rangemode": "tozero"},
    "small": {"rangemode": "tozero", "exponentformat": "e"},
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    ``style`` is a key of LINE_STYLES; ``low`` and ``high`` are the ends of an interval at each
    point, or empty.
    """

    name: str
    style: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    ``reading`` says how to read the curves and ``alt`` what they show; ``header`` and ``rows``
    repeat it as a table; ``figure`` is what the chart library draws from, as plain data.
    """

    id: str
    title: str
    reading: str
    alt: str
    header: list[str]
    rows: list[list[str]]
    figure: dict[str, Any]


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
    line with a word on it.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    header, rows = as_table(lines)
    layout = _layout(y_title, SCALES[scale], legend=len(lines) > 1)
    layout["shapes"] = [_level_line(level) for level, _ in levels]
    layout["annotations"] = [_level_word(level, word) for level, word in levels]
    figure = {"data": [_trace(line) for line in lines], "layout": layout}
    return Chart(id, title, reading, _in_words(lines), header, rows, figure)


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
    """At most MAX_POINTS points: means over runs of neighbouring steps, each at its last step."""
    width = -(-len(line.x) // MAX_POINTS)
    if width <= 1:
        return line
    cuts = range(0, len(line.x), width)
    return Series(
        text("charts.means", name=line.name, n=width),
        line.style,
        tuple(line.x[min(i + width, len(line.x)) - 1] for i in cuts),
        tuple(sum(line.y[i : i + width]) / len(line.y[i : i + width]) for i in cuts),
    )


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


def _spread(items: tuple[float, ...], most: int) -> tuple[float, ...]:
    if len(items) <= most:
        return items
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
    axis = {"zeroline": False, "ticklabelstandoff": 6, "automargin": True}
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


def _level_line(level: float) -> dict[str, Any]:
    line = {"width": 1, "dash": "dot", "color": "#8a8f98"}
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}
    return {"type": "line", **ends, "layer": "below", "line": line}


def _level_word(level: float, word: str) -> dict[str, Any]:
    place = {"xref": "paper", "x": 1, "xanchor": "right", "y": level, "yanchor": "bottom"}
    return {**place, "text": word, "showarrow": False}


def _trace(line: Series) -> dict[str, Any]:
    style = LINE_STYLES[line.style]
    colour = style["line"]["color"]
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": line.name,
        "x": list(line.x),
        "y": list(line.y),
        "mode": "lines+markers" if len(line.x) == 1 else style["mode"],  # a point draws no line
        "line": style["line"],
        "marker": {"size": 6, "color": colour},
        "hovertemplate": "%{y:.4~g}",
    }
    if line.high:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - y for y, high in zip(line.y, line.high, strict=True)],
            "arrayminus": [y - low for y, low in zip(line.y, line.low, strict=True)],
            "thickness": 1,
            "width": 3,
            "color": colour,
        }
    return trace
