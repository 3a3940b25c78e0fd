"""Texts and messages as rows hold them, and what is wrong with those that are none."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from likelier.base.findings import Unfit

Message = dict[str, Any]  # {"role": ..., "content": ...}; the template may read further keys
Chat = tuple[Message, ...]
TEXT_PARTS = ("text", "input_text", "output_text")  # what lists of parts call a text
ROLES = ("system", "developer", "user", "assistant", "tool")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was most likely meant to be, if any comes near."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    """The hint of an unknown word: the known word that comes near it, or ``otherwise``."""
    meant = nearest(word, known)
    return f'did you mean "{meant}"?' if meant else otherwise


def shared_start(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many characters or tokens two sequences begin with alike."""
    if first == second:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    parts = (number for number, (one, other) in pairs if one != other)
    return next(parts, min(len(first), len(second)))


def odd_character(text: str) -> str | None:
    """The name of a character that no tokenizer or template can take, if ``text`` holds one."""
    if "\0" in text:
        return "a NUL character"
    if "\ufdd0" in text:
        return "the noncharacter U+FDD0"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair, U+{ord(text[error.start]):04X}"
    return None


def read_number(value: Any, field: str) -> float:
    """A finite number, also one that a CSV cell holds.

    Raises:
        Unfit: it is none.
    """
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != number or abs(number) == float("inf"):
        message = f"a number expected, found {kind_of_value(value)}"
        raise Unfit("score", field, message, "write a finite number")
    return number


def check_start(completion: Chat, field: str) -> None:
    """Refuse messages of which the first is not the assistant's."""
    if not completion or completion[0]["role"] != "assistant":
        message = "the answer does not start with an assistant turn"
        hint = "begin it after the prompt, or repeat the whole prompt in both answers"
        raise Unfit("role", field, message, hint)


def check_end(completion: Chat, field: str) -> None:
    """Refuse messages of which the last is not the assistant's."""
    if completion[-1]["role"] != "assistant":
        message = f"the last turn is the {completion[-1]['role']}'s, not the assistant's"
        raise Unfit("role", field, message, "end each answer with an assistant turn")


def read_text(value: Any, field: str) -> str:
    """``value`` if it is text with something in it.

    Raises:
        Unfit: it is not.
    """
    if not isinstance(value, str):
        raise Unfit(
            "type", field, f"text expected, found {kind_of_value(value)}", "write it as a string"
        )
    if odd := odd_character(value):
        raise Unfit("text", field, f"the text holds {odd}", "delete that character")
    if not value.strip():
        what = "only spaces" if value else "empty"
        raise Unfit("empty", field, what, "add text, delete the row, or set data.on_bad_row: drop")
    return value


def read_messages(value: Any, field: str) -> Chat:
    """``value`` as a tuple of messages with a known role and text; keys that are null are removed.

    Raises:
        Unfit: it is not that.
    """
    if not isinstance(value, (list, tuple)):
        message = f"a list of messages expected, found {kind_of_value(value)}"
        raise Unfit("type", field, message, 'write [{"role": "user", "content": "…"}]')
    if not value:
        message = "the list of messages is empty"
        raise Unfit("empty", field, message, "add messages or delete the row")
    return tuple(_message(item, f"{field}[{number}]") for number, item in enumerate(value))


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, dict):
        message = f"a message expected, found {kind_of_value(item)}"
        raise Unfit("type", field, message, 'write {"role": "user", "content": "…"}')
    item = {key: value for key, value in item.items() if value is not None}
    role = item.get("role")
    if role is None:
        found = f"no role; the keys are {_some(item)}"
        raise Unfit("role", field, found, 'a message has "role" and "content"')
    if role not in ROLES:
        hint = suggestion(str(role), ROLES, f"use one of {', '.join(ROLES)}")
        raise Unfit("role", f"{field}.role", f'unknown role "{str(role)[:40]}"', hint)
    content = item.get("content")
    if isinstance(content, (list, tuple)):
        content = item["content"] = _joined(content, f"{field}.content")
    calls = item.get("tool_calls") or item.get("function_call")
    if role == "assistant" and calls and not content:
        return item
    if role == "system" and isinstance(content, str) and not content.strip():
        return item  # an empty system turn is common, and templates take it
    read_text(content, f"{field}.content")
    return item


def _joined(parts: Sequence[Any], field: str) -> str:
    """The text of a content that is a list of parts, with nothing between them."""
    texts = []
    for number, part in enumerate(parts):
        kind = part.get("type", "text") if isinstance(part, dict) else kind_of_value(part)
        text = part.get("text") if kind in TEXT_PARTS else None
        if not isinstance(text, str):
            message = f'a part of text expected, found "{str(kind)[:40]}"'
            hint = "delete the part, or the row: only text can be trained on"
            raise Unfit("type", f"{field}[{number}]", message, hint)
        texts.append(text)
    return "".join(texts)


def missing(
    record: Mapping[str, Any], columns: Mapping[str, str], name: str, names: Iterable[str]
) -> NoReturn:
    """Raise `Unfit`: a column is missing; ``names`` are the columns that are read already."""
    wanted = columns.get(name, name)
    taken = {columns.get(other, other) for other in names}
    free = [str(key) for key in record if key not in taken]
    found = nearest(wanted, free)
    message = f'no column "{wanted}"'
    if columns.get(name, name) != name:
        message += f", which stands for data.columns.{name}"
        hint = f'did you mean "{found}"?' if found else f"the columns are {_some(free)}"
    elif found:
        message += f', but a column "{found}": did you mean "{wanted}"?'
        hint = f"rename it, or set data.columns.{name}: {found}"
    else:
        hint = f"set data.columns.{name} to one of {_some(free)}"
    raise Unfit("column", wanted, message, hint)


def mixed(field: str, message: str) -> NoReturn:
    """Raise `Unfit`: one of two texts is plain, the other a list of messages."""
    hint = "write prompt and answers all as text, or all as lists of messages"
    raise Unfit("mixed", field, message, hint)


def _some(names: Iterable[Any]) -> str:
    """Up to eight names, shortened, for a message."""
    listed = [f'"{str(name)[:30]}"' for name in names]
    more = ", …" if len(listed) > 8 else ""
    return ", ".join(listed[:8]) + more if listed else "none"


def kind_of_value(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, dict) else type(value).__name__


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
    """A ShareGPT turn as a message, also where only its keys or its roles are ShareGPT's; anything
    else as it is. Further keys stay.
    """
    if not isinstance(item, dict) or not ({"role", "from"} & item.keys()):
        return item
    turn = {key: value for key, value in item.items() if key not in ("from", "value")}
    speaker = item.get("role", item.get("from"))
    known = _FROM.get(speaker.lower()) if isinstance(speaker, str) else None
    turn["role"] = known if known and speaker not in ROLES else speaker
    if "value" in item and "content" not in item:
        turn["content"] = item["value"]
    said = turn.get("content")
    if speaker == "function_call" and isinstance(said, str):
        with suppress(ValueError, RecursionError):
            turn["tool_calls"] = [{"type": "function", "function": json.loads(said)}]
            del turn["content"]
    return turn


def as_list(value: Any) -> Any:
    """A single message as a list of one; ShareGPT turns as messages; anything else as it is."""
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    return [plain_turn(item) for item in value] if isinstance(value, (list, tuple)) else value
