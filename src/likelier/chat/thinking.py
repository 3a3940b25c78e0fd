"""Reasoning in a chat: where a message holds it, and blocks that a prompt opens or closes."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from likelier.base.findings import Unfit
from likelier.chat.messages import Message, shared_start

MARKERS = {  # what opens a thinking block, and what closes it
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<thought>": "</thought>",
    "<|think|>": "<|end|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
}
SILENT = "delete the reasoning from the answer"
KEYS = ("reasoning_content", "reasoning", "thinking")
SWITCHES: tuple[tuple[str, Any], ...] = (  # of templates that can be told to think, or not to
    ("enable_thinking", True), ("enable_thinking", False), ("thinking", True), ("thinking", False),
    ("skip_think", False), ("skip_reasoning", False), ("force_reasoning", False),
    ("reasoning", True), ("reasoning_effort", "high"), ("thinking_budget", -1),
)  # fmt: skip
_OPENING, _CLOSING = ("|".join(map(re.escape, some)) for some in (MARKERS, MARKERS.values()))
_OPENS = re.compile(rf"({_OPENING})\s*\Z")
_ENDS, _ANY = re.compile(_CLOSING), re.compile(f"{_OPENING}|{_CLOSING}")
_HEAD = re.compile(rf"(\s*(?:{_OPENING})?\s*).*?(\s*(?:{_CLOSING})\n*)", re.DOTALL)
_CLOSES = re.compile(rf"({'|'.join(map(re.escape, {*MARKERS.values()} - {'<|end|>'}))})\s*\Z")
_SHUT = re.compile("|".join(rf"{re.escape(a)}\s*{re.escape(b)}" for a, b in MARKERS.items()))
_INLINE = {
    opens: re.compile(rf"\s*{re.escape(opens)}(.*?){re.escape(closes)}\n*", re.DOTALL)
    for opens, closes in MARKERS.items()
}


class Parts(NamedTuple):
    """What a message says: its thought, the bytes of its content that hold it with their markers
    (empty where a key holds it, or none is held), and the text behind them.
    """

    thought: str
    head: str
    said: str


def opened(prompt: str) -> str:
    """The open thinking block that a rendered prompt ends with, as ``<think>`` and a line break;
    empty where it ends with none.
    """
    found = _OPENS.search(prompt)
    return found[0] if found else ""


def closes_block(prompt: str) -> bool:
    """Whether a rendered prompt ends with a thinking block that is closed."""
    return _CLOSES.search(prompt) is not None


def holds_closed_block(header: str) -> bool:
    """Whether the header of a turn holds a thinking block that says nothing."""
    return _SHUT.search(header) is not None


def empty_block(text: str) -> str:
    """The thinking block without a thought that ``text`` begins with, if it does."""
    found = _SHUT.match(text.lstrip())
    return found[0] if found else ""


def stays_open(header: str) -> bool:
    """Whether the header of a turn opens a thinking block and leaves it open behind some words."""
    left = [header.rpartition(one)[2] for one in MARKERS if one in header]
    return not opened(header) and any(not _ENDS.search(text) for text in left)


def closed_before() -> Unfit:
    """The error of reasoning behind a prompt that has closed its block."""
    message = "the prompt closes the thinking block, so the answer's reasoning has no place"
    return Unfit("reasoning", None, message, SILENT)


def inline(message: Message, opens: str) -> Message | None:
    """``message`` with the thought that one of its keys holds in its content, if one does."""
    parts = parts_of(message)
    if not parts.thought or parts.head:
        return None
    return {
        **without(message),
        "content": f"{opens}\n{parts.thought}\n{MARKERS[opens]}\n\n{parts.said}",
    }


def left_open(content: str) -> str:
    """What closes the thought that ``content`` begins and does not end; empty where it does not."""
    for opens, closes in MARKERS.items():
        if content.lstrip().startswith(opens) and closes not in content:
            return f"\n{closes}\n\n-"
    return ""


def closing_of(block: str) -> str:
    """The marker that closes an open block."""
    return MARKERS[block.strip()]


def parts_of(message: Message, block: str = "") -> Parts:
    """What ``message`` says. Behind an open ``block`` its content may begin inside of it."""
    content = message.get("content")
    content = content if isinstance(content, str) else ""
    for key in KEYS:
        if isinstance(message.get(key), str) and message[key].strip():
            return Parts(message[key].strip(), "", content)
    for inline in _INLINE.values():
        if found := inline.match(content):
            return Parts(found[1].strip(), found[0], content[found.end() :])
    if block and (closing := closing_of(block)) in content:
        thought = content[: content.index(closing)]
        said = content[len(thought) + len(closing) :].lstrip("\n")
        return Parts(thought.strip(), content[: len(content) - len(said)], said)
    return Parts("", "", content)


def forms_of(message: Message) -> Iterator[Message]:
    """``message`` as it is, and with its thought under each of the keys that templates read."""
    yield message
    parts = parts_of(message)
    if not parts.thought:
        return
    for key in KEYS:
        if message.get(key) != parts.thought or parts.head:
            yield {**without(message), key: parts.thought}


def without(message: Message) -> Message:
    """``message`` without its thought."""
    bare = {key: value for key, value in message.items() if key not in KEYS}
    if isinstance(message.get("content"), str):
        bare["content"] = parts_of(message).said
    return bare


def continues(text: str, parts: Parts, block: str) -> bool:
    """Whether ``text``, written behind a prompt, says the thought, and all of it inside its block:
    behind an open one it is not opened again, and none was closed before it.
    """
    at = _ANY.sub(lambda found: "\0" * len(found[0]), text).find(parts.thought)
    before = text[: max(at, 0)]
    again = bool(block) and block.strip() in before
    return at >= 0 and not again and not any(end in before for end in MARKERS.values())


def inside(text: str, block: str) -> str:
    """``text`` that holds a thought, without the opening that ``block`` has already."""
    bare = text.lstrip()
    return bare[shared_start(bare, block) :] if bare.startswith(block.strip()) else text


def without_empty(text: str, block: str) -> str:
    """``text`` behind an open ``block``, without a block of its own that says nothing."""
    opens, closes = re.escape(block.strip()), re.escape(closing_of(block))
    return re.sub(rf"\A\s*{opens}\s*{closes}\n*", "", text)


def with_thought(head: str, thought: str) -> str:
    """The content that holds a thought, with ``thought`` in its place."""
    found = _HEAD.fullmatch(head)
    return found[1] + thought + found[2] if found else head


def marked(message: Message, letter: str) -> Message:
    """``message`` with a letter before its thought and its text (or before the names of its calls
    where it has no text), so that two of them part where these begin.
    """
    parts = parts_of(message)
    changed = dict(message)
    for key in KEYS:
        if isinstance(message.get(key), str) and message[key].strip():
            changed[key] = letter + message[key]
    if isinstance(message.get("content"), str):
        head = with_thought(parts.head, letter + parts.thought) if parts.thought else parts.head
        changed["content"] = head + (parts.said and letter + parts.said)
    if not message.get("content") and isinstance(message.get("tool_calls"), (list, tuple)):
        changed["tool_calls"] = [_marked_call(call, letter) for call in message["tool_calls"]]
    return changed


def _marked_call(call: Any, letter: str) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _marked_call(call["function"], letter)}
    return {**call, "name": f"{letter}{call.get('name')}"}
