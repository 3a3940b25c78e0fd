"""The catalogue of texts: no sentence missing, none left over, none anywhere else."""

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import jinja2
import pytest
import yaml
from jinja2 import nodes
from tests.support.report_runs import add_demo, build_run

from likelier import pages
from likelier.base.errors import ConfigError
from likelier.pages import texts
from likelier.pages.texts import catalogue, text
from likelier.report.page import render_report
from likelier.report.read import read_run

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
                if node.func.id != "text" or not node.args:
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
    for path in PAGES
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


def test_a_file_is_enough_for_another_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = (texts.CATALOGUES / "en.yaml").read_text("utf-8")
    (tmp_path / "en.yaml").write_text(english, "utf-8")
    tree = yaml.safe_load(english)
    tree["report"]["words"]["margin"] = "여백"
    (tmp_path / "ko.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    run = read_run(add_demo(build_run(tmp_path / "run", steps=2, planned=2)))
    monkeypatch.setattr(texts, "CATALOGUES", tmp_path)
    catalogue.cache_clear()
    try:
        assert "여백" not in render_report(run)
        monkeypatch.setenv("LIKELIER_LANGUAGE", "ko")
        page = render_report(run)
        assert '<html lang="ko">' in page and "<dt>여백</dt>" in page
        monkeypatch.setenv("LIKELIER_LANGUAGE", "../en")
        with pytest.raises(ConfigError, match="LIKELIER_LANGUAGE") as caught:
            render_report(run)
        assert "use one of en, ko" in str(caught.value)
    finally:
        catalogue.cache_clear()
