"""`likelier explain`: one pair of a run in numbers, by tokens, in a terminal and as a page."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support.runs import Place, make_place, token_pairs
from tests.support.tiny import pair_rows as data_rows
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.base.files import read_lines
from likelier.chat.tokenizer import build_encoder
from likelier.cli import main
from likelier.commands import explain_terminal
from likelier.data.encode import token_texts
from likelier.evaluation.pair_formula import pair_formula
from likelier.losses.registry import bind
from likelier.losses.values import StepValues
from likelier.model.load import load
from likelier.pages import render_page
from likelier.pages.token_map import steps_of, token_map
from likelier.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def run(place: Place) -> Path:
    return train(place.config("run", train__steps=8)).folder


@pytest.fixture(scope="module")
def lora(place: Place) -> Path:
    settings = place.config(
        "lora", train__steps=4, adapter={"kind": "lora", "r": 2, "alpha": 8}, optim={"lr": 0.01}
    )
    return train(settings).folder


def explained(capsys: pytest.CaptureFixture, *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["explain", *map(str, words), "--json"]) == 0
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def test_a_pair_is_that_which_the_run_kept(run: Path, capsys: pytest.CaptureFixture) -> None:
    kept = {row["source"]: row for row in read_lines(run / "pair_tokens.jsonl")}
    for name in ("best", "worst", "most-changed"):
        row = explained(capsys, run, "--pair", name)
        same = kept[row["source"]]
        assert row["margin"] == pytest.approx(same["margin"], abs=1e-6)
        assert row["loss"] == pytest.approx(same["loss"], abs=1e-6)
        for side in ("chosen", "rejected"):
            for key in ("logps", "reference_logps"):
                assert row["sides"][side][key] == pytest.approx(same["sides"][side][key], abs=1e-5)
            assert row["sides"][side]["texts"] == same["sides"][side]["texts"]
        assert row["held_out"] is False and row["notes"] == []
        assert row["prompt"].startswith("<|user|>")
    best, worst = (explained(capsys, run, "--pair", name)["margin"] for name in ("best", "worst"))
    assert best > worst


def test_a_place_names_a_pair(run: Path, place: Place, capsys: pytest.CaptureFixture) -> None:
    held_out = []
    for number in (1, 2, 3, 4, 5, 6):
        row = explained(capsys, run, "--pair", number)
        assert row["source"] == f"{place.data}:{number}"
        held_out.append(row["held_out"])
    again = explained(capsys, run, "--pair", f"{place.data}:2")
    assert again["source"].endswith(":2")
    assert main(["explain", str(run), "--pair", "99"]) == 66
    error = capsys.readouterr().err
    assert "no pair of this run stands there: 99" in error and "likelier show" in error
    assert main(["explain", str(place.folder / "nowhere"), "--pair", "1"]) == 66
    assert main(["explain", str(run)]) == 2
    assert main(["explain", str(run), "--pair", "1", "--json", "--no-color"]) == 2
    assert main(["explain", str(run), "--pair", "1", "--html", str(run / "report.html")]) == 73


@pytest.mark.parametrize("kind", ["run", "lora"])
def test_a_lost_reference_is_computed_again(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    folder: Path = request.getfixturevalue(kind)
    before = explained(capsys, folder, "--pair", "3")
    stored = folder / "reference.safetensors"
    stored.rename(aside := folder.parent / "aside")
    try:
        assert main(["explain", str(folder), "--pair", "3", "--json"]) == 0
    finally:
        aside.rename(stored)
    said = capsys.readouterr()
    again = json.loads(said.out)
    assert "its reference is computed again" in said.err
    assert abs(before["margin"]) > 1e-4
    assert again["margin"] == pytest.approx(before["margin"], abs=1e-5)
    for side in ("chosen", "rejected"):
        ours, theirs = (row["sides"][side]["reference_logps"] for row in (before, again))
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_other_data_are_noted(run: Path, place: Place, capsys: pytest.CaptureFixture) -> None:
    before = place.data.read_text("utf-8")
    try:
        lines = before.splitlines(keepends=True)
        place.data.write_text("".join(lines[:-1]), encoding="utf-8")
        assert explained(capsys, run, "--pair", "3")["notes"] == ["other_data"]
    finally:
        place.data.write_text(before, encoding="utf-8")


def test_a_run_from_memory_has_what_it_kept(place: Place, capsys: pytest.CaptureFixture) -> None:
    settings = place.config("memory", data={}, train__steps=2)
    del settings["model"]
    tokenizer = tiny_tokenizer()
    folder = train(settings, tiny_model(tokenizer), tokenizer, train=data_rows(12)).folder
    row = explained(capsys, folder, "--pair", "best")
    assert row["notes"] == ["kept"] and row["source"].startswith("train[")
    kept = {one["source"] for one in read_lines(folder / "pair_tokens.jsonl")}
    other = next(n for n in range(12) if f"train[{n}]" not in kept)
    assert main(["explain", str(folder), "--pair", str(other)]) == 2
    assert "in memory, and kept no tokens of" in capsys.readouterr().err
    assert main(["explain", str(folder), "--pair", "best"]) == 0
    assert "what the run kept of the pair" in capsys.readouterr().out


# ---- the formula -----------------------------------------------------------------------------

LOSSES: list[dict[str, Any]] = [
    {"name": "sigmoid", "beta": 0.3},
    {"name": "cdpo", "smoothing": 0.2},
    {"name": "hinge"},
    {"name": "ipo_sum"},
    {"name": "ipo_mean"},
    {"name": "sigmoid_mean"},
    {"name": "simpo"},
    {"name": "rdpo"},
    {"name": "odpo"},
    {"name": "nca"},
    {"name": "cal_dpo"},
    {"name": "orpo"},
    {"name": "apo_zero"},
    {"name": "mixture", "parts": [{"name": "sigmoid"}, {"name": "ipo_sum", "weight": 0.1}]},
]


def value_of(formula: str) -> float:
    """The value of a formula that is written with its numbers: definitions stand behind it."""
    first, *rest = re.split(r", (?=\w+(?:\(\w\))? = )", formula)
    names: dict[str, Any] = {"exp": math.exp, "max": max, "log": math.log}
    names["sigmoid"] = lambda x: 1 / (1 + math.exp(-x))

    def code(part: str) -> str:
        part = re.sub(r"log sigmoid\(", "log_sigmoid(", part).replace("^", "**")
        return part

    names["log_sigmoid"] = lambda x: -math.log1p(math.exp(-x))
    for definition in reversed(rest):
        name, _, body = definition.partition(" = ")
        if "(" in name:
            names[name[0]] = eval(f"lambda {name[2]}: {code(body)}", names)
        else:
            names[name] = eval(code(body), names)
    return float(eval(code(first), names))


@pytest.mark.parametrize("section", LOSSES, ids=lambda section: section["name"])
def test_the_printed_formula_gives_the_loss(section: dict[str, Any]) -> None:
    values = StepValues(
        torch.tensor([-12.25, -20.5], dtype=torch.float64),
        torch.tensor([-13.5, -19.25], dtype=torch.float64),
        torch.tensor([5, 8]),
        torch.tensor([0]),
        torch.tensor([1]),
        margin_P=torch.tensor([0.75], dtype=torch.float64),
    )
    loss = bind(section)
    expected = float(loss.per_pair(values)[0])
    said = pair_formula(loss, values)
    assert "pc" not in said["with_numbers"] and "-12.2500" in said["with_numbers"]
    assert value_of(said["with_numbers"]) == pytest.approx(expected, rel=1e-6)
    assert said["is_logistic"] == (section["name"] == "sigmoid")


def test_the_steps_by_hand() -> None:
    """log-ratios +2 and -1, beta 0.1: margin 3, reward margin 0.3, sigmoid 0.5744, loss 0.5544."""
    side = {"tokens": 2, "logp": -8.0, "reference_logp": -10.0}
    row = {
        "beta": 0.1, "log_ratio_margin": 3.0, "loss": 0.554355,
        "sides": {"chosen": side, "rejected": {**side, "logp": -6.0, "reference_logp": -5.0}},
        "objective": {"formula": "F", "with_numbers": "N", "is_logistic": True, "scores": None},
    }  # fmt: skip
    assert [said for _, said in steps_of(row)] == [
        "F",
        "N",
        "policy −8.0000, reference −10.0000: log-ratio +2.0000 nats",
        "policy −6.0000, reference −5.0000: log-ratio −1.0000 nats",
        "+2.0000 − (−1.0000) = +3.0000 nats, × beta 0.1 = +0.3000, the reward margin",
        "sigmoid(+0.3000) = 0.5744: how surely the chosen answer is the better one, by these "
        "rewards",
        "−log 0.5744 = 0.5544 nats",
    ]


# ---- what it looks like ----------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e\u200b</span><script>1</script>\"'&"


def made_up(**changes: Any) -> dict[str, Any]:
    """A pair whose chosen answer has a token of each kind, and one of an attacker."""
    chosen = {
        "logp": -3.5, "reference_logp": -5.0, "counted": 5.0, "tokens": 6, "left_out": 0,
        "left_out_at": None, "ids": [1, 2, 3, 4, 5, 6], "shared": [0], "ends": [5],
        "texts": ["a", HOSTILE, "", "한", "\n", "<|end|>"],
        "logps": [-0.5, -1.0, -0.25, -0.25, None, -1.5],
        "reference_logps": [-0.5, -0.5, -0.5, -0.5, None, -3.0],
    }  # fmt: skip
    rejected = {**chosen, "texts": ["a", "b", "c", "d", "e", "f"]}
    group = {"tokens": 1, "sum": 0.1, "share": 0.1}
    return {
        "source": HOSTILE, "label": None, "beta": 0.1, "reads_reference": True, "common": 1,
        "log_ratio_margin": 1.5, "margin": 0.15, "is_tie": False, "loss": 0.6,
        "shares": {"tokens": 9, "total": 0.5, "first": group, "begin": group, "end": group,
                   "manner": group, "top": group},
        "objective": {"formula": "F", "with_numbers": "N", "is_logistic": True, "scores": None},
        "sides": {"chosen": chosen, "rejected": rejected},
    } | changes  # fmt: skip


class Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(row: dict[str, Any]) -> str:
    shown = token_map(row)
    return render_page(
        "explain.html", ["page.css", "tokens.css"], map=shown, steps=steps_of(row), notes=[],
        where="", prompt=None,
    )  # fmt: skip


def test_hostile_tokens_stay_text() -> None:
    page = page_of(made_up())
    plain = page_of(made_up(source="x", sides=json.loads(
        json.dumps(made_up()["sides"]).replace(json.dumps(HOSTILE), '"x"')
    )))  # fmt: skip
    ours, theirs = ([tag for tag, _ in Elements(one).found] for one in (page, plain))
    assert ours == theirs and "script" not in ours and "img" not in ours
    assert not {name for _, given in Elements(page).found for name in given} & {"onerror", "style"}
    for letter in "\x1b\u202e\u200b":
        assert letter not in page
    assert "\\u202e" in page and "\\u200b" in page and "\\x1b" in page


def test_tokens_that_make_one_character_are_one_with_the_sum() -> None:
    shown = token_map(made_up())
    assert shown is not None
    chosen = shown["sides"][0]["tokens"]
    assert [one["text"] for one in chosen] == ["a", HOSTILE, "한", "\n", "<|end|>"]
    assert (chosen[2]["tokens"], chosen[2]["policy"], chosen[2]["reward"]) == (
        2,
        "−0.500",
        "+0.050",
    )
    assert [one["level"] for one in chosen] == [0, -3, 3, 0, 4]  # of 0.15, the largest
    assert [one["scored"] for one in chosen] == [True, True, True, False, True]
    assert chosen[0]["shared"] and not chosen[1]["shared"] and chosen[4]["end"]


@pytest.mark.parametrize("damage", [
    {"sides": None}, {"sides": {"chosen": {}}}, {"beta": "x"}, {"shares": {}}, {"sides": []},
])  # fmt: skip
def test_a_damaged_row_is_none(damage: dict[str, Any]) -> None:
    assert token_map(made_up(**damage)) is None


def test_half_characters_of_a_byte_level_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    encoder = build_encoder(tokenizer)
    text = "값 🙂 뷁\u200d한\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(encoder, ids)
    assert len(texts) == len(ids) > len(text) and "".join(texts) == text
    assert "" in texts and any(one.strip() == "뷁" for one in texts)
    # Cut in the middle of a character: what is left of it is shown as broken, not hidden.
    assert token_texts(encoder, ids[:1])[-1] == "\ufffd"


def group(share: float, tokens: int) -> dict[str, float]:
    return {"share": share, "tokens": tokens, "sum": share}


@pytest.mark.parametrize("shares, said", [
    ({"end": group(0.6, 2)}, "length, not content"),
    ({"end": group(0.4, 2), "manner": group(0.7, 8)}, "manner and length rather than"),
    ({"begin": group(0.6, 6), "manner": group(0.6, 8)}, "which is manner rather than content"),
    ({"top": group(0.6, 4)}, "comes from few tokens, above all “<|end|>”"),
    ({"end": group(0.5, 2)}, "spread over many tokens"),
    ({"end": group(0.6, 14)}, "spread over many tokens"),  # which are a third of all
])  # fmt: skip
def test_where_a_margin_comes_from_in_words(shares: dict[str, Any], said: str) -> None:
    none = {name: group(0.1, 4) for name in ("first", "begin", "end", "manner", "top")}
    shown = token_map(made_up(shares={"tokens": 40, "total": 1.0, **none, **shares}))
    assert shown is not None and said in shown["sentences"][-1]


def test_a_tie_says_nothing_of_its_tokens() -> None:
    shown = token_map(made_up(is_tie=True))
    assert shown is not None and len(shown["sentences"]) == 1 and shown["tone"] == "warn"


def printed(monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], no_color: bool = False) -> str:
    to = io.StringIO()
    terminal = Console(file=to, force_terminal=True, color_system="truecolor", width=90,
                       highlight=False, markup=False)  # fmt: skip
    monkeypatch.setattr(explain_terminal, "console", lambda: terminal)
    shown = token_map(row)
    assert shown is not None
    explain_terminal.print_map(shown, row, steps_of(row), ["a note"], no_color)
    return to.getvalue()


def test_colours_in_a_terminal_and_a_table_without(monkeypatch: pytest.MonkeyPatch) -> None:
    row = made_up(source="file:1")
    coloured = printed(monkeypatch, row)
    assert "\x1b[1;37;48;2;42;111;176m<|end|>" in coloured  # bold white on the strongest blue
    for way in ("--no-color", "NO_COLOR"):
        if way == "NO_COLOR":
            monkeypatch.setenv("NO_COLOR", "1")
        plain = printed(monkeypatch, row, no_color=way == "--no-color")
        assert "\x1b[4" not in plain and "\x1b[1;" not in plain, way
        line = next(line for line in plain.splitlines() if "한" in line)
        assert line.split() == ["한", "−0.500", "−1.000", "+0.050"]
        assert "+0.150  end" in plain and "not scored" in plain and "in both" in plain


def test_korean_in_the_terminal(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", str(run), "--pair", "2", "--lang", "ko"]) == 0
    said = capsys.readouterr().out
    assert "선택된 응답" in said and "보상 마진" in said and "Margin" not in said


def test_the_page_of_a_pair(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "pair.html"
    assert main(["explain", str(run), "--pair", "2", "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "page: " in said.err and said.out == ""
    written = page.read_text("utf-8")
    pairs = token_pairs(load(run / "model"), run.parent / "pairs.jsonl")
    count = sum(len(side.tokens) for side in (pairs[1].chosen, pairs[1].rejected))
    titles = [given["title"] for _, given in Elements(written).found if "title" in given]
    assert 10 < len(titles) <= count
    assert all(re.fullmatch(r"policy [−+\d.]+, reference [−+\d.]+, reward [−+\d.]+", one or "")
               for one in titles)  # fmt: skip
    assert len(written) < 60_000
