"""Prompt and answers of one row, as texts or as messages, or what is wrong with them."""

import json
from collections.abc import Mapping
from typing import Any

from likelier.data.lines import odd_character
from likelier.data.messages import (
    Chat,
    Unfit,
    check_end,
    check_start,
    kind_of_value,
    missing,
    mixed,
    read_messages,
    read_number,
    read_text,
)
from likelier.data.records import Finding, Message, Pair, Row
from likelier.data.transcript import as_list, from_transcript, is_transcript

NAMES = ("prompt", "chosen", "rejected")
ABSENT = object()


def to_pair(row: Row, columns: Mapping[str, str], chat: bool = False) -> Pair | Finding:
    """Make a `Pair` of one row, or say what is wrong with it.

    Texts, lists of messages, two conversations whose common beginning is the prompt, or
    Human/Assistant transcripts. ``columns`` maps our names to the file's
    (``{"prompt": "question"}``); other columns are ignored. ``chat`` makes turns of plain texts.
    """
    try:
        prompt, chosen, rejected = _sides(row.record, columns, chat)
        scores, margin = _scores(row.record, columns), number_of(row.record, columns, "margin")
        if margin is None and scores:
            margin = scores[0] - scores[1]
        return Pair(
            prompt,
            chosen,
            rejected,
            row.source,
            tools=read_tools(row.record, columns),
            origin=origin_of(row.record, columns),
            scores=scores,
            margin=margin,
            weight=number_of(row.record, columns, "weight"),
        )
    except Unfit as unfit:
        return unfit.at(row.source)


Sides = tuple[str, str, str] | tuple[Chat, Chat, Chat]


def _sides(record: Mapping[str, Any], columns: Mapping[str, str], chat: bool) -> Sides:
    theirs = {name: columns.get(name, name) for name in NAMES}
    prompt, chosen, rejected = (as_list(record.get(theirs[name], ABSENT)) for name in NAMES)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is ABSENT:
            missing(record, columns, name, NAMES)
    if is_transcript(chosen) and is_transcript(rejected):
        chosen, rejected = from_transcript(chosen), from_transcript(rejected)
        prompt = from_transcript(prompt) if is_transcript(prompt) else prompt
    implied = isinstance(chosen, (list, tuple)) and isinstance(rejected, (list, tuple))
    if prompt is ABSENT and ("prompt" in columns or not implied):
        missing(record, columns, "prompt", NAMES)

    if not implied:
        if isinstance(chosen, (list, tuple)) or isinstance(rejected, (list, tuple)):
            mixed("chosen", "one of chosen and rejected is a list of messages, the other is not")
        if isinstance(prompt, (list, tuple)):
            mixed("prompt", "the prompt is a list of messages, the answers are not")
        read_text(prompt, theirs["prompt"])
        chosen = read_text(chosen, theirs["chosen"])
        rejected = read_text(rejected, theirs["rejected"])
        asked = read_prompt(record, columns, chat)
        return (
            (asked, chosen, rejected)
            if isinstance(asked, str)
            else (asked, _said(chosen), _said(rejected))
        )

    chosen = read_messages(chosen, theirs["chosen"])
    rejected = read_messages(rejected, theirs["rejected"])
    check_end(chosen, theirs["chosen"])
    check_end(rejected, theirs["rejected"])
    if prompt is ABSENT and "assistant" in (chosen[0]["role"], rejected[0]["role"]):
        missing(record, columns, "prompt", NAMES)
    turns, chosen, rejected = _chats(prompt, chosen, rejected, theirs)
    return with_system(turns, record, columns), chosen, rejected


def _said(text: str) -> Chat:
    return ({"role": "assistant", "content": text},)


