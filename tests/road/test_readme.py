"""The README followed as it is typed: its commands, then its Python, in a folder like a clone."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from tests.support.demo_base import demo_cache

from likelier.base.files import read_lines
from likelier.config import load_config
from likelier.demo.base import base_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
KOREAN = (ROOT / "README.ko.md").read_text("utf-8")
USE = (ROOT / "docs" / "use.md").read_text("utf-8")
FOLLOWED = README[README.index("## With data and a model of your own") :]


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


def test_both_readmes_show_the_same() -> None:
    """Every block but for its comments, and every table but for its words."""
    ours, theirs = (re.findall(r"^```(.*?)^```", x, re.DOTALL | re.M) for x in (README, KOREAN))
    for english, korean in zip_longest(ours, theirs, fillvalue=""):
        assert without_comments(english) == without_comments(korean)
    assert README.count("\n|") == KOREAN.count("\n|")
    assert len(re.findall("^#+ ", README, re.M)) == len(re.findall("^#+ ", KOREAN, re.M))


def without_comments(block: str) -> list[str]:
    return [line.split("#")[0].rstrip() for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_and_then_the_python(clone: Path) -> None:
    block = re.search(r"```\nsource .*?\n(.*?)```", FOLLOWED, re.DOTALL)
    assert block
    lines = [line.split("#")[0].split("|") for line in block[1].splitlines()]
    printed = {}
    for *before, command in lines:
        typed = "".join(word.split('"')[1] + "\n" for word in before)  # of echo
        words = command.split()
        printed[words[1]] = run(clone, "-m", *words, typed=typed)
    assert list(printed) == [
        "check", "show", "plan", "train", "report", "chat", "export", "verify", "losses", "import",
    ]  # fmt: skip
    assert "96 of 96 rows can be used" in printed["check"] and (clone / "check.html").exists()
    turned = clone / "runs" / "turned"
    steps = read_lines(turned / "metrics.jsonl")
    assert steps[-1]["eval_rewards/accuracies"] > 0.9
    assert (turned / "report.html").exists()
    assert " 0 of 19 pairs prefer the other answer" in printed["export"]
    assert printed["verify"].count("✓ ") == 5
    base, tuned = re.findall(r"^(?:base|tuned)\n(.+)", printed["chat"], re.MULTILINE)
    assert base != tuned
    assert load_config(clone / "imported.yaml").adapter.kind == "lora"
    assert (clone / "runs" / "merged" / "model.safetensors").exists()
    by_peft, by_likelier = re.findall(r"```python\n(.*?)```", FOLLOWED, re.DOTALL)
    assert len(run(clone, "-c", by_peft).split()) > 2  # an answer in words
    assert "grad_fn" in run(clone, "-c", by_likelier)


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
