"""`likelier chat` in a real terminal: Korean typed and shown, Ctrl-C, commands, how it ends."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.support.runs import Place
from tests.support.talker import save_talker
from tests.support.terminal import HAS_TMUX, NO_TMUX, Terminal, terminal
from tests.support.tiny import pair_rows, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_TMUX, reason=NO_TMUX)]

# Of each, some characters are several tokens.
BASE, TUNED, ENDLESS = "뷁!", "서울은 대한민국의 수도입니다.", "와!"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that trained all weights: models that say one sentence each."""
    place = Place(tmp_path_factory.mktemp("place"))
    write_rows(place.data, pair_rows(2))
    found = {}
    for name, (base, endless) in {"short": (BASE, False), "long": (ENDLESS, True)}.items():
        run = place.folder / name
        model = save_talker(place.folder / f"base-{name}", base, endless)
        save_talker(run / "model", TUNED)
        config = place.config(run, model={"path": str(model)})
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        found[name] = run
    return found


@contextmanager
def talk(run: Path, *words: str, **variables: str) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "likelier", "chat", str(run), "--temperature", "0", *words]
    with terminal(*command, **({"LC_ALL": "C.UTF-8"} | variables)) as shown:
        shown.wait_for("/help lists")
        shown.wait_for(">")
        yield shown


def behind_prompt(screen: list[str], text: str) -> list[str]:
    """The lines of the screen behind the last prompt with a text."""
    last = max(number for number, line in enumerate(screen) if line == f"> {text}".rstrip())
    return screen[last + 1 :]


def test_korean_is_typed_and_answered(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    with talk(runs["short"]) as shown:
        shown.type("서울은 뭐예요ㅁ한강")
        shown.press("BSpace", "BSpace", "BSpace")
        shown.type("?")
        assert shown.wait_for("?")[-1] == "> 서울은 뭐예요?"
        shown.press("Enter")
        shown.wait_for(TUNED)
        screen = shown.wait_for(">", times=2)
        assert behind_prompt(screen, "서울은 뭐예요?") == ["base", BASE, "tuned", TUNED, ">"]
        shown.press("Up", "Home", *["Delete"] * 4)
        shown.wait_for("> 뭐예요?")
        shown.press("Enter")
        shown.wait_for(TUNED, times=2)
        shown.type("가" * 60 + "나")  # longer than the terminal is wide, and then shorter again
        shown.wait_for("나")
        shown.press(*["BSpace"] * 31)
        shown.type("다")
        shown.wait_for("가다")
        shown.press("Enter")
        shown.wait_for(TUNED, times=3)
        shown.type(f"/save {file}")
        shown.press("Enter")
        shown.wait_for("2 rows in")
        assert f"> {'가' * 30}다" in shown.screen
        shown.press("C-d")
        assert shown.wait_for("code=")[-1] == "code=0"
    for row in map(json.loads, file.read_text("utf-8").splitlines()):
        said = [turn["content"] for turn in row["messages"]]
        assert said[::2] == ["서울은 뭐예요?", "뭐예요?", "가" * 30 + "다"]
        assert said[1::2] == [{"base": BASE, "tuned": TUNED}[row["side"]]] * 3


def test_backspace_takes_whole_characters_without_a_locale(runs: dict[str, Path]) -> None:
    with talk(runs["short"], LC_ALL="", LANG="", LC_CTYPE="") as shown:
        shown.type("서울은")
        shown.press("BSpace")
        shown.type("?")
        shown.wait_for("?")
        assert shown.screen[-1] == "> 서울?"
        shown.press("Enter")
        assert TUNED in shown.wait_for(TUNED)


def test_ctrl_c_stops_the_answer_and_not_the_program(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    with talk(runs["long"], "--max-new-tokens", "1000000") as shown:
        shown.type("끝이 있나요?")
        shown.press("Enter")
        shown.wait_for(ENDLESS * 10)
        shown.press("C-c")
        shown.wait_for(TUNED)
        shown.wait_for("base: stopped after")
        shown.wait_for(">", times=2)
        shown.type(f"/save {file}")
        shown.press("Enter")
        shown.wait_for("2 rows in")
        base, tuned = map(json.loads, file.read_text("utf-8").splitlines())
        part, whole = (row["messages"][-1]["content"] for row in (base, tuned))
        assert whole == TUNED
        assert len(part) > 10 * len(ENDLESS)
        assert (ENDLESS * len(part)).startswith(part)
        shown.type("한 번 더?")
        shown.press("Enter")
        shown.wait_until(lambda screen: screen[-1].startswith(ENDLESS))
        shown.press("C-c")
        shown.wait_for("base: stopped after", times=2)
        shown.type("/quit")
        shown.press("Enter")
        assert shown.wait_for("code=")[-1] == "code=0"


def test_ctrl_c_where_nothing_is_answered(runs: dict[str, Path]) -> None:
    leave = "to leave: Ctrl-C again, Ctrl-D or /quit"
    with talk(runs["short"]) as shown:
        shown.type("지울 글")
        shown.wait_for("지울 글")
        shown.press("C-c")
        shown.wait_until(lambda screen: screen[-1] == ">")
        shown.type("/nonsense")
        shown.press("Enter")
        shown.wait_for("there is no /nonsense")
        assert not any(leave in line for line in shown.screen), "it only took the line away"
        shown.press("C-c")
        shown.wait_for(leave)
        shown.type("/reset")
        shown.press("Enter")
        shown.wait_for("the conversation begins anew")
        shown.press("C-c")
        shown.wait_for(leave, times=2)
        shown.press("C-c")
        screen = shown.wait_for("code=")
        assert screen[-2:] == ["interrupted", "code=130"]
