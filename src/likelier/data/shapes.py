"""The format of rows, recognised by the names of their columns and by what stands in the first."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, Literal

from likelier.base.errors import ConfigError, DataError
from likelier.base.findings import Finding, Unfit
from likelier.chat.messages import as_list, is_transcript, read_number, suggestion
from likelier.chat.written import list_in
from likelier.data.records import Row, taken
from likelier.pages.texts import text, text_or

Shape = Literal["pairs", "ranked", "scored", "compared", "labelled"]
ROWS_LOOKED_AT = 200  # to recognise a format
MAX_OF_A_PROMPT = 10_000  # completions that stand in rows of their own

# Our name of a column, and what others call it: the first that is there is taken, and a second
# that holds something else makes the row an error.
COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "context",
               "conversations", "conversation", "messages", "history"),
    "input": ("input",),
    "history": ("history",),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred_output"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "non_preferred_output",
                 "rejected_messages"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
    "origin": ("source", "dataset", "origin"),
    "completions": ("completions", "responses", "answers", "generations", "candidates"),
    "scores": ("scores", "ratings", "rating", "ranks", "rankings", "rank"),
    "completion": ("completion", "response", "answer"),
    "label": ("label", "kto_tag"),
    "score": ("score", "rating", "reward", "overall_score", "helpfulness"),
    "first": ("response1", "response_0", "response_1", "response_a", "conversation_a",
              "human_ref_A"),
    "second": ("response2", "response_1", "response_2", "response_b", "conversation_b",
               "human_ref_B"),
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
_BESIDE = ("prompt", "input", "history", "system", "tools", "origin")
OPTIONAL: dict[Shape, tuple[str, ...]] = {
    "pairs": (*_BESIDE, "chosen_score", "rejected_score", "margin", "weight"),
    "labelled": (*_BESIDE, "weight"),
    "ranked": (*_BESIDE, "scores"),
    "compared": _BESIDE,
    "scored": _BESIDE[1:],
}
WHOLE_CHATS = ("messages", "conversations", "conversation")  # chosen, where only rejected is named
CALLED_OTHERWISE = ("prompt", "chosen", "rejected", "completion", "completions", "label", "system")
RANKS = ("rank", "ranks", "rankings")  # columns in which 1 is the best
SIGNED = "overall_preference"  # of the numbers that say which answer is better


@dataclass(frozen=True)
class Format:
    """How rows write preferences: what the user says of it, and what `recognised` finds.

    ``columns`` maps our names of columns to the file's; those in ``ignored`` are not looked for.
    ``chat`` makes plain texts a user's and an assistant's turn, so that the model's template is
    used for them. Of a list of completions ``pairs`` says which are compared, and ``min_gap`` by
    how much their scores must differ. ``shape``, ``style`` (what kind of texts they are, in words)
    and ``rivals`` are always recognised: columns that could stand for one of ours as well, so that
    a row that holds something in one of them is an error.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    chat: bool = False
    pairs: Literal["best-worst", "best-rest", "all"] = "best-worst"
    min_gap: float = 0.0
    ignored: tuple[str, ...] = ()
    shape: Shape = "pairs"
    style: str = ""
    rivals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def all_rivals(self) -> frozenset[str]:
        """Every rival, so that a row without one is known at once."""
        return frozenset(chain.from_iterable(self.rivals.values()))

    def describe(self) -> str:
        """What was recognised, in one line."""
        named = {name: theirs for name, theirs in self.columns.items() if name != "input"}
        if "prompt" in named and "input" in self.columns:
            named["prompt"] += f" + {self.columns['input']}"
        names = (name if name == theirs else f"{name} = {theirs}" for name, theirs in named.items())
        shape, columns = text(f"check.format.{self.shape}"), ", ".join(names)
        if not self.style:
            return text("check.format.columns", shape=shape, columns=columns)
        style = text_or(f"check.format.styles.{self.style}", self.style)
        return text("check.format.columns_style", shape=shape, style=style, columns=columns)


