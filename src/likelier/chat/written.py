"""Messages as the cells of tables write them, and what of two messages is compared."""

import json
import re
from typing import Any

from likelier.base.findings import Unfit
from likelier.chat.messages import Chat, Message, as_list, check_end, read_messages, read_text

# The keys of a message that hold what is said; a template is shown all of them.
SAID = frozenset({
    "role", "content", "name", "tool_calls", "function_call", "tools",
    "reasoning_content", "reasoning", "thinking", "thoughts",
})  # fmt: skip
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
    if isinstance(value, dict) and ({"role", "from"} & value.keys()) and _is_table(value):
        value = [
            dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)
        ]
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "a"):
        if _PRINTED.fullmatch(value) and all(re.search(key, value) for key in _KEYS_PRINTED):
            message = "messages as Python prints them, which is no JSON"
            raise Unfit("type", field, message, "write the cell with json.dumps")
        turns = list_in(value)
        if isinstance(turns, list) and turns and all(map(_is_message, turns)):
            value = turns
    return as_list(value)


def _is_table(value: dict[str, Any]) -> bool:
    """Whether an object holds lists of one length, as a ``Sequence`` of ``datasets`` is stored."""
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    return len(lengths) == 1 and min(lengths) > 0


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
    said = {key: value for key, value in turn.items() if key in SAID}
    if isinstance(calls := said.get("tool_calls"), list):
        said["tool_calls"] = [
            {key: value for key, value in call.items() if key not in ("id", "index")}
            if isinstance(call, dict) else call
            for call in calls
        ]  # fmt: skip
    return said


def begins_with(chat: Chat, start: Chat) -> bool:
    """Whether a chat begins with the same messages, by what is said in them."""
    if chat[0]["role"] != start[0]["role"]:
        return False
    return [*map(said_in, chat[: len(start)])] == [*map(said_in, start)]


def is_within(given: Chat, chat: Chat) -> bool:
    """Whether messages follow each other in a chat, spaces around their texts aside."""
    run, said = stripped(given), stripped(chat)
    return any(said[at : at + len(run)] == run for at in range(len(said)))


def split_chats(chosen: Chat, rejected: Chat) -> tuple[Chat, Chat, Chat]:
    """Cut two conversations after the whole messages that they share."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other and said_in(one) != said_in(other):
            break
        shared += 1
    cut = min(shared, len(chosen) - 1, len(rejected) - 1)  # each answer keeps a turn
    roles = {chosen[cut]["role"], rejected[cut]["role"]}
    if cut == 0 or roles != {"assistant"}:
        message = f"the conversations have different prompts: message {cut + 1} differs"
        hint = "let both begin with the same messages, up to an assistant turn"
        raise Unfit("prompt", None, message, hint)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def earlier_turns(value: Any, field: str) -> Chat:
    """What was said before a prompt: twos of a question and its answer, or messages up to one."""
    value = list_in(value)
    if not value:
        return ()
    if isinstance(value, list) and any(isinstance(two, (list, tuple)) for two in value):
        for number, two in enumerate(value):
            if not isinstance(two, (list, tuple)) or len(two) != 2:
                message, hint = "a question and its answer expected", "write the turns in twos"
                raise Unfit("type", f"{field}[{number}]", message, hint)
        return tuple(
            {"role": role, "content": read_text(said, f"{field}[{number}]")}
            for number, two in enumerate(value)
            for role, said in zip(("user", "assistant"), two, strict=True)
        )
    turns = read_messages(as_list(value), field)
    check_end(turns, field)
    return turns


def without_gaps(record: dict[str, Any]) -> dict[str, Any]:
    """A row of a table without the keys that are null in its objects, at every depth.

    A table gives every object of a column the keys of all of them. Its own columns stay.
    """
    return {name: _without_nulls(value) for name, value in record.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
