"""Templates and tokenizers of strangers: each that would never end, or fill the memory, ends a
command within seconds, in one line that says where, and no process is lost but a child.
"""

import json
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import TEMPLATE, pair_rows, save_tiny, tiny_tokenizer, write_rows

from likelier.base.child import Child, in_child
from likelier.base.errors import DataError, RunFailed
from likelier.base.findings import Unfit
from likelier.chat.tokenizer import build_encoder
from likelier.cli import main
from likelier.config.schema import DataConfig
from likelier.data.load import load

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


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are forked from here on."""
    numbers: list[int] = []
    fork = os.fork

    def noted() -> int:
        numbers.append(number := fork())
        return number

    monkeypatch.setattr(os, "fork", noted)
    return numbers


def assert_none_is_left(forked: list[int]) -> None:
    assert forked
    for number in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(number, os.WNOHANG)


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
    assert code == 65
    assert where in error and error.startswith("error: ") and error.count("\n") <= 2
    assert used() - began < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MOST_MEGABYTES * 1024


@pytest.mark.parametrize("command", ["check", "score", "plan", "train"])
def test_every_command_ends_so(
    command: str,
    stranger: Callable[[Change], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forked: list[int],
) -> None:
    change, _ = STRANGERS["a pattern that never ends"]
    data, folder, out = rows(tmp_path), stranger(change), tmp_path / "out"
    words = [command, str(data), "--model", str(folder)]
    if command in ("plan", "train"):
        words = [command, f"model.path={folder}", f"data.train={data}", f"out={out}"]
    assert main(words) == 65
    error = capsys.readouterr().err
    assert "pairs.jsonl:2 tokenizer.json: it " in error and not out.exists()
    assert_none_is_left(forked)


def test_in_large_data_too(
    stranger: Callable[[Change], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forked: list[int],
) -> None:
    """The first row that kills is the one that is named, whichever child dies first."""
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 1)
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    found = pair_rows(12)
    for row in found[5:]:
        row["prompt"][0]["content"] += " a"
    data = write_rows(tmp_path / "pairs.jsonl", found)
    folder = stranger(tokenizer(normalizer=growing(" a", 12)))
    assert main(["check", str(data), "--model", str(folder)]) == 65
    assert "pairs.jsonl:6 tokenizer.json: it takes more than" in capsys.readouterr().err
    assert_none_is_left(forked)


@pytest.mark.parametrize("rows_at_once", [500, 1])
def test_a_file_as_a_whole_is_bounded(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In however many processes: each is within every limit, and yet it would take days."""
    slow = "{% for i in range(400) %}{% for j in range(400) %}{% endfor %}{% endfor %}"
    named = tiny_tokenizer()
    named.chat_template = slow + TEMPLATE
    encoder = build_encoder(named)
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("likelier.base.limits.MAX_MEAN_SECONDS", 0.0)
    monkeypatch.setattr("likelier.base.limits.FREE_SECONDS", 0.5)
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(200))
    began = used()
    with pytest.raises(DataError, match=r"it took \d+ seconds for \d+ texts"):
        load(DataConfig(train=str(data)), encoder)
    assert used() - began < 5


def test_what_a_child_says_and_how_it_ends() -> None:
    def fail() -> None:
        raise DataError("is wrong", where="a:1", hint="fix")

    def refuse() -> None:
        raise Unfit("code", None, "is not to be sent", "hint")

    assert in_child(sorted, [2, 1]) == [1, 2]
    with pytest.raises(DataError, match="a:1: is wrong") as error:
        in_child(fail)
    assert error.value.where == "a:1"
    with pytest.raises(RuntimeError, match="Unfit: is not to be sent"):
        in_child(refuse)
    with pytest.raises(RunFailed, match="ended with -9"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = Child(lambda number: os.abort() if number else "here")
    assert child.ask(0) == "here"
    for _ in range(2):  # it stays dead, and says so
        with pytest.raises(RunFailed, match="ended with -6"):
            child.ask(1)
    child.close()


def test_a_child_hears_no_interrupt_and_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> str:
        print("shown", flush=True)
        os.write(2, b"shown")
        os.kill(os.getpid(), signal.SIGINT)
        return os.environ["TOKENIZERS_PARALLELISM"]

    assert in_child(work) == "false"
    assert capfd.readouterr() == ("", "")
