"""Pairs as token ids: one prompt, two completions, each ended by its stop id.

The prompt is tokenised once, for both sides, as it is at inference. A completion is tokenised on
its own: tokens that would merge across the boundary in the joint text do not, because the model
never sees them so when it generates. What of a chat is prompt and what is answer is decided in
`boundary`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from likelier.base.errors import DataError
from likelier.base.findings import Finding, Unfit
from likelier.base.limits import MAX_MEGABYTES, MAX_SECONDS, TOKENIZER, at_row, bounded
from likelier.chat.boundary import (
    Cut,
    TextSegment,
    cut_completion,
    notes_on,
    prompt_text,
    with_closings,
)
from likelier.chat.messages import (
    Chat,
    Message,
    check_end,
    check_start,
    odd_character,
    read_messages,
    shared_start,
)
from likelier.chat.render import as_text
from likelier.chat.tokenizer import Encoder
from likelier.data.records import Completion, Pair, TokenPair

MAX_TOKENISED = 5 * 10**6  # characters; a tokenizer's own records take 250 bytes for each
MEGABYTES_EACH = 300 / 10**6
SECONDS_EACH = 1 / 100_000
BROKEN = "\ufffd"  # what decoding gives for a part of a character
MOST_TOKENS_OF_A_CHARACTER = 4  # bytes in UTF-8

Notice = Callable[[Encoder, Pair, Sequence[str], TokenPair], Iterable[Finding]]


@dataclass(frozen=True)
class _Draft:
    """A prompt and its completions as text, ready to be tokenised. A completion whose first turns
    are only read stands behind a longer prompt than the others.
    """

    prompt: str
    is_chat: bool
    completions: tuple[Cut, ...]

    @property
    def segments(self) -> list[TextSegment]:
        return [segment for cut in self.completions for segment in cut.segments]


def encode_pairs(
    encoder: Encoder, pairs: Sequence[Pair], notice: Notice | None = None
) -> tuple[list[TokenPair], list[Finding]]:
    """Many pairs as tokens, and what was found on the way; both in the order of ``pairs``.

    Equal prompts are rendered once, and equal texts tokenised once. ``notice`` is asked what it
    finds in each: it gets the encoder, the pair, the texts of its prompt and of both completions
    as they were tokenised, and its tokens.
    """
    rendered: dict[str, str] = {}
    drafts: list[_Draft | Finding] = []
    for pair in pairs:
        same = pair.label is not None and pair.rejected == pair.chosen
        completions = [pair.chosen] if same else [pair.chosen, pair.rejected]
        try:
            with at_row(pair.source):
                drafts.append(_draft(encoder, pair.prompt, completions, rendered, pair.tools))
        except Unfit as unfit:
            drafts.append(unfit.at(pair.source))
    ids = _Ids(encoder)
    encoded: list[TokenPair] = []
    findings: list[Finding] = []
    if encoder.clock and any(isinstance(draft, _Draft) and draft.is_chat for draft in drafts):
        findings.append(_asks_for_date(encoder))
    for pair, draft in zip(pairs, drafts, strict=True):
        if isinstance(draft, Finding):
            findings.append(draft)
            continue
        try:
            with at_row(pair.source):
                ids.add(draft)
            encoded.append(_assemble(ids, draft, pair))
        except Unfit as unfit:
            findings.append(unfit.at(pair.source))
            continue
        if notice is not None:
            both = (draft.completions[0], draft.completions[-1])
            texts = [draft.prompt]
            for cut in both:  # its prompt is longer where its first turns are only read
                texts.append(cut.prompt.removeprefix(draft.prompt))
                texts += [segment.text for segment in cut.segments]
            findings += notice(encoder, pair, texts, encoded[-1])
        findings += notes_on(encoder, draft.completions, pair.source)
    return encoded, findings


def _asks_for_date(encoder: Encoder) -> Finding:
    """What is to be said of a template that asks for today's date."""
    if encoder.frozen is not None:
        message = "it asks for today's date and gets a fixed one"
        hint = "set data.today to the date that it should get"
        return Finding("clock", "note", "chat template", None, message, hint)
    message = "it writes today's date, so another day gives other tokens"
    hint = "set data.template.date_string, where the template reads it"
    return Finding("clock", "warning", "chat template", None, message, hint)


