"""The page of chat and sample: its commands as they are typed, and what they print."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.demo_base import demo_cache

from likelier.base.files import read_lines
from likelier.demo.base import base_model

ROOT = Path(__file__).parents[2]
USE = (ROOT / "docs" / "use.md").read_text("utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The examples, and the demo's base in the place of the model that it trains."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", folder / "examples")
    cache = demo_cache(pytestconfig.cache.mkdir("demo"))
    shutil.copytree(base_model(parent=cache / "demo"), folder / "runs" / "demo" / "model")
    return folder


def run(clone: Path, *words: str, typed: str = "") -> str:
    """What a process prints on either stream, once it ended well."""
    settings = os.environ | {"LIKELIER_CACHE": str(clone / "cache"), "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, *words], cwd=clone, env=settings, input=typed,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.slow
def test_what_the_page_of_chat_and_sample_shows(clone: Path) -> None:
    """Its commands, after those above: every line as it is shown, but for what a model says."""
    if not (clone / "runs" / "turned").exists():
        run(clone, "-m", "likelier", "train", "examples/turned.yaml", "train.epochs=1")
    prompts = re.findall(r"`(\{\"prompt\": .*?\})`", USE)
    (clone / "questions.jsonl").write_text("".join(f"{row}\n" for row in prompts), "utf-8")
    (clone / "questions.txt").write_text("러스트는 무엇인가요?\n", "utf-8")
    commands = re.findall(r"^likelier (.*)", USE, re.MULTILINE)
    talk, piped, sampled = (command.split() for command in commands)
    shown, sampling = (_printed(USE, what) for what in ("chat", "sample"))

    typed = "".join(f"{line[2:]}\n" for line in shown if line.startswith("> "))
    expected = [line for line in shown if not line.startswith("> ")]
    printed = run(clone, "-m", "likelier", *talk, typed=typed).splitlines()
    assert _without_answers(printed, clone) == _without_answers(expected, clone)

    given = (clone / piped[piped.index("<") + 1]).read_text("utf-8")
    printed = run(clone, "-m", "likelier", *piped[: piped.index("<")], typed=given).splitlines()
    assert "tuned" in printed and "base" not in printed

    printed = run(clone, "-m", "likelier", *sampled).splitlines()
    assert _without_answers(printed, clone) == sampling
    rows = read_lines(clone / "answers.jsonl")
    (example,) = re.findall(r"```json\n(.*?)\n```", USE)
    row = json.loads(example)
    assert row.keys() == rows[0].keys() and len(rows) == 4
    fixed = ("source", "prompt", "index", "seed")
    assert [row[name] for name in fixed] == [rows[0][name] for name in fixed]
    assert set(re.findall(r"^\| `(\w+)` \|", USE, re.MULTILINE)) == row.keys()
    settings = json.loads((clone / "answers.jsonl.settings.json").read_text("utf-8"))
    assert settings["asked"]["side"] == "tuned" and settings["rows_at_once"] == 64


def _printed(page: str, what: str) -> list[str]:
    block = re.search(rf"<!-- printed by {what} -->\n```\n(.*?)```", page, re.DOTALL)
    assert block
    return block[1].splitlines()


def _without_answers(lines: list[str], clone: Path) -> list[str]:
    """What a program says: the lines behind the name of a model are the model's."""
    lines = [line.replace(str(clone), "/…") for line in lines]
    return [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if before not in ("base", "tuned")
    ]
