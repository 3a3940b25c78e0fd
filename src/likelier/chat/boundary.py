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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from likelier.base.findings import Finding, Unfit
from likelier.chat import thinking
from likelier.chat.header import NoPrefix, Tools, before_last
from likelier.chat.messages import Message, shared_start
from likelier.chat.render import render_chat
from likelier.chat.tokenizer import BREAK, Encoder
from likelier.chat.turn import Turn, turn_behind
from likelier.pages.texts import text as said_in

MAX_TURNS_RENDERED = 100_000  # of one answer: about 600 turns, or a few seconds


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


def prompt_text(encoder: Encoder, prompt: Sequence[Message], tools: Tools = ()) -> str:
    """A prompt as it is rendered to be answered. An assistant's turn at its end is continued.

    Raises:
        Unfit: the template refuses the prompt, or changes the turn that is to be continued.
    """
    if prompt[-1]["role"] != "assistant":
        return render_chat(encoder, prompt, True, tools)
    before = before_last(encoder, prompt, tools)
    begun = prompt[-1].get("content")
    if not isinstance(begun, str) or not begun.strip():
        message = "the assistant's turn at the end of the prompt has no text to be continued"
        raise Unfit("prompt", "prompt", message, "give it text, or delete the turn")
    rest = thinking.left_open(begun)
    texts = []
    for letter in "AB":
        chat = [*prompt[:-1], {**prompt[-1], "content": begun + letter + rest}]
        turn = _placed(encoder, chat, before, tools)
        texts.append(before + turn.closing + turn.text)
    text = texts[0][: shared_start(*texts)]
    if not text.replace(BREAK, "").endswith(begun.lstrip()):
        message = "the template changes the assistant's turn at the end of the prompt"
        raise Unfit("prefix", "prompt", message, "look at it with `likelier show --row`")
    return text


def generated_turn(encoder: Encoder, prompt: Sequence[Message], text: str, ended: bool) -> Message:
    """What was generated behind ``prompt`` as a turn of the chat, its reasoning where the template
    looks for it: so that later turns have of it what the template keeps.

    A thinking block that was not closed holds all of the text where the answer was broken off, and
    nothing where it ``ended`` by itself.

    Raises Unfit as `prompt_text`.
    """
    before = prompt_text(encoder, prompt)
    content = thinking.opened(before) + text
    if closing := thinking.left_open(content).removesuffix("-"):
        content = text if ended else content + closing
    turn = {"role": "assistant", "content": content}
    with suppress(Unfit):  # no answer that could be trained on: it stands as it was written
        placed = turn_behind(encoder, [*prompt, turn], before, ()).message
        return placed if str(placed.get("content") or "").strip() else turn
    return turn


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
    if encoder.turns == "all" and sum(places) > MAX_TURNS_RENDERED:
        what = f"{len(places):,} turns to be learned, each rendered with all that stand before it"
        hint = "split the row, give the earlier turns the weight 0, or set data.turns: last"
        raise Unfit("turn", None, what, hint)
    segments: list[TextSegment] = []
    notes = {"continued"} if continued else set()
    thinks, start, done, stop = False, "", "", ""
    for place in places[-1:] if encoder.turns == "last" else places:
        begins = rendered if place == first else before_last(encoder, chat[: place + 1], tools)
        before = begins
        if continued and place == first:
            before = before_last(encoder, prompt, tools)
        turn = _placed(encoder, chat[: place + 1], before, tools)
        chat[place] = turn.message
        text = before + turn.closing + turn.text
        if not text.startswith(begins):
            hint = "repeat nothing of it in the answer, or delete it from the prompt"
            raise NoPrefix(begins, text, hint)
        if not segments:
            start = begins
        elif begins.startswith(done + stop):
            segments.append(TextSegment(begins[len(done) :], False, between=True))
        else:
            hint = "set data.turns: last, so that the last turn is scored and the others are read"
            raise NoPrefix(done + stop, begins, hint)
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


def scored_block(
    encoder: Encoder, prompt: Sequence[Message], completion: Sequence[Message], tools: Tools = ()
) -> tuple[str, str]:
    """The empty thinking block that an answer without reasoning begins with, and the switch that
    moves it into the prompt; both empty where there is none.
    """
    block = switch = ""
    with suppress(Unfit):
        cut = cut_completion(
            encoder, prompt, prompt_text(encoder, prompt, tools), completion, tools
        )
        block = "" if cut.thinks else thinking.empty_block(cut.segments[-1].text)
    for name, value in thinking.SWITCHES:
        if block and not switch and name in encoder.reads:
            other = replace(encoder, template={**encoder.template, name: value})
            with suppress(Unfit):
                if thinking.closes_block(prompt_text(other, prompt, tools)):
                    switch = f"set data.template.{name}: {json.dumps(value)}"
    return block, switch


def notes_on(encoder: Encoder, cuts: Sequence[Cut], source: str) -> Iterator[Finding]:
    """What is to be said of how the answers of a pair were put behind their prompt."""
    own = encoder.stop_text
    how = "scored, as the other side reasons" if any(cut.thinks for cut in cuts) else "only read"
    messages = {
        "generation": "the template generates behind another header than it writes in a chat",
        "closed": f"an answer without reasoning closes the thinking block at once; that is {how}",
        "continued": "the prompt ends with an assistant's turn; the answers continue it",
        "ended": f"the template does not end the last turn; the tokenizer's end token {own} does",
    }
    noted = {note for cut in cuts for note in cut.notes}
    for code in (code for code in messages if code in noted):
        yield Finding(code, "note", source, None, messages[code], said_in(f"findings.{code}.cure"))


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


def _placed(encoder: Encoder, chat: list[Message], before: str, tools: Tools) -> Turn:
    """The last turn behind its generation prompt; an error has the first cure that was tried and
    works.
    """
    try:
        return turn_behind(encoder, chat, before, tools)
    except Unfit as unfit:
        if unfit.code not in ("prefix", "reasoning") or encoder.boundary == "history":
            raise
        raise Unfit(
            unfit.code, unfit.field, unfit.message, _cure(encoder, chat, tools) or unfit.hint
        ) from unfit


def _cure(encoder: Encoder, chat: list[Message], tools: Tools) -> str:
    """What puts the last turn behind its prompt; empty where nothing that was tried does."""
    for name, value in thinking.SWITCHES:
        if name in encoder.reads and encoder.template.get(name) is not value:
            other = replace(encoder, template={**encoder.template, name: value})
            if _has_place(other, chat, tools):
                return f"set data.template.{name}: {json.dumps(value)}"
    opens = thinking.opened(before_last(encoder, chat, tools)).strip() or "<think>"
    inline = thinking.inline(chat[-1], opens)
    if inline is not None and _has_place(encoder, [*chat[:-1], inline], tools):
        closes = thinking.closing_of(opens)
        return f"write it into the content, between {opens} and {closes} before the text"
    return ""


def _has_place(encoder: Encoder, chat: list[Message], tools: Tools) -> bool:
    try:
        turn_behind(encoder, chat, before_last(encoder, chat, tools), tools)
    except Unfit:
        return False
    return True
