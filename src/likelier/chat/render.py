"""Chats as the model's template writes them, cut into what is scored and what is context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from likelier.base.findings import Unfit
from likelier.chat.apply import apply_template
from likelier.chat.messages import Message
from likelier.chat.tokenizer import BREAK, Encoder


@dataclass(frozen=True)
class TextSegment:
    """A stretch of a completion: its text and, where it is scored, the stop id that follows."""

    text: str
    scored: bool
    stop: int = -1


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


def cut_completion(
    encoder: Encoder,
    prompt: Sequence[Message],
    prompt_text: str,
    completion: Sequence[Message],
    tools: Sequence[Message] = (),
) -> list[TextSegment]:
    """What ``completion`` adds to the rendered prompt: assistant text up to its stop, and context.

    Raises:
        Unfit: the rendered prompt is no beginning of the rendered chat, an assistant turn has
            no stop, or the template leaves text of it out.
    """
    chat = [*prompt, *completion]
    whole = render_chat(encoder, chat, False, tools)
    segments: list[TextSegment] = []
    done = len(prompt_text)
    for place in range(len(prompt), len(chat)):
        if chat[place]["role"] != "assistant":
            continue
        first, last = place == len(prompt), place == len(chat) - 1
        before = prompt_text if first else render_chat(encoder, chat[:place], True, tools)
        after = whole if last else render_chat(encoder, chat[: place + 1], False, tools)
        _require_prefix(before, whole)
        _require_prefix(after, whole)
        turn = after[len(before) :]
        end = encoder.end_text.search(turn)
        if end is None:
            raise _no_stop(encoder, turn)
        _require_content(chat[place], turn[: end.start()])
        if segments:
            segments.append(TextSegment(whole[done : len(before)], scored=False))
        segments.append(TextSegment(turn[: end.start()], scored=True, stop=encoder.end_ids[end[0]]))
        done = len(before) + end.start()  # the stop's text is where the context begins
    return segments


def _guard(encoder: Encoder, value: Any) -> Any:
    """``value`` with every text in it guarded by `as_text`; roles are known words already."""
    if isinstance(value, str):
        return as_text(encoder, value)
    if isinstance(value, dict):
        return {k: v if k == "role" else _guard(encoder, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guard(encoder, item) for item in value]
    return value


def _require_prefix(start: str, whole: str) -> None:
    if whole.startswith(start):
        return
    same = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b),
                min(len(start), len(whole)))  # fmt: skip
    ours, theirs = (repr(text[max(0, same - 20) : same + 20]) for text in (start, whole))
    message = f"the prompt renders as …{ours}…, but inside the chat as …{theirs}…"
    hint = "set data.template so that the template writes both alike (such as enable_thinking)"
    raise Unfit("prefix", None, message, hint)


def _no_stop(encoder: Encoder, turn: str) -> Unfit:
    ends = ", ".join(sorted(encoder.end_ids))
    message = f"the template ends the turn with {turn[-24:]!r}, which is no stop token ({ends})"
    hint = "add the template's end marker to eos_token_id in generation_config.json"
    return Unfit("stop", None, message, hint)


def _require_content(message: Message, rendered: str) -> None:
    """Refuse a template that loses words of the answer (space at the ends may go)."""
    rendered = rendered.replace(BREAK, "")
    lost = next((text for text in texts_of(message) if not stands_in(text, rendered)), None)
    if lost is not None:
        found = "the template leaves out text of the answer"
        if not isinstance(message.get("content"), str) or lost not in message["content"]:
            found = f"the template leaves out the tool call {lost[:40]!r}"
        raise Unfit("template", None, found, "look at it with `likelier show`")


def texts_of(message: Message) -> list[str]:
    """What of a message must be found in the rendered chat: its content, and what it calls."""
    content = message.get("content")
    texts = [content] if isinstance(content, str) else []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        texts += [str(function[key]) for key in ("name",) if key in function]
        arguments = function.get("arguments")
        texts += list(arguments) if isinstance(arguments, dict) else []
    return texts


def stands_in(text: str, rendered: str) -> bool:
    """Whether all letters of ``text`` are in ``rendered``, in their order (spaces may go)."""
    if text.strip() in rendered:
        return True
    letters = iter(rendered)
    return all(letter in letters for letter in text if not letter.isspace())
