"""One chat through the model's template, in the form that the template takes, within its limits."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from likelier.base.errors import DataError
from likelier.base.findings import Unfit
from likelier.base.limits import TEMPLATE, bounded, refused
from likelier.chat.messages import Message
from likelier.chat.tokenizer import Encoder

MAX_RENDERED_CHARACTERS = 64 * 2**20
# What a template is tried with: nothing that a template writes of its own.
_SAID = "likelier asks"
_ARGUMENTS = {"likelier_key": "likelier value"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "likelier_tool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"likelier_key": {"type": "string"}}},
    },
}


def apply_template(
    encoder: Encoder,
    messages: Sequence[Message],
    generate: bool,
    tools: Sequence[Message] = (),
) -> str:
    """The chat as the template writes it.

    The arguments of calls are handed over as objects or as JSON text, and contents as texts or
    as lists of parts, whichever the template takes.

    Args:
        generate: end with the header of the assistant's turn to come.
        tools: what the template may list for the model to call; with them the template named
            ``tool_use`` is used, where the tokenizer has one.

    Raises:
        Unfit: the template refuses the chat, or does not read tools.
        DataError: the template takes too much time or memory.
    """
    if not getattr(encoder.tokenizer, "chat_template", None):
        hint = "use text columns, or a model with a chat template"
        raise Unfit("template", None, "this tokenizer has no chat template for messages", hint)
    hint = "use a model whose template knows tools, or delete them"
    if tools and "tools" not in encoder.tool_reads:
        raise Unfit("tools", "tools", "the chat template does not read tools", hint)
    try:
        return _render(encoder, in_form(encoder, messages, tools), generate, tools)
    except Unfit as unfit:
        if tools and not _takes(encoder, tools):
            raise Unfit("tools", "tools", f"{unfit.message} (of these tools)", hint) from unfit
        raise


def _takes(encoder: Encoder, tools: Sequence[Message]) -> bool:
    """Whether the template takes these tools beside a plain question."""
    with suppress(Unfit):
        return bool(_render(encoder, [{"role": "user", "content": _SAID}], True, tools))
    return False


def in_form(
    encoder: Encoder, messages: Sequence[Message], tools: Sequence[Message] = ()
) -> list[Message]:
    """The messages with the arguments of their calls and their contents as the template takes them.

    Raises `Unfit` where arguments should be an object and are text that holds none.
    """
    shaped = list(messages)
    if any(message.get("tool_calls") for message in shaped):
        takes_text, takes_objects = _takes_arguments(encoder, bool(tools))
        if takes_text != takes_objects:
            shaped = [_with_arguments(message, as_text=takes_text) for message in shaped]
    return list(map(_with_parts, shaped)) if _takes_parts_only(encoder, bool(tools)) else shaped


def _with_arguments(message: Message, as_text: bool) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)):
        return message
    shaped: list[Any] = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or "arguments" not in inner:
            shaped.append(call)
            continue
        inner = {**inner, "arguments": _arguments(inner, as_text)}
        shaped.append({**call, "function": inner} if "function" in call else inner)
    return {**message, "tool_calls": shaped}


def _arguments(function: Message, as_text: bool) -> Any:
    given = function["arguments"]
    if as_text:
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if not isinstance(given, str):
        return given
    with suppress(ValueError, RecursionError):
        read = json.loads(given) if given.strip() else {}
        if isinstance(read, dict):
            return read
    message = (
        f"the template writes arguments as an object, and those of the call "
        f'"{str(function.get("name"))[:40]}" are text that holds none'
    )
    raise Unfit("tools", None, message, "write the arguments as a JSON object")


def _with_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


@lru_cache(maxsize=16)
def _takes_arguments(encoder: Encoder, with_tools: bool) -> tuple[bool, bool]:
    """Whether the template writes the arguments of a call as they are where they are JSON text,
    and whether it writes them where they are an object.
    """
    text = json.dumps(_ARGUMENTS)
    ((key, value),) = _ARGUMENTS.items()
    found = []
    for given in (text, _ARGUMENTS):
        call = {"name": "likelier_tool", "arguments": given}
        turn = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "likelier0", "type": "function", "function": call}],
        }
        found.append(_tried(encoder, [{"role": "user", "content": _SAID}, turn], with_tools))
    as_text, as_object = found
    return text in as_text, key in as_object and value in as_object and f"{{'{key}" not in as_object


@lru_cache(maxsize=16)
def _takes_parts_only(encoder: Encoder, with_tools: bool) -> bool:
    """Whether the template writes a content that is a list of parts, and none that is text."""
    turn = {"role": "user", "content": _SAID}
    if _SAID in _tried(encoder, [turn], with_tools):
        return False
    written = _tried(encoder, [_with_parts(turn)], with_tools)
    return (
        _SAID in written and "'text'" not in written
    )  # that would be the list as Python prints it


def _tried(encoder: Encoder, messages: Sequence[Message], with_tools: bool) -> str:
    """What the template makes of a chat; empty where it refuses it."""
    tools = [_TOOL] if with_tools else []
    with suppress(Unfit):
        return _render(encoder, messages, False, tools)
    return ""


def _render(
    encoder: Encoder, messages: Sequence[Message], generate: bool, tools: Sequence[Message]
) -> str:
    given: dict[str, Any] = dict(encoder.template)
    frozen = encoder.tool_frozen if tools else encoder.frozen
    if frozen is not None:
        given["chat_template"] = frozen
    try:
        with bounded(TEMPLATE, encoder.spent):
            text = encoder.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generate,
                **given,
            )
    except (ImportError, DataError):
        raise
    except Exception as error:  # a template is foreign code and may raise anything
        line = getattr(error, "lineno", None)
        at = f" at line {line}" if line else ""
        reason = " ".join(str(error).split())[:160]
        message = f"the chat template refuses it{at}: {reason}"
        raise Unfit("template", None, message, "change the roles or turns of this row") from error
    if len(text) > MAX_RENDERED_CHARACTERS:
        raise refused(TEMPLATE, f"writes {len(text)} characters")
    return str(text)
