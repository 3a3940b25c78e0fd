"""Held-out prompts are chosen by content."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.base.errors import DataError
from likelier.checks.inspector import PairInspector
from likelier.data import split
from likelier.data.records import Completion, Pair, TokenPair
from likelier.data.split import prompt_keys, prompt_signatures
from likelier.data.workers import Chunk


def pairs_of(prompts: list[str]) -> list[Pair]:
    return [Pair(prompt, f"좋은 답 {n}", "나쁜 답", f"a:{n}") for n, prompt in enumerate(prompts)]


def split_by_prompt(pairs: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The pairs to train on, and those held out."""
    held = split.held_out(prompt_keys(pairs, seed), prompt_signatures(pairs), share).tolist()
    both = [*zip(pairs, held, strict=True)]
    return [pair for pair, out in both if not out], [pair for pair, out in both if out]


@given(
    prompts=st.lists(st.sampled_from("가나다라마바사아"), min_size=2, max_size=30),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_no_prompt_is_on_both_sides(prompts: list[str], share: float, seed: int) -> None:
    pairs = pairs_of(prompts)
    if len(set(prompts)) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_by_prompt(pairs, share, seed)
        return
    train, held_out = split_by_prompt(pairs, share, seed)
    assert train and held_out
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    number = {pair.source: n for n, pair in enumerate(pairs)}
    for side in (train, held_out):
        assert [number[p.source] for p in side] == sorted(number[p.source] for p in side)
    assert len(train) + len(held_out) == len(pairs)
    count = len({p.prompt for p in held_out})
    assert abs(count - share * len(set(prompts))) <= 1


def test_rows_and_their_order_decide_nothing() -> None:
    pairs = pairs_of([f"질문 {n}" for n in range(100)])
    _, held_out = split_by_prompt(pairs, 0.1, 0)
    shuffled = random.Random(1).sample(pairs, 100)
    again = split_by_prompt(shuffled, 0.1, 0)[1]
    assert {p.prompt for p in again} == {p.prompt for p in held_out}
    assert len(held_out) == 10
    other = split_by_prompt(pairs, 0.1, 1)[1]
    assert {p.prompt for p in other} != {p.prompt for p in held_out}


def test_the_same_question_written_twice_stays_together() -> None:
    """Once as a Mac writes Hangul, once as others do, once with a space behind."""
    prompts = ["한글?", "\u1112\u1161\u11ab\u1100\u1173\u11af?", "한글? "]
    for seed in range(20):
        sides = split_by_prompt(pairs_of([*prompts, "a", "b"]), 0.4, seed)
        assert any({"a:0", "a:1", "a:2"} <= {p.source for p in side} for side in sides)
    assert len(np.unique(prompt_keys(pairs_of(prompts), 0), axis=0)) == 1  # one, also counted


def test_messages_and_tokens_are_split_too() -> None:
    chats = [
        Pair(({"role": "user", "content": c},), ({"role": "assistant"},), (), c) for c in "가나다가"
    ]
    train, held_out = split_by_prompt(chats, 0.3, 0)
    assert {len(train), len(held_out)} & {1, 2}
    answer = Completion((1,), (True,))
    tokens = [TokenPair((n % 3,), answer, answer, f"a:{n}") for n in range(9)]
    train_tokens, held_out_tokens = split_by_prompt(tokens, 0.3, 0)
    assert (len(train_tokens), len(held_out_tokens)) == (6, 3)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 distinct prompt"):
        split_by_prompt(pairs_of(["가", "가"]), 0.5, 0)


def test_leaks_name_both_rows() -> None:
    train = pairs_of(["가", "나", "나"])
    held_out = [Pair("나 ", "a", "b", "eval:1"), Pair("다", "a", "b", "eval:2")]
    inspector = PairInspector().watching(held_out)
    arrays = inspector.arrays(train, [])
    sources = tuple(pair.source for pair in train)
    chunk = Chunk(len(train), (), sources, (1,) * len(train), (), arrays)
    (finding,) = inspector.leaks([chunk], sources)
    assert (finding.code, finding.severity, finding.source) == ("leak", "warning", "eval:1")
    assert "a:1" in finding.message


def test_a_prompt_whose_words_stand_in_training_prompts_leaks() -> None:
    """More than half of its words, in runs of eight; the whole is no near copy."""
    run = "one two three four five six seven eight nine ten"
    train = pairs_of(
        [f"{run} and then all else that nobody held out ever asked of anyone here", "b"]
    )
    held_out = [
        Pair(f"zero {run} eleven twelve", "a", "b", "eval:1"),
        Pair(f"{run} {' '.join(f'w{n}' for n in range(10))}", "a", "b", "eval:2"),  # just a half
    ]
    inspector = PairInspector().watching(held_out)
    sources = tuple(pair.source for pair in train)
    chunk = Chunk(2, (), sources, (1, 1), (), inspector.arrays(train, []))
    (found,) = inspector.leaks([chunk], sources)
    assert (found.source, found.message) == (
        "eval:1", "77% of its words stand in training prompts, as at a:0",
    )  # fmt: skip
