"""Curves over steps: drawn as SVG, the same as a table, in words, and as data for their script.

A page shows them without any script. Only this module, and charts.html, charts.css and charts.js
beside it, know how: charts.js draws again what `draw_chart` drew, by the same rules, when a reader
zooms or smooths. Where both do the same, a test compares them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from markupsafe import Markup

from likelier.pages import template_text
from likelier.pages.texts import short, text

MAX_POINTS = 4000  # of one line; beyond it each point is the mean of its neighbours
MAX_DRAWN = 800  # of them, until the page's script draws all
LONG = 100  # points of a line that are still read one by one; a longer line is also smoothed
SMOOTHED_SHARE = 0.02  # of a long line's points, in each mean
MAX_MARKED = 40  # points of a line with a marker of their own
MAX_TABLE_ROWS = 12
MAX_TICKS = 5  # gaps between marks of an axis, at most
SIDE = 1000  # of the square that curves are drawn in, which a page stretches
CHART_MARGIN = 0.06  # of the values' span, above and below them
T = TypeVar("T")
AxisSpan = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    ``style`` is a class of charts.css; ``low`` and ``high`` are the ends of an interval at each
    point, or empty. A ``smooth`` line stands faint behind the means of its own points.
    """

    name: str
    style: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    smooth: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    ``reading`` says how to read the curves and ``alt`` what they show; ``header`` and ``rows``
    repeat it as a table. ``drawing`` is what charts.html writes as SVG, and ``figure`` what
    charts.js reads to draw it again.
    """

    id: str
    title: str
    reading: str
    alt: str
    header: list[str]
    rows: list[list[str]]
    y_title: str
    drawing: dict[str, Any]
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

    ``scale`` is ``any``, ``share`` (0 to 100 %) or ``from zero``; ``levels`` are values worth
    knowing, each a dotted horizontal line that the legend names.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    header, rows = as_table(lines)
    last = max(line.x[-1] for line in lines)
    x_span = (0.0, last or 1.0)
    y_span = _span([y for line in lines for y in _heights(line)], scale, [at for at, _ in levels])
    x_ticks, y_ticks = axis_ticks(x_span, 1), axis_ticks(y_span)
    if scale == "share":
        y_ticks = [(share / 4, f"{25 * share}%") for share in range(5)]
    drawing = {
        "lines": [_drawn(line, x_span, y_span) for line in lines],
        "levels": [(place_in_span(y_span, level), word) for level, word in levels],
        "x_ticks": [(at / last if last else 0.0, word) for at, word in x_ticks],
        "y_ticks": [(place_in_span(y_span, at), word) for at, word in y_ticks],
    }
    figure = {
        "scale": scale,
        "last": last,
        "lines": [_numbers(line) for line in lines],
        "levels": [level for level, _ in levels],
    }
    smooth = any(line.smooth for line in lines)
    return Chart(
        id, title, reading, _in_words(lines), header, rows, y_title, drawing, figure, smooth
    )


def page_scripts(charts: list[Chart]) -> tuple[list[str], dict[str, Any]]:
    """The scripts that a page with these charts runs, and the content charts.html puts into it."""
    if not charts:
        return [], {"charts": []}
    script = template_text("charts.js")
    figures = json.dumps({chart.id: chart.figure for chart in charts}, allow_nan=False)
    # Data of a script element end at "</script", which no escape of HTML reaches.
    written = {"figures": Markup(figures.replace("<", r"\u003c")), "script": Markup(script)}
    return [script], {"charts": charts, **written}


# ---- lines ---------------------------------------------------------------------------------------


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
    """The line, thinned, and smoothed where it is long."""
    return [replace(thinned(line), smooth=len(line.x) > LONG)]


def means_of(y: Sequence[float], share: float = SMOOTHED_SHARE) -> list[float]:
    """Means of the points around each, over a share of all of them.

    Near an end of the line they are over fewer, as many on either side, so that a fall at the
    start is not flattened.
    """
    reach = max(1, round(len(y) * share / 2))
    near = [min(reach, i, len(y) - 1 - i) for i in range(len(y))]
    return [_mean(y[i - n : i + n + 1]) for i, n in enumerate(near)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _heights(line: Series) -> Iterator[float]:
    """The values that a line's drawing reaches."""
    yield from line.y
    yield from line.low
    yield from line.high


def _numbers(line: Series) -> dict[str, Any]:
    """A line as charts.js reads it; more digits than anyone sees weigh much."""
    found: dict[str, Any] = {"x": list(line.x)}
    for name in ("y", "low", "high"):
        if values := getattr(line, name):
            found[name] = [float(f"{y:.6g}") for y in values]
    return found | ({"smooth": True} if line.smooth else {})


