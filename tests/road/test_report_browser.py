"""The report in a real browser: curves drawn, nothing complains, nothing is requested."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import CHROMIUM, Tab, browser_tab
from tests.support.report_runs import add_demo, build_run, metrics, samples, timing, write_jsonl

from likelier.base.files import read_lines
from likelier.cli import main
from likelier.report.page import write_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium browser is installed"),
    pytest.mark.slow,
]

TROUBLE = """<!doctype html><meta charset="utf-8"><title>t</title>
<img src="http://127.0.0.1:9/picture.png"><script>console.error("aloud"); nowhere()</script>"""
ATTACK = (
    '</script><img src="http://127.0.0.1:9/1.png" onerror="console.error(1)">'
    '<script src="http://127.0.0.1:9/2.js"></script><style>body{display:none}</style>'
    "<iframe src='http://127.0.0.1:9/3'></iframe><svg onload=console.error(4)>"
)
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Numbers, with their signs and the marks between their digits, that stand on more than one line.
# What a user wrote (a path, a command, an answer) may break anywhere.
BROKEN = r"""(() => {
    const BY_A_USER = "script, pre, .said, bdi, .facts, svg, code, .unseen, .kinds thead,"
        + ".clues thead";
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        if (node.parentElement.closest(BY_A_USER)) continue;
        for (const number of node.data.matchAll(/[+−-]?\d(?:[\d.,−+e]*\d)?%?/g)) {
            const range = document.createRange();
            range.setStart(node, number.index);
            range.setEnd(node, number.index + number[0].length);
            const tops = [...range.getClientRects()].filter(box => box.width).map(box => box.top);
            if (new Set(tops).size > 1) found.push(node.parentElement.outerHTML);
        }
    }
    return found;
})()"""
SCROLLED = """[...document.querySelectorAll('body *')].filter(one => !one.closest('thead, svg')
    && one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX !== 'visible')
    .map(one => one.outerHTML.slice(0, 80))"""
TEXT_COLOUR = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    browser.renew()
    return browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(add_demo(build_run(tmp_path_factory.mktemp("runs") / "demo")))


def open_drawn(tab: Tab, page: Path) -> None:
    """Load a report, and wait until its curves are drawn."""
    tab.open(page)
    tab.evaluate("drawing")


def changed(page: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of the page with the first match of a pattern replaced."""
    text, count = re.subn(old, lambda _: new, page.read_text(encoding="utf-8"), count=1)
    assert count == 1
    copy = folder / "report.html"
    copy.write_text(text, encoding="utf-8")
    return copy


def test_trouble_would_be_noticed(tab: Tab, tmp_path: Path) -> None:
    """The instruments work: a page that loads and complains is seen to do both."""
    page = tmp_path / "trouble.html"
    page.write_text(TROUBLE, encoding="utf-8")
    tab.open(page)
    assert "http://127.0.0.1:9/picture.png" in tab.requests
    assert "console.error" in tab.complaints and "Uncaught" in tab.complaints


def test_the_curves_are_drawn_in_silence(tab: Tab, page: Path) -> None:
    open_drawn(tab, page)
    assert tab.complaints == []
    assert tab.requests == [page.as_uri()]
    drawn = tab.evaluate(
        """[...document.querySelectorAll(".plot")].map(plot => ({
            chart: plot.dataset.chart,
            size: plot.querySelector(".main-svg").getBoundingClientRect().height,
            lines: [...plot.querySelectorAll(".scatterlayer .js-line")]
                .map(line => line.getAttribute("d")),
            words: [...plot.querySelectorAll("text")].map(text => text.textContent),
            folded: !plot.parentElement.querySelector("details").open,
        }))"""
    )
    assert [chart["chart"] for chart in drawn] == [
        "loss",
        "accuracy",
        "rewards",
        "drift",
        "gradient",
        "learning-rate",
        "speed",
    ]
    for chart in drawn:
        assert chart["size"] > 200 and chart["folded"] and "step" in chart["words"]
        assert chart["lines"] and all(line.startswith("M") for line in chart["lines"])
    assert [len(chart["lines"]) for chart in drawn] == [2, 2, 3, 2, 1, 1, 1]
    assert "ln 2 = 0.693: no preference learned" in drawn[0]["words"]


