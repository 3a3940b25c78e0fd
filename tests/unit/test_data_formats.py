"""Every format: a good file that becomes the pairs meant, and a broken one that is located."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.data import Loaded, load_memory, load_pairs

from likelier.base.errors import ConfigError, InputMissing
from likelier.checks.rules import RULES, cure, why
from likelier.data.records import Row
from likelier.data.shapes import Format, recognise
from likelier.data.sources import _copies

Rows = list[dict[str, Any]]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


ASK, GOOD, BAD = "파이썬이 뭐야?", "배우기 쉬운 언어입니다.", "뱀이지~"
CHAT = ((user(ASK),), (bot(GOOD),), (bot(BAD),))
HUMAN = "\n\nHuman: 안녕\n\nAssistant: 안녕하세요\n\nHuman: 파이썬이 뭐야?\n\nAssistant: "
TURNS = (user("안녕"), bot("안녕하세요"), user(ASK))
TOOL = {"type": "function", "function": {"name": "날씨", "parameters": {}}}


@dataclass
class Case:
    """Rows of one format, what the first becomes, and what is wrong with a broken one."""

    good: Rows
    sides: tuple[Any, Any, Any]
    told: str
    broken: dict[str, Any]
    code: str
    field: str | None


CASES = {
    "plain": Case(
        [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}], (ASK, GOOD, BAD), "used without a",
        {"prompt": ASK, "chosen": GOOD, "rejected": None}, "type", "rejected",
    ),
    "chats": Case(
        [{"prompt": [user(ASK)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}], CHAT, "chats",
        {"prompt": [user(ASK)], "chosen": [bot(GOOD)], "rejected": [user(BAD)]}, "role", "rejected",
    ),
    "one message, no list": Case(
        [{"prompt": [user(ASK)], "chosen": bot(GOOD), "rejected": bot(BAD)}], CHAT, "chats",
        {"prompt": [user(ASK)], "chosen": bot(""), "rejected": bot(BAD)}, "empty",
        "chosen[0].content",
    ),
    "implied prompt": Case(
        [{"chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]}], CHAT,
        "of which the common beginning is the prompt",
        {"chosen": [user(ASK), bot(GOOD)], "rejected": [user("다른 것"), bot(BAD)]}, "prompt", None,
    ),
    "prompt and whole chats": Case(
        [{"prompt": ASK, "chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]}],
        CHAT, "chats",
        {"prompt": "다른 것", "chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]},
        "prompt", "prompt",
    ),
    "transcripts": Case(
        [{"chosen": HUMAN + GOOD, "rejected": HUMAN + BAD}],
        (TURNS, (bot(GOOD),), (bot(BAD),)), "Human/Assistant transcripts",
        {"chosen": HUMAN + GOOD, "rejected": HUMAN.replace("Human: 안녕", "Human: 또") + BAD},
        "prompt", None,
    ),
    "orca": Case(
        [{"system": "공손하게", "question": ASK, "chosen": GOOD, "rejected": BAD}],
        ((system("공손하게"), user(ASK)), (bot(GOOD),), (bot(BAD),)), "prompt = question",
        {"system": "", "question": "", "chosen": GOOD, "rejected": BAD}, "empty", "question",
    ),
    "argilla": Case(
        [{"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD}],
        (ASK, GOOD, BAD), "chosen = chosen_response",
        {"instruction": ASK, "chosen_response": 3, "rejected_response": BAD}, "type",
        "chosen_response",
    ),
    "sharegpt": Case(
        [{"conversations": [{"from": "human", "value": ASK}],
          "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}}],
        CHAT, "prompt = conversations",
        {"conversations": [{"from": "alien", "value": ASK}],
         "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
        "role", "conversations[0].role",
    ),
    "sharegpt whole": Case(
        [{"chosen": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}],
          "rejected": [{"from": "human", "value": ASK}, {"from": "gpt", "value": BAD}]}],
        CHAT, "of which the common beginning is the prompt",
        {"chosen": [{"from": "human", "value": ASK}, {"from": "gpt", "value": None}],
         "rejected": [{"from": "human", "value": ASK}, {"from": "gpt", "value": BAD}]},
        "type", "chosen[1].content",
    ),
    "completions with scores": Case(
        [{"instruction": ASK, "completions": [
            {"response": BAD, "overall_score": 2.0}, {"response": "음", "overall_score": 3.0},
            {"response": GOOD, "overall_score": 9.5}]}],
        (ASK, GOOD, BAD), "scores inside the completions",
        {"instruction": ASK, "completions": [{"response": GOOD}, {"response": BAD}]}, "score",
        "completions[0]",
    ),
    "answers with ranks after a transcript": Case(
        [{"prompt": "\n\nHuman: 파이썬이 뭐야?\n\nAssistant: ",
          "answers": [{"answer": GOOD, "rank": 1}, {"answer": BAD, "rank": 7}]}],
        CHAT, "completions = answers",
        {"prompt": ASK, "answers": [{"answer": GOOD, "rank": "첫째"}]}, "score", "answers[0].rank",
    ),
    "lists side by side": Case(
        [{"input": ASK, "generations": [BAD, GOOD], "ratings": [1, 5]}],
        (ASK, GOOD, BAD), "with scores",
        {"input": ASK, "generations": [BAD, GOOD], "ratings": [1]}, "score", "ratings",
    ),
    "two answers compared": Case(
        [{"context": [user(ASK)], "response1": GOOD, "response2": BAD, "overall_preference": -2}],
        CHAT, "which of them is better",
        {"context": [user(ASK)], "response1": GOOD, "response2": BAD, "overall_preference": None},
        "score", "overall_preference",
    ),
    "tools": Case(
        [{"prompt": [user("날씨?")], "tools": json.dumps([TOOL]),
          "chosen": [{**bot(""), "tool_calls": [{"function": {"name": "날씨", "arguments": {}}}]}],
          "rejected": [bot("몰라")]}],
        ((user("날씨?"),),
         ({**bot(""), "tool_calls": [{"function": {"name": "날씨", "arguments": {}}}]},),
         (bot("몰라"),)), "tools",
        {"prompt": [user("가")], "tools": "{", "chosen": [bot("나")], "rejected": [bot("다")]},
        "tools", "tools",
    ),
}  # fmt: skip


def write_jsonl(path: Path, rows: Rows) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    for key, value in row.items()
                }
            )


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}


def the_pair(loaded: Loaded) -> Any:
    assert [f for f in loaded.findings if f.severity == "error"] == []
    assert (loaded.rows, loaded.left_out, len(loaded.pairs)) == (1, 0, 1)
    return loaded.pairs[0]


@pytest.mark.parametrize("name", CASES)
def test_a_good_row(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    write_jsonl(tmp_path / "a.jsonl", case.good)
    loaded = load_pairs(tmp_path / "a.jsonl", {})
    pair = the_pair(loaded)
    assert (pair.prompt, pair.chosen, pair.rejected) == case.sides
    assert case.told in loaded.form.describe(), loaded.form.describe()


@pytest.mark.parametrize("name", CASES)
def test_a_broken_row_is_located(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [*case.good, case.broken])
    loaded = load_pairs(path, {})
    (found,) = [f for f in loaded.findings if f.severity == "error"]
    assert (found.code, found.source, found.field) == (case.code, f"{path}:2", case.field)
    assert (loaded.rows, loaded.left_out, len(loaded.pairs)) == (2, 1, 1)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["plain", "chats", "prompt and whole chats", "orca", "argilla"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_of_file(kind: str, name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    WRITERS[kind](path, CASES[name].good)
    if packed:
        path = path.with_name(f"a.{kind}.gz")
        path.write_bytes(gzip.compress((tmp_path / f"a.{kind}").read_bytes()))
    pair = the_pair(load_pairs(path, {}))
    assert (pair.prompt, pair.chosen, pair.rejected) == CASES[name].sides
    assert pair.source.startswith(f"{path}:")


def test_tools_and_scores_are_kept() -> None:
    assert the_pair(load_memory(CASES["tools"].good, {})).tools == (TOOL,)
    pair = the_pair(load_memory(CASES["completions with scores"].good, {}))
    assert (pair.scores, pair.margin) == ((9.5, 2.0), 7.5)
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "weight": 0.5, "source": "손으로"}
    pair = the_pair(load_memory([{**row, "score_chosen": 4, "score_rejected": 1}], {}))
    assert (pair.scores, pair.margin, pair.weight, pair.origin) == ((4, 1), 3, 0.5, "손으로")


def test_a_text_prompt_that_both_answers_share_is_never_cut_inside() -> None:
    """Whole messages only: answers that begin alike keep their beginning."""
    rows = [
        {"chosen": [user(ASK), bot("파이썬은 언어")], "rejected": [user(ASK), bot("파이썬은 뱀")]}
    ]
    assert the_pair(load_memory(rows, {})).chosen == (bot("파이썬은 언어"),)


SCORED = [("나쁨", 1), ("좋음", 9), ("보통", 5), ("같음", 5)]
LIST = {"prompt": ASK, "completions": [t for t, _ in SCORED], "scores": [s for _, s in SCORED]}


@pytest.mark.parametrize(
    ("how", "gap", "expected"),
    [
        ("best-worst", 0, [("좋음", "나쁨")]),
        ("best-rest", 0, [("좋음", "보통"), ("좋음", "같음"), ("좋음", "나쁨")]),
        ("best-rest", 5, [("좋음", "나쁨")]),
        ("all", 0, [("좋음", "보통"), ("좋음", "같음"), ("좋음", "나쁨"), ("보통", "나쁨"),
                    ("같음", "나쁨")]),
        ("all", 4, [("좋음", "보통"), ("좋음", "같음"), ("좋음", "나쁨"), ("보통", "나쁨"),
                    ("같음", "나쁨")]),
        ("all", 100, []),
    ],
)  # fmt: skip
def test_pairs_of_a_ranked_list(how: Any, gap: float, expected: list[tuple[str, str]]) -> None:
    loaded = load_memory([LIST], Format(pairs=how, min_gap=gap))
    assert [(p.chosen, p.rejected) for p in loaded.pairs] == expected
    assert (loaded.rows, loaded.left_out) == (1, 0 if expected else 1)
    if not expected:
        (found,) = loaded.findings
        assert (found.code, found.severity, found.source) == ("tie", "note", "train[0]")
    elif len(expected) > 1:
        assert [p.source for p in loaded.pairs][:2] == ["train[0]#1", "train[0]#2"]


def test_neighbours_with_one_prompt_become_a_list() -> None:
    rows = [
        {"prompt": "가", "response": "하나", "helpfulness": 1},
        {"prompt": "가", "response": "둘", "helpfulness": 4},
        {"prompt": "나", "response": "셋", "helpfulness": 4},
        {"prompt": "다", "response": "넷", "helpfulness": 2},
        {"prompt": "다", "response": "다섯", "helpfulness": 3},
    ]
    loaded = load_memory(rows, {})
    assert [(p.chosen, p.rejected) for p in loaded.pairs] == [("둘", "하나"), ("다섯", "넷")]
    assert (loaded.rows, loaded.left_out) == (5, 1)
    assert [(f.code, f.source) for f in loaded.findings] == [("tie", "train[2]")]


def test_labelled_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": [user(ASK)], "completion": [bot(BAD)], "label": False},
        {"prompt": ASK, "completion": GOOD, "label": "maybe"},
        {"prompt": ASK, "completion": GOOD, "label": False},
    ]
    loaded = load_memory(rows, {})
    assert loaded.form.shape == "labelled" and loaded.pairs == ()
    assert [one.label for one in loaded.labelled] == [True, False, False]
    assert [(f.code, f.source, f.field) for f in loaded.findings] == [
        ("label", "train[2]", "label"),
        ("conflict", "train[3]", None),
    ]
    write_csv(tmp_path / "a.csv", [{"prompt": ASK, "completion": GOOD, "label": "True"}])
    assert load_pairs(tmp_path / "a.csv", {}).labelled[0].label is True


def test_columns_win_over_what_is_recognised() -> None:
    row = {"prompt": "아님", "물음": ASK, "chosen": GOOD, "rejected": BAD, "system": "x"}
    pair = the_pair(load_memory([row], {"prompt": "물음", "system": "prompt"}))
    assert pair.prompt == (system("아님"), user(ASK))
    assert recognise([row], Format({"prompt": "물음"})).columns["prompt"] == "물음"


def test_chat_makes_turns_of_texts() -> None:
    pair = the_pair(load_memory(CASES["plain"].good, Format(chat=True)))
    assert (pair.prompt, pair.chosen, pair.rejected) == CHAT


def test_a_ranking_that_nothing_reads_is_an_error() -> None:
    with pytest.raises(ConfigError, match="has no effect"):
        load_memory(CASES["plain"].good, Format(pairs="all"))


def folder_of(path: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path / name, [{"prompt": f"{ASK} {number}", "chosen": GOOD, "rejected": BAD}])


def test_folders_and_splits(tmp_path: Path) -> None:
    folder_of(tmp_path, "train-00000.jsonl", "train-00001.jsonl", "test.jsonl", "x/.hidden.jsonl")
    folder_of(tmp_path / "parts", "extra/train.jsonl")
    assert len(load_pairs(tmp_path, {}).pairs) == 3
    (one,) = load_pairs(f"{tmp_path}:test", {}).pairs
    assert one.source == f"{tmp_path / 'test.jsonl'}:1"
    with pytest.raises(InputMissing, match='no file of a split "tests"'):
        load_pairs(f"{tmp_path}:tests", {})
    (tmp_path / "none").mkdir()
    with pytest.raises(InputMissing, match="holds no data file"):
        load_pairs(tmp_path / "none", {})


def test_a_hub_id_is_read_from_the_cache_and_offline_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "datasets--somebody--pairs" / "snapshots" / ("0" * 40)
    (tmp_path / "datasets--somebody--pairs" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--somebody--pairs" / "refs" / "main").write_text("0" * 40)
    folder_of(snapshot, "data/train-0.jsonl", "data/test-0.jsonl")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    (pair,) = load_pairs("somebody/pairs:test", {}).pairs
    assert pair.source.endswith("data/test-0.jsonl:1")
    with pytest.raises(InputMissing, match="cannot be reached"):
        load_pairs("somebody/nothing-of-the-kind", {})


def test_a_mixture_takes_each_row_as_often_as_its_weight(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = [{"prompt": f"{ASK} {n}", "chosen": GOOD, "rejected": BAD} for n in range(200)]
    write_jsonl(one, rows)
    write_jsonl(other, [{**row, "prompt": f"b {row['prompt']}"} for row in rows])
    loaded = load_pairs({str(one): 0.25, str(other): 1.5}, {})
    of_one = [p for p in loaded.pairs if p.source.startswith(f"{one}:")]
    of_other = [p for p in loaded.pairs if p.source.startswith(f"{other}:")]
    assert 30 < len(of_one) < 70 and 270 < len(of_other) < 330
    assert loaded.rows == 400 and loaded.left_out == 200 - len(of_one)
    assert {f.code for f in loaded.findings} == {"weight"}
    assert len({p.source for p in of_other}) == len(of_other)
    again = load_pairs({str(one): 0.25, str(other): 1.5}, {})
    assert again == loaded
    with pytest.raises(ConfigError, match="not a weight"):
        load_pairs({str(one): 0.0}, {})


def test_which_rows_of_a_mixture_are_taken_is_the_same_in_every_process() -> None:
    rows = [Row(f"a:{n}", {"prompt": f"질문 {n}"}) for n in range(12)]
    assert [_copies(row, 1.5) for row in rows] == [2, 2, 1, 2, 1, 1, 2, 2, 1, 1, 1, 2]


def test_a_pair_that_counts_less_than_nothing_is_refused() -> None:
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    loaded = load_memory([{**row, "weight": -0.5}, {**row, "weight": 0}], {})
    (found,) = [f for f in loaded.findings if f.severity == "error"]
    assert (found.where, found.message) == ("train[0] weight", "the weight is -0.5")
    assert [pair.weight for pair in loaded.pairs] == [0.0]


@pytest.mark.parametrize(
    ("name", "content", "code", "place"),
    [
        ("a.json", b'[{"prompt": "a"}\n, {"prompt": ', "json", 2),
        ("a.json", b'[{"prompt": "a"} {"prompt": "b"}]', "json", 1),
        ("a.json", b'[{"prompt": "a"}\n] x', "json", 2),
        ("a.csv", b'prompt,chosen,rejected\n"a,b,c\n', "csv", 2),
        ("a.csv", b"prompt,chosen,rejected\n\na,b\n", "csv", 3),
        ("a.csv", b'prompt,chosen,rejected\n"a\nb",c,d\ne,f\n', "csv", 4),
        ("a.csv", b"prompt,prompt\na,b\n", "csv", 1),
        ("a.csv", "prompt,chosen,rejected\n가,나,다\n".encode("cp949"), "utf8", 2),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 999, mtime=0)[:-9], "gzip", 999),
        ("a.jsonl.gz", b"no gzip", "gzip", 1),
        ("a.parquet.gz", gzip.compress(b"no parquet", mtime=0), "parquet", 1),
        ("a.parquet", b"PAR1 no parquet PAR1", "parquet", 1),
    ],
)
def test_damaged_files(name: str, content: bytes, code: str, place: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = load_pairs(path, {}).findings
    assert (found[-1].code, found[-1].source) == (code, f"{path}:{place}")


@pytest.mark.parametrize("also_in_its_groups", [False, True])
def test_a_parquet_file_that_claims_more_rows(also_in_its_groups: bool, tmp_path: Path) -> None:
    """The footer is rewritten by hand: three rows become 10^12."""

    def field(rows: int) -> bytes:  # a number of the footer: its header, then zigzag by 7 bits
        value, coded = rows << 1, b""
        while value > 127:
            value, coded = value >> 7, coded + bytes([value & 127 | 128])
        return b"\x16" + coded + bytes([value])

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["가", "나", "다"], "chosen": ["b"] * 3,
                             "rejected": ["c"] * 3}), path)  # fmt: skip
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    footer, after = content[-8 - size : -8], b"" if also_in_its_groups else b"\x19"
    assert field(3) + after in footer
    footer = footer.replace(field(3) + after, field(10**12) + after)
    path.write_bytes(content[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    found = load_pairs(path, {}).findings[-1]
    assert (found.code, found.severity, found.source) == ("parquet", "error", f"{path}:4")
    assert "says that it holds 1,000,000,000,000 rows, and it holds 3" in found.message


def test_a_json_file_that_holds_lines(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.json", CASES["plain"].good)
    assert the_pair(load_pairs(tmp_path / "a.json", {})).prompt == ASK


def test_a_long_array_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.data.read.CHARACTERS_AT_ONCE", 7)
    rows = [{"prompt": f"{ASK} {n}", "chosen": GOOD * n, "rejected": BAD} for n in range(1, 30)]
    write_json(tmp_path / "a.json", rows)
    loaded = load_pairs(tmp_path / "a.json", {})
    assert [p.prompt for p in loaded.pairs] == [row["prompt"] for row in rows]
    lines = (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()
    places = [number for number, line in enumerate(lines, 1) if line.strip() == "{"]
    assert [int(p.source.rpartition(":")[2]) for p in loaded.pairs] == places


PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_page_shows_every_finding_and_rows_that_read() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for code, severity in RULES.items():
        assert f"| `{code}` | {severity} | {why(code)} | {cure(code)} |" in text
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        rows = [json.loads(line) for line in block.splitlines()]
        groups = [rows] if "helpfulness" in rows[0] else [[row] for row in rows]
        for group in groups:
            loaded = load_memory(group, {})
            assert len(loaded.pairs) + len(loaded.labelled) == 1, group
            assert not [f for f in loaded.findings if f.severity == "error"]
