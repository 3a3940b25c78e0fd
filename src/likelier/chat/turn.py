"""An assistant's turn as the model would write it: its thinking, its text and its stop."""

import re
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from likelier.base.findings import Unfit
from likelier.chat import thinking
from likelier.chat.header import Tools, behind
from likelier.chat.messages import Message, shared_start
from likelier.chat.render import as_text, lost_text, render_chat
from likelier.chat.thinking import Parts, parts_of
from likelier.chat.tokenizer import BREAK, Encoder

_ASKED, _SAID, _NEXT = "probe asked", "probe said", "probe next"


class Turn(NamedTuple):
    """An assistant's turn behind its generation prompt: the message as it was rendered, what
    closes the prompt's thinking block, the text, the text of its stop, and its notes.
    """

    message: Message
    closing: str
    text: str
    stop: str
    thinks: bool
    notes: frozenset[str]


def turn_behind(encoder: Encoder, chat: list[Message], before: str, tools: Tools) -> Turn:
    """The last turn of ``chat`` behind ``before``, its generation prompt."""
    message, block = chat[-1], thinking.opened(before)
    parts = parts_of(message, block)
    closing = ""
    if parts.thought:
        message, text, rule = _reasoned(encoder, chat, before, tools)
    else:
        text, rule = behind(encoder, chat, before, tools)
        if block:
            closing, text = _split_closing(encoder, block, thinking.without_empty(text, block))
            if parts.head:
                closing, text = closing or thinking.inside(parts.head, block), text.lstrip("\n")
            if not closing:
                raise _no_closing(block)
    said, stop, ended = _ended(encoder, message, parts, text)
    notes = {name for name, so in (("closed", bool(closing)), ("ended", ended)) if so} | rule
    return Turn(message, closing, said, stop, bool(parts.thought), frozenset(notes))


def _reasoned(
    encoder: Encoder, chat: list[Message], before: str, tools: Tools
) -> tuple[Message, str, set[str]]:
    """The last turn and what is written of it, its reasoning inside the block of the prompt where
    that opened one. Raises Unfit where the template has no place for the reasoning.
    """
    block = thinking.opened(before)
    parts = parts_of(chat[-1], block)
    if thinking.closes_block(before):
        raise thinking.closed_before()
    silent, dropped = "", None
    with suppress(Unfit):  # a short thought may stand there by chance
        silent, _ = behind(encoder, [*chat[:-1], thinking.without(chat[-1])], before, tools)
    for form in thinking.forms_of(chat[-1]):
        try:
            text, rule = behind(encoder, [*chat[:-1], form], before, tools)
        except Unfit:
            if encoder.boundary == "history":
                raise
            continue
        text = thinking.inside(text, block) if block else text
        if text.split() != silent.split() and thinking.continues(
            text.replace(BREAK, ""), parts, block
        ):
            return form, text, rule
        dropped = dropped or (text, rule)
    if block and dropped:
        text, rule = dropped
        closing, rest = _split_closing(encoder, block, text)
        if parts.head:
            said, end, space = thinking.inside(parts.head, block).rpartition(
                thinking.closing_of(block)
            )
            return chat[-1], as_text(encoder, said) + end + space + rest.lstrip("\n"), rule
        if closing:
            return chat[-1], as_text(encoder, parts.thought) + closing + rest, rule
    key = next((f", {key}" for key in thinking.KEYS if chat[-1].get(key)), "")
    message = f"the template leaves out the reasoning of the answer{key}"
    raise Unfit("reasoning", None, message, thinking.SILENT)


def _split_closing(encoder: Encoder, block: str, text: str) -> tuple[str, str]:
    """What closes an open block, and what ``text``, a turn behind it, says then. Empty where the
    turn does not close the block, and the template has no bytes of its own for it.
    """
    closing = _closing(encoder, block)
    if not closing or not text.startswith(closing):
        found = re.match(rf"\s*{re.escape(thinking.closing_of(block))}\n*", text)
        if found is None:
            return closing, text
        closing = found[0]
    return closing, text[len(closing) :]


