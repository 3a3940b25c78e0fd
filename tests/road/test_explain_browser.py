"""The page of `likelier explain` in a real browser: silent, in any width, all of it read aloud."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import CHROMIUM, Tab, browser_tab
from tests.unit.test_explain import made_up, page_of

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium browser is installed"),
    pytest.mark.slow,
]

WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GROUND = "getComputedStyle(document.querySelector('.side-map .{}')).backgroundColor"
LINE = "getComputedStyle(document.querySelector('.side-map .{}')).boxShadow"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def test_the_page_of_a_pair(tab: Tab, tmp_path: Path) -> None:
    row = made_up()
    side = row["sides"]["rejected"]
    for name in ("texts", "logps", "reference_logps", "ids"):
        side[name] = side[name] * 60
    side["texts"][7] = "a" * 300
    page = tmp_path / "pair.html"
    page.write_text(page_of(row), encoding="utf-8")
    seen = []
    for width, media, scheme in (
        (1280, "screen", "light"), (1280, "screen", "dark"), (390, "screen", "light"),
        (320, "screen", "dark"), (800, "print", "light"),
    ):  # fmt: skip
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.call("Emulation.setEmulatedMedia", media=media, features=features)
        tab.open(page)
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.evaluate(WIDER) <= 0, width
        # Blue and red are told apart without colour, too: a line below, a line above.
        assert tab.evaluate(LINE.format("u4")).endswith("0px -2px 0px 0px inset")
        assert tab.evaluate(LINE.format("d3")).endswith("0px 2px 0px 0px inset")
        seen.append((tab.evaluate(GROUND.format("u4")), tab.evaluate(GROUND.format("d3"))))
        assert tab.evaluate(
            "getComputedStyle(document.querySelector('.heat')).printColorAdjust"
        ) == ("exact")
    assert len(set(seen)) == 2 and all(blue != red for blue, red in seen)
    assert tab.complaints == [] and set(tab.requests) == {page.as_uri()}
    cells = tab.evaluate("document.querySelectorAll('.token-numbers tbody tr').length")
    tokens = tab.evaluate("document.querySelectorAll('.side-map .heat > span').length")
    assert cells == tokens > 300  # every number stands in a table that is read aloud
    assert tab.evaluate("document.querySelectorAll('img, script, iframe').length") == 0
    assert tab.evaluate("document.querySelector('.side-map .u4').title").startswith("policy −1.500")
