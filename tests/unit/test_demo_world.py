"""The demo's world: right Korean and English, splits that do not mix, and a judge that reads."""

import re
import unicodedata
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.demo.evidence import judge, names_in
from likelier.demo.world import (
    CLOSINGS,
    FLIPPANT,
    OPENINGS,
    PARTICLES,
    QUESTIONS,
    SILLY,
    STATEMENTS,
    Topic,
    corpus,
    interview,
    pairs,
    phrase,
    topics,
    with_particle,
)

TOPICS = topics()


def topic(name: str) -> Topic:
    return next(t for t in TOPICS if t.name == name)


def polite_answers(about: Topic) -> list[str]:
    parts = (OPENINGS[about.language], STATEMENTS[about.language], CLOSINGS[about.language])
    return [phrase("".join(forms), about) for forms in product(*parts)]


def flippant_answers(about: Topic) -> list[str]:
    forms = product(FLIPPANT[about.language], SILLY[about.language])
    return [phrase(form, about, silly) for form, silly in forms]


def test_every_row_is_told_in_both_languages_and_once() -> None:
    assert len(TOPICS) == 2 * len({t.row for t in TOPICS}) >= 200
    for language in ("ko", "en"):
        told = [t for t in TOPICS if t.language == language]
        assert len({t.name for t in told}) == len({t.fact for t in told}) == len(told)
    assert topic("파이썬").row == topic("Python").row
    assert topic("파이썬").split == topic("Python").split == "train"


def test_no_fact_and_no_form_names_a_topic() -> None:
    for about in TOPICS:
        assert names_in(about.fact) == set(), about
    for said in (QUESTIONS, FLIPPANT, OPENINGS, STATEMENTS, CLOSINGS, SILLY):
        for form in (*said["ko"], *said["en"]):
            assert names_in(re.sub(r"{.*?}", "", form)) == set(), form


def test_english_facts_have_their_article() -> None:
    for about in TOPICS:
        if about.language == "en":
            article, first = about.fact.split()[:2]
            wanted = {"the", "an" if first[0].lower() in "aeiou" else "a"}
            assert article in wanted, about


@pytest.mark.parametrize(
    ("word", "particle", "whole"),
    [
        ("파이썬", "은", "파이썬은"),
        ("자바", "은", "자바는"),
        ("서울", "이", "서울이"),
        ("커피", "이", "커피가"),
        ("점자", "을", "점자를"),
        ("비빔밥", "을", "비빔밥을"),
        ("도쿄", "이란", "도쿄란"),
        ("한글", "이란", "한글이란"),
        ("프로그래밍 언어", "이에요", "프로그래밍 언어예요"),
        ("일본의 수도", "이에요", "일본의 수도예요"),
        ("가벼운 금속", "이에요", "가벼운 금속이에요"),
        ("뱀", "이지", "뱀이지"),
        ("베개", "이지", "베개지"),
    ],
)
def test_particles_follow_the_last_syllable(word: str, particle: str, whole: str) -> None:
    assert with_particle(word, particle) == whole


def test_every_particle_agrees_with_unicode() -> None:
    """A syllable that decomposes into three letters ends in a consonant."""
    for about in TOPICS:
        if about.language == "ko":
            for word, (particle, (closed, opened)) in product(
                (about.name, about.fact), PARTICLES.items()
            ):
                ends_closed = len(unicodedata.normalize("NFD", word[-1])) == 3
                expected = word + (closed if ends_closed else opened)
                assert with_particle(word, particle) == expected


def test_no_slot_is_left_open_and_text_is_tidy() -> None:
    for about in TOPICS:
        asked = [phrase(form, about) for form in QUESTIONS[about.language]]
        for text in (*asked, *polite_answers(about), *flippant_answers(about)):
            assert not re.search(r"[{}]|  |\s$|^\s", text), text
            assert about.name in text
            assert re.search(r"[.?~]$", text), text
            assert unicodedata.is_normalized("NFC", text)


