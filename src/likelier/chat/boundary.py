"""Where the prompt ends and the answer begins: an answer as the model would write it.

The prompt is what the template writes before an answer to come (the generation prompt). In a
finished chat many templates write the same, and the answer is what follows: the history rule.
Others write the finished turn with another header than the one that they generate behind, or drop
reasoning from it. There the generation rule takes the answer as it stands behind its own header,
and puts it behind the generation prompt.

An answer ends with the stop that the template writes; where it leaves the last turn open, with the
end token that it writes before the next one.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from likelier.base.findings import Finding, Unfit
from likelier.chat import thinking
from likelier.chat.messages import Message, shared_start
from likelier.chat.render import as_text, lost_text, render_chat
from likelier.chat.thinking import MARKERS, Parts, marked, parts_of
from likelier.chat.tokenizer import BREAK, Encoder

Tools = Sequence[Message]
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_THOUGHTS = re.compile("|".join(map(re.escape, (*MARKERS, *MARKERS.values()))))
_LAST_LETTERS = 8  # of the prompt, by which its end is known inside the chat
_SILENT = "delete the reasoning from the answer"
_ASKED, _SAID, _NEXT = "probe asked", "probe said", "probe next"


@dataclass(frozen=True)
class TextSegment:
    """A stretch of a completion.

    Attributes:
        scored: whether its tokens are; else it is context.
        stop: the stop id that follows its text; -1 where none does.
        between: context between two turns, whose text begins with the stop of the one before.
        closes: it closes the thinking block that the prompt opened, and says nothing more.
    """

    text: str
    scored: bool
    stop: int = -1
    between: bool = False
    closes: bool = False


@dataclass(frozen=True)
class Cut:
    """One completion of a chat: the rendered prompt that it follows, its segments, whether it
    reasons, and the codes of what is to be said of it: ``generation`` (the rule), ``closed`` (a
    thinking block, at once), ``ended`` (by the tokenizer's own end).
    """

    prompt: str
    segments: tuple[TextSegment, ...]
    thinks: bool = False
    notes: frozenset[str] = frozenset()


class _Turn(NamedTuple):
    """An assistant's turn behind its generation prompt: the message as it was rendered, what
    closes the prompt's thinking block, the text, the text of its stop, and its notes.
    """

    message: Message
    closing: str
    text: str
    stop: str
    thinks: bool
    notes: frozenset[str]


class _NoPrefix(Unfit):
    """The rendered prompt is no beginning of the rendered chat, and cannot be made one."""

    def __init__(self, before: str, whole: str, hint: str):
        same = shared_start(before, whole)
        ours, theirs = (repr(text[max(0, same - 20) : same + 20]) for text in (before, whole))
        message = f"the prompt renders as …{ours}…, but inside the chat as …{theirs}…"
        super().__init__("prefix", None, message, hint)


def prompt_text(encoder: Encoder, prompt: Sequence[Message], tools: Tools = ()) -> str:
    """A prompt as it is rendered to be answered. An assistant's turn at its end is continued.

    Raises:
        Unfit: the template refuses the prompt, or changes the turn that is to be continued.
    """
    if prompt[-1]["role"] != "assistant":
        return render_chat(encoder, prompt, True, tools)
    before = _before_last(encoder, prompt, tools)
    begun = prompt[-1].get("content")
    if not isinstance(begun, str) or not begun.strip():
        message = "the assistant's turn at the end of the prompt has no text to be continued"
        raise Unfit("prompt", "prompt", message, "give it text, or delete the turn")
    rest = thinking.left_open(begun)
    texts = []
    for letter in "AB":
        chat = [*prompt[:-1], {**prompt[-1], "content": begun + letter + rest}]
        turn = _turn(encoder, chat, before, tools)
        texts.append(before + turn.closing + turn.text)
    text = texts[0][: shared_start(*texts)]
    if not text.replace(BREAK, "").endswith(begun.lstrip()):
        message = "the template changes the assistant's turn at the end of the prompt"
        raise Unfit("prefix", "prompt", message, "look at it with `likelier show`")
    return text


def cut_completion(
    encoder: Encoder,
    prompt: Sequence[Message],
    rendered: str,
    completion: Sequence[Message],
    tools: Tools = (),
) -> Cut:
    """What ``completion`` adds to ``rendered``, the text of its prompt: the assistant's text up to
    its stop, and context between its turns. Where its first turns are not learned, they belong
    to the prompt of the cut.

    Raises:
        Unfit: a turn cannot be put behind its generation prompt or has no stop, the template
            leaves out text of it, or a weight is neither 0 nor 1.
    """
    chat = [*prompt, *completion]
    continued = prompt[-1]["role"] == "assistant"
    if continued:
        chat = [*prompt[:-1], _joined(prompt[-1], completion[0]), *completion[1:]]
    first = len(chat) - len(completion)
    places = [first + number for number in learned(completion)]
    segments: list[TextSegment] = []
    notes = {"continued"} if continued else set()
    thinks, start, done, stop = False, "", "", ""
    for place in places[-1:] if encoder.turns == "last" else places:
        begins = rendered if place == first else _before_last(encoder, chat[: place + 1], tools)
        before = begins
        if continued and place == first:
            before = _before_last(encoder, prompt, tools)
        turn = _turn(encoder, chat[: place + 1], before, tools)
        chat[place] = turn.message
        text = before + turn.closing + turn.text
        if not text.startswith(begins):
            hint = "repeat nothing of it in the answer, or delete it from the prompt"
            raise _NoPrefix(begins, text, hint)
        if not segments:
            start = begins
        elif begins.startswith(done + stop):
            segments.append(TextSegment(begins[len(done) :], False, between=True))
        else:
            hint = "set data.turns: last, so that the last turn is scored and the others are read"
            raise _NoPrefix(done + stop, begins, hint)
        if turn.closing and begins == before:
            segments.append(TextSegment(turn.closing, False, closes=True))
        said = text[max(len(begins), len(before + turn.closing)) :]
        segments.append(TextSegment(said, True, stop=encoder.end_ids[turn.stop]))
        done, stop = text, turn.stop
        thinks, notes = thinks or turn.thinks, notes | turn.notes
    return Cut(start, tuple(segments), thinks, frozenset(notes))


def with_closings(cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts of one pair. Where a side reasons, to close a block at once is scored; where none
    does it is context, so that no loss teaches the model not to think.
    """
    if not any(cut.thinks for cut in cuts):
        return list(cuts)
    return [
        replace(cut, segments=tuple(replace(s, scored=s.scored or s.closes) for s in cut.segments))
        for cut in cuts
    ]


def notes_on(encoder: Encoder, cuts: Sequence[Cut], source: str) -> Iterator[Finding]:
    """What is to be said of how the answers of a pair were put behind their prompt."""
    notes = {note for cut in cuts for note in cut.notes}
    if "generation" in notes:
        message = "the template generates behind another prompt than it writes in a finished chat"
        hint = "nothing is needed: the answer is put behind the prompt that it is generated behind"
        yield Finding("generation", "note", source, None, message, hint)
    if "closed" in notes:
        scored = any(cut.thinks for cut in cuts)
        how = "scored, because the other answer reasons" if scored else "read, not scored"
        message = f"an answer without reasoning closes the thinking block at once; that is {how}"
        hint = "write the reasoning into the answers, if the model is to learn it"
        yield Finding("closed", "note", source, None, message, hint)
    if "continued" in notes:
        message = "the prompt ends with an assistant's turn; the answers continue it"
        hint = "end the prompt with a user's turn, if the answers are turns of their own"
        yield Finding("continued", "note", source, None, message, hint)
    if "ended" in notes:
        own = next(text for text, end in encoder.end_ids.items() if end == encoder.stop)
        message = f"the template does not end the last turn; the tokenizer's end token {own} does"
        hint = "set eos_token_id in generation_config.json to the token that ends a turn"
        yield Finding("ended", "note", source, None, message, hint)


def learned(completion: Sequence[Message]) -> list[int]:
    """Which messages of an answer are scored: the assistant's, but for those whose own ``weight``
    is 0 or whose ``train`` is false.

    Raises:
        Unfit: another weight, or none is left.
    """
    places = []
    for number, message in enumerate(completion):
        weight = message.get("weight", message.get("train", True))
        if weight not in (0, 1):
            what = f"the weight of a turn is {weight!r}"
            raise Unfit("turn", None, what, "write 0 for a turn to read, 1 for a turn to learn")
        if message["role"] == "assistant" and weight:
            places.append(number)
    if not places:
        hint = "give one of its assistant turns the weight 1, or delete the weights"
        raise Unfit("turn", None, "no turn of the answer is to be learned", hint)
    return places


def _joined(begun: Message, rest: Message) -> Message:
    """A turn that the prompt begins, and the answer continues."""
    content = str(begun["content"]) + str(rest.get("content") or "")
    return {**begun, **rest, "content": content}


def _before_last(encoder: Encoder, chat: Sequence[Message], tools: Tools) -> str:
    """The generation prompt of the last turn."""
    return render_chat(encoder, chat[:-1], True, tools) if chat[:-1] else ""


def _turn(encoder: Encoder, chat: list[Message], before: str, tools: Tools) -> _Turn:
    """The last turn of ``chat`` behind ``before``, its generation prompt."""
    message, block = chat[-1], thinking.opened(before)
    parts = parts_of(message, block)
    closing = ""
    if parts.thought:
        message, text, rule = _reasoned(encoder, chat, before, tools)
    else:
        text, rule = _behind(encoder, chat, before, tools)
        if block:
            closing, text = _split_closing(encoder, block, thinking.without_empty(text, block))
            if parts.head:
                closing, text = closing or thinking.inside(parts.head, block), text.lstrip("\n")
            if not closing:
                raise _no_closing(block)
    said, stop, ended = _ended(encoder, message, parts, text)
    notes = {name for name, so in (("closed", bool(closing)), ("ended", ended)) if so} | rule
    return _Turn(message, closing, said, stop, bool(parts.thought), frozenset(notes))


def _reasoned(
    encoder: Encoder, chat: list[Message], before: str, tools: Tools
) -> tuple[Message, str, set[str]]:
    """The last turn and what is written of it, its reasoning inside the block of the prompt where
    that opened one. Raises Unfit where the template has no place for the reasoning.
    """
    block = thinking.opened(before)
    parts = parts_of(chat[-1], block)
    if thinking.closes_block(before):
        message = "the prompt closes the thinking block, so the answer's reasoning has no place"
        raise Unfit("reasoning", None, message, _cure(encoder, chat, tools, _SILENT, block))
    dropped: tuple[str, set[str]] | None = None
    for form in thinking.forms_of(chat[-1]):
        try:
            text, rule = _behind(encoder, [*chat[:-1], form], before, tools)
        except Unfit:
            if encoder.boundary == "history":
                raise
            continue
        text = thinking.inside(text, block) if block else text
        if thinking.continues(text.replace(BREAK, ""), parts, block):
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
    message = "the template leaves out the reasoning of the answer"
    raise Unfit("reasoning", None, message, _cure(encoder, chat, tools, _SILENT, block))


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
    before = prompt_text(encoder, [asked])
    if thinking.opened(before) != block:
        return ""
    space = rf"(\s*{re.escape(thinking.closing_of(block))}\s*)B"

    def behind(thought: dict[str, str], pattern: str) -> str:
        with suppress(Unfit):
            turn = {"role": "assistant", "content": "B", **thought}
            if found := re.match(pattern, _behind(encoder, [asked, turn], before, ())[0]):
                return found[1]
        return ""

    def quiet(name: str, value: Any) -> str:
        other = replace(encoder, template={**encoder.template, name: value})
        with suppress(Unfit):
            text = prompt_text(other, [asked])
            if text.startswith(before.rstrip()) and thinking.closes_block(text):
                return text[shared_start(before, text) :]
        return ""

    switches = (one for one in thinking.SWITCHES if one[0] in encoder.reads)
    return (
        behind({}, space)
        or next(filter(None, (quiet(*one) for one in switches)), "")
        or next(filter(None, (behind({key: "A"}, "A" + space) for key in thinking.KEYS)), "")
    )


def _no_closing(block: str) -> Unfit:
    marker = block.strip()
    what = f"the prompt opens a thinking block, {marker}, which nothing in the answer closes"
    empty = repr(f"{marker}\n\n{thinking.closing_of(block)}\n\n")
    hint = f"begin the content of the answer with {empty}, or with reasoning between the two"
    return Unfit("reasoning", None, what, hint)


def _cure(
    encoder: Encoder, chat: list[Message], tools: Tools, otherwise: str, block: str = ""
) -> str:
    """What was tried, and puts the last turn behind its prompt; else ``otherwise``."""
    none: frozenset[str] = frozenset()  # so that what is tried looks for no cure of its own
    if not encoder.reads:
        return otherwise
    for name, value in thinking.SWITCHES:
        if name in encoder.reads and encoder.template.get(name) is not value:
            template = {**encoder.template, name: value}
            if _has_place(replace(encoder, template=template, reads=none), chat, tools):
                return f"set data.template.{name}: {json.dumps(value)}"
    parts = parts_of(chat[-1])
    if parts.thought and not parts.head:
        opens = block.strip() or "<think>"
        closes = thinking.closing_of(opens)
        inline = {key: value for key, value in chat[-1].items() if key not in thinking.KEYS}
        inline["content"] = f"{opens}\n{parts.thought}\n{closes}\n\n{parts.said}"
        if _has_place(replace(encoder, reads=none), [*chat[:-1], inline], tools):
            return f"write it into the content, between {opens} and {closes} before the text"
    return otherwise


def _has_place(encoder: Encoder, chat: list[Message], tools: Tools) -> bool:
    try:
        _turn(encoder, chat, _before_last(encoder, chat, tools), tools)
    except Unfit:
        return False
    return True


def _behind(
    encoder: Encoder, chat: list[Message], before: str, tools: Tools
) -> tuple[str, set[str]]:
    """What the template writes of the last turn behind ``before``, its generation prompt, with all
    that follows; and the note of the rule that was needed.

    By the generation rule it is what stands in the finished chat behind as much of the turn's
    header as both have. Two probes, the turn with another letter before its text, show where the
    header ends.
    """
    whole = render_chat(encoder, chat, False, tools)
    if encoder.boundary != "generation" and whole.startswith(before):
        return whole[len(before) :], set()
    if encoder.boundary == "history":
        raise _NoPrefix(before, whole, "set data.boundary: auto, or data.template")
    hint = "set data.template so that the template writes both alike"
    probes = [[*chat[:-1], marked(chat[-1], letter)] for letter in "AB"]
    first, second = (render_chat(encoder, probe, False, tools) for probe in probes)
    lead = first[: shared_start(first, second)]
    start, asked = _end_of_prompt(encoder, chat, before, lead, tools)
    written = lead[start:]
    same = _same_header(asked, written)
    ours, theirs = asked[same:], written[same:]
    if same and asked.endswith(written[:same]):
        ours = ""  # the header stands again at the end of the generation prompt
    if (
        not whole.startswith(lead[: start + same])
        or not _fits(ours, theirs)
        or thinking.stays_open(asked)
    ):
        raise _NoPrefix(before, whole, _cure(encoder, chat, tools, hint))
    if thinking.holds_closed_block(asked) and parts_of(chat[-1]).thought:
        message = "the prompt closes the thinking block, so the answer's reasoning has no place"
        raise Unfit("reasoning", None, message, _cure(encoder, chat, tools, _SILENT))
    return whole[start + same :], {"generation"}


def _end_of_prompt(
    encoder: Encoder, chat: list[Message], before: str, lead: str, tools: Tools
) -> tuple[int, str]:
    """Where the prompt ends in ``lead``, the finished chat up to its last turn's text, and what
    ``before`` has behind the prompt. It is looked for by its end, because some templates write
    its beginning otherwise there.
    """
    bare = render_chat(encoder, chat[:-1], False, tools)
    low, high = 0, len(bare)
    while low < high:  # the longest end of it that stands there
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bare[-middle:] in lead else (low, middle - 1)
    last = chat[-2].get("content")
    letters = as_text(encoder, last).strip()[-_LAST_LETTERS:] if isinstance(last, str) else ""
    known = bare.rfind(letters)
    if not low or not before.startswith(bare) or len(bare) - low > known >= 0:
        raise _NoPrefix(before, lead, "set data.template so that the template writes both alike")
    return lead.rfind(bare[-low:]) + low, before[len(bare) :]


def _same_header(asked: str, written: str) -> int:
    """How much of a turn's header both have, cutting no marker such as ``<think>`` in two."""
    same = shared_start(asked, written)
    for text in (asked, written):
        for marker in _MARKER.finditer(text):
            if marker.start() < same < marker.end():
                same = marker.start()
    return same


def _fits(asked: str, written: str) -> bool:
    """Whether a turn that begins with ``written`` may stand behind a generation prompt that ends
    with ``asked``, where the header before both is the same.
    """
    if not asked.strip():
        return not written.strip() or _MARKER.match(written.lstrip()) is not None
    if not _THOUGHTS.sub("", asked).strip():
        return True
    begins = written.lstrip()
    return _MARKER.match(asked) is not None and (not begins or bool(_THOUGHTS.match(begins)))


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
    own = next(text for text, end in encoder.end_ids.items() if end == encoder.stop)
    return text, own, True


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
