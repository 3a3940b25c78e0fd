"""Pairs made from answers that are scored, ranked or compared."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from likelier.data.formats import Format
from likelier.data.messages import (
    Chat,
    Unfit,
    check_end,
    check_start,
    missing,
    read_messages,
    read_number,
    read_text,
)
from likelier.data.records import Finding, Pair, Row
from likelier.data.shapes import origin_of, read_prompt, read_tools
from likelier.data.transcript import as_list

TEXTS = ("response", "completion", "text", "answer", "output", "generation")
SCORES = ("fine-grained_score", "overall_score", "score", "rating", "reward")
RANK = "rank"


@dataclass(frozen=True)
class Ranking:
    """Which pairs are made of a list: ``pairs`` and the least difference of their scores."""

    pairs: Literal["best-worst", "best-rest", "all"] = "best-worst"
    min_gap: float = 0.0


@dataclass(frozen=True)
class _Scored:
    answer: str | Chat
    score: float


def ranked_pairs(row: Row, form: Format, ranking: Ranking) -> tuple[Pair, ...] | Finding:
    """The pairs of one row; a note where no two answers are far enough apart.

    Scores are kept: higher is better (ranks become their negatives).
    """
    prompt = read_prompt(row.record, form.columns, form.chat)
    read = _compared if form.shape == "compared" else _listed
    answers = read(row.record, form, prompt)
    chosen = [
        (better, worse)
        for better, worse in _choices(answers, ranking.pairs)
        if better.score > worse.score and better.score - worse.score >= ranking.min_gap
    ]
    if not chosen:
        gap = f"; data.ranked.min_gap is {ranking.min_gap:g}" if ranking.min_gap else ""
        message = f"no two of its {len(answers)} answers differ in their scores{gap}"
        hint = "nothing, or lower data.ranked.min_gap"
        return Finding("tie", "note", row.source, None, message, hint)
    tools, origin = read_tools(row.record, form.columns), origin_of(row.record, form.columns)
    return tuple(
        Pair(
            prompt,
            better.answer,
            worse.answer,
            f"{row.source}#{number}" if len(chosen) > 1 else row.source,
            tools=tools,
            origin=origin,
            scores=(better.score, worse.score),
            margin=better.score - worse.score,
        )
        for number, (better, worse) in enumerate(chosen, start=1)
    )


def _choices(answers: list[_Scored], how: str) -> list[tuple[_Scored, _Scored]]:
    ordered = sorted(answers, key=lambda answer: -answer.score)
    if len(ordered) < 2:
        return []
    if how == "best-worst":
        return [(ordered[0], ordered[-1])]
    if how == "best-rest":
        return [(ordered[0], other) for other in ordered[1:]]
    return list(combinations(ordered, 2))


def _listed(record: Mapping[str, Any], form: Format, prompt: str | Chat) -> list[_Scored]:
    field = form.columns["completions"]
    items = record.get(field)
    if not isinstance(items, (list, tuple)):
        missing(record, form.columns, "completions", form.columns)
    beside = form.columns.get("scores")
    scores = record.get(beside) if beside else None
    if scores is not None and (not isinstance(scores, (list, tuple)) or len(scores) != len(items)):
        message = f"{len(items)} completions, but not as many scores"
        raise Unfit("score", beside, message, "give one score for each completion")
    answers = []
    for number, item in enumerate(items):
        place = f"{field}[{number}]"
        if scores is not None:
            score = read_number(scores[number], f"{beside}[{number}]")
            score = -score if beside is not None and beside.startswith("rank") else score
        else:
            score = _inner_score(item, place)
        answers.append(_Scored(_answer(_inner_text(item, place), place, prompt), score))
    return answers


def _inner_score(item: Any, place: str) -> float:
    if isinstance(item, Mapping):
        for name in SCORES:
            if item.get(name) is not None:
                return read_number(item[name], f"{place}.{name}")
        if item.get(RANK) is not None:
            return -read_number(item[RANK], f"{place}.{RANK}")
    hint = f"give each completion one of {', '.join((*SCORES, RANK))}, or set data.columns.scores"
    raise Unfit("score", place, "this completion has no score", hint)


def _inner_text(item: Any, place: str) -> Any:
    if not isinstance(item, Mapping) or "role" in item or "from" in item:
        return item
    for name in TEXTS:
        if name in item:
            return item[name]
    raise Unfit("column", place, "this completion has no text", f"call it {TEXTS[0]}")


def _answer(value: Any, field: str, prompt: str | Chat) -> str | Chat:
    """An answer as its prompt is written: text, or messages."""
    value = as_list(value)
    if isinstance(value, (list, tuple)):
        if isinstance(prompt, str):
            hint = "write both as text, or set data.chat: true"
            raise Unfit("mixed", field, "messages answer a prompt that is text", hint)
        turns = read_messages(value, field)
        if turns[: len(prompt)] == prompt:
            turns = turns[len(prompt) :]
        check_start(turns, field)
        check_end(turns, field)
        return turns
    text = read_text(value, field)
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)


def _compared(record: Mapping[str, Any], form: Format, prompt: str | Chat) -> list[_Scored]:
    columns = form.columns
    first, second = (
        _answer(record.get(columns[name]), columns[name], prompt) for name in ("first", "second")
    )
    lead = _lead(record.get(columns["preference"]), columns["preference"])
    return [_Scored(first, lead), _Scored(second, 0.0)]


def _lead(value: Any, field: str) -> float:
    """By how much the first of two answers is better.

    ``winner``: model_a, model_b or a tie. ``better_response_id``: 0 is the first. ``labels``: 1 is
    the first. ``overall_preference``: below 0 is the first.
    """
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        sides = {"model_a": 1.0, "a": 1.0, "model_b": -1.0, "b": -1.0}
        if "tie" in value.lower() or value.lower() in sides:
            return sides.get(value.lower(), 0.0)
        raise Unfit("score", field, "no such winner", "write model_a, model_b or tie")
    number = read_number(value, field)
    if field == "better_response_id":
        return 1.0 if number == 0 else -1.0
    return (1.0 if number == 1 else -1.0) if field == "labels" else -number


def gather(rows: Iterable[Row | Finding], form: Format) -> Iterator[tuple[int, Row | Finding]]:
    """Rows with how many of the file's rows each stands for.

    Neighbours with one prompt become one list of completions where each row holds only one.
    """
    if form.shape != "scored":
        yield from ((0 if "#" in row.source[-4:] else 1, row) for row in rows)  # 0: a copy
        return
    group: list[Row] = []
    for row in rows:
        same = isinstance(row, Row) and group and _same_prompt(row, group[0], form)
        if group and not same:
            yield len(group), _together(group, form)
            group = []
        if isinstance(row, Row):
            group.append(row)
        else:
            yield 1, row
    if group:
        yield len(group), _together(group, form)


def _same_prompt(row: Row, other: Row, form: Format) -> bool:
    field = form.columns["prompt"]
    return bool(row.record.get(field) == other.record.get(field))


def _together(group: list[Row], form: Format) -> Row:
    text, score = form.columns["completion"], form.columns["score"]
    listed = [{"response": row.record.get(text), "score": row.record.get(score)} for row in group]
    return Row(group[0].source, {**group[0].record, "completions": listed})
