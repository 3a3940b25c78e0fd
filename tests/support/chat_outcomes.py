"""What likelier makes of each family's rows, beside what is right; refusals with their cures.

`outcomes` is what the test of models judges and what docs/models.md shows.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from tests.support.chat_families import ChatFamily, generation_of, tokenizer_of
from tests.support.chat_truth import (
    RESULT,
    NoTruth,
    Oracle,
    Record,
    Truth,
    Turn,
    bot,
    forms_of,
    records,
    user,
)
from tests.support.data import load_memory

from likelier.base.findings import Finding
from likelier.chat.template import DEFAULT_DATE
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data.encode import encode_pairs

MOST_CURES = 3


@dataclass(frozen=True)
class Outcome:
    """How a row came out: ``equal`` and ``cured`` are right, nothing else is.

    ``cures`` are the hints that were followed, in order; ``detail`` says what is wrong.
    """

    name: str
    cures: tuple[str, ...] = ()
    detail: str = ""

    @property
    def right(self) -> bool:
        return self.name in ("equal", "cured")


@dataclass(frozen=True)
class Case:
    """A row for a family: the keywords of its template, and which turns are scored."""

    family: ChatFamily
    row: Record
    template: Mapping[str, Any]
    turns: Literal["all", "last"] = "all"


@cache
def outcomes(family: ChatFamily, place: int) -> dict[str, Outcome]:
    """By kind of row. ``place``: 0 for the template as it is, else which of its states."""
    state = ({}, *family.states)[place]
    return {kind: _outcome(Case(family, row, state)) for kind, row in records(family).items()}


def _outcome(case: Case) -> Outcome:
    cures: list[str] = []
    while True:
        truths = _truths(case)
        given, findings = encoded(case)
        errors = [finding for finding in findings if finding.severity == "error"]
        if not errors:
            break
        hint = errors[0].hint
        cure = next((c for words, c in CURES.items() if words in hint), None)
        if cure is None or len(cures) == MOST_CURES:
            message = f"{errors[0].code}: {errors[0].message}; {hint}"
            return Outcome("refused, and its cure does not work", tuple(cures), message)
        cures.append(hint)
        case = cure(replace(case, row=copy.deepcopy(case.row)), hint)
    if isinstance(truths, NoTruth):
        return Outcome("used, where the template cannot say what is right", detail=str(truths))
    if given not in truths:
        return Outcome("other tokens", tuple(cures), _difference(case.family, given, truths[0]))
    if missing := lost(case, given):
        return Outcome("lost in silence", tuple(cures), missing)
    return Outcome("cured" if cures else "equal", tuple(cures))


def _truths(case: Case) -> list[Truth] | NoTruth:
    """What is right, by each form in which the template may be given the reasoning."""
    oracle = Oracle(case.family, tokenizer_of(case.family), case.template, DEFAULT_DATE, case.turns)
    found: list[Truth] = []
    none = NoTruth()
    for row in forms_of(case.family, case.row):
        try:
            found.append(oracle.truth(row))
        except NoTruth as error:
            none = error
    return found or none


def encoded(case: Case) -> tuple[Truth | None, list[Finding]]:
    """The row by likelier's own road, from the record to the ids, and all that was found."""
    encoder = replace(_encoder(case.family, json.dumps(case.template)), turns=case.turns)
    loaded = load_memory([case.row], {})
    pairs, found = encode_pairs(encoder, loaded.pairs, PairInspector().as_tokens)
    if not pairs:
        return None, [*loaded.findings, *found]
    prompt = tuple((token, False) for token in pairs[0].prompt)
    chosen, rejected = (
        prompt + tuple(zip(side.tokens, side.scored, strict=True))
        for side in (pairs[0].chosen, pairs[0].rejected)
    )
    return Truth(chosen, rejected), [*loaded.findings, *found]


@cache
def _encoder(family: ChatFamily, template: str) -> Encoder:
    tokenizer = tokenizer_of(family)
    given = json.loads(template)
    return build_encoder(tokenizer, generation_of(family, tokenizer), template=given)


def lost(case: Case, given: Truth) -> str:
    """The first word of an answer that stands in no token of it, with the name of its side."""
    tokenizer = tokenizer_of(case.family)
    for name, tokens in (("chosen", given.chosen), ("rejected", given.rejected)):
        written = tokenizer.decode([token for token, _ in tokens])
        for turn in case.row[name]:
            if turn["role"] == "assistant":
                for word in _words_of(case.family, turn):
                    if word not in written:
                        return f"{name}: {word}"
    return ""


def _words_of(family: ChatFamily, turn: Mapping[str, Any]) -> list[str]:
    """All words of a turn: of its text, its reasoning, its calls and their arguments."""
    texts = [turn.get("content") or "", turn.get("reasoning_content") or ""]
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        given = function["arguments"]
        given = json.loads(given) if isinstance(given, str) else given
        texts += [function["name"], *given, *given.values()]
    bare = " ".join(texts)
    for mark in ("<think>", "</think>", *family.mark):
        bare = bare.replace(mark, " ")
    return bare.split()


