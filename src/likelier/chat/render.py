"""Chats as the model's template writes them, control texts in their content guarded."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from likelier.base.findings import Unfit
from likelier.chat.apply import apply_template
from likelier.chat.messages import Message
from likelier.chat.thinking import parts_of, with_thought
from likelier.chat.tokenizer import BREAK, Encoder

SAID_KEYS = ("content", "tool_calls", "function_call")  # what a message says, looked for in a chat


def as_text(encoder: Encoder, text: str) -> str:
    """``text`` with `BREAK` inside every control token's text, so that it stays text."""
    return encoder.control_text.sub(lambda found: "".join(c + BREAK for c in found[0]), text)


def render_chat(
    encoder: Encoder,
    messages: Sequence[Message],
    generate: bool,
    tools: Sequence[Message] = (),
) -> str:
    """The chat as at inference, with `BREAK` in control texts that stand in the content.

    Args:
        generate: end with the header of the assistant's turn to come.
        tools: what the template may list for the model to call.

    Raises:
        Unfit: the template refuses the chat, or treats control texts in a way of its own.
        DataError: the template takes too much time or memory.
    """
    plain = apply_template(encoder, messages, generate, tools)
    guarded = [_guard(encoder, message) for message in messages]
    guarded_tools = _guard(encoder, tools)
    if guarded == list(messages) and guarded_tools == list(tools):
        return plain
    text = apply_template(encoder, guarded, generate, guarded_tools)
    if text.replace(BREAK, "") != plain:
        message = "the template changes control tokens in the content, so they cannot be told apart"
        raise Unfit("control", None, message, "delete the control tokens from the messages")
    return text


def _guard(encoder: Encoder, value: Any) -> Any:
    """``value`` with every text in it guarded by `as_text`; roles are known words already, and
    the markers of reasoning at the beginning of an assistant's content are what the model writes.
    """
    if isinstance(value, str):
        return as_text(encoder, value)
    if isinstance(value, dict):
        guarded = {k: v if k == "role" else _guard(encoder, v) for k, v in value.items()}
        if value.get("role") == "assistant" and (parts := parts_of(value)).head:
            head = parts.head
            if parts.thought:
                head = with_thought(head, as_text(encoder, parts.thought))
            guarded["content"] = head + as_text(encoder, parts.said)
        return guarded
    if isinstance(value, (list, tuple)):
        return [_guard(encoder, item) for item in value]
    return value


def lost_text(message: Message, rendered: str) -> Unfit | None:
    """Why a rendered turn cannot be used: the template loses words of it (space may go)."""
    lost = left_out(message, rendered.replace(BREAK, ""))
    if lost is None:
        return None
    if lost[0] == "content":
        hint = "look at it with `likelier show --row`"
        if message.get("tool_calls"):
            hint = "delete the text beside the call: the template writes the call alone"
        return Unfit("template", None, "the template leaves out text of the answer", hint)
    hint = "write the call into the content, as the model is to write it"
    if lost[0] == "function_call":
        hint = "write it as tool_calls, or into the content where the template reads none"
    return Unfit("template", None, f"the template leaves out {lost[1][:40]!r} of {lost[0]}", hint)


def left_out(
    message: Message, rendered: str, keys: Sequence[str] = SAID_KEYS
) -> tuple[str, str] | None:
    """The first of the ``keys`` of a message of which a text is not in the rendered chat, and that
    text; None where all of them are.
    """
    for key in keys:
        for text in _texts_of(message, key):
            if not stands_in(text, rendered):
                return key, text
    return None


def texts_of(message: Message) -> list[str]:
    """What of a message must be found in the rendered chat: its content, and what it calls."""
    return [text for key in SAID_KEYS for text in _texts_of(message, key)]


def _texts_of(message: Message, key: str) -> list[str]:
    value = message.get(key)
    if key not in SAID_KEYS[1:]:
        return [value] if isinstance(value, str) else []
    texts: list[str] = []
    for call in value if isinstance(value, (list, tuple)) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else {}
        texts += [str(function["name"])] if "name" in function else []
        arguments = function.get("arguments")
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        texts += _texts_in(arguments)
    return texts


def _texts_in(value: Any) -> list[str]:
    """The keys, texts and numbers of arguments, at every depth."""
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in _texts_in(one)]
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in _texts_in(one)]
    if isinstance(value, bool) or value is None:  # templates write them in words of their own
        return []
    return [value if isinstance(value, str) else json.dumps(value, default=str)]


def stands_in(text: str, rendered: str) -> bool:
    """Whether all words of ``text`` are in ``rendered``, in their order, as they are or as JSON
    escapes them (spaces may go).
    """
    escaped = json.dumps(text.strip(), ensure_ascii=False)[1:-1]
    return text.strip() in rendered or any(
        _in_order(one.split(), rendered) for one in (text, escaped)
    )


def _in_order(words: Sequence[str], rendered: str) -> bool:
    done = 0
    for word in words:
        found = rendered.find(word, done)
        if found < 0:
            return False
        done = found + len(word)
    return True
