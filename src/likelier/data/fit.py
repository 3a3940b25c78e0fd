"""Pairs that are too long: dropped, trimmed or refused, and always counted."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from likelier.base.errors import DataError
from likelier.base.findings import Finding, Unfit
from likelier.chat.boundary import prompt_text
from likelier.chat.messages import Chat
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_pairs, tokenise
from likelier.data.records import Completion, Pair, TokenPair

MAX_DROPPED_SHARE = 0.05  # of the pairs; more is a mistake in max_length or in the data
COMPLETION_SHARE = 4  # trimming leaves at least a quarter of max_length to the completions


def fit(
    pairs: Sequence[TokenPair], max_length: int, encoder: Encoder
) -> tuple[list[TokenPair], list[Finding]]:
    """The pairs whose sequences (prompt and one answer) are at most ``max_length`` tokens long, and
    one finding for each that is not: it is dropped, unless `refuse_dropped` says otherwise.

    ``encoder`` knows the positions that the model has learned, which rule where they are fewer.
    """
    limit, cure = encoder.at_most(max_length), _cure(max_length, encoder)
    kept = [pair for pair in pairs if pair.length <= limit]
    return kept, [_overlong(pair, limit, cure) for pair in pairs if pair.length > limit]


def refuse_dropped(
    kept: int,
    found: Sequence[Finding],
    max_length: int,
    overlong: Literal["drop", "trim", "error"],
    encoder: Encoder,
) -> None:
    """Look at how many pairs are kept, and at what was found in all of them.

    Raises DataError where no pair is left; for ``error`` where one was too long, for ``drop`` where
    more than 5 % were. For ``trim`` they were trimmed by `trim_each`, or are among those found.
    """
    dropped = [one for one in found if one.code in ("overlong", "truncated")]
    first, total = next(iter(dropped), None), kept + len(dropped)
    cure = _cure(max_length, encoder)
    if overlong == "error" and first:
        more = f" (and {len(dropped) - 1} more pairs)" if len(dropped) > 1 else ""
        raise DataError(first.message + more, where=first.where, hint=first.hint)
    if not kept:
        if first is None:
            raise DataError("there is no pair", where="data.train", hint="give at least one")
        what = f"no pair is left, all {total} are too long; here {first.message}"
        raise DataError(what, where=first.where, hint=cure)
    if first and overlong == "drop" and len(dropped) > MAX_DROPPED_SHARE * total:
        what = f"{len(dropped)} of {total} pairs are too long; at most 5 % may be dropped"
        raise DataError(what, where=first.where, hint=f"{cure}, or set data.overlong: trim")


def trim_each(
    pairs: Sequence[Pair], tokens: Sequence[TokenPair], max_length: int, encoder: Encoder
) -> tuple[list[TokenPair], list[Finding]]:
    """The pairs, each at most ``max_length`` tokens long, and one finding for each that was
    trimmed or that cannot be.

    A prompt longer than three quarters of ``max_length`` loses its beginning: a text some tokens,
    a chat whole turns, and it is rendered anew. The system turn stays, the rest begins with a
    user's turn, and no result is left without its call. An answer loses its end, with its stop.
    What a prompt loses depends on the prompt and the limit alone, so that its answers keep one
    prompt.

    Args:
        pairs: as they were read; those that ``tokens`` are of are among them.
    """
    limit, cure = encoder.at_most(max_length), _cure(max_length, encoder)
    room = limit - limit // COMPLETION_SHARE
    read = {pair.source: pair for pair in pairs}
    long = [read[whole.source] for whole in tokens if len(whole.prompt) > room]
    chats = [_later_turns(pair, room, encoder) for pair in long]
    encoded, findings = encode_pairs(encoder, [pair for pair in chats if pair is not None])
    findings = [finding for finding in findings if finding.severity == "error"]
    shorter = {pair.source: pair for pair in encoded}
    refused = {finding.source for finding in findings}
    kept: list[TokenPair] = []
    for whole in tokens:
        if whole.source in refused:
            continue
        pair = shorter.get(whole.source, whole)
        if isinstance(read[whole.source].prompt, str):
            pair = replace(whole, prompt=_later_tokens(whole.prompt, room, encoder))
        fitted: TokenPair | Finding = _overlong(whole, limit, cure)
        if len(pair.prompt) <= room:
            fitted = _cut_completions(pair, limit, cure)
        if isinstance(fitted, Finding):
            findings.append(fitted)
            continue
        kept.append(fitted)
        if fitted != whole:
            findings.append(_trimmed(whole, fitted, cure))
    return kept, findings


def _cure(max_length: int, encoder: Encoder) -> str:
    """What helps a pair that is too long to be kept whole."""
    if encoder.positions is not None and encoder.positions <= max_length:
        return f"shorten the texts, as the model has {encoder.positions} positions"
    return "raise data.max_length, or shorten the texts"


def _overlong(pair: TokenPair, max_length: int, cure: str) -> Finding:
    lengths = f"prompt {len(pair.prompt)}, chosen {len(pair.chosen.tokens)}"
    message = (
        f"{pair.length} tokens ({lengths}, rejected {len(pair.rejected.tokens)}), "
        f"at most {max_length} are taken"
    )
    hint = f"{cure}, or set data.overlong: drop or trim"
    return Finding("overlong", "warning", pair.source, None, message, hint)


def _later_tokens(prompt: tuple[int, ...], room: int, encoder: Encoder) -> tuple[int, ...]:
    """The end of a text behind its leading specials."""
    head = len(encoder.leading)
    return prompt if len(prompt) <= room else prompt[:head] + prompt[len(prompt) - room + head :]


def _later_turns(pair: Pair, room: int, encoder: Encoder) -> Pair | None:
    """A chat with as many of its last turns as fit; None for a text, and where none fit."""
    if isinstance(pair.prompt, str):
        return None
    prompt = pair.prompt
    head = next((n for n, turn in enumerate(prompt) if turn["role"] not in ("system", "developer")),
                len(prompt))  # fmt: skip
    starts = _later_starts(prompt, head)

    def fits(start: int) -> bool:
        chat = prompt[:head] + prompt[start:]
        try:
            (ids,) = tokenise(encoder, encoder.whole, [prompt_text(encoder, chat, pair.tools)])
        except Unfit:
            return False
        return len(ids) <= room

    first = bisect_left(starts, True, key=fits)
    if first == len(starts):
        return None
    return replace(pair, prompt=prompt[:head] + prompt[starts[first] :])


def _later_starts(chat: Chat, head: int) -> list[int]:
    """Where a chat may begin anew behind its first turns, found in one reading: at a user's turn
    from which every result stands behind its call, one of its id where both have one.
    """
    any_id = object()
    last_call: dict[Any, int] = {}  # by id
    answered: dict[int, int] = {}  # by the turn of a result: the last turn that has its call
    for number, turn in enumerate(chat):
        for call in (*(turn.get("tool_calls") or ()), turn.get("function_call")):
            if isinstance(call, dict):
                last_call[call.get("id")] = last_call[any_id] = number
        if turn["role"] == "tool":
            asked = turn.get("tool_call_id")
            ids = (asked, None, any_id if asked is None else None)
            answered[number] = max(last_call.get(one, -1) for one in ids)
    starts, first_call = [], len(chat)
    for number in reversed(range(head + 1, len(chat))):
        first_call = min(first_call, answered.get(number, first_call))
        if chat[number]["role"] == "user" and first_call >= number:
            starts.append(number)
    return starts[::-1]


def _cut_completions(pair: TokenPair, max_length: int, cure: str) -> TokenPair | Finding:
    room = max_length - len(pair.prompt)
    chosen, rejected = _cut_completion(pair.chosen, room), _cut_completion(pair.rejected, room)
    same = chosen == rejected and pair.label is None
    if same or not any(chosen.scored) or not any(rejected.scored):
        message = f"the answers are the same or empty once cut to {room} tokens"
        hint = f"{cure}, delete the row, or set data.on_bad_row: drop"
        return Finding("truncated", "error", pair.source, None, message, hint)
    return replace(pair, chosen=chosen, rejected=rejected)


def _cut_completion(completion: Completion, room: int) -> Completion:
    """The first ``room`` tokens, ending in a scored one; what is cut has no stop."""
    if len(completion.tokens) <= room:
        return completion
    while room > 0 and not completion.scored[room - 1]:
        room -= 1
    return Completion(completion.tokens[:room], completion.scored[:room])


def _trimmed(before: TokenPair, after: TokenPair, cure: str) -> Finding:
    cuts = [
        f"{name} {len(old)} to {len(new)}"
        for name, old, new in (
            ("prompt", before.prompt, after.prompt),
            ("chosen", before.chosen.tokens, after.chosen.tokens),
            ("rejected", before.rejected.tokens, after.rejected.tokens),
        )
        if len(old) != len(new)
    ]
    message = f"trimmed: {', '.join(cuts)} tokens"
    return Finding("trimmed", "warning", before.source, None, message, f"{cure} to keep all of it")
