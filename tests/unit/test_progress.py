"""What a person sees: a bar in a terminal, plain lines elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from likelier.base import terminal as progress
from likelier.base.terminal import bar, counting, say


def lines(total: int, done: int, parts: list[int], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with bar("work", total, done) as advance:
        for part in parts:
            advance(part, "loss 0.5")
    return capsys.readouterr().err.splitlines()


def test_few_parts_are_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(3, 0, [1, 1, 1], capsys) == [f"work {n}/3  loss 0.5" for n in (1, 2, 3)]


def test_many_parts_are_told_twenty_times(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(1000, 0, [1] * 1000, capsys)
    assert len(said) == 20
    assert said[0] == "work 50/1000  loss 0.5"
    assert said[-1] == "work 1000/1000  loss 0.5"


def test_what_was_done_before_is_not_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(1000, 900, [1] * 100, capsys)
    assert [line.split()[1] for line in said] == ["950/1000", "1000/1000"]


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(0, 0, [], capsys) == []
    assert lines(5, 5, [], capsys) == []


def test_results_can_be_piped(capsys: pytest.CaptureFixture[str]) -> None:
    say("한 줄")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "한 줄\n")


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", lambda stderr: console)
    with bar("train", 4, 1) as advance:
        advance(1, "loss 0.5")
        advance(2, "loss 0.4")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert "train" in plain
    assert "4/4" in plain
    assert re.search(r"elapsed 0:\d\d:\d\d left 0:00:00", plain)  # times by their names
    assert "loss 0.4" in plain


def test_a_bar_and_its_figures_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console", lambda stderr: console)
    text = "loss 0.6931  margin -12.345  held out: loss 0.6931  accuracy 100%"
    with bar("train", 12_000, 11_999) as advance:
        advance(1, text)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    last = plain.splitlines()[-2:]
    assert "12000/12000" in last[0] and "elapsed" in last[0] and "left" in last[0]
    assert "…" not in last[0] and last[1].strip() == text


def test_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time has passed, or it ran backwards: bars and rates are shown without."""
    times = iter([5.0, 5.0, 5.0, 4.0, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times, 3.0))
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, get_time=time.monotonic)
    monkeypatch.setattr(progress, "console", lambda stderr: console)
    with bar("train", 4) as advance:
        for _ in range(4):
            advance(1, "loss 0.5")
    with counting("reading", "pairs.jsonl") as count:
        count(7)
        count(7)
    assert "4/4" in shown.getvalue() and "14 rows" in shown.getvalue()
