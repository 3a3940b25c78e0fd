"""The checks of data: every rule fires where it should, is located, and stays silent elsewhere."""

import dataclasses
import json
import random
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.data import load_pairs
from tests.support.tiny import tiny_tokenizer
from tests.support.tokenizers import CHATML, EXAONE4, LLAMA3, byte_level, metaspace

from likelier.base.errors import ConfigError, DataError, GateMissed, OutputError
from likelier.checks.examine import Question, examine, question_of_config
from likelier.checks.fix import fix
from likelier.checks.gates import enforce_gates, read_gate
from likelier.checks.page import write_page
from likelier.checks.pairs import _wrong_bos
from likelier.checks.rules import RULES
from likelier.checks.summary import Examination, Kind, first_findings
from likelier.cli import main
from likelier.config import config_from
from likelier.data.shapes import Format

Row = dict[str, Any]
RNG = random.Random(0)
WORDS = ["산", "강", "바다", "하늘", "구름", "나무", "책상", "연필", "지도", "시계", "우산", "거울"]


def words(count: int) -> str:
    return " ".join(RNG.choice(WORDS) + RNG.choice(WORDS) for _ in range(count))


def text_row(**changes: Any) -> Row:
    return {"prompt": words(6), "chosen": words(5), "rejected": words(5), **changes}


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def bot(text: Any) -> Row:
    return {"role": "assistant", "content": text}


def chat_row(**changes: Any) -> Row:
    return {"prompt": [user(words(6))], "chosen": [bot(words(5))], "rejected": [bot(words(5))],
            **changes}  # fmt: skip


GOOD_TEXT = [text_row() for _ in range(6)]
GOOD_CHAT = [chat_row() for _ in range(6)]
LONG = words(30)
FIRST = GOOD_TEXT[0]
SHORTCUT = [text_row(chosen=f"- {words(5)}", rejected=words(5)) for _ in range(60)]
LONGER = [text_row(chosen=words(9), rejected=words(3)) for _ in range(60)]
EVEN = [text_row() for _ in range(60)]
CIRCLE = [
    {"prompt": LONG, "chosen": a, "rejected": b}
    for a, b in (("하나", "둘"), ("둘", "셋"), ("셋", "하나"))
]


@dataclass
class Case:
    """Data in which a rule fires: the rows, how they are looked at, and where it is found."""

    rows: list[Any]
    place: int | None  # line, or None for a finding of the whole
    field: str | None = None
    tokenizer: Any = None
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    silent: list[Any] | None = None  # rows that must not fire it; None: the good ones


def chatml(template: str = CHATML) -> Any:
    return byte_level(template, eos="<|im_end|>")


