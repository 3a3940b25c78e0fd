"""How rows write preferences: the format, recognised by the first rows, and the pairs of a row."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, groupby, islice
from typing import Any, Literal

from likelier.base.errors import ConfigError
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
    odd_character,
    read_messages,
    read_number,
    read_text,
    suggestion,
)
from likelier.data.records import Pair, Row, text_of
from likelier.pages.texts import text

Shape = Literal["pairs", "ranked", "scored", "compared", "labelled"]
ROWS_LOOKED_AT = 200  # to recognise a format
MAX_CHARACTERS = 2_000_000  # of a prompt or a completion; a tokenizer takes 150 bytes for each

# Our name of a column, and what others call it: the first that is there is taken.
COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "context",
               "conversations", "conversation", "messages", "history"),
    "chosen": ("chosen", "chosen_response", "response_chosen"),
    "rejected": ("rejected", "rejected_response", "response_rejected"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
    "origin": ("source", "dataset", "origin"),
    "completions": ("completions", "responses", "answers", "generations", "candidates"),
    "scores": ("scores", "ratings", "rating", "ranks", "rankings", "rank"),
    "completion": ("completion", "response", "answer"),
    "label": ("label", "kto_tag"),
    "score": ("score", "rating", "reward", "overall_score", "helpfulness"),
    "first": ("response1", "response_0", "response_a", "conversation_a", "human_ref_A"),
    "second": ("response2", "response_1", "response_b", "conversation_b", "human_ref_B"),
    "preference": ("overall_preference", "better_response_id", "winner", "labels", "preference"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating"),
    "margin": ("margin",),
    "weight": ("weight",),
}  # fmt: skip
COLUMN_NAMES = tuple(COLUMN_ALIASES)  # what `data.columns` may name
NEEDED: dict[Shape, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "labelled": ("completion", "label"),
    "ranked": ("completions",),
    "compared": ("first", "second", "preference"),
    "scored": ("prompt", "completion", "score"),
}
_BESIDE = ("prompt", "system", "tools", "origin")
OPTIONAL: dict[Shape, tuple[str, ...]] = {
    "pairs": (*_BESIDE, "chosen_score", "rejected_score", "margin", "weight"),
    "labelled": (*_BESIDE, "weight"),
    "ranked": (*_BESIDE, "scores"),
    "compared": _BESIDE,
    "scored": _BESIDE[1:],
}
# What a list of completions calls the text, the score and the rank of each.
TEXT_KEYS = ("response", "completion", "text", "answer", "output", "generation")
SCORE_KEYS = ("fine-grained_score", "overall_score", "score", "rating", "reward")
RANK_KEY = "rank"
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_ABSENT = object()
PAIR_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Format:
    """How rows write preferences: what the user says of it, and what `recognised` finds.

    ``columns`` maps our names of columns to the file's. ``chat`` makes plain texts a user's and an
    assistant's turn, so that the model's template is used for them. Of a list of completions
    ``pairs`` says which are compared, and ``min_gap`` by how much their scores must differ.
    ``shape`` and ``style`` (what kind of texts they are, in words) are always recognised.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    chat: bool = False
    pairs: Literal["best-worst", "best-rest", "all"] = "best-worst"
    min_gap: float = 0.0
    shape: Shape = "pairs"
    style: str = ""

    def describe(self) -> str:
        """What was recognised, in one line."""
        names = [
            name if name == theirs else f"{name} = {theirs}"
            for name, theirs in self.columns.items()
        ]
        shape, columns = text(f"check.format.{self.shape}"), ", ".join(names)
        if not self.style:
            return text("check.format.columns", shape=shape, columns=columns)
        return text("check.format.columns_style", shape=shape, style=self.style, columns=columns)


def recognised(
    rows: Iterable[Row | Finding], asked: Format
) -> tuple[Format, Iterator[Row | Finding]]:
    """The format of rows, and all of the rows; scored completions of one prompt become one row.

    Raises ConfigError for a key of ``columns`` that is none of ours, and for a choice of pairs
    that no list of completions would use.
    """
    for name in asked.columns:
        if name not in COLUMN_NAMES:
            hint = suggestion(name, COLUMN_NAMES, f"the keys are {', '.join(COLUMN_NAMES)}")
            raise ConfigError(f'unknown key "{name}"', where="data.columns", hint=hint)
    iterator = iter(rows)
    first = list(islice(iterator, ROWS_LOOKED_AT))
    records = [row.record for row in first if isinstance(row, Row)]
    form = recognise(records, asked)
    default = (form.pairs, form.min_gap) == (Format.pairs, Format.min_gap)
    if form.shape not in ("ranked", "scored") and not default:
        what = f"has no effect: the data have {form.describe()}"
        raise ConfigError(what, where="data.ranked", hint="remove data.ranked")
    rows = chain(first, iterator)
    return form, _grouped(rows, form) if form.shape == "scored" else rows


