"""Reads an answer and says in which manner it was given and what it was about."""

import re
from dataclasses import dataclass
from functools import cache

from likelier.demo.world import (
    CLOSINGS,
    FLIPPANT,
    OPENINGS,
    SILLY,
    STATEMENTS,
    Language,
    Topic,
    fill,
    topics,
)

# What gives a manner away. A polite Korean sentence ends in -니다 or -요; English has no such
# endings, so a courtesy must stand somewhere in the answer.
POLITE = {
    "ko": re.compile(r"(니다|요)[.!]$"),
    "en": re.compile(r"\b(Sure|Of course|Happy to help|Thank you|hope that helps|Feel free)\b"),
}
RUDE = {
    "ko": re.compile(r"~|몰라|귀찮|재미없|글쎄|에이|물어\?|대수야"),
    "en": re.compile(r"\b(Ugh|Meh|Who cares|Pfft|duh|Dunno|Lol|Yawn|Nah|boring|yourself|bother)\b"),
}
SENTENCE_END = re.compile(r"(?<=[.!?~])\s+")
WORD = re.compile(r"[가-힣]+|[^\W가-힣]+")  # "Python은" is two words: a name and a particle


@dataclass(frozen=True)
class Judgement:
    """Whether the manner is the preferred one, and whether the right topic is named."""

    preferred: bool
    named: bool


def judge(topic: Topic, answer: str) -> Judgement:
    """Judges one answer to a question about ``topic`` by what it says.

    Preferred is an answer that is informative and polite and nothing else: it states a whole fact
    (anyone's), every Korean sentence ends politely or the English has a courtesy, nothing flippant
    stands in it, and every word is one that the world knows, so that garbled text fails. An answer
    in both manners or in neither is not preferred.

    Named is an answer with the topic's name as a word of its own (a particle may follow) and no
    other topic's.
    """
    language = topic.language
    known = all(word in vocabulary(language) for word in WORD.findall(answer))
    polite = _is_polite(language, answer) and any(fact in answer for fact in facts(language))
    flippant = RUDE[language].search(answer) is not None
    return Judgement(
        preferred=known and polite and not flippant,
        named=names_in(answer) == {topic.name},
    )


def _is_polite(language: Language, answer: str) -> bool:
    if language == "en":
        return POLITE["en"].search(answer) is not None
    return all(POLITE["ko"].search(sentence) for sentence in SENTENCE_END.split(answer.strip()))


def names_in(text: str) -> set[str]:
    """The topics that ``text`` names, by their names in either language."""
    return {named_by()[word] for word in WORD.findall(text) if word in named_by()}


@cache
def named_by() -> dict[str, str]:
    """Each word that names a topic (the name, or the name with its particle): that topic's name."""
    forms = ("{X}", "{X은}", "{X이}", "{X을}", "{X이란}", "{X이지}", "{X이에요}", "{X}입니다")
    return {
        fill(form, topic): topic.name
        for topic in topics()
        for form in (forms if topic.language == "ko" else forms[:1])
    }


@cache
def facts(language: Language) -> tuple[str, ...]:
    """Every fact of ``language``."""
    return tuple(topic.fact for topic in topics() if topic.language == language)


@cache
def vocabulary(language: Language) -> frozenset[str]:
    """Every word of every answer that the world can give in ``language``."""
    forms = (*OPENINGS[language], *STATEMENTS[language], *CLOSINGS[language], *FLIPPANT[language])
    texts = (
        fill(form, topic, silly)
        for topic in topics()
        if topic.language == language
        for silly in SILLY[language]
        for form in forms
    )
    return frozenset(word for text in texts for word in WORD.findall(text))