def test_a_browser_that_cannot_unpack_says_so(tab: Tab, page: Path) -> None:
    """The sentence is seen there and nowhere else, and the numbers stand open as tables."""
    seen = "document.querySelector('#no-unpacking').checkVisibility()"
    open_drawn(tab, page)
    assert not tab.evaluate(seen)
    tab.call("Page.addScriptToEvaluateOnNewDocument", source="delete self.DecompressionStream")
    tab.open(page)
    assert tab.evaluate(seen) and tab.complaints == []
    assert "DecompressionStream" in tab.evaluate("document.querySelector('#curves').innerText")
    shown = "[...document.querySelectorAll('.curves details')].map(one => one.open)"
    assert tab.evaluate(shown) == [True] * 7
    assert tab.evaluate("document.querySelectorAll('.main-svg').length") == 0


def test_numbers_on_the_axes_are_written_out(tab: Tab, tmp_path: Path) -> None:
    """No 100µ, which plotly makes of 0.0001, and no 10k; what is tiny has an exponent."""
    run = build_run(tmp_path / "run", steps=120, planned=120)
    rows = [
        row | {name: row[name] * 1e-4 for name in ("loss", "grad_norm") if name in row}
        | {name: row[name] * 1e-3 for name in ("learning_rate",) if name in row}
        for row in metrics(120)
    ]  # fmt: skip
    write_jsonl(run / "metrics.jsonl", rows)
    write_jsonl(run / "timing.jsonl", [row | {"tokens": 90_000} for row in timing(120)])
    open_drawn(tab, write_report(run))
    ticks = tab.evaluate(
        "[...document.querySelectorAll('.xtick text, .ytick text')].map(text => text.textContent)"
    )
    assert len(ticks) > 40
    odd = [tick for tick in ticks if not re.fullmatch(r"−?[\d.,]+(e−\d+)?%?", tick)]
    assert odd == [], ticks
    assert "200,000" in ticks and "0.0001" not in ticks and "1e−7" in ticks


def test_no_word_lies_on_the_curves(tab: Tab, page: Path) -> None:
    """Values worth knowing are said in the legend, above the curves."""
    open_drawn(tab, page)
    inside = tab.evaluate(
        """[...document.querySelectorAll(".plot")].flatMap(plot => {
            const curves = plot.querySelector(".plotbg, .bglayer ~ .draglayer .nsewdrag")
                .getBoundingClientRect();
            return [...plot.querySelectorAll(".main-svg text")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.width && box.right > curves.left + 1 && box.left < curves.right - 1
                    && box.bottom > curves.top + 1 && box.top < curves.bottom - 1;
            }).map(text => text.textContent);
        })"""
    )
    assert inside == []