def recognise(records: Sequence[Mapping[str, Any]], asked: Format) -> Format:
    """The format of rows, known by the names of their columns and, where these say too little,
    by what stands in them. The columns that are asked for win over what is found.
    """
    columns = asked.columns
    present: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            if present.get(key) is None:
                present[key] = value
    found = {name: columns.get(name) or _alias(name, present) for name in COLUMN_NAMES}
    shape = _shape(found, present, columns)
    wanted = (*NEEDED[shape], *OPTIONAL[shape])
    used = {name: theirs for name in wanted if (theirs := found[name])}
    used |= {name: theirs for name, theirs in columns.items() if name in wanted}
    if _is_implied(shape, used, present, columns):
        used.pop("prompt", None)
    ordered = {name: used[name] for name in COLUMN_NAMES if name in used}
    style = _style(shape, ordered, present, asked.chat)
    return replace(asked, shape=shape, columns=ordered, style=style)


def _alias(name: str, present: Mapping[str, Any]) -> str | None:
    return next((alias for alias in COLUMN_ALIASES[name] if alias in present), None)


def _shape(
    found: Mapping[str, str | None], present: Mapping[str, Any], columns: Mapping[str, str]
) -> Shape:
    """The shape whose columns are named in ``columns``, else the first whose columns are there."""
    asked = [shape for shape, names in NEEDED.items() if set(names) & columns.keys() - {"prompt"}]
    for shape in asked or NEEDED:
        if all(found[name] for name in NEEDED[shape]) and _fits(shape, found, present):
            return shape
    return asked[0] if asked else "pairs"


def _fits(shape: Shape, found: Mapping[str, str | None], present: Mapping[str, Any]) -> bool:
    def value(name: str) -> Any:
        return present.get(found[name] or "")

    if shape == "ranked":
        return isinstance(value("completions"), (list, tuple))
    if shape in ("scored", "labelled"):
        number = value("score" if shape == "scored" else "label")
        return not isinstance(number, (list, tuple, dict))
    return True


def _is_implied(
    shape: Shape, used: Mapping[str, str], present: Mapping[str, Any], columns: Mapping[str, str]
) -> bool:
    """Whether whole conversations stand in the answers, and the prompt found is a guess."""
    if shape != "pairs" or "prompt" in columns or used.get("prompt") == "prompt":
        return False
    chosen = present.get(used.get("chosen", ""))
    if is_transcript(chosen):
        return True
    first = chosen[0] if isinstance(chosen, (list, tuple)) and len(chosen) > 1 else None
    speaker = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return speaker in ("user", "system", "human")


def _style(shape: Shape, columns: Mapping[str, str], present: Mapping[str, Any], chat: bool) -> str:
    """What kind of texts they are, in a word or two."""
    answer = present.get(columns.get(NEEDED[shape][-1 if shape == "scored" else 0], ""))
    if shape == "ranked":
        inside = "scores" not in columns
        return text("check.format.scores_inside" if inside else "check.format.scores")
    if isinstance(answer, (list, tuple, dict)):
        return text("check.format.chats" if "prompt" in columns else "check.format.whole_chats")
    if is_transcript(answer):
        return text("check.format.transcripts")
    as_chats = chat or "system" in columns or "tools" in columns
    return text("check.format.texts_as_chats" if as_chats else "check.format.texts")


def _grouped(rows: Iterable[Row | Finding], form: Format) -> Iterator[Row | Finding]:
    """Neighbours with one prompt, each with one completion, as one row with a list of them."""
    prompt, text, score = (form.columns[name] for name in ("prompt", "completion", "score"))
    together = groupby(rows, lambda row: row.record.get(prompt) if isinstance(row, Row) else row)
    for _, group in together:
        first, *others = group
        if isinstance(first, Finding):
            yield first
            continue
        records = [row.record for row in (first, *others) if isinstance(row, Row)]
        listed = [{"response": one.get(text), "score": one.get(score)} for one in records]
        yield Row(first.source, {**first.record, "completions": listed}, len(listed))


def read_row(row: Row, form: Format) -> list[Pair | Finding]:
    """The pairs of a row, and why others, or the row as a whole, cannot be used.

    An error `Finding` stands for a pair or a row that cannot be read, a note for a row that holds
    no preference.
    """
    try:
        if form.shape == "pairs":
            found: Sequence[Pair | Finding] = [_pair(row, form)]
        elif form.shape == "labelled":
            found = [_unpaired(row, form)]
        else:
            found = _ranked(row, form)
    except Unfit as unfit:
        return [unfit.at(row.source)]
    return [one for each in found for one in (_usable(each) if isinstance(each, Pair) else [each])]


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
    if pair.label is None and _stripped(pair.chosen) == _stripped(pair.rejected):
        message = "chosen and rejected are the same text"
        hint = "delete the row or set data.on_bad_row: drop"
        return [Finding("identical", "error", pair.source, None, message, hint)]
    return [pair]