def format_with(columns: Mapping[str, str | None], chat: bool = False) -> Format:
    """The format that a user describes; a column of None is one that is not to be looked for."""
    named = {name: theirs for name, theirs in columns.items() if theirs is not None}
    return Format(named, chat, ignored=tuple(sorted(columns.keys() - named.keys())))


def recognised(
    rows: Iterable[Row | Finding], asked: Format
) -> tuple[Format, Iterator[Row | Finding]]:
    """The format of rows, and all of the rows; scored completions of one prompt become one row.

    Raises ConfigError for a key of ``columns`` that is none of ours, and for a choice of pairs
    that no list of completions would use; DataError where numbers say which answer is better in
    more than one possible reading.
    """
    for name in (*asked.columns, *asked.ignored):
        if name not in COLUMN_NAMES:
            hint = suggestion(name, COLUMN_NAMES, f"the keys are {', '.join(COLUMN_NAMES)}")
            raise ConfigError(f'unknown key "{name}"', where="data.columns", hint=hint)
    iterator = iter(rows)
    first = taken(iterator, ROWS_LOOKED_AT)
    looked_at = [row for row in first if isinstance(row, Row)]
    form = recognise([row.record for row in looked_at], asked)
    default = (form.pairs, form.min_gap) == (Format.pairs, Format.min_gap)
    if form.shape not in ("ranked", "scored") and not default:
        what = f"has no effect: the data have {form.describe()}"
        raise ConfigError(what, where="data.ranked", hint="remove data.ranked")
    if form.shape == "compared" and form.columns["preference"] == SIGNED:
        _check_signs(looked_at)
    rows = chain(first, iterator)
    return form, _grouped(rows, form) if form.shape == "scored" else rows


def recognise(records: Sequence[Mapping[str, Any]], asked: Format) -> Format:
    """The format of rows, known by the names of their columns and, where these say too little,
    by what stands in them. The columns that are asked for win over what is found.
    """
    present: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            if is_empty(present.get(key)):
                present[key] = value
    found = _found(present, asked)
    shape = _shape(found, present, asked.columns)
    wanted = (*NEEDED[shape], *OPTIONAL[shape])
    used = {name: theirs for name in wanted if (theirs := found.get(name))}
    whole = shape == "pairs" and _is_implied(used, present, asked.columns)
    if whole:
        for name in {"prompt", "input", "history"} - asked.columns.keys():
            used.pop(name, None)
    ordered = {name: used[name] for name in COLUMN_NAMES if name in used}
    rivals = _rivals(ordered, wanted, asked, whole)
    style = _style(shape, ordered, present, asked.chat)
    return replace(asked, shape=shape, columns=ordered, style=style, rivals=rivals)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, spaces, or a list or object without an entry."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, (list, dict)) and not value)


def _found(present: Mapping[str, Any], asked: Format) -> dict[str, str]:
    """Our columns and the file's: those asked for, and the first alias of each other."""
    found = {
        name: alias
        for name, aliases in COLUMN_ALIASES.items()
        if (alias := next((alias for alias in aliases if alias in present), None))
    }
    both = zip(COLUMN_ALIASES["first"], COLUMN_ALIASES["second"], strict=True)
    two = next(((one, other) for one, other in both if one in present and other in present), None)
    for number, name in enumerate(("first", "second")):
        found.pop(name, None)
        if two is not None:
            found[name] = two[number]
    whole = next((name for name in WHOLE_CHATS if _ends_with_answer(present.get(name))), None)
    for name, beside in (("chosen", "rejected"), ("completion", "label")):
        if whole is not None and name not in found and beside in found:  # as ms-swift writes
            found[name] = whole
            if found.get("prompt") == whole:
                del found["prompt"]
    found |= asked.columns
    if found.get("prompt") != "instruction":
        found.pop("input", None)
    if found.get("prompt") == "history" or not _is_earlier(present.get("history")):
        found.pop("history", None)
    found |= asked.columns
    return {name: theirs for name, theirs in found.items() if name not in asked.ignored}


def _ends_with_answer(value: Any) -> bool:
    turns = as_list(list_in(value))
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _is_earlier(value: Any) -> bool:
    """Whether a history is what was said before the prompt: turns in twos, or up to an answer."""
    turns = list_in(value)
    twos = isinstance(turns, (list, tuple)) and all(isinstance(two, (list, tuple)) for two in turns)
    return is_empty(turns) or twos or _ends_with_answer(turns)


