"""A tokenizer made ready for scoring, and the chat template that it renders with."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenizers import Tokenizer

from likelier.base.child import survive
from likelier.base.errors import ConfigError, DataError
from likelier.base.limits import TOKENIZER, Spent, bounded
from likelier.chat.template import DEFAULT_DATE, check_template, freeze

BREAK = "\ufdd0"  # a noncharacter: no text may hold it, and the reader refuses it
Boundary = Literal["auto", "history", "generation"]
Turns = Literal["all", "last"]
MAX_IDS = 2**24  # the largest vocabularies hold half a million tokens
PROBES = ("a", "파이썬", "\n")


@dataclass(frozen=True, eq=False)
class Encoder:
    """All that turning pairs into tokens needs.

    Attributes:
        tokenizer: the tokenizer it was built from; renders chats.
        template: extra keywords for the chat template.
        leading: ids that the tokenizer puts before a text (such as BOS).
        stop: the id that ends a text answer.
        end_ids: every id at which generation stops, by text.
        control: ids that only a template or a stop may write.
        control_text: finds the texts of those ids.
        end_text: finds the texts of ``end_ids``.
        unknown: the id of unknown text, where the tokenizer has one.
        whole: tokenises a text from its beginning.
        tail: tokenises a text that continues another.
        clock: whether the chat template asks for the date of today.
        frozen: the chat template with a fixed date in place of today's, where it asks for it.
        reads: the names that the chat template reads.
        tool_frozen: as ``frozen``, of the template for rows with tools: the one that the tokenizer
            names ``tool_use``, else the same.
        tool_reads: the names that it reads.
        boundary: how an answer is put behind its prompt (`data.boundary`).
        turns: which turns of an answer are scored (`data.turns`).
        vocabulary: how many ids the model embeds, where the tokenizer may write more.
        positions: how many positions the model has learned, None where it needs none.
        spent: how long the template and the tokenizer took so far.
    """

    tokenizer: Any
    template: Mapping[str, Any]
    leading: tuple[int, ...]
    stop: int
    end_ids: Mapping[str, int]
    control: frozenset[int]
    control_text: re.Pattern[str]
    end_text: re.Pattern[str]
    unknown: int | None
    whole: Tokenizer
    tail: Tokenizer
    clock: bool
    frozen: str | None = None
    reads: frozenset[str] = frozenset()
    tool_frozen: str | None = None
    tool_reads: frozenset[str] = frozenset()
    boundary: Boundary = "auto"
    turns: Turns = "all"
    vocabulary: int | None = None
    positions: int | None = None
    spent: Spent = field(default_factory=Spent)

    @property
    def stop_text(self) -> str:
        """The text of ``stop``."""
        return next(text for text, end in self.end_ids.items() if end == self.stop)

    def at_most(self, max_length: int) -> int:
        """The smaller of ``max_length`` and the positions of the model."""
        return min(max_length, self.positions or max_length)


def build_encoder(
    tokenizer: Any,
    generation_config: Any = None,
    template: Mapping[str, Any] | None = None,
    today: str | None = None,
    vocabulary: int | None = None,
    positions: int | None = None,
    foreign: bool = False,
) -> Encoder:
    """Make a Hugging Face tokenizer ready.

    Args:
        tokenizer: with a fast backend (``tokenizer.json``).
        generation_config: its ``eos_token_id`` says where generation stops.
        template: extra keywords for the chat template, such as ``enable_thinking``.
        today: the date (``2024-07-26``) for a template that asks for today's; None is
            `DEFAULT_DATE`. Always a fixed one: else the same data give other tokens tomorrow.
        vocabulary: how many ids the model embeds.
        positions: how many positions the model has learned.
        foreign: tokenizer and template are those of a folder: they are tried in a child first.

    Raises:
        DataError: no stop token, no fast backend, a chat template that does not parse, or either
            takes too much time or memory.
        ConfigError: a keyword that the chat template does not read, or ``today`` for one that
            asks for no date.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"{type(tokenizer).__name__} has no fast backend",
            where="tokenizer",
            hint="save the model with a tokenizer.json",
        )
    highest = _highest(backend)
    description = json.loads(backend.to_str())
    whole, tail = _copy(description, continued=False), _copy(description, continued=True)
    stop, ends = _ends(tokenizer, generation_config)
    end_ids = {text: end for end in ends if (text := whole.id_to_token(end)) is not None}
    if stop not in end_ids.values():
        hint = "fix eos_token_id in generation_config.json"
        what = f"the stop token {stop} is not in the vocabulary"
        raise DataError(what, where="tokenizer", hint=hint)
    added = description["added_tokens"]
    special = {item["content"]: item["id"] for item in added if item["special"]}
    special |= end_ids
    unknown = tokenizer.unk_token_id
    unknown = None if unknown in end_ids.values() else unknown  # GPT-2 calls its end so, too
    if foreign:
        survive(_probe, tokenizer, whole, template or {})
    _same_as(tokenizer, whole)
    (source, reads), (tool_source, tool_reads) = check_template(tokenizer, template or {})
    clock = "strftime_now" in reads | tool_reads and "date_string" not in (template or {})
    if today is not None and not clock:
        what = "the chat template does not ask for today's date"
        raise ConfigError(what, where="data.today", hint="delete the key")
    frozen, tool_frozen = (
        freeze(one, today or DEFAULT_DATE) if one and clock else None
        for one in (source, tool_source)
    )
    return Encoder(
        tokenizer=tokenizer,
        template=dict(template or {}),
        leading=_leading(tokenizer, whole),
        stop=stop,
        end_ids=end_ids,
        control=frozenset(special.values()) - {unknown},
        control_text=_any_of(special),
        end_text=_any_of(end_ids),
        unknown=unknown,
        whole=whole,
        tail=tail,
        clock=clock,
        frozen=frozen,
        reads=reads,
        tool_frozen=tool_frozen,
        tool_reads=tool_reads,
        vocabulary=vocabulary if vocabulary is not None and highest >= vocabulary else None,
        positions=positions,
    )


