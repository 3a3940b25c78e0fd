"""The README and the pages for beginners followed as they are typed, after a real demo, in a clone.

They share a shell: a command that several of them show is run once.
"""

import json
import re
import shutil
from itertools import zip_longest
from pathlib import Path

import pytest
from tests.support.console import Shell, commands_of, not_printed, shows_all
from tests.support.demo_base import demo_cache

from likelier.base.files import read_lines
from likelier.config import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
KOREAN = (ROOT / "README.ko.md").read_text("utf-8")
USE = (ROOT / "docs" / "use.md").read_text("utf-8")
FOLLOWED = README[README.index("## With data and a model of your own") :]
PAGES = [ROOT / "docs" / "ko" / f"{name}.md" for name in ("start", "report", "data", "train")]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Shell:
    """In a folder with the examples, as a clone has them after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples", folder / "examples")
    cache = demo_cache(pytestconfig.cache.mkdir("demo"))
    shutil.copytree(cache / "demo", folder / "cache" / "demo")
    shell = Shell(folder)
    assert "report, after" in shell.run("likelier demo")
    return shell


@pytest.mark.slow
def test_the_pages_for_beginners_show_what_is_printed(shell: Shell) -> None:
    """From one page to the next, as a reader follows them."""
    wrong, times = [], dict[str, int]()
    for page in PAGES:
        for command, shown in commands_of(page.read_text("utf-8")):
            times[command] = times.get(command, -1) + 1
            printed = shell.run(command, times[command])
            lost = not_printed(shown, printed)
            if not lost and not shows_all(shown, printed):
                lost = [f"lines are left out and no … says so, of: {command}"]
            wrong += [f"{page.name}: {line}" for line in lost]
    assert not wrong, "\n".join(wrong)
    assert len(times) >= 12 and sum(times.values()) > 0


def test_what_a_page_shows_is_compared() -> None:
    page = "```console\n$ cat <<'END'\n> a\n> END\na\n$ ls\n…\nstep 1 of 2: 0.5 s\n```\n"
    commands = [("cat <<'END'\na\nEND", ["a"]), ("ls", ["…", "step 1 of 2: 0.5 s"])]
    assert list(commands_of(page)) == commands
    assert not_printed(["b", "a"], "a\nb\n") == ["a"]
    assert not_printed(["…", "step 1 of 2: 0.5 s"], "x\nstep 2 of 2: 3e-4 ms\n") == []
    assert not_printed(["step 1 of 2"], "stop 1 of 2\n") == ["step 1 of 2"]
    assert shows_all(["…", "step 2", "b"], "a\nstep 1\nstep 2\nb\n") and shows_all([], "")
    for shown in (["b"], ["a"], [], ["a", "…"]):
        assert shows_all(shown, "a\nb\n") == (shown == ["a", "…"])


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
def test_the_commands_and_then_the_python(shell: Shell) -> None:
    block = re.search(r"```\nsource .*?\n(.*?)```", FOLLOWED, re.DOTALL)
    assert block
    clone, printed = shell.folder, {}
    for line in block[1].splitlines():
        command = line.split("#")[0].strip()
        printed[command.partition("likelier ")[2].split()[0]] = shell.run(command)
    assert list(printed) == [
        "check", "show", "plan", "train", "report", "chat", "export", "verify", "sweep",
        "compare", "losses", "import",
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
    assert len(shell.run(_python(by_peft)).split()) > 2  # an answer in words
    assert "grad_fn" in shell.run(_python(by_likelier))


def _python(program: str) -> str:
    return f"python <<'END'\n{program}END"


@pytest.mark.slow
def test_what_the_page_of_chat_and_sample_shows(shell: Shell) -> None:
    """Its commands, after those above: every line as it is shown, but for what a model says."""
    clone = shell.folder
    shell.run("likelier train examples/turned.yaml")
    prompts = re.findall(r"`(\{\"prompt\": .*?\})`", USE)
    (clone / "questions.jsonl").write_text("".join(f"{row}\n" for row in prompts), "utf-8")
    (clone / "questions.txt").write_text("러스트는 무엇인가요?\n", "utf-8")
    commands = re.findall(r"^likelier (.*)", USE, re.MULTILINE)
    talk, piped, sampled = (f"likelier {command}" for command in commands)
    shown, sampling = (_printed(USE, what) for what in ("chat", "sample"))

    typed = "".join(f"{line[2:]}\n" for line in shown if line.startswith("> "))
    expected = [line for line in shown if not line.startswith("> ")]
    printed = shell.run(f"{talk} <<'END'\n{typed}END").splitlines()
    assert _without_answers(printed, clone) == _without_answers(expected, clone)

    shell.run(piped)
    answers = (clone / "answers.txt").read_text("utf-8").splitlines()
    assert "tuned" in answers and "base" not in answers

    printed = shell.run(sampled).splitlines()
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
