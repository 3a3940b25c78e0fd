"""Chats written in other ways, as messages: Human/Assistant transcripts, and from/value turns."""

import json
import re
from typing import Any

from likelier.data.records import Message

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


def is_transcript(value: Any) -> bool:
    """Whether a text is a dialogue of ``Human:`` and ``Assistant:``, Human first."""
    return (
        isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    )


def from_transcript(text: str) -> list[Message]:
    """The turns of a dialogue; a last ``Assistant:`` with nothing behind it is no turn."""
    parts = _TURN.split(text)[1:]  # what stands before each, a name, its text
    turns = [
        {"role": _ROLES[name], "content": said.strip()}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns


def plain_turn(item: Any) -> Any:
    """A ShareGPT turn (``from`` and ``value``) as a message; anything else as it is."""
    if not isinstance(item, dict) or "role" in item or "from" not in item or "value" not in item:
        return item
    speaker, value = item["from"], item["value"]
    role = _FROM.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    if speaker == "function_call" and isinstance(value, str):
        try:
            call = json.loads(value)
        except ValueError:
            return {"role": role, "content": value}
        return {"role": role, "tool_calls": [{"type": "function", "function": call}]}
    return {"role": role, "content": value}


def as_list(value: Any) -> Any:
    """A single message as a list of one; ShareGPT turns as messages; anything else as it is."""
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    return [plain_turn(item) for item in value] if isinstance(value, (list, tuple)) else value
