"""Rows of a recognised format made into pairs, or why that cannot be done."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

from likelier.base.findings import Finding, Unfit
from likelier.chat.messages import (
    Chat,
    as_list,
    check_end,
    check_start,
    from_transcript,
    is_transcript,
    kind_of_value,
    missing,
    mixed,
    read_messages,
    read_number,
    read_text,
)
from likelier.chat.written import (
    begins_with,
    earlier_turns,
    is_within,
    list_in,
    split_chats,
    stripped,
    turns_in,
)
from likelier.data.records import Pair, PromptRow, Row, taken, text_of
from likelier.data.shapes import (
    NEEDED,
    ROWS_LOOKED_AT,
    SIGNED,
    Format,
    check_rivals,
    counts_down,
    for_row,
    is_empty,
    model_column,
)
from likelier.pages.texts import text

MAX_PAIRS_OF_A_ROW = 100_000
MAX_CHARACTERS = 2_000_000  # of a prompt or a completion; a tokenizer takes 150 bytes for each
# What a list of completions calls the text, the score and the rank of each.
TEXT_KEYS = ("response", "completion", "text", "answer", "output", "generation")
SCORE_KEYS = ("fine-grained_score", "overall_score", "score", "rating", "reward")
RANK_KEY = "rank"
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_ABSENT: Any = object()
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)
_TIES = ("both", "bothbad", "both_bad", "neither", "draw", "equal", "same")
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


def read_row(row: Row, form: Format) -> list[Pair | Finding]:
    """The pairs of a row, and why others, or the row as a whole, cannot be used.

    An error `Finding` stands for a pair or a row that cannot be read, a note for a row that holds
    no preference.
    """
    if odd := _odd_cell(row, form):
        return [odd]
    form = for_row(row.record, form)
    try:
        for name in () if form.all_rivals.isdisjoint(row.record) else form.rivals:
            if name != "prompt":
                check_rivals(row.record, form, name)
        if form.shape == "pairs":
            found: Sequence[Pair | Finding] = [_pair(row, form)]
        elif form.shape == "labelled":
            found = [_unpaired(row, form)]
        else:
            found = _ranked(row, form)
    except Unfit as unfit:
        return [unfit.at(row.source)]
    return [one for each in found for one in (_usable(each) if isinstance(each, Pair) else [each])]


def _odd_cell(row: Row, form: Format) -> Finding | None:
    """What its reader says of a cell that is to be read, where it says anything."""
    for field in form.columns.values() or PAIR_COLUMNS:
        if isinstance(cell := row.record.get(field), Finding):
            return replace(cell, source=row.source, field=field)
    return None


def read_prompt(row: Row, form: Format) -> PromptRow | Finding:
    """The prompt of a row: where it has answers, the one that they are read behind."""
    if all(name in form.columns for name in NEEDED[form.shape]):
        found = read_row(row, form)[0]
        if isinstance(found, Pair):
            return PromptRow(row.source, found.prompt, found.tools)
        if found.code not in ("tie", "identical"):  # which is nothing to a prompt
            return found
    if odd := _odd_cell(row, form):
        return odd
    try:
        form = for_row(row.record, form)
        content = _prompt(row.record, form, form.chat)
        return PromptRow(row.source, content, _tools(row.record, form.columns))
    except Unfit as unfit:
        return unfit.at(row.source)


def first_pair(
    rows: Iterable[Row | Pair | Finding], form: Format
) -> tuple[Pair | None, Iterator[Row | Pair | Finding]]:
    """The first pair that can be read of the first rows, if any, and all of the rows."""
    iterator = iter(rows)
    first = taken(iterator, ROWS_LOOKED_AT)
    read = (read_row(row, form) if isinstance(row, Row) else [row] for row in first)
    pairs = (pair for found in read for pair in found if isinstance(pair, Pair))
    return next(pairs, None), chain(first, iterator)


def _usable(pair: Pair) -> list[Pair] | list[Finding]:
    """The pair, or why it cannot be used."""
    huge = {name: len(text_of(side)) for name, side in pair.sides.items()}
    if max(huge.values()) > MAX_CHARACTERS:
        return [
            Finding("huge", "error", pair.source, name,
                    f"a text of {size:,} characters; at most {MAX_CHARACTERS:,} are read",
                    "split it, or delete the row")
            for name, size in huge.items()
            if size > MAX_CHARACTERS
        ]  # fmt: skip
    if pair.label is None and stripped(pair.chosen) == stripped(pair.rejected):
        message = "chosen and rejected are the same text"
        hint = "delete the row or set data.on_bad_row: drop"
        return [Finding("identical", "error", pair.source, None, message, hint)]
    return [pair]


def _pair(row: Row, form: Format) -> Pair:
    """A pair of texts, lists of messages, two conversations whose common beginning is the prompt,
    or Human/Assistant transcripts.
    """
    record, columns = row.record, form.columns
    prompt, chosen, rejected = _sides(record, form)
    better, worse = (_rated(record, columns, name) for name in ("chosen_score", "rejected_score"))
    scores = (better, worse) if better is not None and worse is not None else None
    margin = _number(record, columns, "margin")
    if margin is None and scores:
        margin = scores[0] - scores[1]
    return Pair(
        prompt, chosen, rejected, row.source, scores=scores, margin=margin, **_beside(row, form)
    )


def _unpaired(row: Row, form: Format) -> Pair:
    """The one completion of a row with its label; it stands both as chosen and as rejected."""
    columns = form.columns
    for name in ("completion", "label"):
        if columns[name] not in row.record:
            missing(row.record, columns, name, columns.keys() - {name})
    field = columns["completion"]
    value = turns_in(row.record[field], field)
    prompt: str | Chat
    completion: str | Chat
    if "prompt" not in columns and isinstance(value, list) and len(value) > 1:
        whole = read_messages(value, field)
        check_end(whole, field)
        prompt, completion = _opened(whole[:-1], row.record, columns), whole[-1:]
    else:
        prompt = _prompt(row.record, form, form.chat or isinstance(value, (list, tuple)))
        completion = _completion(value, field, prompt)
    label = row.record[columns["label"]]
    known = _LABELS.get(str(label).strip().lower())
    if known is None:
        message = f"true or false expected, found {str(label)[:20]!r}"
        raise Unfit("label", columns["label"], message, "write true for good, false for bad")
    return Pair(prompt, completion, completion, row.source, label=known, **_beside(row, form))


def _beside(row: Row, form: Format) -> dict[str, Any]:
    """What any row may hold beside its texts: tools, origin and weight."""
    record, columns = row.record, form.columns
    _, origin = _cell(record, columns, "origin")
    return {
        "tools": _tools(record, columns),
        "origin": origin[:80] if isinstance(origin, str) else None,
        "weight": _number(record, columns, "weight"),
    }


def _cell(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> tuple[str, Any]:
    """The file's name of one of our columns and what the row has there, None where nothing."""
    field = columns.get(name)
    if field is None:
        return name, None
    value = record.get(field)
    return field, None if is_empty(value) else value


