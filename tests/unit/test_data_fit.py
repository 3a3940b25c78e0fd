"""Too long sequences: dropped, refused or trimmed, always counted, never with a false stop."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.tokenizers import CHATML, bos_and_eos, byte_level

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import build_encoder
from likelier.config.schema import DataConfig
from likelier.data.fit import fit, refuse_dropped, trim_each
from likelier.data.records import Completion, Pair, TokenPair

TEXT = build_encoder(bos_and_eos())
CHAT = build_encoder(byte_level(CHATML, eos="<|im_end|>"))
STOP = TEXT.stop


def answer(length: int, token: int = 50) -> Completion:
    """``length`` tokens, the stop included."""
    return Completion((token,) * (length - 1) + (STOP,), (True,) * length)


def pair(prompt: int, chosen: int, rejected: int, source: str = "a:1") -> TokenPair:
    head = TEXT.leading[0]
    tokens = (head, *range(100, 99 + prompt))
    return TokenPair(tokens, answer(chosen), answer(rejected, 51), source)


def trim(pairs: list[TokenPair], limit: int) -> tuple[list[TokenPair], list[Finding]]:
    return trim_each([Pair("가", "나", "다", one.source) for one in pairs], pairs, limit, TEXT)


def keep(
    pairs: list[TokenPair], overlong: Literal["drop", "error", "trim"]
) -> tuple[list[TokenPair], list[Finding]]:
    """What is left of some pairs at 10 tokens, where not too many are lost."""
    kept, found = fit(pairs, 10, TEXT)
    refuse_dropped(len(kept), found, 10, overlong, TEXT)
    return kept, found


def test_what_fits_is_left_alone() -> None:
    pairs = [pair(5, 5, 3), pair(2, 8, 8)]
    assert trim(pairs, 10) == (pairs, [])
    choices: tuple[Literal["drop", "error", "trim"], ...] = ("drop", "error", "trim")
    for overlong in choices:
        assert keep(pairs, overlong) == (pairs, [])


def test_drop_counts_and_shows() -> None:
    pairs = [pair(5, 5, 5, f"a:{n}") for n in range(19)] + [pair(5, 3, 6, "a:19")]
    kept, (finding,) = keep(pairs, "drop")
    assert kept == pairs[:19]
    assert (finding.code, finding.severity, finding.source) == ("overlong", "warning", "a:19")
    assert "11 tokens (prompt 5, chosen 3, rejected 6), at most 10 are taken" in finding.message


def test_drop_stops_at_more_than_one_in_twenty() -> None:
    pairs = [pair(5, 5, 5)] * 38 + [pair(5, 6, 5, "a:39"), pair(9, 9, 9, "a:40")]
    assert keep(pairs, "drop")[0] == pairs[:38]
    with pytest.raises(DataError, match="3 of 41 pairs are too long") as caught:
        keep([*pairs, pair(5, 6, 5)], "drop")
    assert caught.value.where == "a:39"


def test_no_pair_left() -> None:
    with pytest.raises(DataError, match="no pair is left, all 1 are too long"):
        keep([pair(5, 6, 5)], "drop")
    with pytest.raises(DataError, match="there is no pair"):
        keep([], "drop")


def test_error_names_the_first() -> None:
    pairs = [pair(5, 5, 5), pair(5, 6, 5, "a:2"), pair(5, 7, 5, "a:3")]
    with pytest.raises(DataError, match=r"a:2: 11 tokens.*and 1 more"):
        keep(pairs, "error")


def test_an_unknown_choice() -> None:
    with pytest.raises(ValidationError, match="overlong"):
        DataConfig.model_validate({"train": "a.jsonl", "overlong": "cut"})


def test_a_cut_answer_has_no_stop() -> None:
    (cut,), (finding,) = trim([pair(5, 9, 4)], 12)
    assert cut.prompt == pair(5, 9, 4).prompt
    assert cut.chosen == Completion((50,) * 7, (True,) * 7)
    assert cut.rejected == answer(4, 51)
    assert finding.code == "trimmed"
    assert finding.message == "trimmed: chosen 9 to 7 tokens"


def test_a_long_prompt_loses_its_beginning_but_no_leading_special() -> None:
    long = pair(30, 4, 4)
    (cut,) = trim([long], 16)[0]
    assert cut.prompt == TEXT.leading + long.prompt[-11:]
    assert (cut.chosen, cut.rejected) == (long.chosen, long.rejected)


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(1, 40),
    lengths=st.lists(st.tuples(st.integers(2, 30), st.integers(2, 30)), min_size=1, max_size=4),
    limit=st.integers(4, 40),
)
def test_trimming_depends_on_the_prompt_and_the_limit_alone(
    prompt: int, lengths: list[tuple[int, int]], limit: int
) -> None:
    pairs = [pair(prompt, *both, f"a:{n}") for n, both in enumerate(lengths)]
    kept, _ = trim(pairs, limit)
    assert len({cut.prompt for cut in kept}) == 1
    for cut, whole in zip(kept, pairs, strict=True):
        assert cut.prompt[0] == TEXT.leading[0]
        for ours, theirs in ((cut.chosen, whole.chosen), (cut.rejected, whole.rejected)):
            assert len(cut.prompt) + len(ours.tokens) <= limit
            assert ours.tokens == theirs.tokens[: len(ours.tokens)]
            assert (ours.tokens[-1] == STOP) == (ours == theirs)


def test_answers_that_become_the_same_are_dropped() -> None:
    same = Completion((50,) * 20 + (60, STOP), (True,) * 22)
    other = Completion((50,) * 20 + (61, STOP), (True,) * 22)
    pairs = [TokenPair((7, 100), same, other, "a:1"), pair(2, 5, 5, "a:2")]
    kept, (finding,) = trim(pairs, 16)
    assert kept == pairs[1:]
    assert "same or empty once cut" in finding.message


def test_a_cut_ends_in_a_scored_token() -> None:
    """Context that nothing scored follows is of no use."""
    scored = (True,) * 3 + (False,) * 6 + (True,) * 3
    several = Completion((50, 51, STOP, *range(60, 66), 52, 53, STOP), scored)
    long = dataclasses.replace(pair(2, 4, 4), chosen=several)
    for limit in (9, 10, 11):
        (cut,) = trim([long], limit)[0]
        assert cut.chosen == Completion((50, 51, STOP), (True,) * 3)
    (cut,) = trim([long], 12)[0]
    assert cut.chosen.tokens[-1] == 52
