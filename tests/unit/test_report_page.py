"""The page: complete, offline, harmless whatever a model or a user wrote, and written whole."""

import base64
import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.report_runs import (
    CONFIG,
    add_demo,
    build_run,
    record,
    samples,
    write_json,
    write_jsonl,
    write_part,
)

from likelier.base.errors import InputMissing, OutputError
from likelier.base.files import sealed
from likelier.pages import TEMPLATES, _environment
from likelier.pages.charts import Chart, Series, draw_chart, page_scripts, tick_word
from likelier.pages.texts import signed
from likelier.report.charts import draw_charts
from likelier.report.page import render_report, write_report
from likelier.report.read import read_run
from likelier.report.summary import run_facts

HOSTILE = "</script><script>console.error('in')</script>\"><img src=x onerror=alert(1)>'&amp;\u202e"
LOGS = ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "pair_texts.jsonl")
VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """The elements of a page in order, with their attributes and own text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def attributes(self, name: str) -> list[str | None]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_demo(build_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_the_whole_page(demo: Path) -> None:
    path = write_report(demo)
    assert path == demo / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert Counter(page.attributes("data-chart")) == Counter(
        ["loss", "accuracy", "rewards", "drift", "gradient", "learning-rate", "speed"]
    )
    assert page.texts["h1"] == [""] and page.texts["bdi"][0] == "demo"
    assert page.texts["title"] == ["demo · likelier report"]
    text = path.read_text(encoding="utf-8")
    for expected in ("97.5% of the sampled answers", "51% before", "바다가 뭐야?", "4 more"):
        assert expected in text
    smallest = read_run(demo).pair_log.smallest[0]  # type: ignore[union-attr]
    assert f"<bdi>{smallest['source']}</bdi>" in text and signed(smallest["margin"], 3) in text
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert page.elements[0] == ("html", {"lang": "en"})
    links = page.attributes("href")
    assert links and all(link and link[1:] in ids for link in links)


def test_the_page_is_light(demo: Path, tmp_path: Path) -> None:
    """2.2 MB at most, also after thousands of steps: what draws the curves stands in it packed."""
    long = build_run(tmp_path / "long", steps=2500, planned=3000)
    talkative = add_demo(build_run(tmp_path / "talkative", steps=120, planned=120))
    write_jsonl(talkative / "samples.jsonl", samples() * 24)  # as many as the demo asks
    pair_log = read_run(long).pair_log
    assert pair_log is not None
    named = [row["source"] for row in (*pair_log.smallest, *pair_log.largest)]
    sides = dict.fromkeys(("prompt", "chosen", "rejected"), "긴 글 " * 2000)
    write_jsonl(long / "pair_texts.jsonl", ({"source": source, **sides} for source in named))
    for run in (demo, long, talkative):
        assert write_report(run).stat().st_size <= 2_200_000


def test_korean_text_says_that_it_is_korean(demo: Path) -> None:
    page = Page(render_report(read_run(demo)))
    texts = [attrs for tag, attrs in page.elements if attrs.get("class") == "said"]
    run = read_run(demo)
    assert run.pair_log is not None
    named = [row["source"] for row in (*run.pair_log.smallest, *run.pair_log.largest)]
    named += [place["source"] for kind in run.findings for place in kind.located]
    pairs = sum(source in run.texts for source in named)
    assert len(texts) == 36 + 3 * pairs  # twelve samples: prompt, before, after
    assert sum(attrs.get("lang") == "ko" for attrs in texts) == 24 + 3 * pairs


def test_no_page_turns_escaping_off() -> None:
    """All pages come from one environment; what data say reaches none of them as markup."""
    assert _environment().autoescape is True
    for template in TEMPLATES.glob("*.html"):
        written = template.read_text("utf-8")
        assert not re.search(r"\|\s*safe\b|\bautoescape\b|\bMarkup\b", written), template.name


def test_the_policy_allows_these_very_scripts_and_nothing_else(demo: Path) -> None:
    page = Page(render_report(read_run(demo)))
    policy = next(a["content"] for t, a in page.elements if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    kinds = [attrs.get("type") for attrs in scripts]
    assert kinds == ["application/json", None] and not page.attributes("src")
    script = page.texts["script"][1]
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, *page.texts["style"])
    ]
    assert len(digests) == 2
    assert sorted(digests) == sorted(re.findall(r"'sha256-([^']+)'", policy))
    # What a policy by digest forbids would be dropped in silence, so it must not be there.
    assert not page.attributes("style")
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_nothing_is_loaded(demo: Path) -> None:
    page = Page(render_report(read_run(demo)))
    used = {tag for tag, _ in page.elements}
    assert not used & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
    assert all(str(link).startswith("#") for link in page.attributes("href"))
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]


def hostile_run(path: Path) -> Path:
    run = add_demo(build_run(path, steps=3, planned=3))
    config = {**CONFIG, "model": {"path": HOSTILE}, "loss": {"name": HOSTILE, HOSTILE: HOSTILE}}
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    said = {"prompt": HOSTILE, "topic": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    write_jsonl(run / "samples.jsonl", [said])
    row = {
        "step": 2,
        "epoch": 0,
        "source": HOSTILE,
        **dict.fromkeys(("chosen_logp", "reference_chosen_logp"), -1.0),
        **dict.fromkeys(("rejected_logp", "reference_rejected_logp"), -2.0),
        **dict.fromkeys(("chosen_tokens", "rejected_tokens"), 3),
        "margin": -99.0,
    }
    write_part(run, "000002.parquet", [row])
    sides = dict.fromkeys(("prompt", "chosen", "rejected", "completion"), HOSTILE)
    write_jsonl(run / "pair_texts.jsonl", [{"source": HOSTILE, **sides}])
    about = record(3, 3, HOSTILE)
    about |= {key: HOSTILE for key in ("command", "device", "backend", "backend_reason")}
    about["versions"] = {HOSTILE: HOSTILE}
    about["data"]["findings"] = {HOSTILE: HOSTILE}
    about["reference"]["identity"] = HOSTILE
    place = dict.fromkeys(("source", "field", "message"), HOSTILE)
    texts = dict.fromkeys(("code", "severity", "why", "cure"), HOSTILE)
    about["findings"] = [{**texts, "count": 2, "places": [place]}]
    write_json(run / "run.json", about)
    return run


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = Page(render_report(read_run(hostile_run(tmp_path / "<img src=x onerror=alert(1)>"))))
    used = Counter(tag for tag, _ in hostile.elements)
    assert used["script"] == 2 and used["style"] == 1 and used["img"] == 0
    assert not [name for _, attrs in hostile.elements for name in attrs if name.startswith("on")]
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩")
    said = [text for text in hostile.texts["p"] if text == shown]
    # The sample's prompt, before, after, and four sides of a pair that is named twice: whole and
    # unchanged but for the mark.
    assert len(said) == 3 + 2 * 4
    assert shown in hostile.texts["bdi"]  # the source of a pair
    assert "<img src=x onerror=alert(1)>" in hostile.texts["bdi"]  # the folder's own name
    facts = " ".join(hostile.texts["dd"])
    assert facts.count(shown) >= 6
    assert shown.splitlines()[0] in hostile.texts["pre"][0]


def test_reordering_marks_and_control_characters_are_shown(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", steps=2, planned=2)
    lines = (
        '{"prompt": "a\\u202eb\\u2066c\\u0000d", "before": "\\ud800", "after": "가👩\u200d🚀"}\n'
    )
    (run / "samples.jsonl").write_text(lines, encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "a⟨U+202E⟩b⟨U+2066⟩c⟨U+0000⟩d" in text and "⟨U+D800⟩" in text
    assert "가👩\u200d🚀" in text  # joiners belong to letters and signs, and stay
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", text.split("<script")[0])


def test_what_the_script_reads_is_what_was_logged(demo: Path) -> None:
    run = read_run(demo)
    charts = draw_charts(run)
    for chart in charts:
        assert chart.reading and chart.alt and len(chart.rows) <= 14
        assert all(len(row) == len(chart.header) for row in chart.rows)
    stored = json.loads(Page(render_report(run)).texts["script"][0])
    assert stored == {chart.id: chart.figure for chart in charts}
    speed = stored["speed"]["lines"][0]["y"]
    assert speed == pytest.approx([row["tokens"] / row["seconds"] for row in run.timing], rel=1e-5)
    training, held_out = stored["loss"]["lines"]
    assert training["x"] == list(range(1, 61)) and held_out["x"] == list(range(0, 61, 10))
    assert training["y"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert stored["loss"]["levels"] == [math.log(2)]
    assert {"low", "high"} <= stored["accuracy"]["lines"][1].keys()


def test_curves_are_in_the_page_without_a_script(demo: Path) -> None:
    """Where a value lies is where it is drawn."""
    page = Page(render_report(read_run(demo)))
    drawn = [a["d"] for tag, a in page.elements if tag == "path" and a.get("class") == "line"]
    lines = [str(path) for path in drawn if path != "M0 5H24"]
    assert len(lines) == 2 + 2 + 3 + 2 + 1 + 1 + 1
    chart = draw_chart("a", "a", "a", [Series("a", "plain", (0, 5, 10), (0.0, 4.0, 2.0))], "a")
    assert chart is not None
    xs, ys = zip(*(point.split() for point in path_of(chart).split("L")), strict=True)
    assert xs == ("0.0", "500.0", "1000.0")
    low, high = -0.24, 4.24  # 6 % of the span are left free above and below
    assert [float(y) for y in ys] == pytest.approx(
        [1000 * (1 - (value - low) / (high - low)) for value in (0, 4, 2)], abs=0.05
    )
    words = [word for _, word in chart.drawing["y_ticks"]]
    assert words == ["0", "1", "2", "3", "4"]


def path_of(chart: Chart) -> str:
    return str(chart.drawing["lines"][0]["paths"]["line"]).removeprefix("M")


def test_a_spike_is_drawn_however_long_the_run() -> None:
    values = tuple(9.0 if x == 2345 else 1.0 for x in range(3000))
    chart = draw_chart("a", "a", "a", [Series("a", "plain", tuple(range(3000)), values)], "a")
    assert chart is not None
    heights = [float(point.split()[1]) for point in path_of(chart).split("L")]
    assert len(heights) < 1000 and sum(height < 100 for height in heights) == 1


@pytest.mark.parametrize(
    ("value", "step", "word"),
    [
        (0.0, 0.1, "0"), (1e-12, 0.1, "0"), (0.25, 0.05, "0.25"), (-0.5, 0.5, "−0.5"),
        (200_000.0, 50_000.0, "200,000"), (1.0, 1.0, "1"), (2e-5, 2e-5, "2e−5"),
        (1.2e-4, 2e-5, "1.2e−4"), (3e7, 1e7, "3e7"), (1e-3, 5e-4, "1e−3"), (1e-3, 1e-3, "0.001"),
    ],
)  # fmt: skip
def test_values_at_an_axis_are_written_out(value: float, step: float, word: str) -> None:
    assert tick_word(value, step) == word


def test_the_curves_of_a_long_run_are_smoothed_and_say_so(demo: Path, tmp_path: Path) -> None:
    long = read_run(build_run(tmp_path / "long", steps=300, planned=300))
    charts = {chart.id: chart for chart in draw_charts(long)}
    assert {id for id, chart in charts.items() if not chart.smoothed} == {
        "rewards",  # of held-out pairs: each point is a mean over all of them
        "learning-rate",
    }
    training, held_out = charts["loss"].drawing["lines"]
    assert training["paths"].keys() == {"line", "mean"} and training["smooth"]
    assert held_out["paths"].keys() == {"line", "dots"} and not held_out["smooth"]
    said = "is smoothed: each of its points is the mean"
    assert said in " ".join(render_report(long).split())
    assert said not in " ".join(render_report(read_run(demo)).split())


def test_a_name_cannot_end_the_script_of_figures() -> None:
    lines = [Series("a", "</script><!--<script>", (1.0,), (1.0,))]
    chart = draw_chart("</script><img>", "a", "a", lines, "a")
    assert chart is not None
    figures = page_scripts([chart])[1]["figures"]
    assert "<" not in figures and json.loads(figures) == {"</script><img>": chart.figure}


def test_a_number_that_json_lacks_is_refused() -> None:
    """NaN is no JSON: a browser would refuse all of it."""
    with pytest.raises(ValueError):
        draw_chart("a", "a", "a", [Series("a", "plain", (1.0,), (float("nan"),))], "a")


def test_what_the_run_was(demo: Path) -> None:
    facts = dict(run_facts(read_run(demo)))
    assert facts["Size"] == "98,304 of 1,310,720 parameters trained (7.5%)"
    assert facts["Adapter"] == "lora, r 16, alpha 32, targets all-linear"
    assert facts["Learning rate"] == "0.0001, schedule cosine, warmup 0.1"
    assert facts["Rows"] == "2,130 read, 2,120 used, 10 dropped"
    assert facts["Pairs"] == "1,920 to train on, 200 held out"
    assert facts["Findings in the data"] == "duplicate: 10"
    assert facts["Tokens"].startswith("158,112 computed;") and "1.91 times" in facts["Tokens"]
    assert facts["Checked before step 1"] == (
        "8 pairs scored by the fast and by the plain path differ by 3.1e−06 nats an answer; "
        "0.0001 is allowed"
    )
    assert facts["Initial policy"] == "loss 0.693147 (ln 2 is 0.693147), largest reward 0"
    assert "torch 2.13.0" in facts["Versions"] and facts["Backend"] == "segments"
    assert all(facts.values())


def test_what_a_pair_says_stands_behind_its_place(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo, run)
    pair_log = read_run(run).pair_log
    assert pair_log is not None
    worst, best = pair_log.smallest[0]["source"], pair_log.largest[0]["source"]
    rows = [
        {"source": worst, "prompt": "왜?", "chosen": "because", "rejected": "why not"},
        {"source": best, "prompt": "how?", "completion": "so"},
        {"source": "pairs.jsonl:3", "prompt": "what?", "chosen": "this", "rejected": "that"},
    ]
    write_jsonl(run / "pair_texts.jsonl", rows)
    items = render_report(read_run(run)).split("<li>")
    behind = {re.findall("<bdi>(.*?)</bdi>", item)[0]: item for item in items if "<bdi>" in item}

    def said(source: str) -> list[tuple[str, str]]:
        pattern = r'<h4>(\w+)</h4><p class="said"[^>]*>(.*?)</p>'
        return re.findall(pattern, behind[source], re.DOTALL)

    assert said(worst) == [("prompt", "왜?"), ("chosen", "because"), ("rejected", "why not")]
    assert said(best) == [("prompt", "how?"), ("completion", "so")]
    assert said("pairs.jsonl:3")[1] == ("chosen", "this")
    assert said("pairs.jsonl:4") == []


def test_findings_have_their_place_and_cure(demo: Path) -> None:
    page = render_report(read_run(demo)).split('<section id="findings"')[1].split("</section>")[0]
    assert "duplicate" in page and "A pair that stands twice counts twice and may leak" in page
    assert "<bdi>pairs.jsonl:2</bdi>" in page and "the same pair as pairs.jsonl:1" in page
    assert "and 5 more" in page


def test_judgements_stand_by_their_answer(demo: Path) -> None:
    text = render_report(read_run(demo))
    sample = text.split('<article class="sample">')[1]
    before, after = sample.split("<h4>After</h4>")
    assert "✗ not in the preferred manner" in before and "✓ topic named" in before
    assert "✓ preferred manner" in after and "✗" not in after


def test_the_same_folder_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    first = write_report(demo).read_bytes()
    copy = tmp_path / "demo"
    shutil.copytree(demo, copy)
    assert write_report(copy).read_bytes() == first == write_report(demo).read_bytes()


def test_a_folder_of_an_older_version_gives_the_same_figures(demo: Path, tmp_path: Path) -> None:
    old = tmp_path / "demo"
    shutil.copytree(demo, old)
    (old / "pair_log").rename(old / "ledger")
    about = json.loads((old / "run.json").read_text("utf-8"))
    about["gate"] = about.pop("preflight")
    write_json(old / "run.json", about)
    assert read_run(old).pair_log == read_run(demo).pair_log is not None
    assert write_report(old).read_bytes() == write_report(demo).read_bytes()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.yaml", "There is no config.yaml"),
        ("metrics.jsonl", "There is no metrics.jsonl, so losses and rewards are not known."),
        ("timing.jsonl", "There is no timing.jsonl, so its speed is not known."),
        ("pair_log", "There is no pair log in this folder"),
        ("outcome.json", "moving at random gives 50%"),
        ("samples.jsonl", "No sampled answers in this folder"),
        ("pair_texts.jsonl", "Their texts are not in this folder"),
    ],
)
def test_whatever_is_missing_is_said(demo: Path, tmp_path: Path, missing: str, said: str) -> None:
    run = tmp_path / "demo"
    shutil.copytree(demo, run)
    gone = run / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    text = write_report(run).read_text(encoding="utf-8")
    assert said in text
    assert ('data-chart="speed"' in text) == (missing != "timing.jsonl")


def test_a_run_with_nothing_yet(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No step has been written yet, so there is nothing to judge." in page.texts["p"]
    assert "script" not in page.texts


def test_a_run_of_one_step_draws_points(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", steps=1, planned=400, status="running"))
    charts = {chart.id: chart for chart in draw_charts(run)}
    assert charts["loss"].drawing["lines"][0]["paths"]["dots"].endswith("h0")
    assert "step 1 of 400" in render_report(run)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "null"])
def test_no_run_folder(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputMissing) as caught:
        write_report(tmp_path)
    assert caught.value.exit_code == 66 and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(InputMissing, match="no such run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_the_page_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    run = build_run(tmp_path / "run", steps=2, planned=2)
    (run / "report.html").write_text("the old page", encoding="utf-8")
    before = sorted(run.iterdir())

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_report(run)
    assert caught.value.exit_code == 73
    assert (run / "report.html").read_text(encoding="utf-8") == "the old page"
    assert sorted(run.iterdir()) == before


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, likelier.report; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_content_of_the_files_breaks_the_page(tmp_path: Path, data: st.DataObject) -> None:
    def anything_like(sound: Any) -> Any:
        """The same tree with any of its values replaced by any other."""
        if isinstance(sound, dict) and data.draw(st.booleans()):
            return {key: anything_like(value) for key, value in sound.items()}
        return data.draw(st.just(sound) | json_values)

    run = tmp_path / "run"
    if not run.exists():
        add_demo(build_run(run, steps=2, planned=2))
    about = anything_like(record(2, 2, "finished"))
    write_json_ascii(run / "run.json", sealed(about if isinstance(about, dict) else {}))
    (run / "config.yaml").write_text(json.dumps(anything_like(CONFIG)), encoding="utf-8")
    for name in LOGS:
        rows = [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(anything_like(row)) for row in rows[:2]]
        (run / f"{name}.odd").write_text("\n".join(lines), encoding="utf-8")
    write_json_ascii(run / "outcome.json", anything_like({"preferred_after": {"value": 1.0}}))
    odd = tmp_path / "odd"
    odd.mkdir(exist_ok=True)
    for name in ("run.json", "config.yaml", "outcome.json"):
        shutil.copy(run / name, odd / name)
    for name in LOGS:
        shutil.copy(run / f"{name}.odd", odd / name)
    text = write_report(odd).read_text(encoding="utf-8")
    Page(text.split('<script type="application/json"')[0].removesuffix("</html>\n"))


def write_json_ascii(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
