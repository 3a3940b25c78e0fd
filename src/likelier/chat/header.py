"""What a template writes of an assistant's turn behind the header that it generates behind."""

import re
from collections.abc import Sequence

from likelier.base.findings import Unfit
from likelier.chat import thinking
from likelier.chat.messages import Message, shared_start
from likelier.chat.render import as_text, render_chat
from likelier.chat.thinking import MARKERS, marked, parts_of
from likelier.chat.tokenizer import Encoder

Tools = Sequence[Message]
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_THOUGHTS = re.compile("|".join(map(re.escape, (*MARKERS, *MARKERS.values()))))
_LAST_LETTERS = 8  # of the prompt, by which its end is known inside the chat
_ALIKE = "set data.template so that the template writes both alike"


class NoPrefix(Unfit):
    """The rendered prompt is no beginning of the rendered chat, and cannot be made one."""

    def __init__(self, before: str, whole: str, hint: str):
        same = shared_start(before, whole)
        ours, theirs = (repr(text[max(0, same - 20) : same + 20]) for text in (before, whole))
        message = f"the prompt renders as …{ours}…, but inside the chat as …{theirs}…"
        super().__init__("prefix", None, message, hint)


def before_last(encoder: Encoder, chat: Sequence[Message], tools: Tools) -> str:
    """The generation prompt of the last turn."""
    return render_chat(encoder, chat[:-1], True, tools) if chat[:-1] else ""


def behind(
    encoder: Encoder, chat: list[Message], before: str, tools: Tools
) -> tuple[str, set[str]]:
    """What the template writes of the last turn behind ``before``, its generation prompt, with all
    that follows; and the note of the rule that was needed.

    By the generation rule it is what stands in the finished chat behind as much of the turn's
    header as both have. Two probes, the turn with another letter before its text, show where the
    header ends.
    """
    whole = render_chat(encoder, chat, False, tools)
    if encoder.boundary != "generation" and whole.startswith(before):
        return whole[len(before) :], set()
    if encoder.boundary == "history":
        raise NoPrefix(before, whole, "set data.boundary: auto, or data.template")
    probes = [[*chat[:-1], marked(chat[-1], letter)] for letter in "AB"]
    first, second = (render_chat(encoder, probe, False, tools) for probe in probes)
    lead = first[: shared_start(first, second)]
    start, asked = _end_of_prompt(encoder, chat, before, lead, tools)
    written = lead[start:]
    same = _same_header(asked, written)
    ours, theirs = asked[same:], written[same:]
    if asked.endswith(written[:same]) and _MARKER.search(written[:same]):
        ours = ""  # the header stands again at the end of the generation prompt
    fits = _fits(ours, theirs) and not thinking.stays_open(asked)
    if not fits or not whole.startswith(lead[: start + same]):
        raise NoPrefix(before, whole, _ALIKE)
    if thinking.holds_closed_block(asked) and parts_of(chat[-1]).thought:
        raise thinking.closed_before()
    return whole[start + same :], {"generation"}


def _end_of_prompt(
    encoder: Encoder, chat: list[Message], before: str, lead: str, tools: Tools
) -> tuple[int, str]:
    """Where the prompt ends in ``lead``, the finished chat up to its last turn's text, and what
    ``before`` has behind the prompt. It is looked for by its end, because some templates write
    its beginning otherwise there.
    """
    bare = render_chat(encoder, chat[:-1], False, tools)
    low, high = 0, len(bare)
    while low < high:  # the longest end of it that stands there
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bare[-middle:] in lead else (low, middle - 1)
    last = chat[-2].get("content")
    letters = as_text(encoder, last).strip()[-_LAST_LETTERS:] if isinstance(last, str) else ""
    known = bare.rfind(letters)
    if not low or not before.startswith(bare) or len(bare) - low > known >= 0:
        raise NoPrefix(before, lead, _ALIKE)
    return lead.rfind(bare[-low:]) + low, before[len(bare) :]


def _same_header(asked: str, written: str) -> int:
    """How much of a turn's header both have, cutting no marker such as ``<think>`` in two."""
    same = shared_start(asked, written)
    for text in (asked, written):
        for marker in _MARKER.finditer(text):
            if marker.start() < same < marker.end():
                same = marker.start()
    return same


def _fits(asked: str, written: str) -> bool:
    """Whether a turn that begins with ``written`` may stand behind a generation prompt that ends
    with ``asked``, where the header before both is the same.
    """
    if not asked.strip():
        return not written.strip() or _MARKER.match(written.lstrip()) is not None
    if not _THOUGHTS.sub("", asked).strip():
        return True
    begins = written.lstrip()
    return _MARKER.match(asked) is not None and (not begins or bool(_THOUGHTS.match(begins)))
