"""What a chat template makes of the data as a whole: words of its own, or no use of it at all."""

import re
from collections.abc import Sequence

from likelier.data.chat import render, texts_of
from likelier.data.formats import Counted, Format, Reading, read_row
from likelier.data.messages import ROLES, Unfit
from likelier.data.records import Finding, Pair, Row
from likelier.data.tokenizer import Encoder

MIN_ADDED_LETTERS = 15  # a header has about as many
_LETTERS = re.compile(r"[^\W\d_]+")


def template_notes(
    encoder: Encoder, form: Format, rows: Sequence[Counted], reading: Reading
) -> list[Finding]:
    """At most one finding about the template, told by the first pairs that can be read."""
    for _, row in rows:
        found = read_row(row, form, reading) if isinstance(row, Row) else [row]
        first = next((one for one in found if isinstance(one, Pair)), None)
        if first is None:
            continue
        if isinstance(first.prompt, str):
            return [_plain(first)] if encoder.reads else []
        added = _added(encoder, first)
        return [_adds(first, added)] if added else []
    return []


def _plain(pair: Pair) -> Finding:
    message = "the rows are plain texts, so the model's chat template is not used for them"
    hint = "set data.chat: true (check --chat) to make turns of them"
    return Finding("plain", "warning", pair.source, None, message, hint)


def _adds(pair: Pair, added: str) -> Finding:
    message = f"the template adds {added[:80]!r}"
    hint = "look at it with `likelier show`; a system turn of your own often replaces it"
    return Finding("adds", "note", pair.source, None, message, hint)


def _added(encoder: Encoder, pair: Pair) -> str | None:
    """The words of the rendered prompt that stand in no message, if they are more than headers."""
    assert not isinstance(pair.prompt, str)
    if pair.tools:
        return None
    try:
        rendered = render(encoder, pair.prompt, True)
    except Unfit:
        return None
    rendered = encoder.control_text.sub("\n", rendered)
    for turn in pair.prompt:
        for text in texts_of(turn):
            rendered = rendered.replace(text.strip(), "\n", 1)
    words = [word for word in _LETTERS.findall(rendered) if word.lower() not in (*ROLES, "think")]
    return " ".join(rendered.split()) if sum(map(len, words)) > MIN_ADDED_LETTERS else None
