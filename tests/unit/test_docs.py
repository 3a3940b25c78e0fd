"""The documents show what is there: files, commands, configs and the tree."""

import importlib.util
import re
from pathlib import Path

import pytest

from faults import SECTIONS
from faults import page as reliability
from likelier.cli import app
from likelier.config import load_config

ROOT = Path(__file__).parents[2]
README, FILES = ROOT / "README.md", ROOT / "docs" / "files.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def _tree() -> str:
    """The tree of docs/files.md: every module under src with its one idea."""
    lines = []
    package = ROOT / "src" / "likelier"
    for module in sorted(package.rglob("*.py"), key=lambda p: (p.parent != package, p)):
        if module.name == "__init__.py" and module.parent == package:
            continue
        name = str(module.relative_to(package))
        if module.name == "__init__.py":
            name = f"{module.parent.relative_to(package)}/"
        text = module.read_text(encoding="utf-8")
        idea = re.match(r'"""(.*?)(?:"""|\n)', text)
        assert idea, f"{name} does not say its idea in its first line"
        *above, last = name.removesuffix("/").split("/")
        shown = "  " * len(above) + last + "/" * name.endswith("/")
        lines.append(f"{shown:20} {idea[1].rstrip('.')}")
    return "\n".join(lines)


def test_the_tree_of_files_is_the_tree() -> None:
    found = re.search(r"<!-- tree -->\n```\n(.*?)\n```", FILES.read_text("utf-8"), re.DOTALL)
    assert found and found[1] == _tree(), "run: python -m tests.unit.test_docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text("utf-8"))
    lost = [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text("utf-8")]
    assert not lost
    assert named or page.name != "gpu.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:src|docs|examples|bench|faults|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_shown_are_commands_there(page: Path) -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for block in re.findall(r"```(?:console)?\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for shown in re.findall(r"^(?:\$ )?likelier +(\w+)", block, re.MULTILINE):
            assert shown in commands, shown


def test_the_example_config_is_one_and_is_the_one_shown() -> None:
    example = ROOT / "examples" / "exaone.yaml"
    config = load_config(example)
    assert config.model.path == "LGAI-EXAONE/EXAONE-4.0-1.2B"
    shown = re.search(r"```yaml\n#.*?\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert shown
    body = "".join(
        line
        for line in example.read_text("utf-8").splitlines(keepends=True)
        if not line.startswith("#")
    )
    assert shown[1] == body


def test_architecture_names_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    folders = [
        p.name for p in (ROOT / "src" / "likelier").iterdir() if (p / "__init__.py").exists()
    ]
    for folder in folders:
        assert f"{folder}/" in text, folder


def test_the_glossary_explains_every_word_in_both_languages() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text("utf-8").splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    words = [row[0] for row in rows if row[0].strip() != "English"]
    assert len(words) == len(set(words)) >= 50
    for row in rows:
        assert len(row) == 4 and all(cell.strip() for cell in row), row
        assert re.search("[가-힣]", row[3]), row


def test_the_tables_of_the_benchmarks_are_their_results() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "bench" / "page.py")
    assert spec and spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    texts = [file.read_text("utf-8") for file in page.PAGES]
    assert sum(text.count("<!-- table ") for text in texts) == len(page.TABLES)
    assert all(page.page(text) == text for text in texts), "run: python bench/page.py"


def test_the_figures_of_reliability_are_their_results() -> None:
    text = reliability.PAGE.read_text("utf-8")
    assert set(re.findall(r"<!-- figures (\w+) -->", text)) == {"all", *SECTIONS}
    assert reliability.page(text) == text, "run: python -m faults.page"


if __name__ == "__main__":  # writes the tree
    head, _, rest = FILES.read_text("utf-8").partition("<!-- tree -->\n```\n")
    FILES.write_text(f"{head}<!-- tree -->\n```\n{_tree()}{rest[rest.index(chr(10) + '```') :]}")
