"""The losses as commands and as a page: what is printed is what was declared."""

import subprocess
import sys
from pathlib import Path

import pytest

from likelier.base.errors import ConfigError
from likelier.cli import main
from likelier.commands.losses import page, table
from likelier.losses.declare import LOSSES

ROOT = Path(__file__).parents[2]


def test_the_page_is_written_from_the_losses() -> None:
    written = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m likelier.commands.losses > docs/losses.md"


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    assert capsys.readouterr().out == table()
    lines = table().splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["name", *LOSSES]
    assert max(map(len, lines)) <= 80
    words = table().split()
    assert all(word in words for loss in LOSSES.values() for word in loss.use.split())


@pytest.mark.parametrize("name", [*LOSSES, "bco_pair"])
def test_a_card(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", name]) == 0
    told = capsys.readouterr().out
    loss = LOSSES[{"bco_pair": "bco"}.get(name, name)]
    assert max(map(len, told.splitlines())) <= 80
    joined = " ".join(told.split())
    for said in (loss.title, loss.paper, *loss.formulas, loss.use, loss.trap):
        assert " ".join(said.split()) in joined
    for hyper in loss.hypers:
        assert f"{hyper.name} = {hyper.default}" in joined and hyper.range in joined


def test_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "simpoo"]) == 2
    assert "did you mean simpo?" in capsys.readouterr().err
    assert main(["losses", "ipo"]) == 2
    assert "ipo_mean" in capsys.readouterr().err


def test_every_parameter_allows_its_default_and_no_more_than_its_range() -> None:
    for loss in LOSSES.values():
        with pytest.raises(ConfigError, match="does not read unknown"):
            loss.check({"unknown": 1})
        for hyper in loss.hypers:
            assert hyper.allows(hyper.default), (loss.name, hyper.name)
            if not hyper.choices:
                assert (hyper.gt is None) != (hyper.ge is None)
                assert (hyper.lt is None) != (hyper.le is None)
                for end, inside in ((hyper.gt, False), (hyper.ge, True), (hyper.lt, False),
                                    (hyper.le, True)):  # fmt: skip
                    assert end is None or hyper.allows(end) == inside
                assert not hyper.allows((hyper.lt or hyper.le) * 1.1)
            assert not hyper.allows("what") and not hyper.allows(None)


def test_the_objective_has_the_numbers_in_it() -> None:
    told = LOSSES["simpo"].objective({"beta": 2.5, "gamma": 1.25})
    assert told == "-log sigmoid(2.5 * (pc / nc - pr / nr) - 1.25)"
    other = LOSSES["sigmoid"].objective({"beta": 0.1, "divergence": "js", "alpha": 0.5})
    assert other == "-log sigmoid(0.1 * (log sigmoid(pc - rc) - log sigmoid(pr - rr)))"


def test_listing_losses_and_reading_configs_need_no_torch() -> None:
    code = (
        "import sys; from likelier.cli import main; from likelier.config import config_from\n"
        "assert main(['losses']) == main(['losses', 'kto']) == main(['schema']) == 0\n"
        "config_from({'model': {'path': 'm'}, 'data': {'train': 'a'}, 'out': 'o', "
        "'loss': {'name': 'bco', 'delta': 1}})\n"
        "print('heavy:', sorted({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
