"""Small files that claim, or become, far more than they are: refused in little memory."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.data import load_pairs
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import build_encoder
from likelier.config import config_from
from likelier.data import load, tables
from likelier.data.read import read_rows
from likelier.data.records import Pair, Row, bytes_held, taken
from likelier.data.shapes import Format

MIB = 2**20


def repeated(text: str, rows: int) -> pa.Table:
    """One text in every row, which a dictionary holds once."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    return pa.table({"prompt": one, "chosen": ["a"] * rows, "rejected": ["b"] * rows})


def save(path: Path, table: pa.Table, **how: Any) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", **how)
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(path, table.schema, options=options) as file:
            file.write_table(table)
    return path


def gzipped(path: Path, piece: bytes, times: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(times):
            file.write(piece)
    return path


def list_of_nulls(length: int) -> pa.Table:
    nulls = pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), pa.nulls(length, pa.int8()))
    return pa.table({"prompt": nulls, "chosen": ["a"], "rejected": ["b"]})


LONG = "x" * (8 * MIB)
HOSTILE: dict[str, Callable[[Path], object]] = {
    "dictionary.parquet": lambda path: save(path, repeated(LONG, 300)),
    "dictionary.arrow": lambda path: save(path, repeated(LONG, 300)),
    "nulls.parquet": lambda path: save(path, list_of_nulls(30_000_000)),
    "zeros.parquet.gz": lambda path: gzipped(path, bytes(MIB), 100),
    "lists.jsonl": lambda path: path.write_bytes(b'{"prompt":[' + b"[]," * 9_000_000 + b"[]]}"),
    "lists.json": lambda path: path.write_bytes(b'[{"prompt":[' + b"[]," * 9_000_000 + b"[]]}]"),
}  # fmt: skip

CHECK = """
import resource, sys
from likelier.cli import main
code = main(["check", sys.argv[1]])
status = open("/proc/self/status", encoding="utf-8").read()
ours = int(status.partition("VmHWM:")[2].split()[0])
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("KiB", ours, child, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_takes_little_memory(name: str, tmp_path: Path) -> None:
    HOSTILE[name](tmp_path / name)
    words = [sys.executable, "-c", CHECK, str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 65, done.stderr
    assert "Traceback" not in done.stderr
    ours, child = map(int, done.stderr.split()[-2:])
    assert max(ours, child) < 900 * 1024


def parts(path: Path) -> list[Any]:
    """What the process answers, decoded in this one."""
    with path.open("rb") as file:
        return list(tables._parts(file, path.suffix[1:]))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_large_rows_are_taken_a_few_at_a_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thousand are too much, as many as fit; no row is lost or comes twice."""
    lists = {"prompt": [[n] * 50 for n in range(500)], "chosen": [str(n) for n in range(500)]}
    path = save(
        tmp_path / f"a.{kind}",
        pa.table(lists),
        **{"row_group_size": 90} if kind == "parquet" else {},
    )
    monkeypatch.setattr(tables, "MAX_VALUES", 1000)
    *found, end = parts(path)
    assert end is None
    assert [row["chosen"] for rows in found for row in rows] == [str(n) for n in range(500)]
    assert len(found) >= 40


def test_a_row_of_too_many_values_costs_that_row_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {"prompt": [[1], [2] * 2000, [3]], "chosen": ["a", "b", "c"]}
    monkeypatch.setattr(tables, "MAX_VALUES", 1000)
    *found, end = parts(save(tmp_path / "a.parquet", pa.table(lists)))
    first, second, third = (row for rows in found for row in rows)
    assert (first["chosen"], third["chosen"], end) == ("a", "c", None)
    assert isinstance(second, Finding) and second.code == "huge" and "2,0" in second.message


def test_a_file_that_only_repeats_itself_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.parquet", repeated("x", 50_000))
    monkeypatch.setattr(tables, "DECODED_FREELY", MIB)
    monkeypatch.setattr(tables, "MAX_TIMES", 1)
    what, hint = parts(path)[-1]
    assert "bytes became more than 1 MiB by row" in what and hint


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_of_very_many_columns(kind: str, tmp_path: Path) -> None:
    table = pa.table({f"c{n}": ["a"] for n in range(tables.MAX_COLUMNS + 1)})
    (found,) = read_rows(save(tmp_path / f"a.{kind}", table))
    assert isinstance(found, Finding) and found.message == "10,001 columns; at most 10,000 are read"


def test_a_crash_of_the_decoder_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SERVE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(tables, "_idle", [])
    path = save(tmp_path / "a.parquet", repeated("x", 3))
    (found,) = read_rows(path)
    assert isinstance(found, Finding) and (found.code, found.source) == ("parquet", f"{path}:1")
    assert "crashed (Segmentation fault)" in found.message


