"""The page of `likelier check`: the text at each place, the lengths, and its colour."""

import gzip
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tokenizers import CHATML, byte_level

from likelier.checks.examine import Question, examine
from likelier.checks.page import write_page
from likelier.checks.shortcuts import MAX_BINS, histogram
from likelier.data.shapes import Format
from likelier.pages.excerpts import excerpt, plain_text

Row = dict[str, Any]


def row(number: int, **changes: Any) -> Row:
    """Answers of one length and form; which is chosen follows no feature of theirs."""
    chosen, rejected = f"answer {number:04}", f"answer {9999 - number:04}"
    return {"prompt": f"question {number}", "chosen": chosen, "rejected": rejected, **changes}


def page_of(folder: Path, rows: list[Row] | list[bytes], **asked: Any) -> str:
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    (folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return page_at(folder / "data.jsonl", **asked)


def page_at(data: Path, **asked: Any) -> str:
    question = Question(str(data), **asked)
    write_page(examine(question), question, data.parent / "page.html")
    return (data.parent / "page.html").read_text("utf-8")


def model_in(folder: Path) -> str:
    byte_level(CHATML, eos="<|im_end|>").save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    return str(folder / "model")


def said(page: str, code: str) -> list[str]:
    """The texts shown with the findings of a kind, the marked part in [[ ]]."""
    part = page.split(f'<section id="{code}-')[1].split("</section>")[0]
    texts = re.findall(r'<p class="said".*?>(.*?)</p>', part, re.DOTALL)
    marked = [text.replace("<mark>", "[[").replace("</mark>", "]]") for text in texts]
    return [unescape(re.sub(r"<[^>]*>", "", text)) for text in marked]


LONG = "Why is the sky blue, and why is it red at night?"


@pytest.mark.parametrize(
    ("code", "bad", "shown"),
    [
        ("decomposed", row(2, chosen="a \u1112\u1161\u11ab\u1100\u1173\u11af b"),
         ["a [[\u1112\u1161\u11ab\u1100\u1173\u11af]] b"]),
        ("damaged", row(2, chosen="a \ufffd\ufffd b"), ["a [[\ufffd\ufffd]] b"]),
        ("doubled", row(2, prompt=LONG, chosen=f"{LONG} A.", rejected=f"{LONG} B."),
         [LONG, f"[[{LONG}]] A.", f"[[{LONG}]] B."]),
        ("empty", row(2, chosen=""), ["(empty)"]),
        ("type", row(2, chosen=None), ["null"]),
        ("identical", row(2, chosen="same", rejected="same "), ["question 2", "same", "same "]),
        ("duplicate", row(1), ["question 1", "answer 0001", "answer 9998"]),
        ("json", b'{"prompt": oops}', ['{"prompt": [[o]]ops}']),
        ("utf8", b'{"prompt": "\xb0\xa1"}', ['{"prompt": "[[\ufffd]]\ufffd"}']),
        ("json", b'{"prompt": "a\\u0000b"}', ['{"prompt": "a[[\\u0000]]b"}']),
        ("json", b'{"prompt": "a\\ud83db"}', ['{"prompt": "a[[\\ud83d]]b"}']),
        ("column", {"prompt": "p", "chosen": "c", "other": "x"}, ["p", "c"]),
    ],
)  # fmt: skip
def test_the_bad_part_is_shown_and_marked(
    tmp_path: Path, code: str, bad: Any, shown: list[str]
) -> None:
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in (row(1), bad)]
    assert said(page_of(tmp_path, lines), code) == shown