def _sides(record: Mapping[str, Any], form: Format) -> tuple[str | Chat, str | Chat, str | Chat]:
    """Prompt, chosen and rejected, all as text or all as messages."""
    columns = form.columns
    theirs = {name: columns.get(name, name) for name in PAIR_COLUMNS}
    for name in ("chosen", "rejected"):
        if theirs[name] not in record:
            missing(record, columns, name, PAIR_COLUMNS)
    prompt = _ABSENT if "prompt" in form.ignored else _asked(record, theirs["prompt"])
    chosen, rejected = (turns_in(record[theirs[n]], theirs[n]) for n in PAIR_COLUMNS[1:])
    if is_transcript(chosen) and is_transcript(rejected):
        chosen, rejected = from_transcript(chosen), from_transcript(rejected)
        prompt = from_transcript(prompt) if is_transcript(prompt) else prompt
    are_chats = [isinstance(value, (list, tuple)) for value in (chosen, rejected)]
    replaced = prompt is _ABSENT and "prompt" not in columns and are_chats == [True, False]
    if replaced and len(chosen) > 1:
        said = read_text(rejected, theirs["rejected"])
        rejected, are_chats = [{"role": "assistant", "content": said}], [True, True]
    if prompt is _ABSENT and ("prompt" in columns or not all(are_chats)):
        missing(record, columns, "prompt", PAIR_COLUMNS)
    if not all(are_chats):
        if any(are_chats):
            mixed("chosen", "one of chosen and rejected is a list of messages, the other is not")
        if isinstance(prompt, (list, tuple)):
            mixed("prompt", "the prompt is a list of messages, the answers are not")
        prompt = _prompt(record, form, form.chat)
        chosen = _completion(chosen, theirs["chosen"], prompt)
        return prompt, chosen, _completion(rejected, theirs["rejected"], prompt)
    chosen = read_messages(chosen, theirs["chosen"])
    rejected = read_messages(rejected, theirs["rejected"])
    check_end(chosen, theirs["chosen"])
    check_end(rejected, theirs["rejected"])
    if prompt is _ABSENT and chosen[0]["role"] == "assistant":
        missing(record, columns, "prompt", PAIR_COLUMNS)
    if "assistant" in (chosen[0]["role"], rejected[0]["role"]):
        check_rivals(record, form, "prompt")
    turns, chosen, rejected = _chats(prompt, chosen, rejected, theirs)
    return _opened(turns, record, columns), chosen, rejected


