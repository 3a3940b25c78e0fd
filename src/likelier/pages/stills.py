"""Charts that do not move: bars over values, and points with intervals on a square of shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likelier.pages.charts import SIDE, AxisSpan, axis_ticks, place_in_span, tick_word
from likelier.pages.texts import short, text

MAX_BARS = 30  # of a histogram, at most
TAIL = 0.005  # of the values at either end, which the outermost bars hold
BETWEEN_BARS = 0.12  # of a bin's width, left free between bars


@dataclass(frozen=True)
class Still:
    """What the macro ``still`` of charts.html writes; all places are shares of the square's side.

    ``keys`` are names with their classes; ``shapes`` are classes with paths. ``header`` and
    ``rows`` are the same as a table, and ``alt`` in words.
    """

    id: str
    title: str
    reading: str
    alt: str
    x_title: str
    y_title: str
    keys: list[tuple[str, str]]
    shapes: list[tuple[str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    header: list[str]
    rows: list[list[str]]


def draw_histogram(
    words: Mapping[str, Any], x_title: str, values: Mapping[tuple[str, str], np.ndarray]
) -> Still:
    """Bars side by side for each ``(class, name)``, over bins of a round width around 0.

    ``words`` are id, title and reading. The outermost bins also hold what lies beyond them.
    """
    every = np.concatenate(list(values.values()))
    low, high = (float(end) for end in np.quantile(every, (TAIL, 1 - TAIL)))
    low, high = min(low, 0.0), max(high, 0.0)
    width = _round_width((high - low) / MAX_BARS or 1.0)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + (low == high) + 1)
    inside = np.nextafter(edges[-1], edges[0])  # a value on the last edge belongs to the last bin
    counts = {
        key: np.histogram(np.clip(found, edges[0], inside), edges)[0]
        for key, found in values.items()
    }
    most = max(int(found.max()) for found in counts.values())
    x_span, y_span = (float(edges[0]), float(edges[-1])), (0.0, 1.05 * most)
    share = (1 - BETWEEN_BARS) / len(values)
    shapes = [
        (f"bar {style}", _bars(found, edges, width * (BETWEEN_BARS / 2 + at * share), width * share,
                               x_span, y_span))
        for at, ((style, _), found) in enumerate(counts.items())
    ]  # fmt: skip
    zero = SIDE * place_in_span(x_span, 0.0)
    rows = [
        [tick_word(float(edge), width), *(f"{found[at]:,}" for found in counts.values())]
        for at, edge in enumerate(edges[:-1])
    ]
    alt = "; ".join(_spread_in_words(name, found) for (_, name), found in values.items())
    return Still(
        **words,
        alt=alt,
        x_title=x_title,
        y_title=text("charts.pairs"),
        keys=list(values),
        shapes=[*shapes, ("rule", f"M{zero:.1f} 0V{SIDE}")],
        x_ticks=[(place_in_span(x_span, at), word) for at, word in axis_ticks(x_span)],
        y_ticks=[(place_in_span(y_span, at), word) for at, word in axis_ticks(y_span, 1)],
        header=[text("charts.at_least"), *(name for _, name in values)],
        rows=rows,
    )


def _spread_in_words(name: str, values: np.ndarray) -> str:
    low, median, high = map(short, np.quantile(values, (0.05, 0.5, 0.95)).tolist())
    return text("charts.spread", name=name, n=len(values), median=median, low=low, high=high)


def _round_width(least: float) -> float:
    powers = (10.0**power for power in range(-12, 13))
    return next(n * power for power in powers for n in (1, 2, 5) if n * power >= least * (1 - 1e-9))


def _bars(
    counts: np.ndarray, edges: np.ndarray, left: float, width: float, x: AxisSpan, y: AxisSpan
) -> str:
    """Bars as one path; ``left`` is how far behind its edge each begins."""
    wide = SIDE * width / (x[1] - x[0])
    return "".join(
        f"M{SIDE * place_in_span(x, edge + left):.1f} {SIDE}"
        f"v{-SIDE * place_in_span(y, count):.1f}h{wide:.1f}V{SIDE}z"
        for edge, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True)
        if count
    )


def draw_shares(
    words: Mapping[str, Any],
    titles: tuple[str, str],
    points: Sequence[tuple[float, float, float, float, int]],
) -> Still:
    """Points (x, y, low, high, n), all shares but the count, over the diagonal where x is y.

    ``titles`` are those of the axes. The square is drawn from 0.5 in x, where chances begin.
    """
    x_span, y_span = (0.5, 1.0), (-0.02, 1.02)
    places = [
        (
            SIDE * place_in_span(x_span, x),
            *(SIDE * (1 - place_in_span(y_span, one)) for one in (y, low, high)),
        )
        for x, y, low, high, _ in points
    ]
    shapes = [
        ("rule", f"M0 {SIDE * (1 - place_in_span(y_span, 0.5)):.1f}"
                 f"L{SIDE} {SIDE * (1 - place_in_span(y_span, 1.0)):.1f}"),
        ("reach plain", "".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for x, _, low, high in places)),
        ("dots plain", "".join(f"M{x:.1f} {y:.1f}h0" for x, y, *_ in places)),
    ]  # fmt: skip
    cells = [[f"{x:.1%}", f"{y:.1%} ({low:.1%}, {high:.1%})", f"{n:,}"]
             for x, y, low, high, n in points]  # fmt: skip
    header = [*titles, text("charts.pairs")]
    return Still(
        **words,
        alt="; ".join(f"{row[0]}: {row[1]}" for row in cells),
        x_title=titles[0],
        y_title=titles[1],
        keys=[("plain", text("charts.measured")), ("level", text("charts.calibrated"))],
        shapes=shapes,
        x_ticks=[(2 * (at - 0.5), f"{at:.0%}") for at in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)],
        y_ticks=[(place_in_span(y_span, at), f"{at:.0%}") for at in (0, 0.25, 0.5, 0.75, 1)],
        header=header,
        rows=cells,
    )
