"""What the demo shows: answers sampled before and after, each judged, and shares with intervals."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from likelier.demo.world import (
    CLOSINGS,
    FLIPPANT,
    OPENINGS,
    SILLY,
    STATEMENTS,
    Language,
    Topic,
    interview,
    phrase,
    topics,
)
from likelier.evaluation.intervals import wilson
from likelier.generation.sample import Sample, sample
from likelier.model.load import load

QUESTIONS_EACH = 3  # different ones, about each topic that no pair names, in each language
MAX_NEW_TOKENS = 64  # the longest answer of the world is about half of that
_RESAMPLES = 2000

_Row = dict[str, Any]


def interrogate(before: Path, after: Path, seed: int) -> tuple[list[Topic], list[_Row]]:
    """Ask two models the same questions at temperature 1, and judge what they say.

    Returns the topics and the rows of ``samples.jsonl``, side by side.
    """
    asked = interview(QUESTIONS_EACH, seed)
    prompts = [prompt for _, prompt in asked]
    answers = {"before": _ask(before, prompts, seed), "after": _ask(after, prompts, seed)}
    rows = []
    for index, (topic, prompt) in enumerate(asked):
        row: _Row = {"prompt": prompt, "topic": topic.name}
        for when, samples in answers.items():
            row[when] = samples[index].text
            found = judge(topic, samples[index].text) | {"stopped": samples[index].stopped}
            row |= {f"{what}_{when}": value for what, value in found.items()}
        rows.append(row)
    return [topic for topic, _ in asked], rows


def _ask(path: Path, prompts: Sequence[str], seed: int) -> list[Sample]:
    policy = load(path)
    return sample(
        policy.model,
        policy.tokenizer,
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        temperature=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )


def outcome(
    asked: Sequence[Topic],
    rows: Sequence[_Row],
    evaluation: Mapping[str, float],
    seed: int,
) -> dict[str, dict[str, float]]:
    """The shares of ``outcome.json``, each ``{"value", "low", "high", "n"}``.

    ``evaluation`` is the last row of a run's log that holds ``eval_*``. Its interval takes
    prompts as trials; the intervals of the others are made by `share_of`.
    """
    accuracy = "eval_rewards/accuracies"
    shares = {
        "heldout_accuracy": {
            "value": evaluation[accuracy],
            "low": evaluation[f"{accuracy}_low"],
            "high": evaluation[f"{accuracy}_high"],
            "n": evaluation["eval_pairs"],
        }
    }
    clusters = [topic.row for topic in asked]
    for what in ("preferred", "named", "stopped"):
        for name in (f"{what}_before", f"{what}_after"):
            shares[name] = share_of([row[name] for row in rows], clusters, seed)
    return shares


def share_of(hits: Sequence[bool], clusters: Sequence[int], seed: int) -> dict[str, float]:
    """The share of hits with its 95 % interval: a bootstrap over topics.

    Answers about one topic depend on each other, so whole topics (``clusters``, both languages in
    one) are drawn again, with replacement, and the middle 95 % of the shares is the interval. It
    is widened to Wilson's for that many independent answers where it is narrower: where every
    answer is a hit, the bootstrap shows no spread at all.
    """
    by_cluster: dict[int, list[bool]] = {}
    for cluster, hit in zip(clusters, hits, strict=True):
        by_cluster.setdefault(cluster, []).append(hit)
    counts = [(sum(found), len(found)) for found in by_cluster.values()]
    draw = random.Random(f"intervals {seed}")
    shares = []
    for _ in range(_RESAMPLES):
        drawn = draw.choices(counts, k=len(counts))
        shares.append(sum(hit for hit, _ in drawn) / sum(size for _, size in drawn))
    shares.sort()
    cut = round(0.025 * _RESAMPLES)
    value = sum(hits) / len(hits)
    low, high = wilson(value, len(hits))
    return {
        "value": value,
        "low": min(low, shares[cut]),
        "high": max(high, shares[-cut - 1]),
        "n": len(hits),
    }


# ---- the judge ------------------------------------------------------------------------------

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


def judge(topic: Topic, answer: str) -> dict[str, bool]:
    """Whether an answer to a question about ``topic`` is ``preferred``, and the topic ``named``.

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
    return {
        "preferred": known and polite and not flippant,
        "named": names_in(answer) == {topic.name},
    }


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
        phrase(form, topic): topic.name
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
        phrase(form, topic, silly)
        for topic in topics()
        if topic.language == language
        for silly in SILLY[language]
        for form in forms
    )
    return frozenset(word for text in texts for word in WORD.findall(text))
