"""The site of the documentation: built without a warning, whole offline, searched in Korean."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.support.browser import CHROMIUM, Tab, browser_tab

DOCS = Path(__file__).parents[2] / "docs"
NAMES = sorted(str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md"))


def build(docs: Path, site: Path) -> tuple[int, str]:
    """As `make docs`: the exit code, and what was wrong."""
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(site.with_name("trees"))]
    words = [sys.executable, "-m", "sphinx", *options, str(docs), str(site)]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    assert build(DOCS, folder) == (0, "")
    return folder


def test_every_page_is_there_and_says_its_language(site: Path) -> None:
    assert sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("ko/*.md")) == [
        "ko/data.md", "ko/report.md", "ko/start.md", "ko/train.md",
    ]  # fmt: skip
    for name in NAMES:
        text = (site / f"{name}.html").read_text("utf-8")
        language = "ko" if name == "index" or name.startswith("ko/") else "en"
        assert re.search(rf'<html [^>]*lang="{language}"', text), name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="([^"]+)"', text)
        assert loaded and not [one for one in loaded if "//" in one], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text("utf-8"))


def test_the_first_link_of_the_site_is_where_beginners_start(site: Path) -> None:
    text = (site / "index.html").read_text("utf-8")
    assert re.findall(r'class="reference internal" href="([^"#]+)"', text)[0] == "ko/start.html"


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    shutil.copy(DOCS / "conf.py", tmp_path)
    shutil.copytree(DOCS / "_static", tmp_path / "_static")
    shutil.copy(DOCS / "glossary.md", tmp_path / "index.md")
    (tmp_path.parent / "beside.md").touch()  # the site has not what lies beside its pages
    with (tmp_path / "index.md").open("a") as file:
        file.write("\n[a file](../beside.md#there)\n")
    code, said = build(tmp_path, tmp_path / "site")
    assert code == 0, said
    with (tmp_path / "index.md").open("a") as file:
        file.write("\n[a word](../nowhere.md) and [another](#elsewhere)\n")
    code, said = build(tmp_path, tmp_path / "site")
    assert code != 0
    assert re.findall(r"target not found: '(.*?)'", said) == ["../nowhere.md", "elsewhere"]


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium browser is installed")
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def test_pages_open_from_the_disk_and_fit(site: Path, tab: Tab) -> None:
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for name in NAMES:
        tab.renew()
        tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
        tab.open(site / f"{name}.html")
        assert tab.complaints == [] and tab.evaluate(wider) == 0, name
        assert not [one for one in tab.requests if not one.startswith(("file:", "data:"))]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("보고서", "보고서 읽기"),
        ("학습", "내 모델 학습하기"),  # stands there with endings only
        ("선호쌍 설치", "시작하기"),
        ("답", "보고서 읽기"),
        ("checkpoints", "Reliability"),
    ],
)
def test_search_finds_words_with_their_endings(site: Path, tab: Tab, words: str, page: str) -> None:
    tab.renew()
    found = "[...document.querySelectorAll('#search-results li a')].map(one => one.textContent)"
    tab.call("Page.navigate", url=f"{(site / 'search.html').as_uri()}?q={quote(words)}")
    # Its title changes behind the last of them; how many there are it says in English alone.
    tab.evaluate("""new Promise(done => { const wait = () =>
        typeof _ === 'function'
            && document.querySelector('#search-results h2')?.innerText === _('Search Results')
            ? done() : setTimeout(wait, 50);
        setTimeout(done, 30000); wait(); })""")
    assert page in tab.evaluate(found) and tab.complaints == []
