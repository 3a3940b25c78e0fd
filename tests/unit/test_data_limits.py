"""Hostile files: refused in seconds and little memory; and what training makes of its data."""

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.errors import DataError
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.inspector import PairInspector
from likelier.config import Config, config_from
from likelier.data.load import Dataset, load

ENCODER = build_encoder(byte_level(CHATML, eos="<|im_end|>"))


STARTS = {
    "a.jsonl.gz": b'{"prompt": "',
    "a.json.gz": b'[{"prompt": "',
    "a.csv.gz": b'prompt,chosen\n"',
}


# The peak since the program began: what the system tells of a child that has ended also counts
# the process that it was forked from.
CHECK = """
import sys
from likelier.cli import main
code = main(["check", sys.argv[1]])
status = open("/proc/self/status", encoding="utf-8").read()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_a_bomb_is_refused_in_seconds_and_little_memory(name: str, tmp_path: Path) -> None:
    """A small file that becomes a line of 300 MiB without an end."""
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(STARTS[name])
        for _ in range(300):
            file.write(b"x" * 2**20)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 65
    assert int(done.stderr.split()[-2]) < 512 * 1024  # KiB
    assert time.monotonic() - began < 10


def config_of(data: dict[str, Any]) -> Config:
    return config_from({"model": {"path": "m"}, "data": data, "out": "o"}, [])


def prepare(config: Config, encoder: Encoder) -> Dataset:
    return load(config.data, encoder, seed=config.train.seed, inspector=PairInspector())


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{n} 번 질문 {chr(0xAC00 + 97 * n)}",
            "chosen": "좋은 답",
            "rejected": "나쁜 답",
        }
        for n in range(count)
    ]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_in_are_rows_used_and_dropped(tmp_path: Path) -> None:
    rows: list[Any] = rows_of(40)
    rows[3] = {**rows[3], "prompt": None}
    rows[5] = {**rows[5], "chosen": "같다", "rejected": "같다"}
    rows[7] = {**rows[7], "chosen": "긴 " * 300}
    data = {"train": write(tmp_path / "a.jsonl", rows), "eval": "10%", "on_bad_row": "drop",
            "max_length": 200}  # fmt: skip
    prepared = prepare(config_of(data), ENCODER)
    counts = prepared.counts
    assert (counts["rows"], counts["used"], counts["dropped"]) == (40, 37, 3)
    assert len(prepared.pairs) == 37 and len(prepared.eval) == 4
    assert {code: counts["findings"][code] for code in ("type", "identical", "overlong")} == {
        "type": 1,
        "identical": 1,
        "overlong": 1,
    }


def test_the_numbers_of_a_line_add_up(tmp_path: Path) -> None:
    """What dropped a row is said apart from what is odd in rows that are used."""
    rows: list[Any] = rows_of(40)
    rows[3] = {**rows[3], "chosen": None}
    rows[5] = {**rows[5], "chosen": "같다\ufffd", "rejected": "같다\ufffd"}
    rows[6] = {**rows[6], "chosen": "같다", "rejected": "같다"}
    rows[7] = {**rows[7], "chosen": "긴\ufffd " * 300}  # dropped, and odd besides
    rows[8] = {**rows[8], "chosen": "\ufffd"}
    train = write(tmp_path / "a.jsonl", rows)
    held = write(tmp_path / "b.jsonl", [*rows[:5], {"prompt": "새 질문", "chosen": ""}])
    data = {"train": train, "eval": held, "on_bad_row": "drop", "max_length": 200}
    prepared = prepare(config_of(data), ENCODER)
    counts, said = prepared.counts, prepared.describe()
    assert counts["dropped_by"] == {"type": 1, "identical": 2, "overlong": 1}
    assert "4 of 40 rows dropped: 1 type, 2 identical, 1 overlong; " in said
    assert counts["beside"]["warnings"]["damaged"] == 1
    assert "; warnings: 1 damaged" in said
    assert "2 of 6 held-out rows dropped: " in said
    for one in (counts, counts["eval"]):
        assert sum(one["dropped_by"].values()) == one["dropped"] == one["rows"] - one["used"]


def test_a_mixture_is_trained_on_as_its_weights_say(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", rows_of(10))
    other = write(tmp_path / "b.jsonl", [{**r, "prompt": "b " + r["prompt"]} for r in rows_of(10)])
    prepared = prepare(config_of({"train": {one: 1, other: 2.0}, "eval": None}), ENCODER)
    assert len(prepared.train) == 30
    assert (prepared.counts["rows"], prepared.counts["used"]) == (20, 20)
    assert len({pair.source for pair in prepared.train}) == 30


def test_a_row_counts_once_where_its_copies_come_in_two_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 2)
    train = {write(tmp_path / "a.jsonl", rows_of(2)): 3.0}
    prepared = prepare(config_of({"train": train, "eval": None}), ENCODER)
    assert len(prepared.train) == 6
    counts = prepared.counts
    assert (counts["rows"], counts["used"], counts["dropped"]) == (2, 2, 0)


def test_ranked_lists_are_trained_on(tmp_path: Path) -> None:
    row = {"instruction": "가나다", "completions": ["좋다", "보통", "나쁘다"], "scores": [9, 5, 1]}
    path = write(tmp_path / "a.jsonl", [row, {**row, "scores": [1, 1, 1]}])
    data = {"train": path, "eval": None, "chat": True, "ranked": {"pairs": "best-rest"}}
    prepared = prepare(config_of(data), ENCODER)
    assert len(prepared.train) == 2
    assert (prepared.counts["rows"], prepared.counts["used"]) == (2, 1)
    assert ENCODER.tokenizer.decode(prepared.train[0].prompt).startswith("<|im_start|>user")


def test_a_held_out_file_that_leaks_is_counted(tmp_path: Path) -> None:
    rows = rows_of(10)
    rows[4]["prompt"] = "아주 길고 자세한 질문이라서 한 글자쯤 달라도 거의 같은 질문이다, 그렇다"
    near = {**rows[4], "prompt": rows[4]["prompt"] + "!"}
    held = write(tmp_path / "held.jsonl", [near, rows[2], {**rows[0], "prompt": "새 질문"}])
    data = {"train": write(tmp_path / "a.jsonl", rows), "eval": held}
    prepared = prepare(config_of(data), ENCODER)
    assert prepared.counts["eval"]["findings"]["leak"] == 2
    assert "2 held-out prompts are also trained on, or nearly" in prepared.describe()


def test_rows_that_are_too_long_neither_leak_nor_are_leaked(tmp_path: Path) -> None:
    def row(number: int, long: bool = False) -> dict[str, str]:
        letters = "".join(map(chr, random.Random(number).choices(range(0xAC00, 0xD7A4), k=40)))
        return {"prompt": letters, "chosen": "no " * (500 if long else 1), "rejected": "yes"}

    rows = [row(n, long=n == 4) for n in range(30)]
    near = {**row(4), "prompt": row(4)["prompt"] + "!"}
    held = [*(row(n) for n in range(100, 130)), near, row(7, long=True)]
    data = {"train": write(tmp_path / "a.jsonl", rows), "max_length": 300,
            "eval": write(tmp_path / "held.jsonl", held)}  # fmt: skip
    counts = prepare(config_of(data), ENCODER).counts
    assert (counts["dropped"], counts["eval"]["dropped"]) == (1, 1)
    assert counts["eval"]["findings"] == {"overlong": 1}
    data["max_length"] = 2000
    assert prepare(config_of(data), ENCODER).counts["eval"]["findings"] == {"leak": 2}


def test_near_copies_never_straddle_the_split(tmp_path: Path) -> None:
    base = "{n} 사용자가 남긴 긴 글을 처음부터 끝까지 읽고 그 뜻을 {word} 짧게 설명해 주십시오 {n}"
    rows = [
        {
            **row,
            "prompt": base.format(
                n=" ".join(chr(0xAC00 + 500 * n + k) * 3 for k in range(9)), word=word
            ),
        }
        for n, row in enumerate(rows_of(12))
        for word in ("아주", "매우", "아주 ")
    ]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        config = config_from(
            {"model": {"path": "m"}, "data": {"train": path, "eval": "25%"}, "out": "o",
             "train": {"seed": seed}}, [],
        )  # fmt: skip
        prepared = prepare(config, ENCODER)
        groups = [
            {(int(pair.source.rpartition(":")[2]) - 1) // 3 for pair in side}
            for side in (prepared.train, prepared.eval)
        ]
        assert groups[1] and not groups[0] & groups[1]


def test_truncated_answers_follow_on_bad_row(tmp_path: Path) -> None:
    same = {"prompt": "가", "chosen": "나" * 90 + "다", "rejected": "나" * 90 + "라"}
    path = write(tmp_path / "a.jsonl", [*rows_of(5), same])
    data = {"train": path, "eval": None, "max_length": 100, "overlong": "trim"}
    with pytest.raises(DataError, match="same or empty once cut"):
        prepare(config_of(data), ENCODER)
    prepared = prepare(config_of({**data, "on_bad_row": "drop"}), ENCODER)
    assert (len(prepared.train), prepared.counts["dropped"]) == (5, 1)


def test_unpaired_rows_are_not_taken_for_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "가", "completion": "나", "label": True}])
    with pytest.raises(DataError, match="one labelled answer each"):
        prepare(config_of({"train": path, "eval": None}), ENCODER)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    from likelier.data.read import read_rows

    path = tmp_path / "a.jsonl"
    write(path, rows_of(3))
    rows = read_rows(path)
    next(rows)
    with path.open("a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)


def test_a_pickled_task_makes_the_same_of_its_rows() -> None:
    import pickle

    from likelier.data.records import Row
    from likelier.data.shapes import Format
    from likelier.data.workers import Task, process_rows

    columns = {name: name for name in ("prompt", "chosen", "rejected")}
    task = Task(Format(columns, chat=True), encoder=ENCODER, keep_tokens=True)
    batch = [Row(f"a:{n}", row) for n, row in enumerate(rows_of(5))]
    ours, theirs = process_rows(task, batch), process_rows(pickle.loads(pickle.dumps(task)), batch)
    assert ours.sources == theirs.sources and ours.arrays["ids"].size
    assert ours.arrays["ids"].tolist() == theirs.arrays["ids"].tolist()
