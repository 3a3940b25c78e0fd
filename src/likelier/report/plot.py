"""A curve as the page draws it: a plotly figure, the same as a table, the same in words."""

from dataclasses import dataclass
from typing import Any

from likelier.report.read import Row
from likelier.report.words import short

MOST_POINTS = 1000  # of one line; beyond it each point is the mean of neighbouring steps
MOST_TABLE_ROWS = 12
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"  # the page's own


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    ``style`` names its look (the style sheet and LOOKS agree on it); ``low`` and ``high`` are
    the ends of an interval at each point, or empty.
    """

    name: str
    style: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


# Mid-tones of a colour-blind-safe set, 3:1 or more on the light and the dark page; the dashes
# keep the lines apart in black and white.
LOOKS: dict[str, dict[str, Any]] = {
    "train": {"mode": "lines", "line": {"color": "#8a8f98", "width": 1.5}},
    "held-out": {"mode": "lines+markers", "line": {"color": "#2f7fc1", "width": 2.5}},
    "chosen": {"mode": "lines", "line": {"color": "#2f7fc1", "width": 2}},
    "rejected": {"mode": "lines", "line": {"color": "#d0661b", "width": 2, "dash": "dash"}},
    "margin": {"mode": "lines", "line": {"color": "#8a8f98", "width": 1.5, "dash": "dot"}},
    "plain": {"mode": "lines", "line": {"color": "#2f7fc1", "width": 1.5}},
}


def series(name: str, style: str, rows: tuple[Row, ...], key: str) -> Series:
    """The values of ``key`` by step, from the rows that have it."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    return thinned(Series(name, style, tuple(x for x, _ in points), tuple(y for _, y in points)))


def thinned(line: Series) -> Series:
    """At most MOST_POINTS points: means over runs of neighbouring steps, each at its last step."""
    width = -(-len(line.x) // MOST_POINTS)
    if width <= 1:
        return line
    cuts = range(0, len(line.x), width)
    return Series(
        f"{line.name}, means of {width} steps",
        line.style,
        tuple(line.x[min(i + width, len(line.x)) - 1] for i in cuts),
        tuple(sum(line.y[i : i + width]) / len(line.y[i : i + width]) for i in cuts),
    )


def figure(lines: list[Series], y_title: str, **y_axis: Any) -> dict[str, Any]:
    """A plotly figure of lines over steps. Colours of text and grid come from the style sheet."""
    axis = {"zeroline": False, "ticklabelstandoff": 6, "automargin": True}
    return {
        "data": [_trace(line) for line in lines],
        "layout": {
            "autosize": True,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12},
            "margin": {"l": 56, "r": 12, "t": 34, "b": 40},
            "hovermode": "x unified",
            "dragmode": False,
            "showlegend": len(lines) > 1,
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"},
            "xaxis": {
                "title": {"text": "step", "font": {"size": 12}},
                "rangemode": "tozero",
                **axis,
            },
            "yaxis": {"title": {"text": y_title, "font": {"size": 12}}, **axis, **y_axis},
            "shapes": [],
            "annotations": [],
        },
    }


def add_level(fig: dict[str, Any], level: float, text: str) -> None:
    """A dotted horizontal line with a word on it: a value worth knowing."""
    layout = fig["layout"]
    layout["shapes"].append(
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": level,
            "y1": level,
            "layer": "below",
            "line": {"width": 1, "dash": "dot", "color": "#8a8f98"},
        }
    )
    layout["annotations"].append(
        {
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": level,
            "yanchor": "bottom",
            "text": text,
            "showarrow": False,
        }
    )


def table(lines: list[Series]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the same numbers, thinned to a page's worth, the ends always kept."""
    values = [dict(zip(line.x, _cells(line), strict=True)) for line in lines]
    # Steps where the rarest line has a value say most: held-out points stand beside training's.
    rarest = min((line.x for line in lines if line.x), key=len, default=())
    ends = {x for line in lines if line.x for x in (line.x[0], line.x[-1])}
    steps = sorted(set(_spread(rarest, MOST_TABLE_ROWS)) | ends)
    body = [[f"{x:,.0f}", *(found.get(x, "") for found in values)] for x in steps]
    return ["step", *(line.name for line in lines)], body


def in_words(lines: list[Series]) -> str:
    """The chart in one sentence, for those who cannot see it."""
    parts = []
    for line in lines:
        first = f"{short(line.y[0])} at step {line.x[0]:,.0f}"
        last = f", {short(line.y[-1])} at step {line.x[-1]:,.0f}" if len(line.x) > 1 else ""
        parts.append(f"{line.name}: {first}{last}")
    return "; ".join(parts) + "."


def _trace(line: Series) -> dict[str, Any]:
    look = LOOKS[line.style]
    mode = "lines+markers" if len(line.x) == 1 else look["mode"]  # one point draws no line
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": line.name,
        "x": list(line.x),
        "y": list(line.y),
        "mode": mode,
        "line": look["line"],
        "marker": {"size": 6, "color": look["line"]["color"]},
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
            "color": look["line"]["color"],
        }
    return trace


def _cells(line: Series) -> list[str]:
    """The values as a table shows them, with their intervals where there are any."""
    if not line.high:
        return [short(y) for y in line.y]
    ends = zip(line.y, line.low, line.high, strict=True)
    return [f"{short(y)} ({low:.3f} to {high:.3f})" for y, low, high in ends]


def _spread(items: tuple[float, ...], most: int) -> tuple[float, ...]:
    if len(items) <= most:
        return items
    return tuple(items[round(i * (len(items) - 1) / (most - 1))] for i in range(most))