def test_the_bad_part_of_a_chat(tmp_path: Path) -> None:
    chat = {
        "prompt": [{"role": "user", "content": "before <|im_end|> after"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    odd = {**chat, "chosen": [{"role": "narrator", "content": "once"}]}
    page = page_of(tmp_path, [chat, odd], model=model_in(tmp_path))
    assert said(page, "control") == [
        "user: before [[<|im_end|>]] after",
        "assistant: yes",
        "assistant: no",
    ]
    assert said(page, "role") == ["[[narrator]]: once"]


def test_a_long_text_is_shortened_around_the_bad_part(tmp_path: Path) -> None:
    text = "x" * 5000 + "\ufffd" + "y" * 5000
    shown = said(page_of(tmp_path, [row(1, chosen=text)]), "damaged")[0]
    assert "4,872 characters before …" in shown and "… 4,809 more characters" in shown
    assert "xx[[\ufffd]]yy" in shown and len(shown) < 400


def test_places_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [row(1), row(2, chosen="a \ufffd b")]
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines + b"broken\n"))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(
        "prompt,chosen,rejected\nq,a \ufffd b,c\nq,a\n", encoding="utf-8"
    )
    (tmp_path / "one-line.json").write_text(json.dumps(rows))
    for name in ("a.jsonl.gz", "a.json", "one-line.json", "a.parquet", "a.csv"):
        assert said(page_at(tmp_path / name), "damaged") == ["a [[\ufffd]] b"], name
    assert said(page_at(packed), "json") == ["[[b]]roken"]
    assert said(page_at(tmp_path / "a.csv"), "csv") == ["q,a"]


def test_the_rows_of_a_mixture(tmp_path: Path) -> None:
    for name in "ab":
        lines = [json.dumps(row(1, chosen=f"{name} \ufffd")), f"broken {name}"]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    question = Question({f"{tmp_path}/a.jsonl": 2, f"{tmp_path}/b.jsonl": 1})
    write_page(examine(question), question, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert said(page, "damaged") == ["a [[\ufffd]]", "a [[\ufffd]]", "b [[\ufffd]]"]
    assert said(page, "json") == ["[[b]]roken a", "[[b]]roken b"]


def test_a_pair_of_a_ranked_list_and_of_held_out_data(tmp_path: Path) -> None:
    ranked = {"prompt": "q", "completions": ["best", "good", "bad \ufffd"], "scores": [3, 2, 1]}
    (tmp_path / "held.jsonl").write_text(json.dumps(row(1)) + "\n")
    page = page_of(tmp_path, [ranked], format=Format(pairs="all"))
    assert said(page, "damaged") == ["bad [[\ufffd]]"] * 2
    page = page_of(tmp_path, [row(1)], held_out=str(tmp_path / "held.jsonl"))
    assert said(page, "leak") == ["question 1"]


def test_what_a_user_wrote_stays_text(tmp_path: Path) -> None:
    evil = "</p><script>alert(1)</script><mark>\u202e\ufffd"
    page = page_of(tmp_path, [row(1, chosen=evil), b"<script>"])
    assert "<script" not in page and "\u202e" not in page
    assert "&lt;mark&gt;⟨U+202E⟩<mark>\ufffd</mark>" in page


def verdict(page: str) -> str:
    return re.findall(r'class="verdict (\w+)"', page)[0]


def test_amber_where_a_trivial_feature_tells_the_sides_apart(tmp_path: Path) -> None:
    even = [row(n) for n in range(60)]
    bullets = [row(n, chosen=f"- answer {n:04}") for n in range(60)]
    longer = [row(n, chosen=f"answer {n:04} and so on and on") for n in range(60)]
    page = page_of(tmp_path, even)
    assert verdict(page) == "good"
    assert 'class="caution"' not in page and 'class="strong"' not in page
    for rows in (bullets, longer):
        page = page_of(tmp_path, rows)
        assert verdict(page) == "warn" and 'class="strong"' in page
        assert "Look at this before training: trivial features alone tell" in page
    page = page_of(tmp_path, [*bullets, {"prompt": "p"}])
    assert verdict(page) == "bad" and 'class="caution"' in page


def test_the_histogram_of_lengths(tmp_path: Path) -> None:
    rows = [row(n, chosen="x" * (n + 1)) for n in range(40)]
    page = page_of(tmp_path, rows)
    assert "Lengths of the answers, characters" in page and 'class="limit"' not in page
    page = page_of(tmp_path, rows, model=model_in(tmp_path), max_length=30)
    assert "Lengths of the answers, tokens" in page
    whole = page.split("Lengths of the prompt with its longer answer, tokens")[1]
    assert 'class="limit"' in whole and "The line is max_length, 30." in whole
    counts = re.findall(r"<tr><td>([\d,]+)</td><td>([\d,]+)</td></tr>", whole)
    assert sum(int(count) for _, count in counts) == 40  # those that are too long among them
    page = page_of(tmp_path, rows, model=model_in(tmp_path), max_length=9000)
    assert "max_length, 9,000, lies beyond the right end" in page
    assert len(page) < 100_000 and "<script" not in page


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60))
def test_every_length_is_in_one_bin(lengths: list[int]) -> None:
    found = histogram({"chosen": np.array(lengths)})
    counts = found.counts["chosen"]
    assert sum(counts) == len(lengths) and len(counts) <= MAX_BINS and len(counts) % 4 == 0
    assert str(found.width).strip("0") in ("1", "2", "5") and found.longest == max(lengths)
    for n, count in enumerate(counts[:-1]):
        inside = [x for x in lengths if n * found.width <= x < (n + 1) * found.width]
        assert count == len(inside)


def test_one_that_is_far_longer_leaves_the_others_apart() -> None:
    found = histogram({"chosen": np.array([*range(10, 110), 90_000])})
    assert found.width == 5 and found.counts["chosen"][-1] == 1 and found.longest == 90_000


@given(st.text(max_size=50), st.integers(1, 30), st.data())
def test_an_excerpt_is_a_part_of_the_text(whole: str, most: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(whole)))
    bad = data.draw(st.none() | st.tuples(st.just(first), st.integers(first, len(whole))))
    shown = excerpt(whole, most, bad)
    part = shown["before"] + shown["bad"] + shown["after"]
    assert part == whole[shown["skipped"] : len(whole) - shown["cut"]]
    assert len(part) == min(most, len(whole))
    if bad:
        assert shown["bad"] == whole[bad[0] : bad[1]][: len(shown["bad"])]
        assert shown["bad"] or bad[0] == bad[1]


def test_any_value_as_text() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [1]}]
    assert plain_text(chat) == 'user: a\nassistant:  {"tool_calls": [1]}'
    assert [plain_text(value) for value in (None, "a", 1.5, ["x"], [{"from": "human"}])] == [
        "",
        "a",
        "1.5",
        '["x"]',
        '{"from": "human"}',
    ]
