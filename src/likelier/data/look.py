"""What one pair shows by itself: turns out of order, broken text, a prompt written twice."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from likelier.data.features import said
from likelier.data.records import Finding, Labelled, Message, Pair, Preference
from likelier.data.script import script_of

_DECOMPOSED = re.compile("[\u1100-\u1112][\u1161-\u1175]")
LONGEST = 2_000_000  # characters of a side; a tokenizer takes 150 bytes for each
_DOUBLED = 20  # characters; a shorter prompt may begin an answer by chance

Side = str | tuple[Message, ...]


def look_at(pair: Preference) -> list[Finding]:
    """All that is noticed; an ``error`` means that the pair cannot be used."""
    sides = _sides(pair)
    if huge := [found for name, side in sides.items() for found in _huge(pair, name, side)]:
        return huge
    if isinstance(pair, Labelled):
        return [found for name, side in sides.items() for found in _texts(pair, name, side)]
    if _bare(pair.chosen) == _bare(pair.rejected):
        message = "chosen and rejected are the same text"
        hint = "delete the row or set data.on_bad_row: drop"
        return [Finding("identical", "error", pair.source, None, message, hint)]
    findings = [found for name, side in sides.items() for found in _texts(pair, name, side)]
    return [*findings, *_doubled(pair), *_inverted(pair), *_languages(pair)]


def _sides(pair: Preference) -> dict[str, Side]:
    if isinstance(pair, Labelled):
        return {"prompt": pair.prompt, "completion": pair.completion}
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def text_of(side: Side) -> str:
    """Every text of a side, one turn a line."""
    if isinstance(side, str):
        return side
    turns = (turn.get("content", "") for turn in side)
    return "\n".join(turn for turn in turns if isinstance(turn, str))


def _bare(side: Side) -> Any:
    """A side without the spaces around its texts: what two answers must differ in."""
    if isinstance(side, str):
        return side.strip()
    return [
        {key: value.strip() if isinstance(value, str) else value for key, value in turn.items()}
        for turn in side
    ]


def _huge(pair: Preference, name: str, side: Side) -> Iterator[Finding]:
    if (size := len(text_of(side))) > LONGEST:
        message = f"a text of {size:,} characters; at most {LONGEST:,} are read"
        yield Finding("huge", "error", pair.source, name, message, "split it, or delete the row")


def _texts(pair: Preference, name: str, side: Side) -> Iterator[Finding]:
    text = text_of(side)
    if _DECOMPOSED.search(text):
        message, hint = "Hangul in decomposed form (NFD)", "convert the text to NFC"
        yield Finding("decomposed", "warning", pair.source, name, message, hint)
    if "\ufffd" in text:
        message, hint = "the text was damaged before (U+FFFD)", "decode the original again"
        yield Finding("damaged", "warning", pair.source, name, message, hint)
    if not isinstance(pair.prompt, str) and not isinstance(side, str):
        before = () if name == "prompt" else pair.prompt[-1:]
        if odd := _odd_turns((*before, *side)):
            hint = "check that no turn was lost; the template may refuse this"
            yield Finding("turns", "warning", pair.source, name, odd, hint)


def _odd_turns(chat: Sequence[Message]) -> str | None:
    for before, after in pairwise(chat):
        if before["role"] == after["role"] and after["role"] in ("user", "assistant"):
            return f"two {after['role']} turns in a row"
        if after["role"] == "system":
            return "a system turn that is not the first"
    return None


def repeats_prompt(pair: Pair) -> bool:
    """Whether both answers begin with the whole prompt, so that it would be read twice."""
    prompt = (pair.prompt if isinstance(pair.prompt, str) else text_of(pair.prompt[-1:])).strip()
    answers = (said(pair.chosen).lstrip(), said(pair.rejected).lstrip())
    return len(prompt) >= _DOUBLED and all(text.startswith(prompt) for text in answers)


def _doubled(pair: Pair) -> Iterator[Finding]:
    if repeats_prompt(pair):
        message = "both answers begin with the whole prompt, which would be read twice"
        hint = "take the prompt off the answers; `likelier check --fix` does it"
        yield Finding("doubled", "warning", pair.source, None, message, hint)


def _inverted(pair: Pair) -> Iterator[Finding]:
    if pair.scores and pair.scores[0] < pair.scores[1]:
        message = f"chosen scores {pair.scores[0]:g}, rejected {pair.scores[1]:g}"
        hint = "swap them, or check what the scores mean"
        yield Finding("inverted", "warning", pair.source, None, message, hint)


def _languages(pair: Pair) -> Iterator[Finding]:
    chosen, rejected = script_of(said(pair.chosen)), script_of(said(pair.rejected))
    if chosen and rejected and chosen != rejected:
        message = f"chosen is written in {chosen} letters, rejected in {rejected}"
        hint = "keep it only where the language is meant to be learned"
        yield Finding("language", "note", pair.source, None, message, hint)