SYSTEM = "당신은 무엇이든 잘 아는 아주 친절하고 똑똑한 비서입니다"
TOOL = [{"type": "function", "function": {"name": "날씨"}}]
CASES = {
    "json": Case([FIRST, "{"], 2),
    "utf8": Case([FIRST, b'{"prompt": "\xb0\xa1"}'], 2),
    "column": Case([FIRST, {"prompt": "가", "chosen": "나"}], 2, "rejected"),
    "type": Case([FIRST, text_row(chosen=None)], 2, "chosen"),
    "text": Case([FIRST, text_row(chosen="a\0b")], None),
    "mixed": Case([FIRST, text_row(chosen=[bot("가")])], 2, "chosen"),
    "role": Case([GOOD_CHAT[0], chat_row(chosen=[user("가")])], 2, "chosen"),
    "prompt": Case(
        [{"chosen": [user("가"), bot("나")], "rejected": [user("다"), bot("라")]}], 1
    ),
    "tools": Case([{**chat_row(), "tools": TOOL}], 1, "tools", chatml()),
    "score": Case([text_row(chosen_score=1, rejected_score="높음")], 1, "rejected_score"),
    "label": Case([{"prompt": "가", "completion": "나", "label": "글쎄"}], 1, "label"),
    "tie": Case([{"prompt": "가", "completions": ["나", "다"], "scores": [1, 1]}], 1),
    "empty": Case([FIRST, text_row(rejected=" \n")], 2, "rejected"),
    "identical": Case([FIRST, text_row(chosen="같다", rejected=" 같다")], 2),
    "merged": Case(
        [chat_row(chosen=[bot("언어. ")], rejected=[{**bot("언어. "), "name": "x"}])], 1,
        tokenizer=chatml(),
    ),
    "huge": Case(
        [FIRST, text_row(chosen="가" * 2_000_001)], 2, "chosen",
        silent=[text_row(chosen="가" * 2_000_000)],
    ),
    "doubled": Case([{"prompt": LONG, "chosen": LONG + " 네", "rejected": LONG + " 아니"}], 1),
    "turns": Case([chat_row(prompt=[user("가"), user("나")])], 1, "prompt"),
    "decomposed": Case([text_row(prompt="\u1112\u1161\u11ab글")], 1, "prompt"),
    "damaged": Case([text_row(chosen="깨진 \ufffd")], 1, "chosen"),
    "inverted": Case(
        [text_row(chosen_score=1, rejected_score=2)], 1,
        silent=[text_row(chosen_score=2, rejected_score=1)],
    ),
    "language": Case([text_row(chosen="This is written in English", rejected=words(8))], 1),
    "duplicate": Case([FIRST, GOOD_TEXT[1], FIRST], 3),
    "near": Case([FIRST, {**FIRST, "prompt": FIRST["prompt"] + "?"}], 2),
    "conflict": Case(
        [FIRST, {**FIRST, "chosen": FIRST["rejected"], "rejected": FIRST["chosen"]}], 2
    ),
    "cycle": Case(CIRCLE, 1, silent=CIRCLE[:2]),
    "leak": Case([FIRST], 1, "prompt", asked={"held_out": [FIRST]}),
    "template": Case(
        [chat_row()], 1, tokenizer=chatml("{{ raise_exception('no') }}" + CHATML)
    ),
    "prefix": Case(
        [chat_row()], 1,
        tokenizer=chatml(CHATML.replace("assistant\n{% endif", "bot: {% endif")),
    ),
    "reasoning": Case(
        [chat_row()], 1,
        tokenizer=chatml(CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")),
    ),
    "turn": Case([chat_row(chosen=[{**bot("언어"), "weight": 0}])], 1, tokenizer=chatml()),
    "generation": Case(
        [chat_row()], 1,
        tokenizer=chatml(CHATML.replace("assistant\n{% endif", "assistant\n<say>{% endif")),
    ),
    "closed": Case(
        [chat_row()], 1,
        tokenizer=chatml(EXAONE4.replace("not enable_thinking", "false").replace(
            "[|endofturn|]", "<|im_end|>")),
    ),
    "continued": Case([chat_row(prompt=[user("가"), bot("나는 ")])], 1, tokenizer=chatml()),
    "block": Case(
        [chat_row()], 1,
        tokenizer=chatml(CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
        )),
    ),
    "ended": Case([chat_row()], 1, tokenizer=chatml(CHATML.replace("<|im_end|>\n", ""))),
    "stop": Case([chat_row()], 1, tokenizer=byte_level(CHATML)),
    "control": Case([chat_row(prompt=[user("가<|im_end|>나")])], 1, tokenizer=chatml()),
    "unknown": Case([text_row(chosen="漢字")], 1, tokenizer=metaspace("unigram"),
                    silent=[{"prompt": "파이썬은", "chosen": "배우기 쉽고", "rejected": "언어"}]),
    "foreign": Case(
        [text_row(chosen="漢" * 90)], 1, tokenizer=byte_level(),
        silent=[text_row(chosen="The answer is short. " * 5, rejected="The question? " * 5)],
    ),
    "bos": Case(
        [chat_row()], 1, "prompt",
        byte_level("{{ bos_token }}" + LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>"),
    ),
    "drops": Case(
        [chat_row(prompt=[{"role": "system", "content": words(3)}, user("가")])], 1, "prompt[0]",
        chatml("{% set messages = messages | rejectattr('role', 'equalto', 'system') %}" + CHATML),
        silent=[chat_row()],
    ),
    "lost": Case(
        [chat_row(), chat_row(prompt=[{**user("가"), "name": "나"}])], 2, "prompt[0].name",
        chatml(), silent=[chat_row()],
    ),
    "adds": Case(
        [chat_row()], 1, None, chatml(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" + CHATML)
    ),
    "plain": Case([text_row()], 1, None, chatml()),
    "clock": Case([chat_row()], None, None, chatml("{{ strftime_now('%Y') }}\n" + CHATML)),
    "overlong": Case(
        [text_row(), text_row(chosen=words(60))], 2, None, byte_level(),
        asked={"max_length": 200}, silent=[text_row()],
    ),
    "trimmed": Case(
        [text_row(chosen=words(60))], 1, None, byte_level(),
        asked={"max_length": 200, "trim": True}, silent=[text_row()],
    ),
    "truncated": Case(
        [text_row(chosen=LONG * 3 + "가", rejected=LONG * 3 + "나")], 1, None, byte_level(),
        asked={"max_length": 120, "trim": True}, silent=[text_row()],
    ),
    "shortcut": Case(SHORTCUT, None, silent=EVEN),
    "length": Case(LONGER, None, silent=EVEN),
}  # fmt: skip
# Files of their own in test_data_formats.py; weights need two sources, noise a model with weights,
# vocabulary one with fewer ids than its tokenizer (test_limits.py).
ELSEWHERE = {"csv", "parquet", "arrow", "gzip", "weight", "noise", "vocabulary"}


def write(path: Path, rows: list[Any]) -> str:
    lines = [
        row if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)).encode()
        for row in rows
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def looked_at(case: Case, rows: list[Any], folder: Path) -> Examination:
    return examine(question_of(case, rows, folder))


def question_of(case: Case, rows: list[Any], folder: Path) -> Question:
    asked = dict(case.asked)
    if "held_out" in asked:
        asked["held_out"] = write(folder / "held.jsonl", asked["held_out"])
    if case.tokenizer is not None:
        case.tokenizer.save_pretrained(folder / "model")
        (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
        asked["model"] = str(folder / "model")
    return Question(write(folder / "data.jsonl", rows), **asked)


def test_every_rule_has_a_case() -> None:
    assert set(CASES) | ELSEWHERE == set(RULES)


@pytest.mark.parametrize("code", CASES)
def test_a_rule_fires_where_it_should(code: str, tmp_path: Path) -> None:
    case = CASES[code]
    found = looked_at(case, case.rows, tmp_path)
    kinds = {kind.code: kind for kind in found.kinds}
    if code == "text":  # the reader of JSON refuses it before the row is looked at
        assert "json" in kinds
        return
    assert code in kinds, kinds
    place = kinds[code].first[0]
    if case.place is not None:
        file = "held.jsonl" if code == "leak" else "data.jsonl"
        assert place.source == f"{tmp_path / file}:{case.place}"
        assert place.field == case.field
    wanted = RULES[code]
    assert kinds[code].severity == ("note" if code == "clock" else wanted)
    assert "\n" not in place.message + place.hint and len(place.message) < 250


@pytest.mark.parametrize("code", CASES)
def test_the_page_shows_the_text_at_each_place(code: str, tmp_path: Path) -> None:
    question = question_of(CASES[code], CASES[code].rows, tmp_path)
    found = examine(question)
    write_page(found, question, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    places = [one for kind in found.kinds for one in kind.first if one.source[-1:].isdigit()]
    listed = dict(re.findall(r"<li><code>(.*?)</code>(.*?)</li>", page, re.DOTALL))
    assert all('class="said"' in listed[escape(place.where)] for place in places)


@pytest.mark.parametrize("code", CASES)
def test_a_rule_is_silent_elsewhere(code: str, tmp_path: Path) -> None:
    case = CASES[code]
    chats = case.tokenizer is not None and code not in ("plain",)
    rows = case.silent if case.silent is not None else (GOOD_CHAT if chats else GOOD_TEXT)
    tokenizer = {"tools": chatml(), "plain": byte_level(), "stop": chatml()}.get(code, chatml())
    if code in ("overlong", "trimmed", "truncated", "foreign", "unknown"):
        tokenizer = case.tokenizer if code != "foreign" else chatml()
    held = {"held_out": [text_row()]} if code == "leak" else case.asked
    other = Case(rows, None, tokenizer=tokenizer if case.tokenizer is not None else None,
                 asked=held)  # fmt: skip
    found = looked_at(other, rows, tmp_path)
    assert code not in {kind.code for kind in found.kinds}, first_findings(found.kinds)


def test_the_tokens_of_an_unpaired_example_count_once(tmp_path: Path) -> None:
    """About one token a character, which is no foreign text; twice as many would be."""
    row = {"prompt": "The question?", "completion": "qxzjvk" * 20, "label": True}
    found = looked_at(Case([row], None, tokenizer=byte_level()), [row], tmp_path)
    assert "foreign" not in {kind.code for kind in found.kinds}


def test_rows_in_are_rows_used_and_rows_reported(tmp_path: Path) -> None:
    rows = [row for name, case in CASES.items() if case.tokenizer is None for row in case.rows]
    found = examine(Question(write(tmp_path / "a.jsonl", rows)))
    loaded = load_pairs(tmp_path / "a.jsonl", {})
    assert found.rows == len(rows) == loaded.rows
    reported = {f.source for f in loaded.findings if f.severity == "error" or f.code == "tie"}
    assert found.usable == len({pair.source for pair in loaded.pairs})
    assert found.usable + len(reported) == len(rows)


def test_the_numbers_of_the_probe(tmp_path: Path) -> None:
    """A bullet is found as the shortcut that it is, and nothing is found where there is none."""
    found = examine(Question(write(tmp_path / "a.jsonl", SHORTCUT))).statistics.probe
    assert found is not None and found.accuracy.low > 0.9
    assert found.clues[0].right.value == 1.0
    assert "a bullet list" in [clue.feature for clue in found.clues]
    rows = [text_row() for _ in range(300)]
    even = examine(Question(write(tmp_path / "b.jsonl", rows))).statistics.probe
    assert even is not None and 0.4 < even.accuracy.value < 0.6 and not even.is_shortcut


def test_gates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD_TEXT, GOOD_TEXT[0]])
    assert main(["check", path, "--gate", "duplicates<=15%", "--gate", "rows>=7"]) == 0
    capsys.readouterr()
    assert main(["check", path, "--gate", "duplicate<=0.1"]) == 3
    assert "duplicate<=0.1: it is 0.1429" in capsys.readouterr().err
    for text, says in (("duplicat<1", 'did you mean "duplicate"'), ("x", "cannot read the limit")):
        with pytest.raises(ConfigError, match=says):
            read_gate(text)
    bad = write(tmp_path / "b.jsonl", ["{"])
    assert main(["check", bad, "--gate", "errors<=0"]) == 65


def test_the_same_words_with_other_tools_are_another_pair(tmp_path: Path) -> None:
    def codes(rows: list[Row]) -> list[str]:
        return [kind.code for kind in examine(Question(write(tmp_path / "a.jsonl", rows))).kinds]

    one, other = BESIDE["tools"]
    swapped = {**other, "chosen": other["rejected"], "rejected": other["chosen"]}
    assert "duplicate" in codes([one, one])
    assert not {"duplicate", "conflict"} & {*codes([one, other]), *codes([one, swapped])}


@pytest.mark.parametrize(
    ("gate", "kept"),
    [
        ("rows<=8", True), ("rows<8", False), ("rows>=8", True), ("rows>8", False),
        ("usable>=75%", True), ("usable>0.75", False), ("pairs<=6", True), ("prompts>=5", True),
        ("errors<=12.5%", True), ("errors<12.5%", False), ("warnings<=0.25", True),
        ("near<=25%", True), ("near<25%", False), ("probe<=0.5", True), ("longer<0.5", False),
    ],
)  # fmt: skip
def test_a_gate_holds_at_its_edge_as_its_sign_says(gate: str, kept: bool) -> None:
    kinds = (Kind("json", "error", 1), Kind("near", "warning", 2), Kind("tie", "note", 1))
    statistics: Any = SimpleNamespace(pairs=6, prompts=5, probe=None, lengths=None)
    found = Examination(8, 6, kinds, Format(), statistics)
    if kept:
        enforce_gates([read_gate(gate)], found)
        return
    with pytest.raises(GateMissed, match=re.escape(gate)):
        enforce_gates([read_gate(gate)], found)


BESIDE: dict[str, list[Row]] = {
    "scores": [text_row(chosen_score=4.5, rejected_score=-1.0)],
    "numbers": [text_row(margin=0.25, weight=0.5), text_row(margin=0, weight=2)],
    "origin": [text_row(source="a set")],
    "tools": [
        {
            "prompt": [{"role": "user", "content": "비가 와?"}],
            "chosen": [{"role": "assistant", "content": "네"}],
            "rejected": [{"role": "assistant", "content": "몰라"}],
            "tools": [{"type": "function", "function": {"name": name}}],
        }
        for name in ("weather", "clock")
    ],
    "labels": [
        {"prompt": "물은?", "completion": "파랗다", "label": label} for label in (True, False)
    ],
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_cleaned_copy_loses_nothing_that_stands_beside_the_texts(
    name: str, tmp_path: Path
) -> None:
    path, out = write(tmp_path / "a.jsonl", BESIDE[name]), tmp_path / "clean.jsonl"
    fix(Question(path), out)
    before, after = load_pairs(path, {}), load_pairs(out, {})
    for kind in ("pairs", "labelled"):
        ours, theirs = getattr(after, kind), getattr(before, kind)
        assert [dataclasses.replace(pair, source="") for pair in ours] == [
            dataclasses.replace(pair, source="") for pair in theirs
        ]
    assert len(after.pairs) + len(after.labelled) == len(BESIDE[name])


def test_a_cleaned_copy_has_a_list_of_changes_and_the_data_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubled = {"prompt": LONG, "chosen": LONG + "\n네", "rejected": LONG + "\n아니요"}
    rows = [
        FIRST,
        "{",
        FIRST,
        text_row(prompt="\u1112\u1161\u11ab글"),
        doubled,
        text_row(chosen=""),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    before = Path(path).read_bytes()
    out = tmp_path / "clean.jsonl"
    assert main(["check", path, "--fix", str(out)]) == 65
    assert Path(path).read_bytes() == before
    lines = (tmp_path / "clean.jsonl.ledger.jsonl").read_text(encoding="utf-8").splitlines()
    ledger = [json.loads(line) for line in lines]
    told = sorted((row["source"][-1], row["code"], row["action"]) for row in ledger)
    assert told == [
        ("2", "json", "dropped"),
        ("3", "duplicate", "dropped"),
        ("4", "decomposed", "changed"),
        ("5", "doubled", "changed"),
        ("6", "empty", "dropped"),
    ]  # fmt: skip
    clean = load_pairs(out, {})
    assert (clean.rows, len(clean.pairs), clean.findings) == (3, 3, ())
    assert clean.pairs[1].prompt == "한글" and clean.pairs[2].chosen == "\n네"
    assert main(["check", str(out)]) == 0
    assert main(["check", path, "--fix", str(out)]) == 73, "never written over"
    with pytest.raises(OutputError):
        fix(Question(path), Path(path))
    with pytest.raises(DataError, match="no pair"):
        fix(Question(write(tmp_path / "b.jsonl", ["{"])), tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    capsys.readouterr()


def test_the_page_escapes_and_runs_nothing(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"><img onerror=x>\u202e'
    rows = [*SHORTCUT, {evil: 1, "prompt": "a", "chosen": "b"}, text_row(chosen_score=evil)]
    page = tmp_path / "page.html"
    assert main(["check", write(tmp_path / "a.jsonl", rows), "--html", str(page)]) == 65
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text and "\u202e" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "a bullet list" in text and "60 more" not in text
    assert page.stat().st_size <= 2_200_000


def test_show_as_a_page(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "exaone4", "eos_token_id": 1}')
    path = write(
        tmp_path / "a.jsonl", [chat_row(chosen=[bot("같은 말 하나")], rejected=[bot("같은 말 둘")])]
    )
    page = tmp_path / "show.html"
    assert main(["show", path, "--model", str(tmp_path / "model"), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "the answers part after" in text and 'class="scored shared"' in text
    assert 'class="stop"' in text and "<script" not in text


def test_options_that_nothing_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD_TEXT)
    assert main(["check", path, "--max-length", "100"]) == 2
    assert main(["check", path, "--pairs", "all"]) == 2
    assert main(["check", path, "--pairs", "some"]) == 2


def test_a_config_is_looked_at_with_its_mixture_and_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Conflicts between two files of a mixture, and lengths in the tokens of the model."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "exaone4", "eos_token_id": 1}')
    rows = [text_row() for _ in range(40)]
    swapped = {**rows[3], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    rows[5]["chosen"] = words(400)
    one = write(tmp_path / "a.jsonl", rows)
    other = write(tmp_path / "b.jsonl", [text_row(), swapped])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{path: {tmp_path / 'model'}}}\n"
        f"data: {{train: {{{one}: 1, {other}: 1}}, max_length: 500, eval: null}}\n"
        f"out: {tmp_path / 'run'}\n"
    )
    assert main(["check", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    codes = {kind["code"]: kind for kind in found["kinds"]}
    assert "conflict" in codes and "overlong" in codes
    (conflict,) = codes["conflict"]["places"]
    assert "b.jsonl:2" in conflict["source"] + conflict["message"]
    assert main(["check", str(config), "--model", "other"]) == 2
    assert "--model: has no effect: the config decides this" in capsys.readouterr().err


def test_near_copies_are_sought_in_an_even_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 rows at most 20 are compared: every fourth; two of them are near copies."""
    monkeypatch.setattr("likelier.checks.across.MAX_COMPARED", 20)
    rows = [text_row() for _ in range(60)]
    rows[56] = {**rows[8], "chosen": rows[8]["chosen"] + "."}
    rows[57] = {**rows[9], "chosen": rows[9]["chosen"] + "."}
    found = examine(Question(write(tmp_path / "a.jsonl", rows)))
    assert found.statistics.compared == 15
    near = [place for place in first_findings(found.kinds) if place.code == "near"]
    assert [place.source.rpartition(":")[2] for place in near] == ["57"]


def test_many_rows_in_other_processes_are_found_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same again from the cache, under another name."""
    rows = [text_row() for _ in range(90)]
    rows[70] = "{"
    rows[80] = rows[3]
    path = write(tmp_path / "a.jsonl", rows)
    alone = examine(Question(path))
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 20)
    assert examine(Question(path)) == alone
    moved = write(tmp_path / "b.jsonl", rows)
    monkeypatch.setattr("likelier.base.child.Child.ask", None)  # nothing is worked on again
    again = examine(Question(moved))
    assert [p.source.replace("b.jsonl", "a.jsonl") for p in first_findings(again.kinds)] == [
        p.source for p in first_findings(alone.kinds)
    ]
    assert again.statistics == alone.statistics


LISTED = {0, 1, 2, 3, 65, 66, 73}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip
NAMES = (
    "prompt chosen rejected completions scores label system tools completion response1 winner "
    "score question"
)
KEYS = st.sampled_from(NAMES.split())
LABELLED = {"prompt": "가", "completion": "나", "label": True}
VALID = [FIRST, GOOD_CHAT[0], CASES["tie"].rows[0], LABELLED]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_rows_give_only_listed_exit_codes(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(data.draw(st.sampled_from(VALID))) for _ in range(data.draw(st.integers(1, 3)))]
    for row in rows:
        for _ in range(data.draw(st.integers(0, 2))):
            key = data.draw(KEYS)
            value = data.draw(JUNK)
            if isinstance(row.get(key), list) and data.draw(st.booleans()):
                row[key] = [*row[key], value]
            else:
                row[key] = value
    text = "\n".join(json.dumps(row) for row in rows).encode()
    path = tmp_path / data.draw(st.sampled_from(["a.jsonl", "a.json"]))
    path.write_bytes(text)
    assert main(["check", str(path), "--json"]) in {0, 65}
    assert "Traceback" not in capsys.readouterr().err


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.parquet.gz"]),
    content=st.binary(max_size=80),
    head=st.sampled_from([b"", b"[", b'{"prompt": ', b"prompt,chosen,rejected\n", b"PAR1",
                          b"\x1f\x8b\x08\x00"]),
)  # fmt: skip
def test_mutated_files_give_only_listed_exit_codes(
    name: str, content: bytes, head: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(head + content)
    assert main(["check", str(tmp_path / name)]) in {0, 65}
    assert "Traceback" not in capsys.readouterr().err


PIECES = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m.role }}",
    "<|im_end|>",
    "{% if add_generation_prompt %}",
    "{% endif %}",
    "{{ bos_token }}",
    "{{ 1/0 }}",
    "{%",
    "}}",
    "{{ messages[9].x.y }}",
    "{{ m.content * 9 }}",
    "{{ raise_exception('x') }}",
]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PIECES), max_size=6), at=st.integers(0, len(CHATML)))
def test_mutated_templates_give_only_listed_exit_codes(
    parts: list[str], at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chatml(CHATML[:at] + "".join(parts) + CHATML[at:])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    path = write(tmp_path / "a.jsonl", GOOD_CHAT)
    assert main(["check", path, "--model", str(tmp_path / "model")]) in LISTED
    assert "Traceback" not in capsys.readouterr().err


def test_the_check_of_a_config_encodes_as_its_run_would(tmp_path: Path) -> None:
    chatml().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    data = {"train": "x.jsonl", "boundary": "history", "turns": "last", "overlong": "trim"}
    tree = {"model": {"path": str(tmp_path / "model")}, "data": data, "out": "run"}
    question = question_of_config(config_from(tree), 0, {})
    assert question.encoder is not None
    assert (question.encoder.boundary, question.encoder.turns) == ("history", "last")
    assert question.trim and question.max_length == 2048


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((7, 7, 3), "the prompt begins with 2 beginning-of-sequence tokens (BOS)"),
        ((7, 3, 7, 4, 7), ""),  # a template that begins every turn with it
        ((7, 3), ""),
        ((3, 4), "the template writes no BOS token, which the tokenizer puts before plain texts"),
    ],
)
def test_only_a_repeated_beginning_is_wrong(tokens: tuple[int, ...], message: str) -> None:
    encoder: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(bos_token_id=7), end_ids={"<end>": 9}, leading=(7,)
    )
    assert _wrong_bos(encoder, tokens) == message
