"""The report in a real browser: curves drawn, nothing complains, nothing is requested."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.browser import CHROMIUM, Tab, browser_tab
from tests.support.compared_runs import add_evidence
from tests.support.report_runs import (
    add_demo,
    build_run,
    metrics,
    record,
    samples,
    timing,
    write_json,
    write_jsonl,
)

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
TEXT_COLOUR = "getComputedStyle(document.querySelector('.x-ticks text')).fill"
# What is drawn of each chart: numbers of its paths, and the words at its axes.
DRAWN = r"""[...document.querySelectorAll(".plot")].map(plot => ({
    paths: [...plot.querySelectorAll(".series path")].map(path => [path.getAttribute("class"),
        path.getAttribute("d").match(/-?[\d.]+/g).map(Number)]),
    rules: plot.querySelectorAll(".grid path, .levels path").length,
    words: [...plot.querySelectorAll("text")].map(text => text.textContent),
    places: [...plot.querySelectorAll("text")]
        .map(text => [text.getAttribute("x"), text.getAttribute("y")].map(parseFloat)),
}))"""


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
    tab.open(page)
    assert tab.complaints == []
    assert tab.requests == [page.as_uri()]
    drawn = tab.evaluate(
        """[...document.querySelectorAll(".plot")].map(plot => ({
            chart: plot.dataset.chart,
            size: plot.querySelector(".area").getBoundingClientRect().toJSON(),
            lines: [...plot.querySelectorAll(".area .line")]
                .map(line => line.getBoundingClientRect().toJSON()),
            keys: plot.querySelector(".keys").innerText,
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
        assert chart["size"]["height"] > 180
        for line in chart["lines"]:
            assert line["width"] > 0.9 * chart["size"]["width"] and line["height"] > 0
    assert [len(chart["lines"]) for chart in drawn] == [2, 2, 3, 2, 1, 1, 1]
    assert "ln 2 = 0.693: no preference learned" in drawn[0]["keys"]


@pytest.mark.parametrize("steps", [1, 60, 700])
def test_the_script_draws_what_the_page_has_already(tab: Tab, tmp_path: Path, steps: int) -> None:
    """The rules of charts.py and charts.js are the same: nothing moves where a script runs."""
    page = write_report(build_run(tmp_path / "run", steps=steps, planned=steps))
    tab.open(changed(page, tmp_path, r"script-src [^;]*;", "script-src 'none';"))
    written = tab.evaluate(DRAWN)
    tab.open(page)
    drawn = tab.evaluate(DRAWN)
    assert len(written) == 7
    for before, after in zip(written, drawn, strict=True):
        assert before["words"] == after["words"]
        assert after["places"] == [pytest.approx(place, abs=0.02) for place in before["places"]]
        assert before["rules"] == after["rules"]
        assert [kind for kind, _ in before["paths"]] == [kind for kind, _ in after["paths"]]
        for (_, one), (_, other) in zip(before["paths"], after["paths"], strict=True):
            assert other == pytest.approx(one, abs=0.11)


def test_without_scripts_all_is_there(tab: Tab, page: Path, tmp_path: Path) -> None:
    tab.open(changed(page, tmp_path, r"script-src [^;]*;", "script-src 'none';"))
    assert tab.evaluate("document.querySelector('.controls').checkVisibility()") is False
    shown = tab.evaluate(
        """[...document.querySelectorAll(".curves > figure")].map(figure =>
            [...figure.querySelectorAll(".area .line")]
                .every(line => line.getBoundingClientRect().width > 100)
            && figure.querySelector("table") !== null)"""
    )
    assert shown == [True] * 7


def test_numbers_on_the_axes_are_written_out(tab: Tab, tmp_path: Path) -> None:
    """No 100µ and no 10k; what is tiny has an exponent."""
    run = build_run(tmp_path / "run", steps=120, planned=120)
    rows = [
        row | {name: row[name] * 1e-4 for name in ("loss", "grad_norm") if name in row}
        | {name: row[name] * 1e-3 for name in ("learning_rate",) if name in row}
        for row in metrics(120)
    ]  # fmt: skip
    write_jsonl(run / "metrics.jsonl", rows)
    write_jsonl(run / "timing.jsonl", [row | {"tokens": 90_000} for row in timing(120)])
    tab.open(write_report(run))
    ticks = tab.evaluate(
        "[...document.querySelectorAll('.plot text')].map(text => text.textContent)"
    )
    assert len(ticks) > 40
    odd = [tick for tick in ticks if not re.fullmatch(r"−?[\d.,]+(e−\d+)?%?", tick)]
    assert odd == [], ticks
    assert "200,000" in ticks and "0.0001" not in ticks and "5e−8" in ticks


def test_no_word_lies_on_the_curves(tab: Tab, page: Path) -> None:
    """Values worth knowing are said in the legend, above the curves."""
    tab.open(page)
    inside = tab.evaluate(
        """[...document.querySelectorAll(".plot")].flatMap(plot => {
            const curves = plot.querySelector(".area").getBoundingClientRect();
            return [...plot.querySelectorAll("text, li, .y-title")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.width && box.right > curves.left + 1 && box.left < curves.right - 1
                    && box.bottom > curves.top + 1 && box.top < curves.bottom - 1;
            }).map(text => text.textContent);
        })"""
    )
    assert inside == []


def place_in(tab: Tab, chart: str, share: float) -> dict[str, float]:
    """Where the pointer has to be for a share of a chart's width."""
    return dict(
        tab.evaluate(
            f"""(() => {{
            const area = document.querySelector("[data-chart='{chart}'] .area");
            area.scrollIntoView({{behavior: "instant", block: "center"}});
            const box = area.getBoundingClientRect();
            return {{x: box.x + {share} * box.width, y: box.y + box.height / 2}}; }})()"""
        )
    )


def reads(tab: Tab, chart: str) -> list[str]:
    found = tab.evaluate(
        f"""[...document.querySelectorAll("[data-chart='{chart}'] .read, "
            + "[data-chart='{chart}'] .x-title")].map(one => one.textContent)"""
    )
    return list(found)


def test_a_curve_says_its_exact_values_at_a_step(tab: Tab, page: Path) -> None:
    """In every chart, whichever is pointed at; what has no value there says the one before."""
    rows = metrics(60)
    loss = {row["step"]: row["loss"] for row in rows if "loss" in row}
    held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    tab.open(page)
    assert reads(tab, "loss") == ["", "", "step"]
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", **place_in(tab, "accuracy", 30 / 60))
    assert reads(tab, "loss") == [f"{loss[30]:.4g}", f"{held_out[30]:.4g}", "step 30"]
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", **place_in(tab, "accuracy", 33 / 60))
    assert reads(tab, "loss") == [f"{loss[33]:.4g}", f"{held_out[30]:.4g} step 30", "step 33"]
    share = next(
        row["eval_rewards/accuracies"] for row in rows if "eval_loss" in row and row["step"] == 30
    )
    assert reads(tab, "accuracy")[1].startswith(f"{share:.4g} ({share - 0.065:.4g} to ")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert reads(tab, "loss") == ["", "", "step"]


def test_a_drag_zooms_all_curves_and_a_button_shows_all_again(tab: Tab, page: Path) -> None:
    tab.open(page)
    before = tab.evaluate(DRAWN)
    for kind, share in (("mousePressed", 20), ("mouseMoved", 30), ("mouseReleased", 40)):
        pointer = {"button": "left", "clickCount": 1, "buttons": 1}
        tab.call(
            "Input.dispatchMouseEvent", type=kind, **pointer, **place_in(tab, "loss", share / 60)
        )
    zoomed = tab.evaluate(DRAWN)
    for chart in zoomed:
        assert {"25", "30", "35"} <= set(chart["words"]) and "50" not in chart["words"]
    low, high = (
        [float(word) for word in chart[0]["words"] if word.startswith("0.")]
        for chart in (before, zoomed)
    )
    assert max(high) < max(low)  # the values' axis follows what is seen
    assert tab.evaluate("document.querySelectorAll('.selection').length") == 0
    tab.evaluate("document.getElementById('all-steps').click()")
    assert tab.evaluate(DRAWN) == before
    assert tab.evaluate("document.getElementById('all-steps').checkVisibility()") is False
    assert tab.complaints == []


def press(tab: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")


def test_the_keyboard_reads_and_zooms(tab: Tab, page: Path) -> None:
    """And what it reads is said aloud."""
    tab.open(page)
    tab.evaluate("document.querySelector('.plot').focus()")
    press(tab, "End")
    press(tab, "ArrowLeft")
    assert reads(tab, "loss")[2] == "step 59"
    aloud = tab.evaluate("document.getElementById('readout').textContent")
    assert aloud.startswith("step 59: training 0.") and "held-out 0." in aloud
    press(tab, "+")
    assert tab.evaluate("charts[0].span") == [29.5, 59.5]
    press(tab, "Escape")
    assert tab.evaluate("charts[0].span") == [0, 60] and reads(tab, "loss")[2] == "step"


def test_the_slider_smooths(tab: Tab, tmp_path: Path) -> None:
    """0 shows what was measured alone; more of it makes a line that turns less."""
    tab.open(write_report(build_run(tmp_path / "run", steps=300, planned=300)))
    turns = r"""(() => {
        const path = document.querySelector(".plot .mean");
        if (!path) return null;
        const y = path.getAttribute("d").slice(1).split("L").map(at => Number(at.split(" ")[1]));
        return y.slice(2).filter((at, i) => (at - y[i + 1]) * (y[i + 1] - y[i]) < 0).length; })()"""
    found = []
    for share in (0, 2, 20):
        tab.evaluate(
            f"""(() => {{ const slider = document.getElementById("smoothing");
            slider.value = {share}; slider.dispatchEvent(new Event("input")); }})()"""
        )
        found.append(tab.evaluate(turns))
    assert found[0] is None and found[1] > found[2] >= 0
    assert tab.evaluate("document.querySelector('.controls output').textContent") == "20%"


def test_no_width_makes_the_page_scroll_sideways(tab: Tab, tmp_path: Path) -> None:
    tab.open(write_report(add_demo(build_run(tmp_path / "run", steps=1200, planned=1200))))
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
    tab.open(page)
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
    tab.open(page)
    assert tab.complaints == [] and tab.requests == [page.as_uri()]
    said = tab.evaluate("[...document.querySelectorAll('.said')].map(p => p.textContent)")
    assert said[: 3 * len(rows)] == [ATTACK] * 3 * len(rows)
    assert said[3 * len(rows) :] == [ATTACK] * len(said[3 * len(rows) :]) != []
    assert tab.evaluate("document.querySelectorAll('.area .line').length") >= 7
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"


def said_everywhere(folder: Path, said: str) -> Path:
    """A report whose texts by others are all alike, wherever they stand."""
    run = add_evidence(add_demo(build_run(folder / "run", steps=5, planned=5)), said)
    rows = [{**row, "prompt": said, "before": said, "after": said} for row in samples()]
    write_jsonl(run / "samples.jsonl", rows)
    texts = read_lines(run / "pair_texts.jsonl")
    sides = dict.fromkeys(("prompt", "chosen", "rejected"), said)
    write_jsonl(run / "pair_texts.jsonl", [{**row, **sides} for row in texts])
    about = record(5, 5, "finished") | dict.fromkeys(("command", "device", "backend"), said)
    about["versions"] = {said: said}
    place = dict.fromkeys(("source", "field", "message"), said)
    kind = dict.fromkeys(("code", "severity", "why", "cure"), said)
    about["findings"] = [{**kind, "count": 2, "places": [place]}]
    write_json(run / "run.json", about)
    (run / "config.yaml").write_text(json.dumps({"model": {"path": said}}), encoding="utf-8")
    return write_report(run)


def test_no_text_adds_an_element_or_asks_for_anything(tab: Tab, tmp_path: Path) -> None:
    elements = []
    for at, said in enumerate(("harmless", ATTACK)):
        page = said_everywhere(tmp_path / str(at), said)
        tab.renew()
        tab.open(page)
        assert tab.complaints == [] and tab.requests == [page.as_uri()]
        elements.append(tab.evaluate("[...document.querySelectorAll('*')].map(one => one.tagName)"))
    assert elements[0] == elements[1] and len(elements[0]) > 1000
    assert tab.evaluate("document.querySelectorAll('.heat').length") > 8


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_section_fits_every_width(tab: Tab, tmp_path: Path, lang: str) -> None:
    run = add_evidence(add_demo(build_run(tmp_path / "run", steps=300, planned=300)))
    page = write_report(run, lang)
    assert page.stat().st_size < 2.2e6
    tab.open(page)
    assert tab.evaluate("document.documentElement.lang") == lang
    sections = tab.evaluate("[...document.querySelectorAll('main > section')].map(one => one.id)")
    assert sections == ["", "curves", "held-out", "samples", "health", "pairs", "findings", "run",
                        "words"]  # fmt: skip
    for width in (1280, 700, 390, 320):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert tab.evaluate(WIDER) <= 0, width
        assert tab.evaluate(BROKEN) == [], width
    assert tab.complaints == [] and tab.requests == [page.as_uri()]


def test_the_policy_holds_even_if_text_got_through(tab: Tab, page: Path, tmp_path: Path) -> None:
    """The second wall: an element that should not be there loads and runs nothing."""
    page = changed(page, tmp_path, "<main>", f"<main>{ATTACK}</iframe></svg>")
    tab.open(page)
    assert "console.error" not in tab.complaints
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"
    assert any("Content Security Policy" in line for line in tab.complaints)
    # The browser's own "blocked" sign in the frame brings its picture as data.
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