def _drawn(line: Series, x_span: AxisSpan, y_span: AxisSpan) -> dict[str, Any]:
    """The paths of a line by what they are: its band, the line, its means, its markers."""

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        points = zip(xs, ys, strict=True)
        return "M" + "L".join(f"{_x(x_span, x)} {_y(y_span, y)}" for x, y in points)

    xs, ys = line.x, line.y
    kept = _outline(ys)
    found = {"line": path([xs[i] for i in kept], [ys[i] for i in kept])}
    if line.high:
        around = [*zip(xs, line.high, strict=True), *zip(xs, line.low, strict=True)]
        order = [*range(len(xs)), *range(2 * len(xs) - 1, len(xs) - 1, -1)]
        found["band"] = path(*zip(*(around[i] for i in order), strict=True)) + "Z"
    if line.smooth:
        means, every = means_of(ys), _spread(range(len(ys)), MAX_DRAWN)
        found["mean"] = path([xs[i] for i in every], [means[i] for i in every])
    elif len(xs) <= MAX_MARKED:  # round ends make a dot of no length: a circle would be stretched
        dots = zip(xs, ys, strict=True)
        found["dots"] = "".join(f"M{_x(x_span, x)} {_y(y_span, y)}h0" for x, y in dots)
    return {"name": line.name, "style": line.style, "smooth": line.smooth, "paths": found}


def _outline(values: Sequence[float]) -> Sequence[int]:
    """At most MAX_DRAWN indices, the highest and the lowest value of each run: spikes stay."""
    if len(values) <= MAX_DRAWN:
        return range(len(values))
    cuts = [round(i * len(values) / (MAX_DRAWN // 2)) for i in range(MAX_DRAWN // 2 + 1)]
    runs = [range(first, last) for first, last in pairwise(cuts)]
    ends = {end(run, key=values.__getitem__) for run in runs for end in (min, max)}
    return sorted(ends | {0, len(values) - 1})


def _spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(i * (len(items) - 1) / (most - 1))] for i in range(most))


# ---- axes ----------------------------------------------------------------------------------------


def _span(values: Sequence[float], scale: str, levels: Sequence[float] = ()) -> AxisSpan:
    """From where to where an axis of values goes."""
    if scale == "share":
        return (-0.02, 1.02)
    low, high = min(*values, *levels, math.inf), max(*values, *levels, -math.inf)
    low = min(low, 0.0) if scale == "from zero" else low
    room = CHART_MARGIN * (high - low) or abs(high) / 10 or 1.0
    return (low if scale == "from zero" and low == 0 else low - room, high + room)


def place_in_span(span: AxisSpan, value: float) -> float:
    """Where a value lies in a span: 0 is its lower end and 1 its upper one."""
    return (value - span[0]) / (span[1] - span[0])


def _x(span: AxisSpan, value: float) -> str:
    return f"{SIDE * place_in_span(span, value):.1f}"


def _y(span: AxisSpan, value: float) -> str:
    return f"{SIDE * (1 - place_in_span(span, value)):.1f}"


def axis_ticks(span: AxisSpan, least: float = 0.0) -> list[tuple[float, str]]:
    """Round values that lie in a span, at least ``least`` apart, with their words."""
    raw = max((span[1] - span[0]) / MAX_TICKS, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))
    first, last = math.ceil(span[0] / step - 1e-9), math.floor(span[1] / step + 1e-9)
    return [(i * step, tick_word(i * step, step)) for i in range(first, last + 1)]


def tick_word(value: float, step: float) -> str:
    """A value at an axis whose marks lie ``step`` apart: ``0.25``, ``200,000``, ``2e−5``."""
    if abs(value) < step / 2:
        return "0"
    if step < 1e-3 or step >= 1e6:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        written = f"{float(f'{value / 10.0**power:.3f}'):g}e{power}"
    else:
        written = f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return written.replace("-", "−")


# ---- the same in words ---------------------------------------------------------------------------


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


def _in_words(lines: list[Series]) -> str:
    """The chart in one sentence, for those who cannot see it."""
    return "; ".join(_line_in_words(line) for line in lines) + "."


def _line_in_words(line: Series) -> str:
    first, last = short(line.y[0]), short(line.y[-1])
    if len(line.x) == 1:
        return text("charts.point", name=line.name, value=first, step=line.x[0])
    steps = {"first_step": line.x[0], "last_step": line.x[-1]}
    return text("charts.first_and_last", name=line.name, first=first, last=last, **steps)
