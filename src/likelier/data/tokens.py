"""Pairs as token ids: one prompt, two answers, each answer ended by its stop id.

The prompt is tokenised once, for both sides, as it is at inference. An answer is tokenised on
its own: tokens that would merge across the boundary in the joint text do not, because the model
never sees them so when it generates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from likelier.base.errors import DataError
from likelier.checks.pairs import clock, notice
from likelier.data.chat import (
    Segment,
    as_text,
    chat_key,
    cut_answer,
    render,
)
from likelier.data.encoder import Encoder, build_encoder
from likelier.data.fit import Fitted, fit
from likelier.data.lines import odd_character
from likelier.data.messages import Chat, Unfit, check_end, check_start, read_messages
from likelier.data.records import (
    Answer,
    Finding,
    Labelled,
    Message,
    Pair,
    Preference,
    TokenPair,
)

__all__ = [
    "Encoder",
    "Fitted",
    "build_encoder",
    "encode_answer",
    "encode_pair",
    "encode_pairs",
    "fit",
]

SIDES = ("chosen", "rejected")
TEXTS_AT_ONCE = 2048  # bounds what the tokenizer's own records take


@dataclass(frozen=True)
class _Draft:
    """A prompt and its answers as text, ready to be tokenised."""

    prompt: str
    is_chat: bool
    answers: tuple[tuple[Segment, ...], ...]


def encode_pair(encoder: Encoder, pair: Pair) -> TokenPair:
    """One pair as tokens.

    Raises:
        DataError: the pair cannot be encoded; located at its row.
    """
    encoded, findings = encode_pairs(encoder, [pair])
    if not encoded:
        first = next(finding for finding in findings if finding.severity == "error")
        raise DataError(first.message, where=first.where, hint=first.hint)
    return encoded[0]


def encode_pairs(
    encoder: Encoder, pairs: Sequence[Preference]
) -> tuple[list[TokenPair], list[Finding]]:
    """Many pairs as tokens, and what was found on the way; both in the order of ``pairs``.

    A labelled answer stands on both sides.
    Equal prompts are rendered once, and equal texts tokenised once.
    """
    seen: dict[str, str] = {}
    drafts: list[_Draft | Finding] = []
    for pair in pairs:
        try:
            answers = answers_in(pair)
            drafts.append(_draft(encoder, pair.prompt, answers, seen, pair.tools))
        except Unfit as unfit:
            drafts.append(unfit.at(pair.source))
    ids = _Ids(encoder, [draft for draft in drafts if isinstance(draft, _Draft)])
    encoded: list[TokenPair] = []
    findings: list[Finding] = []
    if encoder.clock and any(isinstance(draft, _Draft) and draft.is_chat for draft in drafts):
        findings.append(clock(encoder))
    for pair, draft in zip(pairs, drafts, strict=True):
        if isinstance(draft, Finding):
            findings.append(draft)
            continue
        try:
            encoded.append(_assemble(ids, draft, pair))
        except Unfit as unfit:
            findings.append(unfit.at(pair.source))
            continue
        texts = [segment.text for answer in draft.answers for segment in answer]
        findings += notice(encoder, pair, draft.prompt, texts, encoded[-1])
    return encoded, findings


def encode_answer(
    encoder: Encoder,
    prompt: str | Sequence[Message],
    response: str | Sequence[Message],
    stop: bool = True,
) -> tuple[tuple[int, ...], Answer]:
    """Token ids of one prompt, and one answer to it.

    Args:
        prompt: text, or messages.
        response: text, or the messages that answer messages.
        stop: whether the answer ends with its stop token.

    Raises:
        DataError: they do not fit each other, the template or the tokenizer.
    """
    try:
        prompt, response = _read_answer(prompt, response)
        draft = _draft(encoder, prompt, (response,), {})
        ids = _Ids(encoder, [draft])
        answer = ids.answer(draft.answers[0])
        prompt_ids = ids.prompt(draft)
    except Unfit as unfit:
        raise DataError(unfit.message, where=unfit.field, hint=unfit.hint) from unfit
    if not stop:
        answer = Answer(answer.tokens[:-1], answer.scored[:-1])
    if not prompt_ids or not any(answer.scored):
        empty = "response" if prompt_ids else "prompt"
        raise DataError("it has no token", where=empty, hint="add text")
    return prompt_ids, answer


def _read_answer(prompt: Any, response: Any) -> tuple[str, str] | tuple[Chat, Chat]:
    """Prompt and response checked as rows are, but a text may be empty."""
    if not isinstance(prompt, str):
        if isinstance(response, str):
            response = ({"role": "assistant", "content": response},)
        turns = read_messages(response, "response")
        check_start(turns, "response")
        check_end(turns, "response")
        return read_messages(prompt, "prompt"), turns
    if not isinstance(response, str):
        message = "the prompt is text, the response is not"
        raise Unfit("mixed", "response", message, "give both as text or both as messages")
    for field, text in (("prompt", prompt), ("response", response)):
        if odd := odd_character(text):
            raise Unfit("text", field, f"the text holds {odd}", "delete that character")
    return prompt, response


def _draft(
    encoder: Encoder,
    prompt: str | Sequence[Message],
    answers: Iterable[str | Sequence[Message]],
    seen: dict[str, str],
    tools: Sequence[Message] = (),
) -> _Draft:
    if isinstance(prompt, str):
        texts = [as_text(encoder, str(answer)) for answer in answers]
        segments = [(Segment(text, scored=True, stop=encoder.stop),) for text in texts]
        return _Draft(as_text(encoder, prompt), False, tuple(segments))
    key = chat_key([prompt, tools])
    if key not in seen:
        seen[key] = render(encoder, prompt, True, tools)
    text = seen[key]
    cuts = [cut_answer(encoder, prompt, text, a, tools) for a in answers if not isinstance(a, str)]
    return _Draft(text, True, tuple(map(tuple, cuts)))


class _Ids:
    """The token ids of all texts of some drafts, each text tokenised once."""

    def __init__(self, encoder: Encoder, drafts: Sequence[_Draft]):
        segments = [segment for d in drafts for answer in d.answers for segment in answer]
        prompts = {draft.prompt for draft in drafts}
        context = {segment.text for segment in segments if not segment.scored}
        self.encoder = encoder
        self.whole = _tokenise(encoder.whole, prompts | context)
        self.tail = _tokenise(encoder.tail, {s.text for s in segments if s.scored})

    def prompt(self, draft: _Draft) -> tuple[int, ...]:
        """A chat's template writes its own specials; a text gets the tokenizer's."""
        tokens = self._checked(self.whole, draft.prompt)
        return tokens if draft.is_chat else self.encoder.leading + tokens

    def answer(self, segments: Sequence[Segment]) -> Answer:
        tokens: list[int] = []
        scored: list[bool] = []
        for segment in segments:
            if segment.scored:
                new = [*self._checked(self.tail, segment.text), segment.stop]
            else:  # its text begins with the stop that the turn before it ended with
                stop, *new = self._checked(self.whole, segment.text)
                if stop != tokens[-1]:
                    message = "a later turn does not begin after the stop of the one before"
                    raise Unfit("template", None, message, "look at it with `likelier show`")
            tokens += new
            scored += [segment.scored] * len(new)
        return Answer(tuple(tokens), tuple(scored))

    def _checked(self, ids: dict[str, tuple[int, ...]], text: str) -> tuple[int, ...]:
        """Refuse a tokenizer that makes control ids of text that is none."""
        tokens = ids[text]
        control = sum(map(self.encoder.control.__contains__, tokens))
        if control > len(self.encoder.control_text.findall(text)):
            message = "the tokenizer makes a control token of ordinary text"
            raise Unfit("control", None, message, "delete the control tokens from the text")
        return tokens


def _tokenise(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    ordered = sorted(texts, key=len)
    ids: dict[str, tuple[int, ...]] = {}
    for start in range(0, len(ordered), TEXTS_AT_ONCE):
        batch = ordered[start : start + TEXTS_AT_ONCE]
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ids.update((text, tuple(e.ids)) for text, e in zip(batch, encodings, strict=True))
    return ids


def answers_in(pair: Preference) -> tuple[str, ...] | tuple[tuple[Message, ...], ...]:
    """The one or two answers of a row."""
    answers = (pair.completion,) if isinstance(pair, Labelled) else (pair.chosen, pair.rejected)
    return answers  # type: ignore[return-value]  # all text or all messages, as the reader made them


def _assemble(ids: _Ids, draft: _Draft, pair: Preference) -> TokenPair:
    prompt = ids.prompt(draft)
    if not prompt:
        raise Unfit("empty", "prompt", "the prompt has no token", "add text to it")
    labelled = isinstance(pair, Labelled)
    answers = [ids.answer(segments) for segments in draft.answers]
    for name, answer in zip(("completion",) if labelled else SIDES, answers, strict=True):
        if sum(answer.scored) < 2:  # the stop alone
            message = "the answer has no token but its stop"
            raise Unfit("empty", name, message, "add text or delete the row")
    if isinstance(pair, Labelled):
        (answer,) = answers
        return TokenPair(prompt, answer, answer, pair.source, label=pair.label)
    chosen, rejected = answers
    if chosen == rejected:
        message = "chosen and rejected become the same tokens"
        raise Unfit("merged", None, message, "delete the row or set data.on_bad_row: drop")
    return TokenPair(prompt, chosen, rejected, pair.source)
