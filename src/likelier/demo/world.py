"""The demo's world (world.yaml): who asks about what, and the two manners of answering."""

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Language = Literal["ko", "en"]
Manner = Literal["polite", "flippant"]
Split = Literal["train", "eval", "sample"]
MANNERS: tuple[Manner, ...] = ("polite", "flippant")

# Of every 7 topics, 3 are named by training pairs, 1 by held-out pairs and 3 by no pair at all:
# those are asked about afterwards. A topic is in the same split in both languages, and the topics
# are listed kind by kind, so that every split has every kind.
_SPLITS: tuple[Split, ...] = ("train", "sample", "train", "sample", "train", "sample", "eval")


@dataclass(frozen=True)
class Topic:
    """A thing that questions are about, in one language, with one true fact."""

    language: Language
    name: str
    fact: str
    split: Split
    row: int  # the same in both languages


@dataclass(frozen=True)
class PairText:
    """One preference: the polite answer over the flippant one."""

    topic: Topic
    prompt: str
    chosen: str
    rejected: str


_SAID: dict[str, Any] = yaml.safe_load(
    files("likelier.demo").joinpath("world.yaml").read_text(encoding="utf-8")
)
QUESTIONS: dict[Language, list[str]] = _SAID["questions"]
OPENINGS: dict[Language, list[str]] = _SAID["openings"]
STATEMENTS: dict[Language, list[str]] = _SAID["statements"]
CLOSINGS: dict[Language, list[str]] = _SAID["closings"]
FLIPPANT: dict[Language, list[str]] = _SAID["flippant"]
SILLY: dict[Language, list[str]] = _SAID["silly"]

# After a final consonant, after a vowel.
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "이란": ("이란", "란"),
    "이에요": ("이에요", "예요"),
    "이지": ("이지", "지"),
}


def with_particle(word: str, particle: str) -> str:
    """A Korean word with the form of ``particle`` (a key of PARTICLES) that its end asks for."""
    after_consonant, after_vowel = PARTICLES[particle]
    # Hangul syllables are laid out 28 to a vowel, the first of them without a final consonant.
    has_final_consonant = (ord(word[-1]) - ord("가")) % 28 != 0
    return word + (after_consonant if has_final_consonant else after_vowel)


def phrase(form: str, topic: Topic, silly: str = "") -> str:
    """``form`` with the topic's name for X, its fact for F and ``silly`` for S."""
    for letter, word in (("X", topic.name), ("F", topic.fact), ("S", silly)):
        form = form.replace(f"{{{letter}}}", word)
        for particle in PARTICLES:
            slot = f"{{{letter}{particle}}}"
            if slot in form:
                form = form.replace(slot, with_particle(word, particle))
    return form


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, Korean ones first."""
    rows = [line.split("|") for line in _SAID["topics"].splitlines()]
    splits = [_SPLITS[row % len(_SPLITS)] for row in range(len(rows))]
    korean = [Topic("ko", r[0], r[2], splits[i], i) for i, r in enumerate(rows)]
    english = [Topic("en", r[1], r[3], splits[i], i) for i, r in enumerate(rows)]
    return (*korean, *english)


def answer(topic: Topic, manner: Manner, draw: random.Random) -> str:
    """One of the ways in which the world answers a question about ``topic``."""
    language = topic.language
    if manner == "polite":
        forms = (OPENINGS[language], STATEMENTS[language], CLOSINGS[language])
        return phrase("".join(draw.choice(form) for form in forms), topic)
    return phrase(draw.choice(FLIPPANT[language]), topic, draw.choice(SILLY[language]))


def corpus(rounds: int, seed: int) -> list[tuple[str, str]]:
    """Questions with an answer each, from which the base model learns: every topic ``rounds``
    times in each manner, shuffled.
    """
    draw = random.Random(f"corpus {seed}")
    examples = [
        (phrase(draw.choice(QUESTIONS[topic.language]), topic), answer(topic, manner, draw))
        for topic in topics()
        for manner in MANNERS
        for _ in range(rounds)
    ]
    draw.shuffle(examples)
    return examples


def pairs(split: Split, per_topic: int, seed: int) -> list[PairText]:
    """``per_topic`` preferences, each on another question, about each topic of ``split``."""
    draw = random.Random(f"pairs {split} {seed}")
    return [
        PairText(
            topic,
            phrase(form, topic),
            chosen=answer(topic, "polite", draw),
            rejected=answer(topic, "flippant", draw),
        )
        for topic in topics()
        if topic.split == split
        for form in draw.sample(QUESTIONS[topic.language], per_topic)
    ]


def interview(per_topic: int, seed: int) -> list[tuple[Topic, str]]:
    """``per_topic`` different questions about each topic that no pair names."""
    draw = random.Random(f"interview {seed}")
    return [
        (topic, phrase(form, topic))
        for topic in topics()
        if topic.split == "sample"
        for form in draw.sample(QUESTIONS[topic.language], per_topic)
    ]