def _probe(tokenizer: Any, whole: Tokenizer, template: Mapping[str, Any]) -> None:
    """All that building runs of a tokenizer and a template."""
    with bounded(TOKENIZER):
        _same_as(tokenizer, whole)
        _leading(tokenizer, whole)
    check_template(tokenizer, template)


def _highest(backend: Tokenizer) -> int:
    """The highest id of a vocabulary. Writing it out takes memory for every id below it.

    Raises DataError where it is higher than any vocabulary is large.
    """
    vocabulary = backend.get_vocab()
    token = max(vocabulary, key=vocabulary.__getitem__, default="")
    highest = vocabulary.get(token, 0)
    if highest >= MAX_IDS:
        what = f"{token[:40]!r} has the id {highest}; ids end below {MAX_IDS:,}"
        raise DataError(what, where="tokenizer.json", hint="give the tokens ids without gaps")
    return highest


def _any_of(texts: Mapping[str, int]) -> re.Pattern[str]:
    """Finds any of these texts, the longest first, where it is not guarded by a `BREAK`."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})(?!{BREAK})")


def _ends(tokenizer: Any, generation_config: Any) -> tuple[int, tuple[int, ...]]:
    """The stop id of text answers, and every id that ends an answer."""
    configured = getattr(generation_config, "eos_token_id", None)
    if configured is None:
        configured = []
    ends = list(configured) if isinstance(configured, list | tuple) else [configured]
    for end in ends:
        if type(end) is not int or end < 0 or end >= 2**31:
            what = f"eos_token_id holds {str(end)[:40]!r}, which is no id of a token"
            hint = "write the id of the token that ends an answer, or a list of them"
            raise DataError(what, where="generation_config.json", hint=hint)
    own = tokenizer.eos_token_id
    if own is None and not ends:
        raise DataError(
            "it has no stop token (eos), so no answer would learn to end",
            where="tokenizer",
            hint="set eos_token in tokenizer_config.json",
        )
    stop = own if own is not None and (own in ends or not ends) else ends[0]
    return stop, tuple(dict.fromkeys([*ends, own] if own is not None else ends))


def _copy(description: dict[str, Any], continued: bool) -> Tokenizer:
    normalizer, pre_tokenizer = description["normalizer"], description["pre_tokenizer"]
    if continued:
        normalizer, pre_tokenizer = _no_prefix(normalizer), _no_prefix(pre_tokenizer)
    deletion = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
    steps = [deletion, normalizer] if normalizer else [deletion]
    edited = {
        **description,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": pre_tokenizer,
        "truncation": None,
        "padding": None,
    }
    return Tokenizer.from_str(json.dumps(edited, ensure_ascii=False))


def _no_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    for inner in ("normalizers", "pretokenizers"):
        if inner in part:
            return {**part, inner: [step for step in map(_no_prefix, part[inner]) if step]}
    return part


def _same_as(tokenizer: Any, whole: Tokenizer) -> None:
    """Refuse a tokenizer that does in Python what its backend does not know of."""
    probe = "a 가나다\n  b, 한국어 c.\t\u1112\u1161 "
    ours = whole.encode(probe, add_special_tokens=False).ids
    theirs = _ids(tokenizer, probe, specials=False)
    if ours != theirs:
        raise DataError(
            f"{type(tokenizer).__name__} does not tokenise as its tokenizer.json does",
            where="tokenizer",
            hint="load it as a plain fast tokenizer (PreTrainedTokenizerFast)",
        )


def _ids(tokenizer: Any, text: str, specials: bool) -> list[int]:
    """What a tokenizer of transformers makes of a text; its settings may be anything."""
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=specials)["input_ids"]
    except Exception as error:
        raise DataError(
            f"it fails: {error}",
            where="tokenizer",
            hint="check tokenizer_config.json, or get the tokenizer again from who made it",
        ) from error
    return ids


def _leading(tokenizer: Any, whole: Tokenizer) -> tuple[int, ...]:
    """The specials that stand before a text; those behind it (an EOS) are left out."""
    for probe in PROBES:
        bare = whole.encode(probe, add_special_tokens=False).ids
        dressed = _ids(tokenizer, probe, specials=True)
        places = [
            at for at in range(len(dressed) - len(bare) + 1) if dressed[at : at + len(bare)] == bare
        ]
        if bare and len(places) == 1:
            return tuple(dressed[: places[0]])
    raise DataError(
        "cannot tell which special tokens stand before a text",
        where="tokenizer",
        hint="check the post_processor in tokenizer.json",
    )