def _asked(record: Mapping[str, Any], field: str) -> Any:
    """The cell of the prompt, of the object that hosted services write its messages."""
    value = record.get(field, _ABSENT)
    if isinstance(value, Mapping) and "messages" in value:
        return as_list(value["messages"])
    return turns_in(value, field)


def _prompt(record: Mapping[str, Any], form: Format, as_chat: bool) -> str | Chat:
    """The prompt of a row as text, or as messages where it is written or wanted so.

    A system text, tools, earlier turns or ``as_chat`` make a user's turn of a plain text.
    """
    columns = form.columns
    field = columns.get("prompt", "prompt")
    value = _ABSENT if "prompt" in form.ignored else _asked(record, field)
    if value is _ABSENT:
        missing(record, columns, "prompt", ("prompt",))
    check_rivals(record, form, "prompt")
    if isinstance(value, str) and value.lstrip().startswith("Human:"):
        value = from_transcript(value)
    beside, more = _cell(record, columns, "input")
    if isinstance(value, (list, tuple)):
        if more is not None:
            mixed(beside, "the prompt is a list of messages, and this column is to be joined to it")
        return _opened(read_messages(value, field), record, columns)
    if more is None:
        said = read_text(value, field)
    else:
        said = read_text(more, beside)
        said = said if value == "" else f"{read_text(value, field)}\n{said}"
    if not (as_chat or {"system", "history"} & columns.keys() or _tools(record, columns)):
        return said
    return _opened(({"role": "user", "content": said},), record, columns)


def _opened(chat: Chat, record: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    """A chat behind the row's earlier turns, and behind its system text where the chat has none."""
    field, value = _cell(record, columns, "history")
    first, earlier = chat[0]["role"] == "system", earlier_turns(value, field)
    chat = (*chat[:first], *earlier, *chat[first:])
    field, value = _cell(record, columns, "system")
    if value is None or chat[0]["role"] == "system":
        return chat
    return ({"role": "system", "content": read_text(value, field)}, *chat)


def _tools(record: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    """The tools that a row offers: a list of objects, or that list as JSON text; they may stand
    beside the messages of the prompt.
    """
    field, value = _cell(record, columns, "tools")
    prompt = record.get(columns.get("prompt", "prompt"))
    if value is None and isinstance(prompt, Mapping):
        field, value = f"{columns.get('prompt')}.tools", prompt.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            hint = "write a JSON list of tools"
            raise Unfit("tools", field, "the text is no JSON", hint) from error
    if not value:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, dict) for tool in value):
        message = f"a list of tools expected, found {kind_of_value(value)}"
        raise Unfit("tools", field, message, "write a list of objects, or null")
    return tuple(value)


