"""One row of any format as the preferences in it."""

from dataclasses import replace

from likelier.data.formats import Format
from likelier.data.messages import (
    Unfit,
    check_end,
    check_start,
    missing,
    read_messages,
    read_text,
)
from likelier.data.ranked import Ranking, ranked_pairs
from likelier.data.records import Finding, Labelled, Preference, Row
from likelier.data.shapes import number_of, origin_of, read_prompt, read_tools, to_pair
from likelier.data.transcript import as_list

_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read_row(row: Row, form: Format, ranking: Ranking) -> tuple[Preference, ...] | Finding:
    """The pairs (or the labelled answer) of a row, or why there is none.

    An error `Finding` is a row that cannot be read; a note is one that says nothing.
    """
    if form.shape == "pairs":
        pair = to_pair(row, form.columns, form.chat)
        return pair if isinstance(pair, Finding) else (pair,)
    try:
        if form.shape == "labelled":
            return (_labelled(row, form),)
        if form.shape == "scored":
            columns = {**form.columns, "completions": "completions"}
            form = replace(form, shape="ranked", columns=columns)
        return ranked_pairs(row, form, ranking)
    except Unfit as unfit:
        return unfit.at(row.source)


def _labelled(row: Row, form: Format) -> Labelled:
    columns = form.columns
    for name in ("completion", "label"):
        if columns[name] not in row.record:
            missing(row.record, columns, name, columns)
    field = columns["completion"]
    value = as_list(row.record[field])
    turns = isinstance(value, (list, tuple))
    prompt = read_prompt(row.record, columns, form.chat or turns)
    if turns:
        messages = read_messages(value, field)
        if messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        check_start(messages, field)
        check_end(messages, field)
        answer: str | tuple[dict[str, object], ...] = messages
    else:
        text = read_text(value, field)
        answer = text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)
    label = row.record[columns["label"]]
    known = _LABELS.get(str(label).strip().lower())
    if known is None:
        message = f"true or false expected, found {str(label)[:20]!r}"
        raise Unfit("label", columns["label"], message, "write true for good, false for bad")
    tools, origin = read_tools(row.record, columns), origin_of(row.record, columns)
    weight = number_of(row.record, columns, "weight")
    return Labelled(prompt, answer, known, row.source, tools, origin, weight)