def _stripped(side: str | Chat) -> Any:
    """A completion without the spaces around its texts: what two of them must differ in."""
    if isinstance(side, str):
        return side.strip()
    return [
        {key: value.strip() if isinstance(value, str) else value for key, value in turn.items()}
        for turn in side
    ]


def _pair(row: Row, form: Format) -> Pair:
    """A pair of texts, lists of messages, two conversations whose common beginning is the prompt,
    or Human/Assistant transcripts.
    """
    record, columns = row.record, form.columns
    prompt, chosen, rejected = _sides(record, columns, form.chat)
    better, worse = (_number(record, columns, name) for name in ("chosen_score", "rejected_score"))
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
            missing(row.record, columns, name, columns)
    field = columns["completion"]
    value = as_list(row.record[field])
    is_chat = form.chat or isinstance(value, (list, tuple))
    prompt = _prompt(row.record, columns, is_chat)
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
    return (field, record.get(field)) if field is not None else (name, None)


def _sides(
    record: Mapping[str, Any], columns: Mapping[str, str], chat: bool
) -> tuple[str | Chat, str | Chat, str | Chat]:
    """Prompt, chosen and rejected, all as text or all as messages."""
    theirs = {name: columns.get(name, name) for name in PAIR_COLUMNS}
    prompt, chosen, rejected = (as_list(record.get(theirs[name], _ABSENT)) for name in PAIR_COLUMNS)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is _ABSENT:
            missing(record, columns, name, PAIR_COLUMNS)
    if is_transcript(chosen) and is_transcript(rejected):
        chosen, rejected = from_transcript(chosen), from_transcript(rejected)
        prompt = from_transcript(prompt) if is_transcript(prompt) else prompt
    are_chats = [isinstance(value, (list, tuple)) for value in (chosen, rejected)]
    if prompt is _ABSENT and ("prompt" in columns or not all(are_chats)):
        missing(record, columns, "prompt", PAIR_COLUMNS)
    if not all(are_chats):
        if any(are_chats):
            mixed("chosen", "one of chosen and rejected is a list of messages, the other is not")
        if isinstance(prompt, (list, tuple)):
            mixed("prompt", "the prompt is a list of messages, the answers are not")
        prompt = _prompt(record, columns, chat)
        chosen = _completion(chosen, theirs["chosen"], prompt)
        return prompt, chosen, _completion(rejected, theirs["rejected"], prompt)
    chosen = read_messages(chosen, theirs["chosen"])
    rejected = read_messages(rejected, theirs["rejected"])
    check_end(chosen, theirs["chosen"])
    check_end(rejected, theirs["rejected"])
    if prompt is _ABSENT and "assistant" in (chosen[0]["role"], rejected[0]["role"]):
        missing(record, columns, "prompt", PAIR_COLUMNS)
    turns, chosen, rejected = _chats(prompt, chosen, rejected, theirs)
    return _with_system(turns, record, columns), chosen, rejected


def _prompt(record: Mapping[str, Any], columns: Mapping[str, str], chat: bool) -> str | Chat:
    """The prompt of a row as text, or as messages where it is written or wanted so.

    A system text, tools or ``chat`` make a user's turn of a plain text.
    """
    field = columns.get("prompt", "prompt")
    value = as_list(record.get(field, _ABSENT))
    if value is _ABSENT:
        missing(record, columns, "prompt", ("prompt",))
    if isinstance(value, str) and value.lstrip().startswith("Human:"):
        value = from_transcript(value)
    if isinstance(value, (list, tuple)):
        return _with_system(read_messages(value, field), record, columns)
    text = read_text(value, field)
    if not (chat or "system" in columns or _tools(record, columns)):
        return text
    return _with_system(({"role": "user", "content": text},), record, columns)