def _difference(family: ChatFamily, given: Truth | None, right: Truth) -> str:
    """What is scored, or where that is the same, all of the first side that differs."""
    assert given is not None
    name = "chosen" if given.chosen != right.chosen else "rejected"
    sides = [getattr(given, name), getattr(right, name)]
    scored = [[token for token, wanted in side if wanted] for side in sides]
    if scored[0] == scored[1]:
        scored = [[token for token, _ in side] for side in sides]
    ours, theirs = (tokenizer_of(family).decode(ids) for ids in scored)
    return f"{name}: {ours!r} is not {theirs!r}"


# ---- cures: what a hint says, done to the row or to the settings ---------------------------------

Cure = Callable[[Case, str], Case]


def _answers(case: Case) -> Iterator[Turn]:
    """The assistant's turns of both answers."""
    sides = (turn for name in ("chosen", "rejected") for turn in case.row[name])
    return (turn for turn in sides if turn["role"] == "assistant")


def _without_tools(case: Case, hint: str) -> Case:
    plain = [turn for turn in case.row["prompt"] if turn["role"] in ("system", "user")]
    sides = {name: [case.row[name][-1]] for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if side[0].get("tool_calls"):
            sides[name] = [bot("날씨를 봅니다.")]
    return replace(case, row={"prompt": plain, **sides})


def _other_turns(case: Case, hint: str) -> Case:
    """One call a turn; the system text in the first question; else only the last question."""
    first, *rest = case.row["prompt"]
    calls = [turn for turn in case.row["chosen"] if turn.get("tool_calls")]
    if calls and len(calls[0]["tool_calls"]) > 1:
        one, other = ({**calls[0], "tool_calls": [each]} for each in calls[0]["tool_calls"])
        return replace(case, row={**case.row, "chosen": [one, RESULT, other]})
    prompt = [first, *rest][-1:]
    if first["role"] == "system":
        prompt = [user(f"{first['content']}\n\n{rest[0]['content']}"), *rest[1:]]
    return replace(case, row={**case.row, "prompt": prompt})


def _switch(case: Case, hint: str) -> Case:
    found = re.fullmatch(r"set data\.template\.(\w+): (\S+)", hint)
    assert found, hint
    return replace(case, template={**case.template, found[1]: json.loads(found[2])})


def _inline(case: Case, hint: str) -> Case:
    """Reasoning as a part of the content."""
    found = re.search(r"between (\S+) and (\S+) before", hint)
    assert found, hint
    for turn in _answers(case):
        if thought := turn.pop("reasoning_content", None):
            said = turn.get("content") or ""
            turn["content"] = f"{found[1]}\n{thought}\n{found[2]}\n\n{said}"
    return case


def _closing(case: Case, hint: str) -> Case:
    """Answers without reasoning begin with an empty block of it."""
    found = re.search(r"begin the content of the answer with ('[^']+')", hint)
    assert found, hint
    empty = ast.literal_eval(found[1])
    for turn in _answers(case):
        said = turn.get("content") or ""
        if case.family.mark[1] not in said and "reasoning_content" not in turn:
            turn["content"] = empty + said
    return case


def _silent(case: Case, hint: str) -> Case:
    """Answers without their reasoning."""
    for turn in _answers(case):
        turn.pop("reasoning_content", None)
        if isinstance(turn.get("content"), str):
            turn["content"] = turn["content"].rpartition(case.family.mark[1])[2].lstrip()
    return case


def _written(case: Case, hint: str) -> Case:
    """Calls as a part of the content."""
    for turn in _answers(case):
        for call in turn.pop("tool_calls", ()):
            turn["content"] += json.dumps(call["function"], ensure_ascii=False)
    return case


def _call_alone(case: Case, hint: str) -> Case:
    """Calls without text beside them."""
    for turn in _answers(case):
        if turn.get("tool_calls"):
            turn["content"] = ""
    return case


def _alike(case: Case, hint: str) -> Case:
    """The first state of the template that takes the row."""
    for state in ({}, *case.family.states):
        tried = replace(case, template=state)
        if encoded(tried)[0] is not None:
            return tried
    return case


def _last_turn(case: Case, hint: str) -> Case:
    return replace(case, turns="last")


CURES: dict[str, Cure] = {
    "delete the text beside the call": _call_alone,
    "write the call into the content": _written,
    "set data.template.": _switch,
    "set data.template so that the template writes both alike": _alike,
    "set data.turns: last": _last_turn,
    "write it into the content, between": _inline,
    "begin the content of the answer with": _closing,
    "delete the reasoning from the answer": _silent,
    "use a model whose template knows tools, or delete them": _without_tools,
    "change the roles or turns of this row": _other_turns,
}
