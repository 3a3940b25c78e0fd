"""How a file writes its preferences, recognised by looking at its first rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from likelier.data.records import Finding, Row
from likelier.data.transcript import is_transcript

Shape = Literal["pairs", "ranked", "scored", "compared", "labelled"]
LOOK = 200  # rows that are looked at

# Our name of a column, and what others call it: the first that is there is taken.
ALIASES: dict[str, tuple[str, ...]] = {
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
NAMES = tuple(ALIASES)  # what `data.columns` may name
NEEDED: dict[Shape, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "labelled": ("completion", "label"),
    "ranked": ("completions",),
    "compared": ("first", "second", "preference"),
    "scored": ("prompt", "completion", "score"),
}
OPTIONAL: dict[Shape, tuple[str, ...]] = {
    "pairs": (
        "prompt",
        "system",
        "tools",
        "origin",
        "chosen_score",
        "rejected_score",
        "margin",
        "weight",
    ),
    "labelled": ("prompt", "system", "tools", "origin", "weight"),
    "ranked": ("prompt", "system", "tools", "origin", "scores"),
    "compared": ("prompt", "system", "tools", "origin"),
    "scored": ("system", "tools", "origin"),
}
WORDS: dict[Shape, str] = {
    "pairs": "a chosen and a rejected answer a row",
    "ranked": "a list of completions with scores a row",
    "scored": "one completion with a score a row; neighbours with one prompt belong together",
    "compared": "two answers and which is better a row",
    "labelled": "one completion with a label a row (unpaired)",
}


@dataclass(frozen=True)
class Format:
    """A way to write preferences: its shape, and under which names the columns stand.

    ``columns`` maps our names to the file's. ``chat`` makes plain texts a user's and an
    assistant's turn, so that the model's template is used for them.
    """

    shape: Shape
    columns: Mapping[str, str]
    chat: bool = False
    style: str = ""

    @property
    def told(self) -> str:
        """What was recognised, in one line."""
        names = [
            name if name == theirs else f"{name} = {theirs}"
            for name, theirs in self.columns.items()
        ]
        style = f" ({self.style})" if self.style else ""
        return f"{WORDS[self.shape]}{style}; columns: {', '.join(names)}"


def recognise(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], chat: bool = False
) -> Format:
    """The format of rows, told by the names of their columns and, where these say too little,
    by what stands in them. ``columns`` wins over what is found.
    """
    present: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            if present.get(key) is None:
                present[key] = value
    found = {name: columns.get(name) or _alias(name, present) for name in NAMES}
    shape = _shape(found, present, columns)
    wanted = (*NEEDED[shape], *OPTIONAL[shape])
    used = {name: theirs for name in wanted if (theirs := found[name])}
    used |= {name: theirs for name, theirs in columns.items() if name in wanted}
    if _is_implied(shape, used, present, columns):
        used.pop("prompt", None)
    ordered = {name: used[name] for name in NAMES if name in used}
    return Format(shape, ordered, chat, _style(shape, ordered, present, chat))


def look(
    rows: Iterable[Row | Finding], columns: Mapping[str, str], chat: bool = False
) -> tuple[Format, Iterator[Row | Finding]]:
    """The format of rows, and all of them again."""
    iterator = iter(rows)
    first = list(islice(iterator, LOOK))
    records = [row.record for row in first if isinstance(row, Row)]
    return recognise(records, columns, chat), chain(first, iterator)


def _alias(name: str, present: Mapping[str, Any]) -> str | None:
    return next((alias for alias in ALIASES[name] if alias in present), None)


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
        return "with scores" if "scores" in columns else "scores inside the completions"
    if isinstance(answer, (list, tuple, dict)):
        return "chats" if "prompt" in columns else "whole chats; what both begin with is the prompt"
    if is_transcript(answer):
        return "Human/Assistant transcripts"
    if chat or "system" in columns or "tools" in columns:
        return "texts as chats"
    return "texts, used as they stand"
