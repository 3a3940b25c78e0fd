"""What likelier makes of each family's rows, beside what is right; refusals with their cures.

`outcomes` is what the test of models judges and what docs/models.md shows.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.support.chat_families import ChatFamily, generation_of, tokenizer_of
from tests.support.chat_truth import NoTruth, Oracle, Record, Truth, bot, records, user
from tests.support.data import load_memory

from likelier.base.findings import Finding
from likelier.chat.template import DEFAULT_DATE
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data.encode import encode_pairs

MOST_CURES = 3


@dataclass(frozen=True)
class Outcome:
    """How a row came out: ``equal`` and ``cured`` are right, whatever else is a gap.

    ``cures`` are the hints that were followed, in order; ``detail`` says what is wrong.
    """

    name: str
    cures: tuple[str, ...] = ()
    detail: str = ""

    @property
    def right(self) -> bool:
        return self.name in ("equal", "cured")


@cache
def outcomes(family: ChatFamily, place: int) -> dict[str, Outcome]:
    """By kind of row. ``place``: 0 for the template as it is, else which of its states."""
    state = ({}, *family.states)[place]
    return {kind: _outcome(family, state, row) for kind, row in records(family).items()}


def _outcome(family: ChatFamily, state: Mapping[str, Any], row: Record) -> Outcome:
    cures: list[str] = []
    while True:
        truth = _truth(family, state, row)
        given, findings = encoded(family, state, row)
        errors = [finding for finding in findings if finding.severity == "error"]
        if not errors:
            break
        hint = errors[0].hint
        cure = next((c for words, c in CURES.items() if words in hint), None)
        if cure is None or len(cures) == MOST_CURES:
            message = f"{errors[0].code}: {errors[0].message}; {hint}"
            return Outcome("refused, and its cure does not work", tuple(cures), message)
        cures.append(hint)
        state, row = cure(family, state, copy.deepcopy(row), hint)
    if isinstance(truth, NoTruth):
        return Outcome("used, where the template cannot say what is right", detail=str(truth))
    if given != truth:
        return Outcome("other tokens", tuple(cures), _difference(family, given, truth))
    missing = lost(family, row, truth)
    if missing and not any(finding.code == "lost" for finding in findings):
        return Outcome("lost in silence", tuple(cures), missing)
    return Outcome("cured" if cures else "equal", tuple(cures))


def _truth(family: ChatFamily, state: Mapping[str, Any], row: Record) -> Truth | NoTruth:
    try:
        return Oracle(family, tokenizer_of(family), state, DEFAULT_DATE).truth(row)
    except NoTruth as none:
        return none


def encoded(
    family: ChatFamily, state: Mapping[str, Any], row: Record
) -> tuple[Truth | None, list[Finding]]:
    """The row by likelier's own road, from the record to the ids, and all that was found."""
    encoder = _encoder(family, json.dumps(state))
    loaded = load_memory([row], {})
    pairs, found = encode_pairs(encoder, loaded.pairs, PairInspector().as_tokens)
    if not pairs:
        return None, [*loaded.findings, *found]
    chosen, rejected = (
        tuple(zip(side.tokens, side.scored, strict=True))
        for side in (pairs[0].chosen, pairs[0].rejected)
    )
    return Truth(pairs[0].prompt, chosen, rejected), [*loaded.findings, *found]


@cache
def _encoder(family: ChatFamily, state: str) -> Encoder:
    tokenizer = tokenizer_of(family)
    return build_encoder(tokenizer, generation_of(family, tokenizer), template=json.loads(state))


def lost(family: ChatFamily, row: Record, truth: Truth) -> str:
    """The first words of an answer that stand in no token of it, with the name of its side."""
    tokenizer = tokenizer_of(family)
    for name, tokens in (("chosen", truth.chosen), ("rejected", truth.rejected)):
        written = tokenizer.decode([token for token, _ in tokens])
        for turn in row[name]:
            if turn["role"] == "assistant":
                for word in _words_of(family, turn):
                    if word not in written:
                        return f"{name}: {word}"
    return ""


def _words_of(family: ChatFamily, turn: Mapping[str, Any]) -> list[str]:
    """All words of a turn: of its text, its reasoning, its calls and their arguments."""
    texts = [turn.get("content") or "", turn.get("reasoning_content") or ""]
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        texts += [function["name"], "city", "서울"]
    bare = " ".join(texts)
    for mark in ("<think>", "</think>", *family.mark):
        bare = bare.replace(mark, " ")
    return bare.split()


def _difference(family: ChatFamily, given: Truth | None, truth: Truth) -> str:
    assert given is not None
    for name in ("prompt", "chosen", "rejected"):
        ours, right = getattr(given, name), getattr(truth, name)
        if ours != right:
            texts = []
            for ids in (ours, right):
                scored = [token for token in ids if not isinstance(token, tuple) or token[1]]
                bare = [token[0] if isinstance(token, tuple) else token for token in scored]
                texts.append(tokenizer_of(family).decode(bare))
            return f"{name}: {texts[0]!r} is not {texts[1]!r}"
    return ""


# ---- cures: what a hint says, done to the row or to the settings ---------------------------------

Cure = Callable[[ChatFamily, Mapping[str, Any], Record, str], tuple[Mapping[str, Any], Record]]


def _without_tools(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    row.pop("tools", None)
    plain = [turn for turn in row["prompt"] if turn["role"] in ("system", "user")]
    sides = {name: [row[name][-1]] for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if side[0].get("tool_calls"):
            sides[name] = [bot("날씨를 봅니다.")]
    return state, {**row, "prompt": plain, **sides}


def _other_turns(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    """The system text goes into the first question; else only the last question stays."""
    first, *rest = row["prompt"]
    if first["role"] == "system":
        question = user(f"{first['content']}\n\n{rest[0]['content']}")
        return state, {**row, "prompt": [question, *rest[1:]]}
    return state, {**row, "prompt": [first, *rest][-1:]}


def _switch(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    found = re.search(r"set data\.template\.(\w+): (\w+)", hint)
    assert found, hint
    return {**state, found[1]: json.loads(found[2])}, row


def _inline(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    """Reasoning as a part of the content."""
    for turn in (turn for name in ("chosen", "rejected") for turn in row[name]):
        if thought := turn.pop("reasoning_content", None):
            turn["content"] = f"<think>\n{thought}\n</think>\n\n{turn.get('content') or ''}"
    return state, row


def _closing(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    """Answers without reasoning begin with an empty block of it."""
    found = re.search(r"begin the content of the answer with ('[^']+')", hint)
    assert found, hint
    empty = ast.literal_eval(found[1])
    for turn in (turn for name in ("chosen", "rejected") for turn in row[name]):
        said = turn.get("content") or ""
        if turn["role"] == "assistant" and family.mark[1] not in said:
            turn["content"] = empty + said
    return state, row


def _silent(
    family: ChatFamily, state: Mapping[str, Any], row: Record, hint: str
) -> tuple[Mapping[str, Any], Record]:
    """Answers without their reasoning."""
    for turn in (turn for name in ("chosen", "rejected") for turn in row[name]):
        turn.pop("reasoning_content", None)
        if isinstance(turn.get("content"), str):
            turn["content"] = turn["content"].rpartition(family.mark[1])[2].lstrip()
    return state, row


CURES: dict[str, Cure] = {
    "set data.template.": _switch,
    "write it into the content, between": _inline,
    "begin the content of the answer with": _closing,
    "delete the reasoning from the answer": _silent,
    "use a model whose template knows tools, or delete them": _without_tools,
    "change the roles or turns of this row": _other_turns,
}