def encode_prompt(
    encoder: Encoder, prompt: str | Sequence[Message], tools: Sequence[Message] = ()
) -> tuple[int, ...]:
    """Token ids of a prompt that is to be answered: text, or messages with what they may call.

    Raises:
        DataError: it is empty, no chat, or does not fit the template or the tokenizer.
    """
    try:
        chat = prompt if isinstance(prompt, str) else read_messages(prompt, "prompt")
        draft = _draft(encoder, chat, (), {}, tools)
        ids = _Ids(encoder).add(draft).prompt(draft.prompt, draft.is_chat)
    except Unfit as unfit:
        raise DataError(unfit.message, where=unfit.field, hint=unfit.hint) from unfit
    if not ids:
        raise DataError("it has no token", where="prompt", hint="add text")
    return ids


def encode_completion(
    encoder: Encoder,
    prompt: str | Sequence[Message],
    response: str | Sequence[Message],
    stop: bool = True,
) -> tuple[tuple[int, ...], Completion]:
    """Token ids of one prompt, and one completion of it.

    Args:
        prompt: text, or messages.
        response: text, or the messages that answer messages.
        stop: whether the completion ends with its stop token.

    Raises:
        DataError: they do not fit each other, the template or the tokenizer.
    """
    try:
        prompt, response = _read_completion(prompt, response)
        draft = _draft(encoder, prompt, (response,), {})
        ids = _Ids(encoder).add(draft)
        (cut,) = draft.completions
        completion = ids.completion(cut.segments)
        prompt_ids = ids.prompt(cut.prompt, draft.is_chat)
    except Unfit as unfit:
        raise DataError(unfit.message, where=unfit.field, hint=unfit.hint) from unfit
    if not stop:
        completion = Completion(completion.tokens[:-1], completion.scored[:-1])
    if not prompt_ids or not any(completion.scored):
        empty = "response" if prompt_ids else "prompt"
        raise DataError("it has no token", where=empty, hint="add text")
    return prompt_ids, completion


def _read_completion(prompt: Any, response: Any) -> tuple[str, str] | tuple[Chat, Chat]:
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
    completions: Iterable[str | Sequence[Message]],
    rendered: dict[str, str],
    tools: Sequence[Message] = (),
) -> _Draft:
    if isinstance(prompt, str):
        texts = [as_text(encoder, str(one)) for one in completions]
        text = as_text(encoder, prompt)
        answers = [TextSegment(one, scored=True, stop=encoder.stop) for one in texts]
        return _Draft(text, False, tuple(Cut(text, (answer,)) for answer in answers))
    key = json.dumps([prompt, tools], ensure_ascii=False, sort_keys=True, default=str)
    if key not in rendered:
        rendered[key] = prompt_text(encoder, prompt, tools)
    text = rendered[key]
    cuts = [
        cut_completion(encoder, prompt, text, one, tools)
        for one in completions
        if not isinstance(one, str)
    ]
    return _Draft(text, True, tuple(with_closings(cuts)))


class _Ids:
    """The token ids of all texts of the drafts added, each text tokenised once."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.whole: dict[str, tuple[int, ...]] = {}
        self.tail: dict[str, tuple[int, ...]] = {}

    def add(self, draft: _Draft) -> "_Ids":
        """Tokenise the texts of one more draft. Raises Unfit where one is too long."""
        whole = {draft.prompt, *(cut.prompt for cut in draft.completions)}
        whole |= {segment.text for segment in draft.segments if segment.between}
        tail = {segment.text for segment in draft.segments if not segment.between}
        for ids, tokenizer, texts in (
            (self.whole, self.encoder.whole, whole), (self.tail, self.encoder.tail, tail),
        ):  # fmt: skip
            new = sorted(texts - ids.keys())
            ids.update(zip(new, tokenise(self.encoder, tokenizer, new), strict=True))
        return self

    def prompt(self, text: str, is_chat: bool) -> tuple[int, ...]:
        """A chat's template writes its own specials; a text gets the tokenizer's."""
        tokens = self._checked(self.whole, text)
        return self._embedded(tokens if is_chat else self.encoder.leading + tokens)

    def completion(self, segments: Sequence[TextSegment]) -> Completion:
        tokens: list[int] = []
        scored: list[bool] = []
        for segment in segments:
            if not segment.between:
                new = list(self._checked(self.tail, segment.text))
                new += [segment.stop] if segment.stop >= 0 else []
            else:  # its text begins with the stop that the turn before it ended with
                stop, *new = self._checked(self.whole, segment.text)
                if stop != tokens[-1]:
                    message = "a later turn does not begin after the stop of the one before"
                    raise Unfit("template", None, message, "look at it with `likelier show --row`")
            tokens += new
            scored += [segment.scored] * len(new)
        return Completion(self._embedded(tuple(tokens)), tuple(scored))

    def _embedded(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Refuse ids that the model has no embedding for: tokens were added after its training."""
        limit = self.encoder.vocabulary
        if limit is not None and max(tokens, default=0) >= limit:
            largest = max(tokens)
            text = self.encoder.whole.id_to_token(largest)
            message = f"the token {text!r} has the id {largest}, and the model embeds {limit} ids"
            hint = "call model.resize_token_embeddings(len(tokenizer)), and save both"
            raise Unfit("vocabulary", None, message, hint)
        return tokens

    def _checked(self, ids: dict[str, tuple[int, ...]], text: str) -> tuple[int, ...]:
        """Refuse a tokenizer that makes control ids of text that is none."""
        tokens = ids[text]
        control = sum(map(self.encoder.control.__contains__, tokens))
        if control > len(self.encoder.control_text.findall(text)):
            message = "the tokenizer makes a control token of ordinary text"
            raise Unfit("control", None, message, "delete the control tokens from the text")
        return tokens


