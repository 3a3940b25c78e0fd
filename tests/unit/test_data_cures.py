"""Every cure that a message about data names is followed here, and removes its error."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.data import load_memory, load_pairs
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.chat.tokenizer import build_encoder
from likelier.config import config_from
from likelier.data.load import load
from likelier.data.shapes import Format, format_with

Row = dict[str, Any]
ASK, GOOD, BAD = "우산은 왜 접히나요?", "뼈대가 관절로 이어져요.", "몰라."
TEXT: Row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
LISTED: Row = {"prompt": ASK, "completions": [GOOD, BAD], "scores": [2, 1]}


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def bot(text: Any) -> Row:
    return {"role": "assistant", "content": text}


CHAT: Row = {"prompt": [user(ASK)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}
WHOLE: Row = {"chosen": [user(ASK), bot(GOOD)], "rejected": [user(ASK), bot(BAD)]}
NO_INNER = {**LISTED, "completions": [{"response": GOOD}, {"response": BAD}], "scores": None}

# A row, what of its error names the cure, and the row and the format that follow it.
CURES: dict[str, tuple[Row, str, Row, Format]] = {
    "number": ({**TEXT, "margin": "viel"}, "write a finite number", {**TEXT, "margin": 1.5},
               Format()),
    "infinite": ({**TEXT, "margin": float("inf")}, "write a finite number", {**TEXT, "margin": 9},
                 Format()),
    "weight": ({**TEXT, "weight": -1}, "write 0 or more", {**TEXT, "weight": 0}, Format()),
    "start": ({**CHAT, "chosen": [user("또"), bot(GOOD)], "rejected": [user("또"), bot(BAD)]},
              "prompt: null",
              {**CHAT, "chosen": [user("또"), bot(GOOD)], "rejected": [user("또"), bot(BAD)]},
              format_with({"prompt": None})),
    "start of one": ({**CHAT, "chosen": [user("또"), bot(GOOD)]}, "begin it after the prompt",
                     CHAT, Format()),
    "start of one, the other way": (
        {**CHAT, "chosen": [user("또"), bot(GOOD)]}, "repeat the whole prompt in both answers",
        {**CHAT, **WHOLE}, Format()),
    "end": ({**CHAT, "chosen": [bot(GOOD), user("또")]}, "end each answer with an assistant turn",
            {**CHAT, "chosen": [bot(GOOD), user("또"), bot("네")]}, Format()),
    "no text": ({**TEXT, "chosen": 3}, "write it as a string", {**TEXT, "chosen": "3"}, Format()),
    "odd character": ({**TEXT, "chosen": "가\0"}, "delete that character", {**TEXT, "chosen": "가"},
                      Format()),
    "empty": ({**TEXT, "chosen": " "}, "add text", {**TEXT, "chosen": "가"}, Format()),
    "no message": ({**CHAT, "chosen": [GOOD]}, 'write {"role": "user", "content": "…"}', CHAT,
                   Format()),
    "empty list": ({**CHAT, "chosen": []}, "add messages", CHAT, Format()),
    "no role": ({**CHAT, "chosen": [{"content": GOOD}]}, 'has "role" and "content"', CHAT,
                Format()),
    "misspelt role": ({**CHAT, "chosen": [{"role": "asistant", "content": GOOD}]},
                      'did you mean "assistant"?', CHAT, Format()),
    "unknown role": ({**CHAT, "chosen": [{"role": "xyz", "content": GOOD}]}, "use one of system",
                     CHAT, Format()),
    "misspelt column": ({"prompt": ASK, "choosen": GOOD, "rejected": BAD},
                        "rename it, or set data.columns.chosen: choosen",
                        {"prompt": ASK, "choosen": GOOD, "rejected": BAD},
                        Format({"chosen": "choosen"})),
    "unnamed column": ({"prompt": ASK, "가": GOOD, "rejected": BAD},
                       'set data.columns.chosen to one of "가"',
                       {"prompt": ASK, "가": GOOD, "rejected": BAD}, Format({"chosen": "가"})),
    "mixed": ({**TEXT, "chosen": [bot(GOOD)]}, "all as text", TEXT, Format()),
    "mixed, as chats": ({**TEXT, "prompt": [user(ASK)]}, "or all as lists of messages", CHAT,
                        Format()),
    "messages behind a text": (
        {**LISTED, "completions": [[bot(GOOD)], [bot(BAD)]]}, "set data.chat: true",
        {**LISTED, "completions": [[bot(GOOD)], [bot(BAD)]]}, Format(chat=True)),
    "messages behind a text, as text": (
        {**LISTED, "completions": [[bot(GOOD)], [bot(BAD)]]}, "write both as text", LISTED,
        Format()),
    "an input beside messages": (
        {"instruction": [user(ASK)], "input": "글", "chosen": GOOD, "rejected": BAD},
        "all as text", {"instruction": ASK, "input": "글", "chosen": GOOD, "rejected": BAD},
        Format()),
    "other prompts": ({**WHOLE, "rejected": [user("또"), bot(BAD)]},
                      "let both begin with the same messages", WHOLE, Format()),
    "another prompt": ({**WHOLE, "prompt": "또"}, "set data.columns.prompt: null",
                       {**WHOLE, "prompt": "또"}, format_with({"prompt": None})),
    "another prompt, fixed": ({**WHOLE, "prompt": "또"}, "fix the prompt", {**WHOLE, "prompt": ASK},
                              Format()),
    "tools": ({**CHAT, "tools": "{"}, "write a JSON list of tools", {**CHAT, "tools": "[]"},
              Format()),
    "tools that are none": ({**CHAT, "tools": [3]}, "write a list of objects, or null",
                            {**CHAT, "tools": None}, Format()),
    "label": ({"prompt": ASK, "completion": GOOD, "label": "gut"}, "write true for good",
              {"prompt": ASK, "completion": GOOD, "label": True}, Format()),
    "scores too few": ({**LISTED, "scores": [1]}, "give one score for each completion", LISTED,
                       Format()),
    "no score": (NO_INNER, "give each completion one of fine-grained_score",
                 {**NO_INNER, "completions": [{"response": GOOD, "rating": 2},
                                              {"response": BAD, "rating": 1}]}, Format()),
    "no score, a column": ({**NO_INNER, "noten": [2, 1]}, "set data.columns.scores",
                           {**NO_INNER, "noten": [2, 1]}, Format({"scores": "noten"})),
    "no text in a completion": (
        {**LISTED, "completions": [{"said": GOOD}, {"said": BAD}]}, "call it response",
        {**LISTED, "completions": [{"response": GOOD}, {"response": BAD}]}, Format()),
    "scores beside and inside": (
        {**LISTED, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 2}]},
        "set data.columns.scores: scores",
        {**LISTED, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 2}]},
        Format({"scores": "scores"})),
    "scores beside and inside, the other way": (
        {**LISTED, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 2}]},
        "or null",
        {**LISTED, "completions": [{"response": GOOD, "score": 1}, {"response": BAD, "score": 2}]},
        format_with({"scores": None})),
    "no list": ({**LISTED, "completions": 3}, "write a list of texts", LISTED,
                Format({"completions": "completions"})),
    "a history without an answer": (
        {**TEXT, "history": [["가", "나", "다"]]}, "in twos",
        {**TEXT, "history": [["가", "나"]]}, Format()),
    "the same answers": ({**TEXT, "rejected": GOOD}, "delete the row", TEXT, Format()),
    "a huge text": ({**TEXT, "chosen": "가" * 2_000_001}, "split it", {**TEXT, "chosen": "가" * 99},
                    Format()),
    "printed messages": ({**CHAT, "prompt": str([user(ASK)])}, "json.dumps",
                         {**CHAT, "prompt": json.dumps([user(ASK)])}, Format()),
}  # fmt: skip


@pytest.mark.parametrize("name", CURES)
def test_the_cure_of_a_row(name: str) -> None:
    bad, says, cured, asked = CURES[name]
    before = replace(asked, columns={}, ignored=(), chat=False)
    if "columns" not in says and "null" not in says:
        before = replace(asked, chat=False)
    (found,) = load_memory([bad], before).findings
    assert found.severity == "error" and says in found.hint, found
    loaded = load_memory([cured], asked)
    assert not [one for one in loaded.findings if one.severity == "error"]
    assert len(loaded.pairs) + len(loaded.labelled) == 1


def test_a_list_without_a_difference() -> None:
    (found,) = load_memory([LISTED], Format(min_gap=5)).findings
    assert found.hint == "lower data.ranked.min_gap"
    assert len(load_memory([LISTED], Format(min_gap=1)).pairs) == 1


@pytest.mark.parametrize("bad", [{**TEXT, "chosen": ""}, {**TEXT, "rejected": GOOD}])
def test_rows_are_dropped_where_the_hint_says_so(bad: Row, tmp_path: Path) -> None:
    encoder = build_encoder(byte_level(CHATML, eos="<|im_end|>"))
    data = {"train": "x", "eval": None}
    tree = {"model": {"path": "m"}, "data": data, "out": "o"}
    with pytest.raises(DataError, match=r"data\.on_bad_row: drop"):
        load(config_from(tree).data, encoder, train=[bad, TEXT])
    tree["data"] = {**data, "on_bad_row": "drop"}
    assert len(load(config_from(tree).data, encoder, train=[bad, TEXT]).train) == 1


LINE = json.dumps(TEXT, ensure_ascii=False).encode()
TABLE = f'prompt,chosen,rejected\n{ASK},"{GOOD}",{BAD}\n'.encode()
FILES: dict[str, tuple[str, bytes, str, bytes]] = {
    "broken": ("a.jsonl", LINE[:-1], "one JSON object on each line", LINE),
    "two on a line": ("a.jsonl", LINE + LINE, "one JSON object on each line", LINE + b"\n" + LINE),
    "no object": ("a.jsonl", b"[1]", "one JSON object on each line", LINE),
    "CR alone": ("a.jsonl", LINE + b"\r" + LINE, "LF line ends", LINE + b"\n" + LINE),
    "CP949": ("a.jsonl", LINE.decode().encode("cp949"), "iconv -f cp949 -t utf-8", LINE),
    "UTF-16": ("a.jsonl", LINE.decode().encode("utf-16"), "UTF-8", LINE),
    "NUL": ("a.jsonl", LINE.decode().encode("utf-16-le")[:-1], "UTF-8", LINE),
    "a key that stands twice": (
        "a.jsonl", LINE[:-1] + b', "chosen": "x"}', "fix or delete this line", LINE),
    "an array cut short": ("a.json", b"[" + LINE, "fix this element", b"[" + LINE + b"]"),
    "two arrays": ("a.json", b"[" + LINE + b"][]", "keep one array", b"[" + LINE + b"]"),
    "one name twice": ("a.csv", TABLE.replace(b"chosen", b"prompt"), "rename one", TABLE),
    "a comma in a cell": (
        "a.csv", TABLE.replace(BAD.encode(), b"a,b"), "in \"…\"",
        TABLE.replace(BAD.encode(), b'"a,b"')),
    "a quote in a cell": (
        "a.csv", TABLE.replace(GOOD.encode(), b'a"b'), 'as ""',
        TABLE.replace(GOOD.encode(), b'a""b')),
    "gzip": ("a.jsonl.gz", gzip.compress(LINE)[:-9], "write or download", gzip.compress(LINE)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_cure_of_a_file(name: str, tmp_path: Path) -> None:
    file, bad, says, cured = FILES[name]
    path = tmp_path / file
    path.write_bytes(bad)
    found = [one for one in load_pairs(path, {}).findings if one.severity == "error"]
    assert any(says in one.hint for one in found), found
    path.write_bytes(cured)
    loaded = load_pairs(path, {})
    assert not [one for one in loaded.findings if one.severity == "error"] and loaded.pairs


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_written_again(kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"a.{kind}"
    table = pa.Table.from_pylist([TEXT])

    def write() -> None:
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table)

    write()
    path.write_bytes(path.read_bytes()[:-4])
    (found,) = load_pairs(path, {}).findings[-1:]
    assert (found.code, found.hint) == (kind, "write it again")
    write()
    assert len(load_pairs(path, {}).pairs) == 1


def test_the_cures_of_paths(tmp_path: Path) -> None:
    def refused(name: str, kind: type[Exception], says: str) -> None:
        with pytest.raises(kind) as caught:
            load_pairs(name, {})
        assert says in str(caught.value), caught.value

    folder = tmp_path / "data"
    folder.mkdir()
    refused(str(folder), InputMissing, "name a folder with .jsonl")
    (folder / "empty.jsonl").touch()
    refused(str(folder / "empty.jsonl"), DataError, "put at least one row in it")
    (folder / "empty.jsonl").unlink()
    (folder / "a.txt").write_bytes(LINE)
    refused(str(folder / "a.txt"), DataError, "the name must end in .jsonl")
    (folder / "a.txt").rename(folder / "test.jsonl")
    assert len(load_pairs(folder / "test.jsonl", {}).pairs) == 1
    refused(f"{folder}:train", InputMissing, "the files are called test")
    assert len(load_pairs(f"{folder}:test", {}).pairs) == 1
    refused(str(tmp_path / "no"), InputMissing, "check the path")
    with pytest.raises(ConfigError, match="over 0, at most 100"):
        load_pairs({str(folder): 0}, {})
    assert load_pairs({str(folder): 2}, {}).rows == 1


def test_the_cures_of_keys() -> None:
    with pytest.raises(ConfigError, match='did you mean "prompt"'):
        load_memory([TEXT], Format({"promt": "prompt"}))
    with pytest.raises(ConfigError, match=r"remove data\.ranked"):
        load_memory([TEXT], Format(pairs="all"))
    assert load_memory([TEXT], Format({"prompt": "prompt"})).pairs
    wrong = {"question": ASK, "chosen": GOOD, "rejected": BAD}
    (found,) = load_memory([wrong], Format({"prompt": "qestion"})).findings
    assert found.hint == 'did you mean "question"?'
    assert load_memory([wrong], Format({"prompt": "question"})).pairs
    (found,) = load_memory([wrong], Format({"prompt": "xyz"})).findings
    assert found.hint == 'the columns are "question"'
