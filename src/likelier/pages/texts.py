"""The sentences of the pages by their keys, from one file a language, and numbers as text."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from likelier.base.errors import ConfigError

CATALOGUES = Path(__file__).parent / "texts"  # en.yaml, and one file for each further language
_WORD = "{word}"
_HOLE = re.compile(r"(\{(?:word)?\})")
_CURRENT = ContextVar("language", default="en")


def language() -> str:
    """The language that `text` answers in: English, where no `in_language` stands around."""
    return _CURRENT.get()


@contextmanager
def in_language(code: str) -> Iterator[None]:
    """Have `text` answer in a language, here and in no other thread or task.

    Raises ConfigError where there is no catalogue for it.
    """
    catalogue(code)
    before = _CURRENT.set(code)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def choose_language(asked: str | None = None, configured: str | None = None) -> str:
    """The language of a page: the option's, else the config's, else LIKELIER_LANGUAGE, else the
    system's (LC_ALL, LC_MESSAGES or LANG, the first that is set), else English.

    Raises ConfigError where one of the first three names a language without a catalogue.
    """
    settings = {
        "--lang": asked,
        "lang": configured,
        "LIKELIER_LANGUAGE": os.environ.get("LIKELIER_LANGUAGE"),
    }
    for where, code in settings.items():
        if code and code != "auto":
            catalogue(code, where)
            return code
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    system = next((value for name in names if (value := os.environ.get(name))), "")
    code = system[:2]
    return code if code in known_languages() and not system[2:3].isalpha() else "en"


@cache
def known_languages() -> tuple[str, ...]:
    """The codes of the languages that there is a catalogue for."""
    return tuple(sorted(path.stem for path in CATALOGUES.glob("*.yaml")))


def text(key: str, **values: Any) -> str:
    """The sentence of ``key`` with its placeholders filled; ``n`` picks singular or plural.

    Raises:
        KeyError: there is no such key, or no value for one of its placeholders.
    """
    sentences = catalogue(language())
    if key not in sentences and "n" in values:
        key = f"{key}.one" if values["n"] == 1 else f"{key}.other"
    return sentences[key].format(**values)


def text_or(key: str, otherwise: str) -> str:
    """The sentence of ``key``, or ``otherwise`` where there is no such key."""
    return catalogue(language()).get(key, otherwise)


def reworded(message: str) -> str:
    """What a finding says, which is kept in English, in the language of the page; as it stands
    where that has no such sentence.
    """
    words, sentences = _messages(language())
    for english, pattern, own in sentences:
        if found := pattern.fullmatch(message):
            filled = zip(_HOLE.findall(english), found.groups(), strict=True)
            return own.format(*(words[said] if hole == _WORD else said for hole, said in filled))
    return message


@cache
def _messages(code: str) -> tuple[dict[str, str], list[tuple[str, re.Pattern[str], str]]]:
    """The words of a language, and its sentences with the English ones, the longest first."""
    path = CATALOGUES / "messages" / f"{code}.yaml"
    if not path.is_file():
        return {}, []
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    traits, own = "check.traits.", _catalogue(code)
    words = {key[len(traits) :]: own[key] for key in own if key.startswith(traits)} | tree["words"]
    holes = {"{}": "(.*)", _WORD: f"({'|'.join(map(re.escape, words))})"}
    sentences = []
    for english in sorted(tree["sentences"], key=len, reverse=True):
        parts = (holes.get(part, re.escape(part)) for part in _HOLE.split(english))
        pattern = re.compile("".join(parts), re.DOTALL)
        sentences.append((english, pattern, tree["sentences"][english]))
    return words, sentences


def catalogue(code: str, where: str = "") -> dict[str, str]:
    """All sentences of a language by their dotted keys.

    Raises ConfigError where it has none; ``where`` says who asked for it.
    """
    if code not in known_languages():
        raise ConfigError(
            f"there are no texts in the language {code}",
            where=where or None,
            hint=f"use {' or '.join(known_languages())}",
        )
    return _catalogue(code)


@cache
def _catalogue(code: str) -> dict[str, str]:
    # In C where PyYAML was built with it: every run reads a catalogue before its first step.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = yaml.load((CATALOGUES / f"{code}.yaml").read_text(encoding="utf-8"), Loader=loader)
    return dict(_flat(tree))


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def percent(value: float) -> str:
    """0.975 as ``97.5%`` and 0.5 as ``50%``; never rounded up to 100% or down to 0%."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def points(value: float) -> str:
    """A difference of two shares in percentage points, signed: ``+46.5``."""
    return signed(round(100 * value, 1)).removesuffix(".0")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and a true minus sign: ``−3.1``."""
    written = f"{value:+.{digits}f}"
    return written.replace("-", "−") if float(written) else written[1:]


def short(value: float) -> str:
    """A number in four significant digits (three far from 1), without needless zeros."""
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e6:
        written = f"{value:,.0f}"
    elif 1e-3 <= abs(value) < 1e4:
        written = f"{value:,.4g}"
    else:
        written = f"{value:.3g}"
    return written.replace("-", "−")


def duration(seconds: float) -> str:
    """``8.4 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return text("numbers.seconds", seconds=seconds)
    whole = round(seconds)
    if whole < 3600:
        return text("numbers.minutes", minutes=whole // 60, seconds=whole % 60)
    minutes = round(seconds / 60)
    return text("numbers.hours", hours=minutes // 60, minutes=minutes % 60)