def _shape(
    found: Mapping[str, str], present: Mapping[str, Any], columns: Mapping[str, str]
) -> Shape:
    """The shape whose columns are named in ``columns``, else the first whose columns are there."""
    asked = [shape for shape, names in NEEDED.items() if set(names) & columns.keys() - {"prompt"}]
    for shape in asked or NEEDED:
        if all(name in found for name in NEEDED[shape]) and _fits(shape, found, present):
            return shape
    return asked[0] if asked else "pairs"


def _fits(shape: Shape, found: Mapping[str, str], present: Mapping[str, Any]) -> bool:
    if shape == "ranked":
        return isinstance(list_in(present.get(found["completions"])), (list, tuple))
    if shape in ("scored", "labelled"):
        number = present.get(found["score" if shape == "scored" else "label"])
        return not isinstance(number, (list, tuple, dict))
    return True


def _is_implied(
    used: Mapping[str, str], present: Mapping[str, Any], columns: Mapping[str, str]
) -> bool:
    """Whether whole conversations stand in the answers, and the prompt found is a guess."""
    if "prompt" in columns or used.get("prompt") == "prompt":
        return False
    chosen = as_list(list_in(present.get(used.get("chosen", ""))))
    if is_transcript(chosen):
        return True
    first = chosen[0] if isinstance(chosen, list) and len(chosen) > 1 else None
    return isinstance(first, dict) and first.get("role") in ("user", "system", "developer")


def _rivals(
    used: Mapping[str, str], wanted: Iterable[str], asked: Format, whole: bool
) -> dict[str, tuple[str, ...]]:
    """The other columns that could be one of ours, also where only later rows have them.

    Not of columns that the user names, nor of the origin, which is only shown.
    """
    taken = {*used.values(), *(name for name in asked.ignored if name in ("input", "history"))}
    rivals: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        known = name in asked.columns or name in asked.ignored or name == "origin"
        if known or (name == "prompt" and "prompt" not in used) or name == "input":
            continue  # a row without a prompt says so; an input is a rival of the prompt
        if name == "history" and not whole:
            continue  # likewise
        others = tuple(alias for alias in COLUMN_ALIASES[name] if alias not in taken)
        if others:
            rivals[name] = others
    return rivals


def check_rivals(record: Mapping[str, Any], form: Format, name: str) -> None:
    """Raise `Unfit` where a second column of a row could be one of ours and says something else."""
    ours = form.columns.get(name)
    for other in form.rivals.get(name, ()):
        value = record.get(other)
        if is_empty(value):
            continue
        if ours is None:
            message = f'a column "{other}", which the first {ROWS_LOOKED_AT} rows have not'
            hint = f"set data.columns.{name}: {other} to use it, or to null to leave it out"
            raise Unfit("column", other, message, hint)
        alike = name not in ("first", "second", "preference")
        if alike and value == record.get(ours) and (ours in RANKS) == (other in RANKS):
            continue
        message = f'two columns could be the {name}: "{ours}" and "{other}"'
        hint = f"set data.columns.{name}: {ours}, or data.columns.{name}: {other}"
        if name == "prompt":
            hint += f"; with data.columns.input: {other} as well, both are joined"
        if name in ("first", "second"):
            message = f'more than two answers to compare: "{other}" is one too many'
            hint = "set data.columns.first: {first} and data.columns.second: {second}"
            hint = hint.format_map(form.columns)
        raise Unfit("column", other, message, hint)


def for_row(record: Mapping[str, Any], form: Format) -> Format:
    """The format of a row, which may call a column otherwise than the first rows do: sources that
    are mixed have names of their own.
    """
    other = {
        name: there[0]
        for name in CALLED_OTHERWISE
        if (ours := form.columns.get(name)) is not None and ours not in record
        and len(there := [alias for alias in form.rivals.get(name, ()) if alias in record]) == 1
    }  # fmt: skip
    return replace(form, columns={**form.columns, **other}) if other else form