def test_a_curve_answers_the_pointer(tab: Tab, page: Path) -> None:
    open_drawn(tab, page)
    where = tab.evaluate(
        """(() => { const plot = document.querySelector(".plot");
            plot.scrollIntoView({behavior: "instant", block: "center"});
            const box = plot.getBoundingClientRect();
            return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"""
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", **where)
    tab.evaluate("new Promise(done => setTimeout(done, 300))")
    told = tab.evaluate("document.querySelector('.plot .hoverlayer').textContent")
    assert "training" in told and "held-out" in told


def test_no_width_makes_the_page_scroll_sideways(tab: Tab, tmp_path: Path) -> None:
    open_drawn(tab, write_report(add_demo(build_run(tmp_path / "run", steps=1200, planned=1200))))
    for width in (1280, 700, 320):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.evaluate("new Promise(done => setTimeout(done, 500))")  # the curves follow the page
        assert tab.evaluate("innerWidth") == width
        assert tab.evaluate(WIDER) <= 0, width
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.evaluate(BROKEN) == [], width


def test_the_page_of_check_fits_a_phone(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{n}?", "chosen": f"- {n}, yes.", "rejected": "no" * 20} for n in range(1200)
    ]
    rows += [{"prompt": "neither"}, {**rows[0], "chosen": "a\ufffdb" + "c" * 900}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    page = tmp_path / "check.html"
    assert main(["check", "rows.jsonl", "--html", "check.html"]) == 65
    tab.open(page)
    for width in (1280, 390, 360, 320):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.evaluate("innerWidth") == width
        assert tab.evaluate(WIDER) <= 0, width
        assert tab.evaluate(BROKEN) == [], width
        assert tab.evaluate(SCROLLED) == [], width
        # A cell of words is not squeezed to letters: the rows become blocks.
        assert tab.evaluate("document.querySelector('.kinds td:nth-child(4)').clientWidth") > 200
        bars = tab.evaluate("document.querySelectorAll('.histogram rect').length")
        assert bars > 2 and tab.evaluate(
            "document.querySelector('.histogram svg').getBoundingClientRect().height > 100"
        )
    assert tab.evaluate("document.querySelectorAll('svg circle').length") > 0
    assert tab.evaluate("getComputedStyle(document.querySelector('mark')).backgroundColor") != ""
    assert tab.complaints == [] and tab.requests == [page.as_uri()]


def test_light_dark_and_paper(tab: Tab, page: Path) -> None:
    open_drawn(tab, page)
    colours = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.call("Emulation.setEmulatedMedia", features=features)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        colours[scheme] = (background, tab.evaluate(TEXT_COLOUR))
    for one, other in zip(*colours.values(), strict=True):
        assert one != other
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.complaints == []


def test_an_attack_stays_text(tab: Tab, tmp_path: Path) -> None:
    run = add_demo(build_run(tmp_path / "run", steps=5, planned=5))
    rows = [{**row, "prompt": ATTACK, "before": ATTACK, "after": ATTACK} for row in samples()]
    write_jsonl(run / "samples.jsonl", rows)
    texts = read_lines(run / "pair_texts.jsonl")
    sides = dict.fromkeys(("prompt", "chosen", "rejected"), ATTACK)
    write_jsonl(run / "pair_texts.jsonl", [{**row, **sides} for row in texts])
    page = write_report(run)
    open_drawn(tab, page)
    assert tab.complaints == [] and tab.requests == [page.as_uri()]
    said = tab.evaluate("[...document.querySelectorAll('.said')].map(p => p.textContent)")
    assert said[: 3 * len(rows)] == [ATTACK] * 3 * len(rows)
    assert said[3 * len(rows) :] == [ATTACK] * len(said[3 * len(rows) :]) != []
    assert tab.evaluate("document.querySelectorAll('.main-svg').length") >= 7
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"


def test_the_policy_holds_even_if_text_got_through(tab: Tab, page: Path, tmp_path: Path) -> None:
    """The second wall: an element that should not be there loads and runs nothing."""
    page = changed(page, tmp_path, "<main>", f"<main>{ATTACK}</iframe></svg>")
    open_drawn(tab, page)
    assert "console.error" not in tab.complaints
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"
    assert any("Content Security Policy" in line for line in tab.complaints)
    # The browser's own "blocked" sign in the frame brings its picture as data.
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]


def test_without_scripts_the_numbers_are_open(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.open(changed(page, tmp_path, r"script-src [^;]*;", "script-src 'none';"))
    shown = tab.evaluate(
        """[...document.querySelectorAll("figure")].map(figure => [
            figure.querySelector(".plot").hidden, figure.querySelector("details").open,
            figure.querySelector("table").getBoundingClientRect().height > 100])"""
    )
    assert shown == [[True, True, True]] * 7
