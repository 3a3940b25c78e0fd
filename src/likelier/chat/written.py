"""Messages as the cells of tables write them, and what of two messages is compared."""

import json
import re
from typing import Any

from likelier.base.findings import Unfit
from likelier.chat.messages import Chat, Message, as_list

# The keys of a message that hold what is said; a template is shown all of them.
SAID = ("role", "content", "name", "tool_calls", "function_call", "tools",
        "reasoning_content", "reasoning", "thinking", "thoughts")  # fmt: skip
# What Python prints of a list of messages, or numpy of an array of them.
_PRINTED = re.compile(r"\s*(array\()?\[\s*\{\s*'\w+'\s*:.*[\])]\s*", re.DOTALL)
_KEYS_PRINTED = (r"'(role|from)'\s*:", r"'(content|value|tool_calls)'\s*:")


def list_in(value: Any) -> Any:
    """A list that a cell holds as JSON text, as tables do; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found


def turns_in(value: Any, field: str) -> Any:
    """A cell as a list of messages where it holds such, also as JSON text; else as it is.

    Any other text is text: answers are JSON in some sets.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "a"):
        if _PRINTED.fullmatch(value) and all(re.search(key, value) for key in _KEYS_PRINTED):
            message = "messages as Python prints them, which is no JSON"
            raise Unfit("type", field, message, "write the cell with json.dumps")
        turns = list_in(value)
        if isinstance(turns, list) and turns and all(map(_is_message, turns)):
            value = turns
    return as_list(value)


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    has_text = "content" in item or "tool_calls" in item or "value" in item
    return has_text and ("role" in item or "from" in item)


def stripped(side: str | Chat) -> Any:
    """A completion without the spaces around its texts: what two of them must differ in."""
    if isinstance(side, str):
        return side.strip()
    return [
        {key: value.strip() if isinstance(value, str) else value for key, value in turn.items()}
        for turn in map(said_in, side)
    ]


def said_in(turn: Message) -> Message:
    """What of a message is said, so that two can be compared: ids, times and notes beside it are
    not. The ids of calls are names that the parties give them.
    """
    said = {key: turn[key] for key in SAID if key in turn}
    if isinstance(calls := said.get("tool_calls"), list):
        said["tool_calls"] = [
            {key: value for key, value in call.items() if key not in ("id", "index")}
            if isinstance(call, dict) else call
            for call in calls
        ]  # fmt: skip
    return said


def begins_with(chat: Chat, start: Chat) -> bool:
    return [*map(said_in, chat[: len(start)])] == [*map(said_in, start)]


def is_within(given: Chat, chat: Chat) -> bool:
    """Whether messages follow each other in a chat, spaces around their texts aside."""
    run, said = stripped(given), stripped(chat)
    return any(said[at : at + len(run)] == run for at in range(len(said)))
