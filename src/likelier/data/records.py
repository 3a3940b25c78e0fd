"""The records that travel: a pair as read, and the same pair as tokens."""

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]  # {"role": ..., "content": ...}; the template may read further keys


@dataclass(frozen=True)
class Row:
    """One record as it was read; ``source`` is ``file:line``, or ``train[3]`` in memory."""

    source: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """One preference as it was read.

    Text pairs hold three strings. Chat pairs hold three tuples of messages: the prompt's, and
    the messages that each answer adds to it. ``source`` is ``file:line`` (``train[3]`` for the
    fourth of rows given in memory; Parquet rows count from 1), with ``#2`` behind it for the
    second of several pairs made from one row.

    ``tools`` are what the template may list for the model to call, ``origin`` is the data set that
    the row says it comes from. Where the row has them: ``scores`` of chosen and rejected,
    ``margin``, by how much chosen is better (else the difference of the scores), and ``weight``,
    how much the pair counts.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    source: str
    tools: tuple[Message, ...] = ()
    origin: str | None = None
    scores: tuple[float, float] | None = None
    margin: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Labelled:
    """One answer with a thumb up (``label`` true) or down; otherwise as `Pair`."""

    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]
    label: bool
    source: str
    tools: tuple[Message, ...] = ()
    origin: str | None = None
    weight: float | None = None


Preference = Pair | Labelled  # what a row holds


@dataclass(frozen=True)
class Answer:
    """The tokens that follow a prompt: ``tokens`` ids and, for each, whether it is scored.

    Unscored tokens are context (later user turns, role headers). The stop token, where the
    answer has one, is the last of ``tokens``.
    """

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]


@dataclass(frozen=True)
class TokenPair:
    """A pair as the model sees it: one prompt, two answers, token ids.

    ``margin`` says how much better the chosen answer is and ``weight`` how much the pair counts,
    where the data does. ``label`` is that of a row with one answer and a thumb: the answer is then
    ``chosen``, and ``rejected`` a mismatched answer, or the same one where none is needed.
    """

    prompt: tuple[int, ...]
    chosen: Answer
    rejected: Answer
    source: str
    margin: float | None = None
    weight: float | None = None
    label: bool | None = None


@dataclass(frozen=True)
class Finding:
    """Something noticed in the data, located.

    ``code`` is a word (``empty``, ``identical``, ``json``, …), ``field`` the column it stands in
    or None for the whole row, ``message`` what is wrong and ``hint`` what to do, one line each.
    """

    code: str
    severity: Literal["error", "warning", "note"]
    source: str
    field: str | None
    message: str
    hint: str

    @property
    def where(self) -> str:
        """``file:line field``."""
        return f"{self.source} {self.field}" if self.field else self.source


def text_of(side: str | tuple[Message, ...]) -> str:
    """Every text of a side, one turn a line."""
    if isinstance(side, str):
        return side
    turns = (turn.get("content", "") for turn in side)
    return "\n".join(turn for turn in turns if isinstance(turn, str))
