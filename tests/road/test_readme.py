"""The README followed as it is typed: its commands, then its Python, in a folder like a clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.demo_base import demo_cache

from likelier.base.files import read_lines
from likelier.config import load_config
from likelier.demo.base import base_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
FOLLOWED = README[README.index("## With data and a model of your own") :]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The examples, and the demo's base in the place of the model that it trains."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", folder / "examples")
    cache = demo_cache(pytestconfig.cache.mkdir("demo"))
    shutil.copytree(base_model(parent=cache / "demo"), folder / "runs" / "demo" / "model")
    return folder


def run(clone: Path, *words: str) -> str:
    """What a process prints on either stream, once it ended well."""
    settings = os.environ | {"LIKELIER_CACHE": str(clone / "cache"), "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, *words], cwd=clone, env=settings, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_commands_and_then_the_python(clone: Path) -> None:
    block = re.search(r"```\nsource .*?\n(.*?)```", FOLLOWED, re.DOTALL)
    assert block
    lines = [line.split("#")[0].split() for line in block[1].splitlines()]
    printed = {words[1]: run(clone, "-m", *words) for words in lines}
    assert list(printed) == [
        "check", "show", "plan", "train", "report", "export", "losses", "import",
    ]  # fmt: skip
    assert "96 of 96 rows can be used" in printed["check"] and (clone / "check.html").exists()
    turned = clone / "runs" / "turned"
    steps = read_lines(turned / "metrics.jsonl")
    assert steps[-1]["eval_rewards/accuracies"] > 0.9
    assert (turned / "report.html").exists()
    assert "0 prefer the other answer" in printed["export"]
    assert load_config(clone / "imported.yaml").adapter.kind == "lora"
    assert (clone / "runs" / "merged" / "model.safetensors").exists()
    by_peft, by_likelier = re.findall(r"```python\n(.*?)```", FOLLOWED, re.DOTALL)
    assert len(run(clone, "-c", by_peft).split()) > 2  # an answer in words
    assert "grad_fn" in run(clone, "-c", by_likelier)