@lru_cache(maxsize=64)
def _closing(encoder: Encoder, block: str) -> str:
    """How the template closes ``block`` at once: in an answer without reasoning, in the prompt with
    thinking off, or else behind a thought. Empty where it writes none of these.
    """
    asked = {"role": "user", "content": _ASKED}
    before = ""
    with suppress(Unfit):
        before = render_chat(encoder, [asked], True)
    if thinking.opened(before) != block:
        return ""
    space = rf"(\s*{re.escape(thinking.closing_of(block))}\s*)B"

    def written(thought: dict[str, str], pattern: str) -> str:
        with suppress(Unfit):
            turn = {"role": "assistant", "content": "B", **thought}
            if found := re.match(pattern, behind(encoder, [asked, turn], before, ())[0]):
                return found[1]
        return ""

    def quiet(name: str, value: Any) -> str:
        other = replace(encoder, template={**encoder.template, name: value})
        with suppress(Unfit):
            text = render_chat(other, [asked], True)
            if text.startswith(before.rstrip()) and thinking.closes_block(text):
                return text[shared_start(before, text) :]
        return ""

    switches = (one for one in thinking.SWITCHES if one[0] in encoder.reads)
    return (
        written({}, space)
        or next(filter(None, (quiet(*one) for one in switches)), "")
        or next(filter(None, (written({key: "A"}, "A" + space) for key in thinking.KEYS)), "")
    )


def _no_closing(block: str) -> Unfit:
    marker = block.strip()
    what = f"the prompt opens a thinking block, {marker}, which nothing in the answer closes"
    empty = repr(f"{marker}\n\n{thinking.closing_of(block)}\n\n")
    hint = f"begin the content of the answer with {empty}, or with reasoning between the two"
    return Unfit("reasoning", None, what, hint)


def _ended(encoder: Encoder, message: Message, parts: Parts, text: str) -> tuple[str, str, bool]:
    """The text of a turn up to its stop, the text of the stop, and whether it is the tokenizer's
    own end, because the template writes none.
    """
    rest = {**message, "content": parts.said}
    lost = None
    for end in encoder.end_text.finditer(text):
        if (lost := lost_text(rest, text[: end.start()])) is None:
            return text[: end.start()], end[0], False
    if lost is not None or (lost := lost_text(rest, text)) is not None:
        raise lost
    if stop := _stop_behind(encoder, bool(message.get("tool_calls"))):
        return text, stop, False
    last = next(reversed(list(encoder.control_text.finditer(text))), None)
    if last is not None and not text[last.end() :].strip():
        ends = ", ".join(sorted(encoder.end_ids))
        what = f"the template ends the turn with {text[-24:]!r}, which is no stop token ({ends})"
        hint = "add the template's end marker to eos_token_id in generation_config.json"
        raise Unfit("stop", None, what, hint)
    return text, encoder.stop_text, True


@lru_cache(maxsize=64)
def _stop_behind(encoder: Encoder, call: bool) -> str | None:
    """The end token that the template writes between an answer and the turn that follows it,
    found on a chat without reasoning: a user's turn behind a text, a tool's result behind a call.
    None where what it writes there ends no turn.
    """
    try:
        rendered = render_chat(encoder, _probe(call), False)
    except Unfit:
        return None
    start, end = rendered.find(_SAID), rendered.find(_NEXT)
    if not 0 <= start < end:
        return None
    between = rendered[start + len(_SAID) : end]
    found, first = encoder.end_text.search(between), encoder.control_text.search(between)
    if found and (call or (first and first.start() == found.start())):
        return found[0]
    return None


def _probe(call: bool) -> list[Message]:
    asked = {"role": "user", "content": _ASKED}
    if not call:
        said, then = {"role": "assistant", "content": _SAID}, {"role": "user", "content": _NEXT}
        return [asked, said, then]
    function = {"name": "probe", "arguments": {"text": _SAID}}
    calls = [{"id": "probe0000", "type": "function", "function": function}]
    return [
        asked,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": "probe", "tool_call_id": "probe0000", "content": _NEXT},
    ]