def counts_down(column: str) -> bool:
    """Whether 1 is the best in a column. Raises `Unfit` where its name does not say that."""
    if column in RANKS:
        return True
    if "rank" in column.lower():
        hint = "name it ranks where 1 is the best, or scores where more is better"
        raise Unfit("score", column, "this name may mean ranks or scores", hint)
    return False


def _check_signs(rows: Sequence[Row]) -> None:
    """Refuse numbers of which nobody can tell whether they are signs or count the answers."""
    numbers = []
    for row in rows:
        try:
            numbers.append(read_number(row.record.get(SIGNED), SIGNED))
        except Unfit:
            continue  # an error of its row
    if numbers and set(numbers) <= {0, 1, 2}:
        seen = " and ".join(f"{number:g}" for number in sorted(set(numbers)))
        message = f"{seen} may be signs, or count the answers"
        raise DataError(message, where=f"{rows[0].source} {SIGNED}", hint=text("check.readings"))


def _style(shape: Shape, columns: Mapping[str, str], present: Mapping[str, Any], chat: bool) -> str:
    """What kind of texts they are, in a word or two."""
    answer = present.get(columns.get(NEEDED[shape][-1 if shape == "scored" else 0], ""))
    if shape == "ranked":
        inside = "scores" not in columns
        return "scores inside the completions" if inside else "with scores"
    if isinstance(answer, (list, tuple, dict)):
        whole = "whole chats, of which the common beginning is the prompt"
        return "chats" if "prompt" in columns else whole
    if is_transcript(answer):
        return "Human/Assistant transcripts"
    as_chats = chat or bool({"system", "tools", "history"} & columns.keys())
    return "texts as chats" if as_chats else "texts, used without a chat template"


def _grouped(rows: Iterable[Row | Finding], form: Format) -> Iterator[Row | Finding]:
    """Neighbours with one prompt, each with one completion, as one row with a list of them."""
    completion, score = (form.columns[name] for name in ("completion", "score"))
    asks = [form.columns[name] for name in _BESIDE[:-1] if name in form.columns]

    def prompt(row: Row | Finding) -> Any:
        return [row.record.get(column) for column in asks] if isinstance(row, Row) else row

    for _, group in groupby((_undisputed(row, form) for row in rows), prompt):
        members = iter(group)
        first, *others = taken(members, MAX_OF_A_PROMPT)
        if isinstance(first, Finding):
            yield first
            continue
        if more := sum(1 for _ in members):
            message = f"{1 + len(others) + more:,} answers to one prompt: too many to compare"
            yield Finding("huge", "error", first.source, None, message, "keep some of them")
            continue
        records = [row.record for row in (first, *others) if isinstance(row, Row)]
        listed = [{"response": one.get(completion), "score": one.get(score)} for one in records]
        yield Row(first.source, {**first.record, "completions": listed}, len(listed))


def without_unused(row: Row, form: Format) -> Row:
    """The row without what stands in columns that are never read: it may be anything."""
    read = {*form.columns.values(), *form.all_rivals}
    read |= {"prompt", "chosen", "rejected", "completions"}  # also where no column is named so
    read |= {*map(model_column, COLUMN_ALIASES["first"])}
    read |= {*map(model_column, COLUMN_ALIASES["second"])}
    cells = {key: cell if key in read else None for key, cell in row.record.items()}
    return replace(row, record=cells)


def model_column(column: str) -> str:
    """The column that names the model behind an answer, as ``model_a`` beside ``response_a``."""
    return f"model{column.removeprefix('response').removeprefix('conversation')}"


def _undisputed(row: Row | Finding, form: Format) -> Row | Finding:
    """A row of one completion, or why it must not join its neighbours."""
    if isinstance(row, Finding):
        return row
    try:
        for name in form.rivals:
            check_rivals(row.record, form, name)
        if counts_down(form.columns["score"]):
            hint = "write scores of which more is better"
            raise Unfit("score", form.columns["score"], "ranks of single completions", hint)
    except Unfit as unfit:
        return unfit.at(row.source)
    for column in form.columns.values():
        if isinstance(cell := row.record.get(column), Finding):
            return replace(cell, source=row.source, field=column)
    return row