def _number(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> float | None:
    """The number in one of our columns; None where the row has none. A weight is not negative."""
    field, value = _cell(record, columns, name)
    if value is None:
        return None
    number = read_number(value, field)
    if name == "weight" and number < 0:
        raise Unfit("score", field, f"the weight is {number:g}", "write 0 or more")
    return number


def _rated(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> float | None:
    """The score in one of our columns, higher where better; None where the row has none."""
    number = _number(record, columns, name)
    return -number if number is not None and counts_down(columns[name]) else number


def _chats(
    prompt: Any, chosen: Chat, rejected: Chat, theirs: Mapping[str, str]
) -> tuple[Chat, Chat, Chat]:
    """Both answers after one prompt; conversations that repeat the prompt lose it."""
    whole = [side[0]["role"] != "assistant" for side in (chosen, rejected)]
    field = theirs["prompt"]
    if isinstance(prompt, (list, tuple)):
        given = read_messages(prompt, field)
        if not all(whole) or all(begins_with(side, given) for side in (chosen, rejected)):
            cut = len(given) if all(whole) else 0
            chosen, rejected = chosen[cut:], rejected[cut:]
            check_start(chosen, theirs["chosen"])
            check_start(rejected, theirs["rejected"])
            return given, chosen, rejected
    elif prompt is not _ABSENT:
        given = ({"role": "user", "content": read_text(prompt, field).strip()},)
        if not all(whole):
            mixed(field, "the prompt is text, the answers are lists of messages")
    if whole == [True, False]:
        cut = len(chosen) - 1
        if len(rejected) > 1:  # it answers the last turn that is not the assistant's own work
            cut = max(n for n, turn in enumerate(chosen, 1) if turn["role"] == "user")
        return chosen[:cut], chosen[cut:], rejected
    shared, chosen, rejected = split_chats(chosen, rejected)
    if prompt is not _ABSENT and not is_within(given, shared):
        message = "the prompt is not among the turns that both conversations share"
        hint = "fix the prompt, or set data.columns.prompt: null"
        raise Unfit("prompt", field, message, hint)
    return shared, chosen, rejected


_Scored = tuple[float, str | Chat]  # a completion behind its score


def _ranked(row: Row, form: Format) -> list[Pair] | list[Finding]:
    """The pairs of completions that are scored, ranked or compared; a note where there is none.

    Scores are kept: higher is better (ranks become their negatives).
    """
    read = _of_comparison if form.shape == "compared" else _of_list
    prompt, completions = read(row.record, form)
    if form.pairs == "all" and (count := math.comb(len(completions), 2)) > MAX_PAIRS_OF_A_ROW:
        message = f"its {len(completions):,} answers make {count:,} pairs"
        hint = f"set data.ranked.pairs: best-rest; at most {MAX_PAIRS_OF_A_ROW:,} are made of a row"
        raise Unfit("huge", form.columns.get("completions"), message, hint)
    chosen = [
        (better, worse)
        for better, worse in _choices(completions, form.pairs)
        if better[0] > worse[0] and better[0] - worse[0] >= form.min_gap
    ]
    if not chosen:
        gap = f"; data.ranked.min_gap is {form.min_gap:g}" if form.min_gap else ""
        message = f"no two of its {len(completions)} answers differ in their scores{gap}"
        hint = "lower data.ranked.min_gap" if gap else "the row is left out; nothing is to be done"
        return [Finding("tie", "note", row.source, None, message, hint)]
    beside = _beside(row, form)
    return [
        Pair(
            prompt,
            better,
            worse,
            f"{row.source}#{number}" if len(chosen) > 1 else row.source,
            scores=(high, low),
            margin=high - low,
            **beside,
        )
        for number, ((high, better), (low, worse)) in enumerate(chosen, start=1)
    ]


def _choices(completions: list[_Scored], how: str) -> list[tuple[_Scored, _Scored]]:
    ordered = sorted(completions, key=lambda scored: -scored[0])
    if len(ordered) < 2:
        return []
    if how == "best-worst":
        return [(ordered[0], ordered[-1])]
    if how == "best-rest":
        return [(ordered[0], other) for other in ordered[1:]]
    return list(combinations(ordered, 2))


def _of_list(record: Mapping[str, Any], form: Format) -> tuple[str | Chat, list[_Scored]]:
    prompt = _prompt(record, form, form.chat)
    field = form.columns.get("completions", "completions")
    items = list_in(record.get(field))
    if not isinstance(items, (list, tuple)):
        if field not in record:
            missing(record, form.columns, "completions", form.columns.keys() - {"completions"})
        message = f"a list of completions expected, found {kind_of_value(items)}"
        raise Unfit("type", field, message, "write a list of texts or of objects")
    beside, scores = _cell(record, form.columns, "scores")
    scores = list_in(scores)
    if scores is not None and (not isinstance(scores, (list, tuple)) or len(scores) != len(items)):
        message = f"{len(items)} completions, but not as many scores"
        raise Unfit("score", beside, message, "give one score for each completion")
    completions = []
    for number, item in enumerate(items):
        place = f"{field}[{number}]"
        inner = _inner_score(item, place) if scores is None or "scores" in form.rivals else None
        if scores is not None:
            score = read_number(scores[number], f"{beside}[{number}]")
            score = -score if counts_down(beside) else score
            if inner not in (None, score):
                hint = f"set data.columns.scores: {beside}, or null for those inside"
                raise Unfit("score", place, f'the score inside differs from "{beside}"', hint)
        elif inner is not None:
            score = inner
        else:
            names = ", ".join((*SCORE_KEYS, RANK_KEY))
            hint = f"give each completion one of {names}, or set data.columns.scores"
            raise Unfit("score", place, "this completion has no score", hint)
        completions.append((score, _completion(_inner_text(item, place), place, prompt)))
    return prompt, completions


def _inner_score(item: Any, place: str) -> float | None:
    if isinstance(item, Mapping):
        for name in SCORE_KEYS:
            if item.get(name) is not None:
                return read_number(item[name], f"{place}.{name}")
        if item.get(RANK_KEY) is not None:
            return -read_number(item[RANK_KEY], f"{place}.{RANK_KEY}")
    return None


def _inner_text(item: Any, place: str) -> Any:
    if not isinstance(item, Mapping) or "role" in item or "from" in item:
        return item
    for name in TEXT_KEYS:
        if name in item:
            return item[name]
    raise Unfit("column", place, "this completion has no text", f"call it {TEXT_KEYS[0]}")


def _completion(value: Any, field: str, prompt: str | Chat) -> str | Chat:
    """An answer in the form of its prompt: text, or messages."""
    value = turns_in(value, field)
    if isinstance(value, (list, tuple)):
        if isinstance(prompt, str):
            hint = "write both as text, or set data.chat: true"
            raise Unfit("mixed", field, "messages answer a prompt that is text", hint)
        turns = read_messages(value, field)
        if begins_with(turns, prompt):
            turns = turns[len(prompt) :]
        check_start(turns, field)
        check_end(turns, field)
        return turns
    said = read_text(value, field)
    return said if isinstance(prompt, str) else ({"role": "assistant", "content": said},)


def _of_comparison(record: Mapping[str, Any], form: Format) -> tuple[str | Chat, list[_Scored]]:
    columns = form.columns
    first, second = (
        turns_in(record.get(columns[name]), columns[name]) for name in ("first", "second")
    )
    prompt: str | Chat
    if "prompt" in columns or not (isinstance(first, list) and isinstance(second, list)):
        prompt = _prompt(record, form, form.chat)
        first, second = (
            _completion(value, columns[name], prompt)
            for name, value in (("first", first), ("second", second))
        )
    else:
        whole = [read_messages(first, columns["first"]), read_messages(second, columns["second"])]
        check_end(whole[0], columns["first"])
        check_end(whole[1], columns["second"])
        turns, first, second = split_chats(*whole)
        prompt = _opened(turns, record, columns)
    return prompt, [(_lead(record, columns), first), (0.0, second)]


def _lead(record: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """By how much the first of two answers is better.

    A word names an answer: by its column, its model, or as ``model_a``. Numbers mean something
    under the names that published sets gave them: ``better_response_id`` (0 is the first),
    ``labels`` (1 is the first) and ``overall_preference`` (below 0 is the first).
    """
    field = columns["preference"]
    value = record.get(field)
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return _winner(value.strip().lower(), record, columns)
    if field == SIGNED:
        return -read_number(value, field)
    best = {"better_response_id": 0, "labels": 1}.get(field)
    if best is not None and (number := read_number(value, field)) in (0, 1):
        return 1.0 if number == best else -1.0
    if best is None and isinstance(value, (bool, int, float, str)) and value == value:
        message = "nothing says which answer this number means"
    else:
        message = f"a name of one of the answers expected, found {str(value)[:20]}"
    raise Unfit("score", field, message, text("check.readings"))


def _winner(word: str, record: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """1 where a word names the first answer, -1 where the second, 0 for a tie."""
    named = []
    words_of = {"first": ("a", "model_a", "first"), "second": ("b", "model_b", "second")}
    for name, words in words_of.items():
        column = columns[name]
        model = record.get(model_column(column))
        known = {*words, column.lower(), str(model).strip().lower() if model else words[0]}
        named.append(word in known)
    if named == [False, False] and (word.startswith("tie") or word in _TIES):
        return 0.0
    if named[0] == named[1]:
        what = "both answers have this name" if named[0] else "no answer has this name"
        hint = f"write {columns['first']}, {columns['second']} or tie"
        raise Unfit("score", columns["preference"], what, hint)
    return 1.0 if named[0] else -1.0