def test_a_decoder_that_left_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", repeated("x", 3))
    assert len(list(read_rows(path))) == 3
    (decoder,) = tables._idle
    decoder.process.kill()
    decoder.process.wait()
    assert len(list(read_rows(path))) == 3


def test_no_pickle_of_an_extension_type_runs(tmp_path: Path) -> None:
    """As pyarrow once loaded them: a class named in the schema of the file."""
    marker = tmp_path / "marker"
    payload = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    meta = {b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payload}  # fmt: skip
    field = pa.field("prompt", pa.string(), metadata=meta)
    text = pa.schema([field, ("chosen", pa.string()), ("rejected", pa.string())])
    for name in ("a.parquet", "a.arrow"):
        path = save(tmp_path / name, pa.table([["q"], ["a"], ["b"]], schema=text))
        assert [pair.prompt for pair in load_pairs(path, {}).pairs] == ["q"]
    assert not marker.exists()


# ---- gzip, JSON and CSV --------------------------------------------------------------------------


def test_a_gzip_file_that_becomes_far_more_than_it_is(tmp_path: Path) -> None:
    path = gzipped(tmp_path / "a.jsonl.gz", b" " * MIB + b"\n", 100)
    (found,) = read_rows(path)
    assert isinstance(found, Finding) and found.code == "gzip"
    assert "bytes became 67,1" in found.message and "gunzip a.jsonl.gz" in found.hint


def test_a_gzip_file_that_shrank_as_text_does_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large it becomes: rows that are alike shrink to a hundredth."""
    monkeypatch.setattr("likelier.data.read.UNPACKED_FREELY", 1000)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for n in range(5000):
            file.write(json.dumps({"prompt": f"{n}", "chosen": "a" * 400, "rejected": "b"}) + "\n")
    rows = list(read_rows(tmp_path / "a.jsonl.gz"))
    assert len(rows) == 5000 and all(isinstance(row, Row) for row in rows)


def test_a_csv_file_of_very_many_columns_or_one_endless_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{n}" for n in range(10_001)) + "\n")
    (found,) = read_rows(path)
    assert isinstance(found, Finding) and "10,001 columns; at most 10,000" in found.message
    monkeypatch.setattr("likelier.data.read.MAX_LINE_BYTES", 1000)
    path.write_text('prompt,chosen\na,b\n"' + "x\n" * 2000 + '",b\n')
    row, found = read_rows(path)
    assert isinstance(row, Row) and isinstance(found, Finding)
    assert "a row longer than" in found.message and found.source == f"{path}:3"


# ---- what stays in memory together ---------------------------------------------------------------


def test_rows_are_taken_until_they_are_large_together() -> None:
    rows = [Row(f"a:{n}", {"prompt": "x" * 1000}) for n in range(100)]
    size = bytes_held(rows[0].record)
    assert 1000 < size < 2000
    assert len(taken(iter(rows), 10)) == 10
    assert len(taken(iter(rows), 100, 5 * size)) == 5
    assert len(taken(iter(rows), 100, 1)) == 1
    pairs = [Pair("x" * 1000, "y", "z", f"a:{n}") for n in range(9)]
    assert 1 <= len(taken(iter(pairs), 9, 3000)) <= 3


def test_a_row_never_makes_millions_of_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "q", "completions": [f"a{n}" for n in range(500)], "scores": [*range(500)]}
    path.write_text(json.dumps(row))
    (found,) = load_pairs(path, Format(pairs="all")).findings
    assert "its 500 answers make 124,750 pairs" in found.message and "best-rest" in found.hint
    assert len(load_pairs(path, Format(pairs="best-rest")).pairs) == 499
    monkeypatch.setattr("likelier.data.shapes.MAX_OF_A_PROMPT", 10)
    rows = [{"prompt": "q", "completion": f"a{n}", "score": n} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    (found,) = load_pairs(path, {}).findings
    assert found.message == "12 answers to one prompt: too many to compare"


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_bad_rows_without_end_are_not_all_remembered(
    on_bad_row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" * 3000)
    monkeypatch.setattr(load, "MAX_BAD_ROWS", 1000)
    data = {"train": str(path), "eval": None, "on_bad_row": on_bad_row}
    config = config_from({"model": {"path": "m"}, "data": data, "out": "o"})
    with pytest.raises(DataError, match=r"more than 1,000 rows cannot be used"):
        load.load(config.data, build_encoder(byte_level(CHATML, eos="<|im_end|>")))
