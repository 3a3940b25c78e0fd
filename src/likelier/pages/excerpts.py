"""A text as a page shows it: shortened, the bad part of it marked, its language named."""

import json
from typing import Any

from likelier.pages import script_language

BEFORE_A_MARK = 0.4  # of what is shown


def excerpt(value: Any, most: int, bad: tuple[int, int] | None = None) -> dict[str, Any]:
    """At most ``most`` characters of a text, around its ``bad`` part where that is known.

    ``value`` is a text, a chat (shown a message a line) or any other value (shown as JSON), and
    ``bad`` where the bad part begins and ends in what `plain_text` makes of it. The macro ``said``
    writes the result: ``before``, ``bad`` and ``after`` are texts, ``skipped`` and ``cut`` count
    the characters left out at either end.
    """
    whole = plain_text(value)
    first, last = bad or (0, 0)
    start = 0 if last <= most else min(max(0, first - int(most * BEFORE_A_MARK)), len(whole) - most)
    end = start + most
    shown = whole[start:end]
    first, last = (min(max(0, place - start), most) for place in (first, last))
    return {
        "before": shown[:first],
        "bad": shown[first:last],
        "after": shown[last:],
        "skipped": start,
        "cut": max(0, len(whole) - end),
        "lang": script_language(shown),
    }


def plain_text(value: Any) -> str:
    """Any value as a text: of a chat a message a line."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(_turn(turn) for turn in value)
    return as_json(value)


def as_json(value: Any) -> str:
    """Any value as JSON, what has no JSON as Python writes it."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def _turn(turn: dict[str, Any]) -> str:
    if "role" not in turn:
        return as_json(turn)
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    content = turn.get("content")
    said = content if isinstance(content, str) else as_json(content) if content else ""
    return f"{turn['role']}: {said}" + (f" {as_json(rest)}" if rest else "")
