"""Pairs that are too long: dropped, trimmed or refused, and always counted."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder
from likelier.data.records import Completion, TokenPair

MAX_DROPPED_SHARE = 0.05  # of the pairs; more is a mistake in max_length or in the data
COMPLETION_SHARE = 4  # trimming leaves at least a quarter of max_length to the completions


def fit(
    pairs: Sequence[TokenPair],
    max_length: int,
    overlong: Literal["drop", "trim", "error"],
    encoder: Encoder,
) -> tuple[list[TokenPair], list[Finding]]:
    """The pairs whose sequences (prompt and one answer) are at most ``max_length`` tokens long, and
    one finding for each that was dropped or trimmed.

    Args:
        overlong: ``drop`` whole pairs, ``error`` at the first, or ``trim``: the prompt loses
            its beginning where it is longer than three quarters of ``max_length`` (whole turns
            of a chat), and an answer its end, with its stop. What a prompt loses depends on
            the prompt and the limit alone, so that its answers keep one prompt.
        encoder: knows the prompt's leading specials and turns, and the positions that the model
            has learned, which rule where they are fewer than ``max_length``.

    Raises:
        DataError: ``error`` and a pair is too long; ``drop`` and more than 5 % of the pairs
            would go; or no pair is left.
    """
    kept, findings = fit_each(pairs, max_length, encoder, overlong == "trim")
    _check_dropped(pairs, kept, findings, overlong, _cure(max_length, encoder))
    return kept, findings


def fit_each(
    pairs: Sequence[TokenPair], max_length: int, encoder: Encoder, trim: bool
) -> tuple[list[TokenPair], list[Finding]]:
    """As `fit`, but however many are dropped."""
    kept: list[TokenPair] = []
    findings: list[Finding] = []
    limit, cure = encoder.at_most(max_length), _cure(max_length, encoder)
    for pair in pairs:
        if trim:
            fitted = _trim(pair, limit, encoder, cure)
        else:
            fitted = pair if _length(pair) <= limit else _overlong(pair, limit, cure)
        if isinstance(fitted, Finding):
            findings.append(fitted)
            continue
        kept.append(fitted)
        if fitted is not pair:
            findings.append(_trimmed(pair, fitted, cure))
    return kept, findings


def _cure(max_length: int, encoder: Encoder) -> str:
    """What helps a pair that is too long to be kept whole."""
    if encoder.positions is not None and encoder.positions <= max_length:
        return f"shorten the texts, as the model has {encoder.positions} positions"
    return "raise data.max_length, or shorten the texts"


def _check_dropped(
    pairs: Sequence[TokenPair],
    kept: Sequence[TokenPair],
    findings: Sequence[Finding],
    overlong: str,
    cure: str,
) -> None:
    dropped = len(pairs) - len(kept)
    first = next((finding for finding in findings if finding.code == "overlong"), None)
    if overlong == "error" and first:
        more = f" (and {dropped - 1} more pairs)" if dropped > 1 else ""
        raise DataError(first.message + more, where=first.where, hint=first.hint)
    if not kept:
        first = first or next(iter(findings), None)
        if first is None:
            raise DataError("there is no pair", where="data.train", hint="give at least one")
        what = f"no pair is left, all {len(pairs)} are too long; here {first.message}"
        raise DataError(what, where=first.where, hint=cure)
    if overlong == "drop" and dropped > MAX_DROPPED_SHARE * len(pairs):
        what = f"{dropped} of {len(pairs)} pairs are too long; at most 5 % may be dropped"
        where = first.where if first else None
        raise DataError(what, where=where, hint=f"{cure}, or set data.overlong: trim")


def _length(pair: TokenPair) -> int:
    return pair.length


def _overlong(pair: TokenPair, max_length: int, cure: str) -> Finding:
    lengths = f"prompt {len(pair.prompt)}, chosen {len(pair.chosen.tokens)}"
    message = (
        f"{_length(pair)} tokens ({lengths}, rejected {len(pair.rejected.tokens)}), "
        f"at most {max_length} are taken"
    )
    hint = f"{cure}, or set data.overlong: drop or trim"
    return Finding("overlong", "warning", pair.source, None, message, hint)


def _trim(pair: TokenPair, max_length: int, encoder: Encoder, cure: str) -> TokenPair | Finding:
    max_prompt = max_length - max_length // COMPLETION_SHARE
    if _length(pair) <= max_length and len(pair.prompt) <= max_prompt:
        return pair
    prompt = _shorter_prompt(pair.prompt, max_prompt, encoder)
    if prompt is None:
        return _overlong(pair, max_length, cure)
    room = max_length - len(prompt)
    chosen, rejected = _cut_completion(pair.chosen, room), _cut_completion(pair.rejected, room)
    same = chosen == rejected and pair.label is None
    if same or not any(chosen.scored) or not any(rejected.scored):
        message = f"the answers are the same or empty once cut to {room} tokens"
        hint = f"{cure}, delete the row, or set data.on_bad_row: drop"
        return Finding("truncated", "error", pair.source, None, message, hint)
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)


def _shorter_prompt(prompt: tuple[int, ...], room: int, encoder: Encoder) -> tuple[int, ...] | None:
    """The end of a prompt behind its leading specials; None where no whole turn fits."""
    if len(prompt) <= room:
        return prompt
    specials = {*encoder.leading, encoder.tokenizer.bos_token_id}
    head = 0
    while head < len(prompt) and prompt[head] in specials:
        head += 1
    start = len(prompt) - (room - head)
    if not encoder.control.isdisjoint(prompt[head:]):
        turns = [turn for turn in _turn_starts(prompt, encoder) if turn >= start]
        if not turns:
            return None
        start = turns[0]
    return prompt[:head] + prompt[start:]


def _turn_starts(prompt: tuple[int, ...], encoder: Encoder) -> list[int]:
    """Where whole turns begin: at the first control token after the end of another turn.

    What has no end of a turn behind it is the header of the answer to come, and no turn.
    """
    ends = set(encoder.end_ids.values())
    control = [place for place, token in enumerate(prompt) if token in encoder.control]
    last_end = max((place for place in control if prompt[place] in ends), default=0)
    starts = [place for before, place in pairwise(control) if prompt[before] in ends]
    return [place for place in starts if place < last_end]


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
