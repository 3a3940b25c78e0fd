"""The catalogue of texts: no sentence missing, none left over, none anywhere else."""

import ast
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from threading import Barrier
from typing import NamedTuple

import jinja2
import pytest
import yaml
from jinja2 import nodes
from tests.support.report_runs import add_demo, build_run, write_jsonl

from likelier import pages
from likelier.base.errors import ConfigError
from likelier.cli import main
from likelier.pages import texts
from likelier.pages.texts import catalogue, choose_language, in_language, language, text
from likelier.report.page import make_report

SOURCE = Path(pages.__file__).parents[1]
TEMPLATES = sorted((SOURCE / "pages" / "templates").glob("*.html"))
SAYS = re.compile(r"from likelier\.pages\.texts import|^def text\(", re.MULTILINE)
PAGES = [path for path in sorted(SOURCE.rglob("*.py")) if SAYS.search(path.read_text("utf-8"))]
ENGLISH = catalogue("en")
SPOKEN = {"aria-label", "title", "alt", "placeholder", "summary", "label"}  # read aloud


class Use(NamedTuple):
    """A call of text(): its key, with None for each part that is computed, and its values."""

    key: tuple[str | None, ...]
    values: set[str] | None  # None: some are passed on as a whole
    where: str


def uses() -> Iterator[Use]:
    for path in PAGES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id not in ("text", "text_or") or not node.args:
                    continue
                names = [keyword.arg for keyword in node.keywords]
                values = None if None in names else {str(name) for name in names}
                for key in python_keys(node.args[0]):
                    yield Use(key, values, path.name)
    for path in TEMPLATES:
        tree = jinja2.Environment().parse(path.read_text("utf-8"))
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "text":
                yield Use(template_key(call.args[0]), {k.key for k in call.kwargs}, path.name)


def python_keys(node: ast.expr) -> list[tuple[str | None, ...]]:
    if isinstance(node, ast.IfExp):
        return python_keys(node.body) + python_keys(node.orelse)
    if isinstance(node, ast.JoinedStr):
        parts = [n.value if isinstance(n, ast.Constant) else None for n in node.values]
        return [tuple(parts)]
    assert isinstance(node, ast.Constant), ast.dump(node)
    return [(node.value,)]


def template_key(node: nodes.Node) -> tuple[str | None, ...]:
    parts = node.nodes if isinstance(node, nodes.Concat) else [node]
    return tuple(part.value if isinstance(part, nodes.Const) else None for part in parts)


USES = list(uses())
LITERALS = {
    node.value
    for path in SOURCE.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


def matching(use: Use) -> set[str]:
    """The keys that a use may mean: what is computed must stand as a word in the code."""
    pattern = "".join("([^.]+)" if part is None else re.escape(part) for part in use.key)
    found = {key: re.fullmatch(rf"{pattern}(?:\.one|\.other)?", key) for key in ENGLISH}
    return {key for key, match in found.items() if match and set(match.groups()) <= LITERALS}


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}


def test_every_key_that_is_used_exists() -> None:
    assert len(USES) > 150
    assert [use for use in USES if not matching(use)] == []


def test_every_key_is_used() -> None:
    assert set(ENGLISH) - {key for use in USES for key in matching(use)} == set()


def test_every_placeholder_gets_its_value_and_no_value_is_left_over() -> None:
    wrong = []
    for use in USES:
        if use.values is None or None in use.key:
            continue  # strict when it runs: the tests of the pages run them
        wanted = {name for key in matching(use) for name in placeholders(ENGLISH[key])}
        plural = {"n"} if use.key[0] not in ENGLISH else set()
        if wanted | plural != use.values:
            wrong.append((use, wanted))
    assert wrong == []


def test_a_missing_key_or_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        text("report.nowhere")
    with pytest.raises(KeyError, match="name"):
        text("report.title")
    assert text("report.title", name="{a} <b>") == "{a} <b> · likelier report"


