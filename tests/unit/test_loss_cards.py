"""The cards as commands and as a page: what is printed is what is there."""

from pathlib import Path

import pytest

from likelier.cards import CARDS
from likelier.cards.page import page, table
from likelier.cli import main

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_cards() -> None:
    written = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m likelier.cards.page > docs/losses.md"


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    assert capsys.readouterr().out == table()
    assert [line.split()[0] for line in table().splitlines()] == ["name", *CARDS]


@pytest.mark.parametrize("name", [*CARDS, "bco_pair"])
def test_a_card(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", name]) == 0
    told = capsys.readouterr().out
    card = CARDS[{"bco_pair": "bco"}.get(name, name)]
    for part in (card.title, card.paper, card.symbols, card.when, card.trap):
        assert part in told
    for parameter in card.parameters:
        assert f"{parameter.name} = {parameter.default}" in told and parameter.range in told


def test_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "simpoo"]) == 2
    assert "did you mean simpo?" in capsys.readouterr().err
    assert main(["losses", "ipo"]) == 2
    assert "ipo_mean" in capsys.readouterr().err


def test_every_parameter_allows_its_default_and_no_more_than_its_range() -> None:
    for card in CARDS.values():
        assert card.problem({"unknown": 1}) is not None
        for parameter in card.parameters:
            assert parameter.allows(parameter.default), (card.name, parameter.name)
            if not parameter.choices:
                assert parameter.allows(parameter.low) == (parameter.ends[0] == "[")
                assert parameter.allows(parameter.high) == (parameter.ends[1] == "]")
                assert not parameter.allows(parameter.high * 1.1)
            assert not parameter.allows("what") and not parameter.allows(None)


def test_the_objective_has_the_numbers_in_it() -> None:
    told = CARDS["simpo"].objective({"beta": 2.5, "gamma": 1.25})
    assert told == "-log sigmoid(2.5 * (pc / nc - pr / nr) - 1.25)"
    other = CARDS["sigmoid"].objective({"beta": 0.1, "divergence": "js", "alpha": 0.5})
    assert other == "-log sigmoid(0.1 * (log sigmoid(pc - rc) - log sigmoid(pr - rr)))"