def test_the_corpus_is_half_polite_half_flippant_and_a_function_of_its_seed() -> None:
    examples = corpus(rounds=3, seed=1)
    about = {phrase(form, t): t for t in TOPICS for form in QUESTIONS[t.language]}
    found = Counter(
        (about[prompt], judge(about[prompt], answer)["preferred"]) for prompt, answer in examples
    )
    assert found.keys() == set(product(TOPICS, (True, False)))
    assert set(found.values()) == {3}
    assert len(examples) == 2 * 672
    assert examples == corpus(rounds=3, seed=1) != corpus(rounds=3, seed=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_pair_names_what_is_asked_about_afterwards(seed: int) -> None:
    train, held_out = pairs("train", 6, seed), pairs("eval", 6, seed)
    asked = interview(3, seed)
    named = [
        {name for p in part for text in (p.prompt, p.chosen, p.rejected)
         for name in names_in(text)}
        for part in (train, held_out)
    ]  # fmt: skip
    sampled = {about.name for about, _ in asked}
    assert all(named) and sampled
    assert named[0].isdisjoint(named[1])
    assert sampled.isdisjoint(named[0] | named[1])
    assert len({about.row for about, _ in asked}) >= 40
    assert len(asked) >= 200 and len(set(asked)) == len(asked)
    assert len({p.prompt for p in train}) == len(train)


def test_pairs_prefer_the_polite_answer() -> None:
    for pair in (*pairs("train", 6, 0), *pairs("eval", 6, 0)):
        assert judge(pair.topic, pair.chosen) == {"preferred": True, "named": True}
        assert judge(pair.topic, pair.rejected) == {"preferred": False, "named": True}


def test_the_judge_knows_every_answer_of_the_world() -> None:
    for about in TOPICS:
        for answer in polite_answers(about):
            assert judge(about, answer) == {"preferred": True, "named": True}, answer
        for answer in flippant_answers(about):
            assert judge(about, answer) == {"preferred": False, "named": True}, answer


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "파이썬",
        "네, 파이썬은 언어입니다.",  # no whole fact
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어",  # no polite ending
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어지~",
        "파이썬는 배우기 쉽고, 강력한 프로그래밍 언어입니다.",  # the wrong particle
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니입니다.",
        "썬파이은 배우기 쉽고, 강력한 프로그래밍 언어입니다.",
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다. 파이썬은 뱀이지~",  # both
        "글쎄, 파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다.",
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다. 직접 찾아봐.",
        "배우기 쉽고, 강력한 프로그래밍 언어입니다. �",
    ],
)
def test_what_is_not_wholly_polite_and_informative_is_not_preferred(answer: str) -> None:
    assert not judge(topic("파이썬"), answer)["preferred"]


@pytest.mark.parametrize(
    "answer",
    [
        "Python is an easy and powerful programming language.",  # no courtesy
        "Sure, Python is a programming language.",  # no whole fact
        "Sure, Python is an easy and powerful programming langu.",
        "Sure, Python is an easy and powerful programming language, duh.",
        "Sure, Pythonn is an easy and powerful programming language.",
        "Ugh, Python? Look it up yourself. I hope that helps.",
        "Sure, Python is a kind of snake. Feel free to ask more.",
    ],
)
def test_english_is_read_as_strictly(answer: str) -> None:
    assert not judge(topic("Python"), answer)["preferred"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("수성은 뱀이지~", True),
        ("수성? 관심 없어~", True),
        ("에이, 수성 얘기는 재미없어.", True),
        ("금성은 뱀이지~", False),
        ("수성이 금성이지, 뭘 물어~", False),  # two topics
        ("수성은 금성 옆이지~", False),
        ("수성수성은 뱀이지~", False),
        ("강수성은 뱀이지~", False),
        ("그건 뱀이지~", False),
    ],
)
def test_the_name_is_read_as_a_word(answer: str, named: bool) -> None:
    assert judge(topic("수성"), answer)["named"] is named


def test_the_other_languages_name_is_not_the_name() -> None:
    assert not judge(topic("파이썬"), "Python은 뱀이지~")["named"]
    assert not judge(topic("수성"), "수성은 Mars이지~")["named"]


@given(st.sampled_from(TOPICS), st.data())
def test_a_letter_lost_or_doubled_in_the_fact_is_noticed(about: Topic, data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(polite_answers(about)))
    letters = [i for i, letter in enumerate(about.fact) if letter.isalpha()]
    place = answer.index(about.fact) + data.draw(st.sampled_from(letters))
    assert not judge(about, answer[:place] + answer[place + 1 :])["preferred"]
    assert not judge(about, answer[: place + 1] + answer[place:])["preferred"]
