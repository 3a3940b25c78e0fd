"""Chats as the model's template writes them, cut into what is scored and what is context."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from likelier.data.encoder import BREAK, Encoder
from likelier.data.records import Message
from likelier.data.shapes import Unfit


@dataclass(frozen=True)
class Segment:
    """A stretch of an answer: its text and, where it is scored, the stop id that follows."""

    text: str
    scored: bool
    stop: int = -1


def as_text(encoder: Encoder, text: str) -> str:
    """``text`` with `BREAK` inside every control token's text, so that it stays text."""
    return encoder.control_text.sub(lambda found: "".join(c + BREAK for c in found[0]), text)


def render(encoder: Encoder, messages: Sequence[Message], generate: bool) -> str:
    """The chat as at inference, with `BREAK` in control texts that stand in the content.

    Args:
        generate: end with the header of the assistant's turn to come.

    Raises:
        Unfit: the template refuses the chat, or treats control texts in a way of its own.
    """
    plain = _apply(encoder, messages, generate)
    guarded = [_guard(encoder, message) for message in messages]
    if guarded == list(messages):
        return plain
    text = _apply(encoder, guarded, generate)
    if text.replace(BREAK, "") != plain:
        message = "the template changes control tokens in the content, so they cannot be told apart"
        raise Unfit("control", None, message, "delete the control tokens from the messages")
    return text


def cut_answer(
    encoder: Encoder, prompt: Sequence[Message], prompt_text: str, answer: Sequence[Message]
) -> list[Segment]:
    """What ``answer`` adds to the rendered prompt: assistant text up to its stop, and context.

    Raises:
        Unfit: the rendered prompt is no beginning of the rendered chat, an assistant turn has
            no stop, or the template leaves text of it out.
    """
    chat = [*prompt, *answer]
    whole = render(encoder, chat, generate=False)
    segments: list[Segment] = []
    done = len(prompt_text)
    for place in range(len(prompt), len(chat)):
        if chat[place]["role"] != "assistant":
            continue
        first, last = place == len(prompt), place == len(chat) - 1
        before = prompt_text if first else render(encoder, chat[:place], generate=True)
        after = whole if last else render(encoder, chat[: place + 1], generate=False)
        _require_prefix(before, whole)
        _require_prefix(after, whole)
        turn = after[len(before) :]
        end = encoder.end_text.search(turn)
        if end is None:
            raise _no_stop(encoder, turn)
        _require_content(chat[place], turn[: end.start()])
        if segments:
            segments.append(Segment(whole[done : len(before)], scored=False))
        segments.append(Segment(turn[: end.start()], scored=True, stop=encoder.end_ids[end[0]]))
        done = len(before) + end.start()  # the stop's text is where the context begins
    return segments


def chat_key(messages: Sequence[Message]) -> str:
    """Equal for equal chats."""
    return json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str)


def _apply(encoder: Encoder, messages: Sequence[Message], generate: bool) -> str:
    if not getattr(encoder.tokenizer, "chat_template", None):
        mend = "use text columns, or a model with a chat template"
        raise Unfit("template", None, "this tokenizer has no chat template for messages", mend)
    try:
        return encoder.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate, **encoder.template
        )
    except ImportError:
        raise
    except Exception as error:  # a template is foreign code and may raise anything
        line = getattr(error, "lineno", None)
        at = f" at line {line}" if line else ""
        reason = " ".join(str(error).split())[:160]
        message = f"the chat template refuses it{at}: {reason}"
        raise Unfit("template", None, message, "change the roles or turns of this row") from error


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
    mend = "set data.template so that the template writes both alike (such as enable_thinking)"
    raise Unfit("prefix", None, message, mend)


def _no_stop(encoder: Encoder, turn: str) -> Unfit:
    ends = ", ".join(sorted(encoder.end_ids))
    message = f"the template ends the turn with {turn[-24:]!r}, which is no stop token ({ends})"
    mend = "add the template's end marker to eos_token_id in generation_config.json"
    return Unfit("stop", None, message, mend)


def _require_content(message: Message, rendered: str) -> None:
    """Refuse a template that loses words of the answer (space at the ends may go)."""
    content = message.get("content")
    if not isinstance(content, str):
        return
    rendered = rendered.replace(BREAK, "")
    if content.strip() in rendered:
        return
    letters = iter(rendered)
    if not all(c in letters for c in content if not c.isspace()):
        found = "the template leaves out text of the answer"
        raise Unfit("template", None, found, "look at it with `likelier show`")
