"""What a glance sees of an answer: the trivial features that a shortcut may hide in."""

import re
from collections.abc import Sequence

import numpy as np

from likelier.data.records import Message
from likelier.data.script import SCRIPTS, script_of

_REFUSAL = re.compile(
    r"\b(I'm sorry|I am sorry|I cannot|I can't|I can’t|I'm unable|I won't)\b"
    r"|죄송|할 수 없습니다|도와드릴 수 없|申し訳|很抱歉|对不起",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(
    r"\bas an? (AI|artificial|language model)|인공지능으로서|AI로서", re.IGNORECASE
)
_PATTERNS = {
    "a bullet list": re.compile(r"^\s*[-*•] ", re.MULTILINE),
    "a numbered list": re.compile(r"^\s*\d+[.)] ", re.MULTILINE),
    "a heading": re.compile(r"^#{1,6} ", re.MULTILINE),
    "bold text": re.compile(r"\*\*[^*\n]+\*\*"),
    "a code block": re.compile(r"```"),
    "a table": re.compile(r"^\|.*\|\s*$", re.MULTILINE),
    "a link": re.compile(r"https?://"),
    "a refusal": _REFUSAL,
    "“as an AI”": _AS_AN_AI,
    "thinking": re.compile(r"</?think>"),
    "an emoji": re.compile("[\U0001f300-\U0001faff]"),
    "a digit": re.compile(r"\d"),
    "an exclamation mark": re.compile(r"!"),
    "a question mark": re.compile(r"[?？]"),
}
_ENDS = {
    "a first space": lambda text: text[:1].isspace(),
    "a last space": lambda text: text[-1:].isspace(),
    "a last full stop": lambda text: text.rstrip()[-1:] in (".", "!", "?", "。", "…"),
    "a first capital": lambda text: text.lstrip()[:1].isupper(),
    "a first lower-case letter": lambda text: text.lstrip()[:1].islower(),
}
_SCRIPTS = tuple(f"{script} letters" for script in SCRIPTS if script != "other")
FEATURES = ("length", "lines", *_PATTERNS, *_ENDS, *_SCRIPTS, "first character")
LENGTH, FIRST = FEATURES.index("length"), FEATURES.index("first character")


def said(side: str | Sequence[Message]) -> str:
    """What the assistant says in an answer, as one text."""
    if isinstance(side, str):
        return side
    turns = [turn.get("content") for turn in side if turn.get("role") == "assistant"]
    return "\n".join(turn for turn in turns if isinstance(turn, str))


def features(text: str) -> np.ndarray:
    """(len(FEATURES),) float32: 0 or 1, but log lengths and the code of the first character."""
    script = script_of(text)
    values = [
        np.log1p(len(text)),
        np.log1p(text.count("\n")),
        *(pattern.search(text) is not None for pattern in _PATTERNS.values()),
        *(ends(text) for ends in _ENDS.values()),
        *(name == f"{script} letters" for name in _SCRIPTS),
        ord(text[0]) if text else 0,
    ]
    return np.array(values, dtype=np.float32)