def read_prompt(record: Mapping[str, Any], columns: Mapping[str, str], chat: bool) -> str | Chat:
    """The prompt of a row as text, or as messages where it is written or wanted so.

    A system text, tools or ``chat`` make a user's turn of a plain text.
    """
    field = columns.get("prompt", "prompt")
    value = as_list(record.get(field, ABSENT))
    if value is ABSENT:
        missing(record, columns, "prompt", ("prompt",))
    if is_transcript(value) or (isinstance(value, str) and value.lstrip().startswith("Human:")):
        value = from_transcript(value)
    if isinstance(value, (list, tuple)):
        return with_system(read_messages(value, field), record, columns)
    text = read_text(value, field)
    if not (chat or "system" in columns or read_tools(record, columns)):
        return text
    return with_system(({"role": "user", "content": text},), record, columns)


def with_system(chat: Chat, record: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    """A chat behind the row's system text, where it has one and the chat has none."""
    field = columns.get("system")
    value = record.get(field) if field else None
    if value is None or value == "" or chat[0]["role"] == "system":
        return chat
    if not isinstance(value, str) or odd_character(value):
        read_text(value, str(field))
    return ({"role": "system", "content": value}, *chat)


def read_tools(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Message, ...]:
    """The tools that a row offers: a list of objects, or that list as JSON text."""
    field = columns.get("tools")
    value = record.get(field) if field else None
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            hint = "write a JSON list of tools"
            raise Unfit("tools", field, "the text is no JSON", hint) from error
    if not value:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, dict) for tool in value):
        message = f"a list of tools expected, found {kind_of_value(value)}"
        raise Unfit("tools", field, message, "write a list of objects, or null")
    return tuple(value)


def origin_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """The data set that a row says it comes from."""
    value = record.get(columns["origin"]) if "origin" in columns else None
    return value[:80] if isinstance(value, str) else None


def _scores(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[float, float] | None:
    chosen, rejected = (
        number_of(record, columns, name) for name in ("chosen_score", "rejected_score")
    )
    return (chosen, rejected) if chosen is not None and rejected is not None else None


def number_of(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> float | None:
    """The number in one of our columns; None where the row has none. A weight is not negative."""
    field = columns.get(name)
    if field is None or record.get(field) in (None, ""):
        return None
    number = read_number(record[field], field)
    if name == "weight" and number < 0:
        raise Unfit("score", field, f"the weight is {number:g}", "write 0 or more")
    return number


def _chats(
    prompt: Any, chosen: Chat, rejected: Chat, theirs: Mapping[str, str]
) -> tuple[Chat, Chat, Chat]:
    """Both answers after one prompt; conversations that repeat the prompt lose it."""
    whole = chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant"
    field = theirs["prompt"]
    if isinstance(prompt, (list, tuple)):
        given = read_messages(prompt, field)
        count = len(given)
        if whole and chosen[:count] == given == rejected[:count]:
            chosen, rejected = chosen[count:], rejected[count:]
        check_start(chosen, theirs["chosen"])
        check_start(rejected, theirs["rejected"])
        return given, chosen, rejected
    if prompt is not ABSENT:
        text = read_text(prompt, field)
        if not whole:
            mixed(field, "the prompt is text, the answers are lists of messages")
    shared, chosen, rejected = _split(chosen, rejected)
    if prompt is not ABSENT and shared[-1].get("content") != text:
        message = "the prompt is not the last turn that both conversations share"
        raise Unfit("prompt", field, message, "fix the prompt, or delete that column")
    return shared, chosen, rejected


def _split(chosen: Chat, rejected: Chat) -> tuple[Chat, Chat, Chat]:
    """Cut two conversations after the whole messages that they share."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    cut = min(shared, len(chosen) - 1, len(rejected) - 1)  # each answer keeps a turn
    roles = {chosen[cut]["role"], rejected[cut]["role"]}
    if cut == 0 or roles != {"assistant"}:
        message = f"the conversations have different prompts: message {cut + 1} differs"
        hint = "let both begin with the same messages, up to an assistant turn"
        raise Unfit("prompt", None, message, hint)
    return chosen[:cut], chosen[cut:], rejected[cut:]