@pytest.mark.parametrize("path", sorted(texts.CATALOGUES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_language_has_the_same_keys_and_placeholders(path: Path) -> None:
    found = catalogue(path.stem)
    assert found.keys() == ENGLISH.keys()
    assert all(isinstance(sentence, str) and sentence for sentence in found.values())
    names = {key: placeholders(sentence) for key, sentence in found.items()}
    assert names == {key: placeholders(sentence) for key, sentence in ENGLISH.items()}
    assert all(name.isidentifier() for found in names.values() for name in found)
    assert doubled(yaml.compose(path.read_text("utf-8"))) == []


def doubled(node: yaml.Node | None) -> list[str]:
    """Keys that stand twice in one section: the first of them would be lost in silence."""
    if not isinstance(node, yaml.MappingNode):
        return []
    names = [key.value for key, _ in node.value]
    deeper = [name for _, value in node.value for name in doubled(value)]
    return [name for name in names if names.count(name) > 1] + deeper


class Spoken(HTMLParser):
    """What a template says by itself: text between tags, and attributes that are read aloud."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.said: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.said += [value or "" for name, value in attrs if name in SPOKEN]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_templates_say_nothing_by_themselves(path: Path) -> None:
    tree = jinja2.Environment().parse(path.read_text("utf-8"))
    said: list[str] = []
    for output in tree.find_all(nodes.Output):
        said += [n.data if isinstance(n, nodes.TemplateData) else "\0" for n in output.nodes]
    assert [s for s in Spoken("".join(said)).said if re.search(r"[^\W\d_]", s)] == []
    constants = [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
    assert [c for c in constants if " " in c.strip()] == []


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that asks for no language."""
    for name in ("LIKELIER_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_first_that_names_a_language_decides(system: pytest.MonkeyPatch) -> None:
    assert choose_language() == "en"
    for name, value, chosen in [
        ("LANG", "ko_KR.UTF-8", "ko"),
        ("LC_MESSAGES", "en_US.UTF-8", "en"),
        ("LC_ALL", "ko", "ko"),
        ("LC_ALL", "kok_IN", "en"),  # Konkani
        ("LC_ALL", "ko.UTF-8", "ko"),
        ("LIKELIER_LANGUAGE", "en", "en"),
        ("LIKELIER_LANGUAGE", "auto", "ko"),
    ]:
        system.setenv(name, value)
        assert choose_language() == chosen, (name, value)
    assert choose_language(None, "en") == "en"
    assert choose_language("ko", "en") == "ko"
    assert choose_language("auto", "auto") == "ko"


def test_a_language_without_texts_is_refused(system: pytest.MonkeyPatch) -> None:
    system.setenv("LIKELIER_LANGUAGE", "../en")
    with pytest.raises(ConfigError, match="LIKELIER_LANGUAGE") as caught:
        choose_language()
    assert "use en or ko" in str(caught.value)
    with pytest.raises(ConfigError, match="language fr"), in_language("fr"):
        pass


def test_two_languages_in_one_process_do_not_meet(tmp_path: Path) -> None:
    """Each report in its own thread, both begun before either ends."""
    run = add_demo(build_run(tmp_path / "run", steps=2, planned=2))
    alone = {code: make_report(run, code) for code in ("en", "ko")}
    together = Barrier(2)

    def make(code: str) -> str:
        with in_language(code):
            together.wait(timeout=60)
            return text("report.words.margin") + make_report(run, code)

    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(alone, pool.map(make, alone), strict=True))
    assert made == {"en": f"Margin{alone['en']}", "ko": f"마진{alone['ko']}"}
    assert language() == "en"


def test_a_report_is_in_the_language_of_its_config(
    tmp_path: Path, system: pytest.MonkeyPatch
) -> None:
    run = add_demo(build_run(tmp_path / "run", steps=2, planned=2))
    assert '<html lang="en">' in make_report(run)
    with (run / "config.yaml").open("a") as config:
        config.write("lang: ko\n")
    assert '<html lang="ko">' in make_report(run)
    assert '<html lang="en">' in make_report(run, "en")
    (run / "config.yaml").write_text("lang: [ko]\n")
    assert '<html lang="en">' in make_report(run)


ENGLISH_WORD = re.compile(r"[A-Za-z]{2,}")
# What stays as it is in Korean: names of commands, keys, files, formats and notations.
NAMES = re.compile(
    r"`[^`]*`|[a-z_]+\.[a-z_.]+|[\w/]+\.(?:yaml|json|jsonl)|\{[^}]*\}|max_length|"
    r"(?:data|check) ?--?\w+|assistant|user|system|tool|role|content|true|false|null|tie|"
    r"\w+_response_id|labels|overall_preference|[A-Z][A-Za-z/]+|likelier(?: \w+)?|check|ln|mean|"
    r"history|last|drop|trim|resize_token_embeddings|eos_token_id|Ctrl-C"
)


def test_nothing_is_left_in_english() -> None:
    """A sentence that was copied and not translated has words that are no names."""
    left = {
        key: found
        for key, sentence in catalogue("ko").items()
        if (found := ENGLISH_WORD.findall(NAMES.sub(" ", sentence)))
    }
    assert left == {}


# A particle that depends on the last sound of the word before it, behind a value.
PARTICLE = re.compile(
    r"\}(?:은|는|이|가|을|를|과|와|으로|로|이에요|예요|였어요|이었어요)(?![가-힣(])"
)


def test_no_particle_hangs_on_a_value_that_may_end_either_way() -> None:
    """Shares end in %, read as a vowel, and are the exception."""
    shares = re.compile(
        r"\{(?:after|before|share|training|held_out|accuracy|longer|shorter|saturated|effective)\}|\{\w+:\.\d%\}"
    )
    wrong = {
        key: sentence
        for key, sentence in catalogue("ko").items()
        if PARTICLE.search(shares.sub("%", sentence))
    }
    assert wrong == {}


VOID = {"meta", "link", "br", "img", "input", "rect", "line", "circle", "path", "hr"}
BY_OTHERS = {"style", "script", "code", "pre", "bdi", "h1", "title", "template"}  # or by machines


class Ours(HTMLParser):
    """What a page says in words of ours: not in code, not in English by mark, not by a user."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.said: list[str] = []
        self._open: list[bool] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            foreign = tag in BY_OTHERS or given.get("lang") == "en" or given.get("dir") == "auto"
            self._open.append(foreign)
        if not any(self._open):
            self.said += [value or "" for name, value in attrs if name in SPOKEN]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not any(self._open):
            self.said.append(data)


def in_english(page: str) -> list[str]:
    return [one for one in Ours(page).said if ENGLISH_WORD.search(NAMES.sub(" ", one))]


def test_a_korean_report_says_nothing_in_english(tmp_path: Path) -> None:
    page = make_report(add_demo(build_run(tmp_path / "run", steps=120, planned=120)), "ko")
    assert '<html lang="ko">' in page and len(Ours(page).said) > 500
    assert in_english(page) == []


def test_a_korean_page_of_check_says_nothing_in_english(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": f"- {n}, yes " + "a" * n, "rejected": "아니요" * 20}
        for n in range(1200)
    ]
    odd = [{"prompt": "neither"}, {**rows[0], "chosen": "a\ufffdb"}, rows[1]]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, *odd])
    page = tmp_path / "check.html"
    command = ["check", str(tmp_path / "rows.jsonl"), "--html", str(page), "--lang", "ko"]
    assert main(command) == 65
    said = page.read_text("utf-8")
    assert '<html lang="ko">' in said and "글머리표 목록" in said and "오류" in said
    left = in_english(
        said.replace(str(tmp_path / "rows.jsonl"), "").replace("&#34;chosen&#34;", "")
    )
    assert left == [one for one in left if one.endswith("열: prompt, chosen, rejected")]


def test_lang_without_a_page_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert main(["check", str(tmp_path / "rows.jsonl"), "--lang", "ko"]) == 2
    assert "--lang" in (error := capsys.readouterr().err) and "--html" in error
