"""Templates and tokenizers of strangers: each that would never end, or fill the memory, ends a
command within seconds, in one line that says where, and no process is lost but a child.
"""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import TEMPLATE, pair_rows, save_tiny, write_rows

from likelier.cli import main

Change = Callable[[Path], None]
BOMB = "a" * 60 + "!"  # for (a+)+$: every way of cutting it in runs is tried
MOST_SECONDS = 20.0  # of processor time, of the child and of the command together
MOST_MEGABYTES = 2048


def template(source: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(source) and None


def tokenizer(**parts: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts))

    return change


def split_by(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def growing(text: str, times: int) -> dict[str, Any]:
    """Every ``text`` becomes ten of it, so many times over."""
    step = {"type": "Replace", "pattern": {"String": text}, "content": text * 10}
    return {"type": "Sequence", "normalizers": [step] * times}


def nested(folder: Path) -> None:
    path = folder / "tokenizer.json"
    inner = '{"type":"Sequence","normalizers":['
    text = path.read_text("utf-8")
    layers = inner * 100_000 + "]}" * 100_000
    path.write_text(re.sub(r'"normalizer": null', f'"normalizer": {layers}', text))


# What is done to a model folder, and where the error says it is.
STRANGERS: dict[str, tuple[Change, str]] = {
    "one long call of C": (template("{{ 3**(3*10**7) }}" + TEMPLATE), "chat template"),
    "in a loop that is caught": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "chat template",
    ),
    "a folded text": (template("{{ ('a' * 10**10) | length }}" + TEMPLATE), "chat template"),
    "100,000 layers": (
        template("{% if 1 %}" * 100_000 + TEMPLATE + "{% endif %}" * 100_000), "chat template"
    ),
    "100,000 brackets": (template("{{" + "(" * 100_000 + "1" + ")" * 100_000 + "}}"), "template"),
    "a pattern that never ends": (
        tokenizer(pre_tokenizer=split_by("(a|a)+$|(a+)+b")), "tokenizer.json"
    ),
    "a text that grows": (tokenizer(normalizer=growing("a", 12)), "tokenizer.json"),
    "layers of a tokenizer": (nested, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def stranger(model: Path, tmp_path: Path) -> Callable[[Change], Path]:
    def changed(change: Change) -> Path:
        folder = tmp_path / "stranger"
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder)
        return folder

    return changed


def used() -> float:
    """Seconds of processor time of this process and of its children that ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def rows(tmp_path: Path, count: int = 3) -> Path:
    found = pair_rows(count)
    found[1]["prompt"][0]["content"] = BOMB
    return write_rows(tmp_path / "pairs.jsonl", found)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_command_ends_in_one_line(
    name: str,
    stranger: Callable[[Change], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, where = STRANGERS[name]
    began = used()
    code = main(["show", str(rows(tmp_path)), "--model", str(stranger(change))])
    error = capsys.readouterr().err
    print(error, used() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    assert code == 65
    assert where in error and error.startswith("error: ") and error.count("\n") <= 2
    assert used() - began < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MOST_MEGABYTES * 1024
