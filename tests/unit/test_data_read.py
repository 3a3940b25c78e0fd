"""The reader: every line is a row or one located finding, never a traceback."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.data import load_pairs

from likelier.base.errors import DataError, InputMissing
from likelier.base.findings import Finding
from likelier.data import read
from likelier.data.read import read_rows
from likelier.data.records import Row
from likelier.data.sources import rows_from_memory

GOOD = '{"prompt": "파이썬이 뭐야?", "chosen": "언어입니다.", "rejected": "뱀이지~"}'.encode()


def read_bytes(folder: Path, content: bytes) -> list[Row | Finding]:
    path = folder / "pairs.jsonl"
    path.write_bytes(content)
    return list(read_rows(path))


def the_finding(folder: Path, line: bytes) -> Finding:
    """What the middle one of three lines gives; the others must come through."""
    before, found, after = read_bytes(folder, GOOD + b"\n" + line + b"\n" + GOOD)
    assert isinstance(before, Row) and isinstance(after, Row)
    assert after.source.endswith("pairs.jsonl:3")
    assert isinstance(found, Finding)
    assert found.source.endswith("pairs.jsonl:2") and found.severity == "error"
    assert "\n" not in found.message and len(found.message) < 200 and found.hint
    return found


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b'{"prompt": "a",', "json", "broken JSON at column 16"),
        (b'{"prompt": "a",}', "json", "broken JSON"),
        (GOOD + GOOD, "json", "something follows the object"),
        (b"[1, 2]", "json", "an array"),
        (b'"text"', "json", "a bare value"),
        (b"NaN", "json", "a bare value"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json", "nested too deeply"),
        (b'{"a": "x\x00"}', "utf8", "NUL bytes"),
        (b'{"a": "\xff"}', "utf8", "byte 8"),
        (b'{"a": "\xed\xa0\x80"}', "utf8", "byte 8"),
        ('{"a": "한국어"}'.encode("cp949"), "utf8", "byte 8"),
        ('{"a": "\u00a0"}\u00a0'.encode(), "json", "something follows"),
    ],
)
def test_a_bad_line_is_one_located_finding(
    tmp_path: Path, line: bytes, code: str, says: str
) -> None:
    found = the_finding(tmp_path, line)
    assert found.code == code
    assert says in found.message


ODD = [
    (b"-Infinity", "-Infinity is not JSON"),
    (b"[NaN]", "NaN is not JSON"),
    (b'{"b": [{"c": NaN}]}', "NaN is not JSON"),
    (b"1e400", "too large"),
    (b"[-1e400]", "too large"),
    (b'{"b": 1, "b": 2}', '"b" stands twice'),
    (b'1, "b": 2, "a": 3', '"a" stands twice'),
    (b"[" * 200 + b"]" * 200, "nested too deeply"),
    (b"9" * 5000, "too large"),
    (b'"\\ud800"', "U+D800"),
    (b'{"\\udfff": 1}', "U+DFFF"),
    (b'"\\u0000"', "NUL"),
    (b'["\\ufdd0"]', "U+FDD0"),
]


@pytest.mark.parametrize(("cell", "says"), ODD)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_an_odd_cell_costs_the_row_only_where_it_is_read(
    tmp_path: Path, name: str, cell: bytes, says: str
) -> None:
    path = tmp_path / name
    rows = [GOOD[:-1] + b', "a": ' + cell + b"}", GOOD]
    path.write_bytes(b"\n".join(rows) if name == "p.jsonl" else b"[" + b",".join(rows) + b"]")
    loaded = load_pairs(path, {"origin": "prompt"})
    assert (len(loaded.pairs), loaded.rows, loaded.left_out) == (2, 2, 0)
    loaded = load_pairs(path, {"origin": "a"})
    (found,) = [finding for finding in loaded.findings if finding.severity == "error"]
    assert (found.code, found.source, found.field) == ("json", f"{path}:1", "a")
    places = [pair.source for pair in loaded.pairs]
    assert places == [f"{path}:2" if name == "p.jsonl" else f"{path}:1[1]"]
    assert says in found.message and "\n" not in found.message
    assert (len(loaded.pairs), loaded.rows, loaded.left_out) == (1, 2, 1)


def test_a_missing_number_may_be_nan(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD[:-1] + b', "margin": NaN, "weight": NaN}')
    (pair,) = load_pairs(path, {}).pairs
    assert (pair.margin, pair.weight) == (None, None)
    path.write_bytes(GOOD[:-1] + b', "margin": Infinity}')
    assert [f.field for f in load_pairs(path, {}).findings] == ["margin"]


def test_an_odd_cell_does_not_cost_the_neighbours_of_its_row(tmp_path: Path) -> None:
    """Rows of one completion each, of which the neighbours with one prompt become a list."""
    path = tmp_path / "p.jsonl"
    cells = [('"가"', "1"), ('"나"', "1e400"), ('"\\ud800"', "2"), ('"다"', "3")]
    lines = [f'{{"prompt": "?", "response": {text}, "score": {score}}}' for text, score in cells]
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = load_pairs(path, {})
    assert [(f.code, f.source, f.field) for f in loaded.findings if f.severity == "error"] == [
        ("json", f"{path}:2", "score"), ("json", f"{path}:3", "response"),
    ]  # fmt: skip
    assert [(pair.chosen, pair.rejected) for pair in loaded.pairs] == []
    path.write_text("\n".join([lines[1], lines[0], lines[3], lines[2]]), encoding="utf-8")
    assert [(pair.chosen, pair.rejected) for pair in load_pairs(path, {}).pairs] == [("다", "가")]


def test_the_name_of_a_column_may_be_odd(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD[:-1] + b', "\\udfff\\u0000": 1}')
    assert len(load_pairs(path, {}).pairs) == 1


def test_korean_windows_text_is_recognised(tmp_path: Path) -> None:
    assert "CP949" in the_finding(tmp_path, '{"a": "한국어"}'.encode("cp949")).hint


def test_utf16_is_recognised(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, '{"a": "한국어"}\n'.encode("utf-16"))
    assert "UTF-16" in found[0].hint


def test_cr_only_line_ends_are_named(tmp_path: Path) -> None:
    (found,) = read_bytes(tmp_path, GOOD + b"\r" + GOOD + b"\r")
    assert isinstance(found, Finding) and "CR" in found.message


def test_what_is_allowed(tmp_path: Path) -> None:
    surrogates = b'{"a": "\\ud83d\\ude00", "line": "\xe2\x80\xa8"}'
    content = b"\xef\xbb\xbf" + GOOD + b"\r\n\n  \t\r\n" + surrogates
    first, second = read_bytes(tmp_path, content)
    assert isinstance(first, Row) and first.record["prompt"] == "파이썬이 뭐야?"
    assert isinstance(second, Row) and second.source.endswith(":4")
    assert second.record == {"a": "😀", "line": "\u2028"}


def test_a_bom_inside_the_file_is_no_json(tmp_path: Path) -> None:
    assert the_finding(tmp_path, b"\xef\xbb\xbf" + GOOD).code == "json"


def test_a_line_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 2**20)
    long = b'{"a": "' + b"x" * (2**20 * 3) + b'"}'
    assert "longer than 1 MiB" in the_finding(tmp_path, long).message
    exactly = b'{"a": "' + b"x" * (2**20 - 10) + b'"}\n'
    assert len(exactly) == 2**20
    first, second = read_bytes(tmp_path, exactly + GOOD)
    assert isinstance(first, Row) and isinstance(second, Row)


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    def raises(error: type[Exception], path: Path, says: str) -> None:
        with pytest.raises(error, match=says) as caught:
            read_rows(path)  # at once, not at the first row
        assert str(path).replace("\0", r"\x00")[:200] in str(caught.value)

    raises(InputMissing, tmp_path / "none.jsonl", "no such file")
    raises(InputMissing, tmp_path / "no folder" / "x.jsonl", "no such file")
    raises(InputMissing, tmp_path, "a folder")
    (tmp_path / "a.txt").write_text("x")
    raises(DataError, tmp_path / "a.txt", r'cannot read "\.txt" files')
    (tmp_path / "empty.jsonl").touch()
    raises(DataError, tmp_path / "empty.jsonl", "empty")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone")
    raises(InputMissing, tmp_path / "link.jsonl", "leads nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    raises(InputMissing, tmp_path / "pipe.jsonl", "no regular file")
    (tmp_path / "f.jsonl").write_bytes(GOOD)
    raises(InputMissing, tmp_path / "f.jsonl" / "x.jsonl", "Not a directory")
    raises(InputMissing, tmp_path / ("x" * 5000), "too long")
    raises(InputMissing, tmp_path / "a\0.jsonl", "null byte")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root reads everything
    with pytest.raises(InputMissing, match="not readable"):
        read_rows(tmp_path / "a.jsonl")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_bytes_never_give_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(b"\n".join([GOOD] * 3))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(good)))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    content = bytes(good) or b"\n"
    found = read_bytes(tmp_path_factory.mktemp("fuzz"), content)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert len(found) == sum(bool(line.strip()) for line in lines)
    for item in found:
        assert isinstance(item, (Row, Finding))
        if isinstance(item, Row):
            json.dumps(item.record, ensure_ascii=False).encode()


TABLE = {"prompt": ["가", "나", "다"], "chosen": ["a", "b", None], "rejected": ["c", "d", "e"]}


def test_parquet_rows_count_from_one(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(TABLE), path, row_group_size=2)
    rows = list(read_rows(path))
    assert [row.source for row in rows] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert rows[2].record == {"prompt": "다", "chosen": None, "rejected": "e"}


def test_parquet_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    chat = [{"role": "user", "content": "가", "name": None}]
    pq.write_table(pa.Table.from_pylist([{"prompt": chat}]), path)
    (row,) = read_rows(path)
    assert row.record == {"prompt": [{"role": "user", "content": "가"}]}


def test_a_parquet_cell_that_is_none_costs_its_row_only_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    raw = pa.array([b"ok", b"\xff\xfe", b"ok"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    far = pa.array([0, 2**61, 0], pa.timestamp("us"))  # no date of Python's
    table = {**TABLE, "chosen": ["a", "b", "c"], "text": text, "far": far}
    pq.write_table(pa.table(table), path)
    assert len(load_pairs(path, {}).pairs) == 3
    for column, code in (("text", "utf8"), ("far", "type")):
        loaded = load_pairs(path, {"origin": column})
        (found,) = [finding for finding in loaded.findings if finding.severity == "error"]
        assert (found.code, found.source, found.field) == (code, f"{path}:2", column)
        assert len(loaded.pairs) == 2


@pytest.mark.parametrize("cut", [1, 10, 100, 300])
def test_a_damaged_parquet_file_is_one_finding(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(TABLE), path)
    path.write_bytes(path.read_bytes()[:-cut])
    (found,) = read_rows(path)
    assert isinstance(found, Finding) and found.code == "parquet"
    assert "damaged" in found.message and "\n" not in found.message


def test_damage_in_a_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(
        pa.table({"a": [f"글 {n}" for n in range(50)]}),
        path,
        row_group_size=25,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    content = bytearray(path.read_bytes())
    content[content.index("글 40".encode())] ^= 1
    path.write_bytes(content)
    found = list(read_rows(path))
    assert isinstance(found[-1], Finding) and found[-1].code == "parquet"
    assert all(isinstance(row, Row) for row in found[:-1])


def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD)
    rows = read_rows(path)
    next(rows)
    rows.close()  # warnings are errors: an open file would fail here


def test_rows_in_memory() -> None:
    first, second = rows_from_memory([{"a": 1}, "text"])
    assert first == Row("train[0]", {"a": 1})
    assert isinstance(second, Finding) and second.source == "train[1]"


def test_rows_of_a_dataset() -> None:
    from datasets import Dataset  # slow to import

    rows = rows_from_memory(Dataset.from_list([{"a": "가"}, {"a": "나"}]), "eval")
    assert list(rows) == [Row("eval[0]", {"a": "가"}), Row("eval[1]", {"a": "나"})]


@pytest.mark.parametrize("rows", [{"train": [], "test": []}, None, 3])
def test_what_is_no_list_of_rows(rows: object) -> None:
    with pytest.raises(DataError, match="list of rows"):
        rows_from_memory(rows)  # type: ignore[arg-type]