def tokenise(encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of texts by one of an encoder's tokenizers.

    Raises:
        Unfit: one has more than `MAX_TOKENISED` characters.
        DataError: the tokenizer takes too much time or memory.
    """
    found = []
    for text in texts:
        if len(text) > MAX_TOKENISED:
            message = f"a text of {len(text):,} characters as the template writes it"
            hint = f"shorten it: at most {MAX_TOKENISED:,} are tokenised"
            raise Unfit("huge", None, message, hint)
        seconds = MAX_SECONDS + SECONDS_EACH * len(text)
        megabytes = MAX_MEGABYTES + int(MEGABYTES_EACH * len(text))
        with bounded(TOKENIZER, encoder.spent, seconds, megabytes):
            (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        found.append(tuple(encoding.ids))
    return found


def decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids. Raises DataError where the tokenizer takes too much time or memory."""
    with bounded(TOKENIZER):
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def token_texts(encoder: Encoder, ids: Sequence[int]) -> list[str]:
    """The text of every token as it is; of tokens that only together make a character the last has
    it, and those before it have "".

    Decoded behind a letter: the decoders of SentencePiece drop a space that stands first.
    """
    (letter,) = tokenise(encoder, encoder.tail, ["a"])
    before = len(decode(encoder.tail, letter))
    texts: list[str] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        piece = decode(encoder.tail, [*letter, *ids[start:stop]])[before:]
        is_part = BROKEN in piece and stop - start < MOST_TOKENS_OF_A_CHARACTER and stop < len(ids)
        texts.append("" if is_part else piece)
        start = start if is_part else stop
    return texts


def _assemble(ids: _Ids, draft: _Draft, pair: Pair) -> TokenPair:
    prompts = [ids.prompt(cut.prompt, draft.is_chat) for cut in draft.completions]
    prompt = prompts[0][: min(shared_start(prompts[0], longer) for longer in prompts)]
    if not prompt:
        raise Unfit("empty", "prompt", "the prompt has no token", "add text to it")
    completions = [
        _behind(ids.completion(cut.segments), longer[len(prompt) :])
        for cut, longer in zip(draft.completions, prompts, strict=True)
    ]
    names = ("chosen" if pair.label is None else "completion", "rejected")
    for name, completion in zip(names, completions, strict=False):
        if sum(completion.scored) < 2:  # the stop alone
            message = "the answer has no token but its stop"
            raise Unfit("empty", name, message, "add text or delete the row")
    chosen, rejected = completions[0], completions[-1]
    if len(completions) > 1 and chosen == rejected:
        message = "chosen and rejected become the same tokens"
        raise Unfit("merged", None, message, "delete the row or set data.on_bad_row: drop")
    return TokenPair(prompt, chosen, rejected, pair.source, pair.margin, pair.weight, pair.label)


def _behind(completion: Completion, context: tuple[int, ...]) -> Completion:
    """A completion with tokens before it that are only read."""
    if not context:
        return completion
    scored = (False,) * len(context) + completion.scored
    return Completion(context + completion.tokens, scored)


def without_stops(pairs: Iterable[TokenPair], ends: Iterable[int]) -> tuple[TokenPair, ...]:
    """The pairs with every scored token that ends a turn unscored, so that nobody learns to stop.

    Args:
        ends: the ids that end a turn; they stay as context.
    """
    ends = frozenset(ends)

    def masked(completion: Completion) -> Completion:
        flags = zip(completion.tokens, completion.scored, strict=True)
        scored = tuple(wanted and token not in ends for token, wanted in flags)
        return replace(completion, scored=scored)

    return tuple(
        replace(pair, chosen=masked(pair.chosen), rejected=masked(pair.rejected)) for pair in pairs
    )
