"""Numbers as people read them: percentages, intervals, durations, and text that hides nothing."""

import math
import unicodedata
from typing import Any

from markupsafe import Markup

from likelier.evaluation import intervals
from likelier.report.read import Share

# Marks that reorder the text around them: shown as numbers, so that no name can pose as another.
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def wilson(value: float, n: int) -> Share:
    """The share ``value`` of ``n`` cases with Wilson's 95% interval."""
    return Share(value, *intervals.wilson(value, n), n)


def difference(before: Share, after: Share) -> tuple[float, float, float]:
    """``after - before`` and its 95% interval, for two shares measured on separate samples.

    Newcombe's hybrid: each side of the interval joins the two distances that matter for it.
    """
    change = after.value - before.value
    low = math.hypot(after.value - after.low, before.high - before.value)
    high = math.hypot(after.high - after.value, before.value - before.low)
    return change, change - low, change + high


def percent(value: float) -> str:
    """0.975 as ``97.5%`` and 0.5 as ``50%``; never rounded up to 100% or down to 0%."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def interval(share: Share) -> str:
    """``44 to 58%, n = 200``."""
    low, high = percent(share.low).removesuffix("%"), percent(share.high)
    return f"{low} to {high}, n = {share.n:,}"


def points(value: float) -> str:
    """A difference of two shares in percentage points, signed: ``+46.5``."""
    return signed(round(100 * value, 1)).removesuffix(".0")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and a true minus sign: ``−3.1``."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def short(value: float) -> str:
    """A number in four significant digits (three far from 1), without needless zeros."""
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    elif 1e-3 <= abs(value) < 1e4:
        text = f"{value:,.4g}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """``8.4 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def language(text: str) -> str:
    """The ``lang`` of a text by its script, so that a browser picks the right glyphs."""
    names = {unicodedata.name(letter, "").split(" ")[0] for letter in text}
    if "HANGUL" in names:
        return "ko"
    if names & {"HIRAGANA", "KATAKANA"}:
        return "ja"
    return "zh" if "CJK" in names else ""


def visible(value: Any) -> Any:
    """Text with every control and reordering mark written out, so that nothing hides in it.

    Also what makes any text fit for a UTF-8 page: lone surrogates are written out too.
    """
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in value)


def _hidden(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return ord(letter) in _REORDERING or unicodedata.category(letter) in ("Cc", "Cs")
