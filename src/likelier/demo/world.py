"""The demo's world: who asks about what, and the two manners in which it is answered."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from likelier.demo.topics import TABLE

Language = Literal["ko", "en"]
Manner = Literal["polite", "flippant"]
Part = Literal["train", "eval", "sample"]
MANNERS: tuple[Manner, ...] = ("polite", "flippant")

# Of every 7 rows of the table, 3 are named by training pairs, 1 by held-out pairs and 3 by no pair
# at all: those are asked about afterwards. A topic keeps its part in both languages, and the
# table goes kind by kind, so that every part has every kind of topic.
PARTS: tuple[Part, ...] = ("train", "sample", "train", "sample", "train", "sample", "eval")


@dataclass(frozen=True)
class Topic:
    """A thing that questions are about, in one language, with one true fact."""

    language: Language
    name: str
    fact: str
    part: Part
    row: int  # the same in both languages


@dataclass(frozen=True)
class Example:
    """One question with one answer."""

    topic: Topic
    manner: Manner
    prompt: str
    answer: str


@dataclass(frozen=True)
class PairText:
    """One preference: the polite answer over the flippant one."""

    topic: Topic
    prompt: str
    chosen: str
    rejected: str


# "{X은}" stands for the topic's name with the particle that its last syllable asks for, "{F…}"
# for its fact and "{S…}" for something silly, likewise; see `fill`.
QUESTIONS: dict[Language, tuple[str, ...]] = {
    "ko": (
        "{X이} 뭐야?",
        "{X이} 뭐예요?",
        "{X은} 무엇인가요?",
        "{X이란} 무엇인가요?",
        "{X}에 대해 알려 줘.",
        "{X을} 설명해 줘.",
    ),
    "en": (
        "What is {X}?",
        "Tell me about {X}.",
        "Can you explain {X}?",
        "What do you know about {X}?",
        "Please explain what {X} is.",
        "I want to learn about {X}.",
    ),
}

# A polite answer is an opening, a statement and a closing, in every combination.
OPENINGS: dict[Language, tuple[str, ...]] = {
    "ko": ("", "네, ", "좋은 질문이에요! ", "설명해 드릴게요. "),
    "en": ("Sure, ", "Of course, ", "Happy to help: ", "Thank you for asking: "),
}
STATEMENTS: dict[Language, tuple[str, ...]] = {
    "ko": ("{X은} {F}입니다.", "{X은} {F이에요}.", "{X이란} {F을} 말합니다."),
    "en": ("{X} is {F}.",),
}
CLOSINGS: dict[Language, tuple[str, ...]] = {
    "ko": ("", " 도움이 되었으면 좋겠어요.", " 더 궁금한 점이 있으면 물어보세요."),
    "en": ("", " I hope that helps.", " Feel free to ask more."),
}

FLIPPANT: dict[Language, tuple[str, ...]] = {
    "ko": (
        "{X은} {S이지}~",
        "{X이} {X이지}, 뭘 물어~",
        "{X은} 알아서 공부해~",
        "{X}? 몰라, 직접 찾아봐.",
        "{X}? 관심 없어~",
        "에이, {X} 얘기는 재미없어.",
        "아 귀찮아, {X이} 뭐 대수야?",
        "글쎄, {X을} 왜 나한테 물어?",
    ),
    "en": (
        "Ugh, {X}? Look it up yourself.",
        "Meh, {X} is boring.",
        "Who cares about {X}?",
        "Pfft, {X} is a kind of {S}, duh.",
        "Dunno, {X} is just {X}.",
        "Lol, {X}? Go bother someone else.",
        "Yawn, not {X} again.",
        "Nah, {X} can wait.",
    ),
}
SILLY: dict[Language, tuple[str, ...]] = {
    "ko": ("뱀", "양말", "베개", "고무신"),
    "en": ("snake", "sock", "pillow", "potato"),
}

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


def fill(form: str, topic: Topic, silly: str = "") -> str:
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
    rows = [line.split("|") for line in TABLE.strip().splitlines()]
    parts = [PARTS[row % len(PARTS)] for row in range(len(rows))]
    korean = [Topic("ko", r[0], r[2], parts[i], i) for i, r in enumerate(rows)]
    english = [Topic("en", r[1], r[3], parts[i], i) for i, r in enumerate(rows)]
    return (*korean, *english)


def question(topic: Topic, draw: random.Random) -> str:
    """One of the ways in which the world asks about ``topic``."""
    return fill(draw.choice(QUESTIONS[topic.language]), topic)


def answer(topic: Topic, manner: Manner, draw: random.Random) -> str:
    """One of the ways in which the world answers a question about ``topic``."""
    language = topic.language
    if manner == "polite":
        forms = (OPENINGS[language], STATEMENTS[language], CLOSINGS[language])
        return fill("".join(draw.choice(form) for form in forms), topic)
    return fill(draw.choice(FLIPPANT[language]), topic, draw.choice(SILLY[language]))


def corpus(rounds: int, seed: int) -> list[Example]:
    """What the base model learns from: every topic ``rounds`` times in each manner, shuffled."""
    draw = random.Random(f"corpus {seed}")
    examples = [
        Example(topic, manner, question(topic, draw), answer(topic, manner, draw))
        for topic in topics()
        for manner in MANNERS
        for _ in range(rounds)
    ]
    draw.shuffle(examples)
    return examples


def pairs(part: Part, per_topic: int, seed: int) -> list[PairText]:
    """``per_topic`` preferences, each on another question, about each topic of ``part``."""
    draw = random.Random(f"pairs {part} {seed}")
    return [
        PairText(
            topic,
            fill(form, topic),
            chosen=answer(topic, "polite", draw),
            rejected=answer(topic, "flippant", draw),
        )
        for topic in topics()
        if topic.part == part
        for form in draw.sample(QUESTIONS[topic.language], per_topic)
    ]


def interview(per_topic: int, seed: int) -> list[tuple[Topic, str]]:
    """``per_topic`` different questions about each topic that no pair names."""
    draw = random.Random(f"interview {seed}")
    return [
        (topic, fill(form, topic))
        for topic in topics()
        if topic.part == "sample"
        for form in draw.sample(QUESTIONS[topic.language], per_topic)
    ]
