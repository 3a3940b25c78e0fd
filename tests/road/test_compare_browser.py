"""The page of a comparison in a real browser: curves over each other, hostile names, any width."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.road.test_report_browser import ATTACK, WIDER
from tests.support.browser import CHROMIUM, Tab, browser_tab
from tests.support.compared_runs import add_held_out, made_run

from likelier.cli import main

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium browser is installed"),
    pytest.mark.slow,
]
ELEMENTS = "document.querySelectorAll('*').length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def page_of(folder: Path, names: list[str], model: str = "models/tiny-base") -> Path:
    """A comparison of runs of these names, each evaluated four times."""
    runs = []
    for at, name in enumerate(names):
        run = made_run(folder / name, optim={"lr": 1e-5 * (at + 1)}, model={"path": model})
        for step in (0, 20, 40, 60):
            margins = [(-1.0) ** (n % (at + 2)) * (1 + step) for n in range(60)]
            add_held_out(run, margins, step=step, drift=step * at / 1000)
        runs.append(str(run))
    page = folder / "compare.html"
    assert main(["compare", *runs, "--html", str(page), "--json"]) == 0
    return page


def test_runs_are_drawn_over_each_other_in_silence(tab: Tab, tmp_path: Path) -> None:
    page = page_of(tmp_path, ["first", "second", "third"])
    tab.renew()
    tab.open(page)
    assert tab.complaints == [] and tab.requests == [page.as_uri()]
    drawn = tab.evaluate(
        """[...document.querySelectorAll(".plot")].map(plot => ({
            chart: plot.dataset.chart,
            colours: [...plot.querySelectorAll(".area .line")].map(l => getComputedStyle(l).stroke),
            keys: plot.querySelector(".keys").innerText,
        }))"""
    )
    charts = ["accuracy", "margin", "chosen", "rejected", "drift", "loss"]
    assert [chart["chart"] for chart in drawn] == charts
    for chart in drawn:
        assert len(set(chart["colours"])) == 3
        assert all(name in chart["keys"] for name in ("first", "second", "third"))
    assert tab.evaluate("document.querySelectorAll('.intervals svg').length") == 2 * len(charts)
    assert page.stat().st_size < 300_000


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(tab: Tab, tmp_path: Path, width: int) -> None:
    names = ["a-name-that-is-longer-than-most-columns-of-a-table-are-wide-" + n for n in "ab"]
    tab.renew()
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    tab.call("Emulation.setDeviceMetricsOverride", **metrics)
    tab.open(page_of(tmp_path, names))
    assert tab.evaluate(WIDER) <= 0
    beyond = tab.evaluate("(w => w.scrollWidth - w.clientWidth)(document.querySelector('.wide'))")
    assert beyond <= 0 or width < 500  # on a phone it is moved aside


def test_hostile_names_and_values_add_no_element(tab: Tab, tmp_path: Path) -> None:
    harmless = page_of(tmp_path / "a", ["one", "two"])
    attack = ATTACK.replace("/", "_")
    hostile = page_of(tmp_path / "b", ["one", attack[:120]], model=ATTACK)
    tab.renew()
    tab.open(harmless)
    usual = tab.evaluate(ELEMENTS)
    tab.open(hostile)
    assert tab.evaluate(ELEMENTS) == usual
    assert tab.complaints == [] and tab.requests[-1] == hostile.as_uri()