def _with_system(chat: Chat, record: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    """A chat that begins with the row's system text, where the row has one and the chat has not."""
    field, value = _cell(record, columns, "system")
    if value is None or value == "" or chat[0]["role"] == "system":
        return chat
    if not isinstance(value, str) or odd_character(value):
        read_text(value, field)
    return ({"role": "system", "content": value}, *chat)


def _tools(record: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    """The tools that a row offers: a list of objects, or that list as JSON text."""
    field, value = _cell(record, columns, "tools")
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
    if value is None or value == "" or value != value:  # NaN: how tables write that there is none
        return None
    number = read_number(value, field)
    if name == "weight" and number < 0:
        raise Unfit("score", field, f"the weight is {number:g}", "write 0 or more")
    return number


def _chats(
    prompt: Any, chosen: Chat, rejected: Chat, theirs: Mapping[str, str]
) -> tuple[Chat, Chat, Chat]:
    """Both answers after one prompt; conversations that repeat the prompt lose it."""
    whole = chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant"
    field = theirs["prompt"]
    if isinstance(prompt, (list, tuple)):
        given = read_messages(prompt, field)
        count = len(given)
        if whole and chosen[:count] == given == rejected[:count]:
            chosen, rejected = chosen[count:], rejected[count:]
        check_start(chosen, theirs["chosen"])
        check_start(rejected, theirs["rejected"])
        return given, chosen, rejected
    if prompt is not _ABSENT:
        text = read_text(prompt, field)
        if not whole:
            mixed(field, "the prompt is text, the answers are lists of messages")
    shared, chosen, rejected = _split(chosen, rejected)
    if prompt is not _ABSENT and shared[-1].get("content") != text:
        message = "the prompt is not the last turn that both conversations share"
        raise Unfit("prompt", field, message, "fix the prompt, or delete that column")
    return shared, chosen, rejected


def _split(chosen: Chat, rejected: Chat) -> tuple[Chat, Chat, Chat]:
    """Cut two conversations after the whole messages that they share."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    cut = min(shared, len(chosen) - 1, len(rejected) - 1)  # each answer keeps a turn
    roles = {chosen[cut]["role"], rejected[cut]["role"]}
    if cut == 0 or roles != {"assistant"}:
        message = f"the conversations have different prompts: message {cut + 1} differs"
        hint = "let both begin with the same messages, up to an assistant turn"
        raise Unfit("prompt", None, message, hint)
    return chosen[:cut], chosen[cut:], rejected[cut:]


_Scored = tuple[float, str | Chat]  # a completion behind its score


def _ranked(row: Row, form: Format) -> list[Pair] | list[Finding]:
    """The pairs of completions that are scored, ranked or compared; a note where there is none.

    Scores are kept: higher is better (ranks become their negatives).
    """
    prompt = _prompt(row.record, form.columns, form.chat)
    read = _of_comparison if form.shape == "compared" else _of_list
    completions = read(row.record, form, prompt)
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


def _of_list(record: Mapping[str, Any], form: Format, prompt: str | Chat) -> list[_Scored]:
    field = form.columns.get("completions", "completions")
    items = record.get(field)
    if not isinstance(items, (list, tuple)):
        missing(record, form.columns, "completions", form.columns)
    beside, scores = _cell(record, form.columns, "scores")
    if scores is not None and (not isinstance(scores, (list, tuple)) or len(scores) != len(items)):
        message = f"{len(items)} completions, but not as many scores"
        raise Unfit("score", beside, message, "give one score for each completion")
    completions = []
    for number, item in enumerate(items):
        place = f"{field}[{number}]"
        if scores is not None:
            score = read_number(scores[number], f"{beside}[{number}]")
            score = -score if beside.startswith("rank") else score
        else:
            score = _inner_score(item, place)
        completions.append((score, _completion(_inner_text(item, place), place, prompt)))
    return completions


def _inner_score(item: Any, place: str) -> float:
    if isinstance(item, Mapping):
        for name in SCORE_KEYS:
            if item.get(name) is not None:
                return read_number(item[name], f"{place}.{name}")
        if item.get(RANK_KEY) is not None:
            return -read_number(item[RANK_KEY], f"{place}.{RANK_KEY}")
    names = ", ".join((*SCORE_KEYS, RANK_KEY))
    hint = f"give each completion one of {names}, or set data.columns.scores"
    raise Unfit("score", place, "this completion has no score", hint)


def _inner_text(item: Any, place: str) -> Any:
    if not isinstance(item, Mapping) or "role" in item or "from" in item:
        return item
    for name in TEXT_KEYS:
        if name in item:
            return item[name]
    raise Unfit("column", place, "this completion has no text", f"call it {TEXT_KEYS[0]}")


def _completion(value: Any, field: str, prompt: str | Chat) -> str | Chat:
    """An answer in the form of its prompt: text, or messages."""
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


def _of_comparison(record: Mapping[str, Any], form: Format, prompt: str | Chat) -> list[_Scored]:
    columns = form.columns
    first, second = (
        _completion(record.get(columns[name]), columns[name], prompt)
        for name in ("first", "second")
    )
    lead = _lead(record.get(columns["preference"]), columns["preference"])
    return [(lead, first), (0.0, second)]


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
