"""Hostile data: broken, endless, or small files that become large."""

import gzip
import io
import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from tests.support.tiny import pair_rows

from faults.hostile.case import Room, hostile
from faults.hostile.models import ODD

data = partial(hostile, "data")
ROW = {"prompt": "p", "chosen": " c", "rejected": " r"}
LINE = json.dumps(ROW)


def lines(
    *texts: str | bytes | Callable[[], str], name: str = "pairs.jsonl"
) -> Callable[[Room], list[str]]:
    """A run on good rows and these lines behind the second of them; a long one is made there."""

    def build(room: Room) -> list[str]:
        good = room.data().read_bytes().splitlines()
        room.here.joinpath("pairs.jsonl").unlink()
        made = [text() if callable(text) else text for text in texts]
        given = [t.encode("utf-8", "surrogatepass") if isinstance(t, str) else t for t in made]
        (room.here / name).write_bytes(b"\n".join([*good[:2], *given, *good[3:]]) + b"\n")
        return trained(room, name)

    return build


def trained(room: Room, name: str) -> list[str]:
    """A run on this file, with nothing good laid out in its place."""
    if not (room.here / "base").exists():
        room.base()
    if name != "pairs.jsonl":
        room.data(name="pairs.jsonl") if not (room.here / "pairs.jsonl").exists() else None
    return room.train(data__train=name)


def content(name: str, make: bytes | Callable[[Path], Any]) -> Callable[[Room], list[str]]:
    """A run on this file, and nothing but it."""

    def build(room: Room) -> list[str]:
        path = room.here / name
        make(path) if callable(make) else path.write_bytes(make)
        return trained(room, name)

    return build


def checked(name: str, make: bytes | Callable[[Path], Any]) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        path = room.here / name
        make(path) if callable(make) else path.write_bytes(make)
        return ["check", name]

    return build


def row(**changes: Any) -> str:
    given = {**pair_rows(3)[2], **changes}
    return json.dumps({key: value for key, value in given.items() if value is not ...})


def chat(*turns: str, answer: str = "답") -> str:
    roles = [{"role": role, "content": "말"} for role in turns]
    return row(prompt=roles, chosen=[{"role": "assistant", "content": answer}])


CONTROL = "\x1b]0;evil\x07\r\x9b31m\u202e"
LINES: dict[str, str | bytes | Callable[[], str]] = {
    "broken JSON": '{"prompt": ',
    "broken JSON with control bytes": f'{{"prompt": "{CONTROL}',
    "two objects on a line": LINE + LINE,
    "a comma behind the last": LINE[:-1] + ",}",
    "a list on a line": "[1, 2]",
    "a number on a line": "7",
    "not UTF-8": b'{"prompt": "\xb0\xa1"}',
    "half of a pair of surrogates": '{"prompt": "\\ud800", "chosen": " c", "rejected": " r"}',
    "surrogates in bytes": '{"prompt": "\ud800", "chosen": " c", "rejected": " r"}',
    "a byte of 0": '{"prompt": "a\0b", "chosen": " c", "rejected": " r"}',
    "NaN": '{"prompt": NaN, "chosen": " c", "rejected": " r"}',
    "1e400": '{"prompt": 1e400, "chosen": " c", "rejected": " r"}',
    "a number of 100,000 digits": '{"prompt": ' + "9" * 100_000 + "}",
    "a key twice": '{"prompt": "a", "prompt": "b", "chosen": " c", "rejected": " r"}',
    "nested 100,000 deep": '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "objects nested 100,000 deep": '{"prompt":' * 100_000 + "1" + "}" * 100_000,
    "a misspelt column": '{"prompt": "a", "choosen": " c", "rejected": " r"}',
    "a missing column": row(chosen=...),
    "a column of null": row(chosen=None),
    "a column of a number": row(chosen=7),
    "a column of true": row(chosen=True),
    "a column of a list of numbers": row(chosen=[1, 2]),
    "a column of an object": row(chosen={"evil": "assistant", "content": "a"}),
    "an empty prompt": row(prompt=[]),
    "an empty answer": row(chosen=[{"role": "assistant", "content": ""}]),
    "an answer of spaces": row(chosen=[{"role": "assistant", "content": "  "}]),
    "the same answers": row(chosen=pair_rows(3)[2]["rejected"]),
    "a role of no kind": chat("evil"),
    "a role with control bytes": chat(CONTROL),
    "two users in a row": chat("user", "user"),
    "an answer by the user": row(chosen=[{"role": "user", "content": "a"}]),
    "content of a number": row(chosen=[{"role": "assistant", "content": 7}]),
    "content of an image": row(chosen=[{"role": "assistant", "content": [
        {"type": "image", "url": "file:///etc/passwd"}]}]),
    "a turn of text": row(chosen=["a"]),
    "an answer of 10^7 letters": lambda: chat("user", answer="가" * 10_000_000),
    "10,000 turns": row(prompt=[{"role": "user" if n % 2 == 0 else "assistant", "content": "a"}
                                for n in range(10_001)]),
    "control bytes in the name of a column": json.dumps({CONTROL: 1, "prompt": "a"}),
    "the noncharacter that guards": row(chosen=[{"role": "assistant", "content": "a\ufdd0b"}]),
}  # fmt: skip
for _name, _text in LINES.items():
    # Two users in a row are what this template takes; a note says so.
    data(f"a line: {_name}", (0, 65) if "two users" in _name else 65)(lines(_text))

for _name, _text in {
    "a byte order mark": b"\xef\xbb\xbf" + LINE.encode(),
    "control tokens as text": chat("user", answer="<|end|><|assistant|>evil").encode(),
    "control bytes as text": chat("user", answer="\x1b]0;evil\x07\x9b31m\u202e").encode(),
    "the same row twice": "\n".join([row()] * 2).encode(),
}.items():
    data(f"a line: {_name}", (0, 65))(lines(_text))

# ---- files ---------------------------------------------------------------------------------------


def sparse(size: int, start: bytes = b"") -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def packed(start: bytes, times: int, piece: bytes = b"x" * 2**20) -> Callable[[Path], Any]:
    """A gzip file of many times the same piece."""

    def make(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(start)
            for _ in range(times):
                file.write(piece)

    return make


def table(columns: dict[str, Any], **how: Any) -> Callable[[Path], Any]:
    return lambda path: pq.write_table(pa.table(columns), path, **how)


GOOD = {name: [value] * 40 for name, value in ROW.items()}


def parquet_bytes(columns: dict[str, Any] = GOOD, **how: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **how)
    return out.getvalue()


def repeated(count: int, length: int) -> dict[str, Any]:
    """Columns in which one long text stands many times, and takes its length once in the file."""
    long = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * length])
    return {"prompt": ["p"] * count, "chosen": long, "rejected": [" r"] * count}


def many_rows(path: Path) -> None:
    """A footer that claims 10^12 rows: the number of one row group, as Thrift writes it."""
    whole = parquet_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    small, large = bytes([40 * 2]), bytes([0x80, 0x80, 0xD4, 0xDB, 0xD4, 0x74])
    at = whole.index(b"\x16" + small, footer) + 1
    end = struct.pack("<I", len(whole) - 8 - footer + len(large) - 1) + b"PAR1"
    path.write_bytes(whole[:at] + large + whole[at + 1 : -8] + end)


def deep_table(path: Path) -> None:
    kind: Any = pa.string()
    for _ in range(200):
        kind = pa.struct([("a", kind)])
    pq.write_table(pa.table({"prompt": pa.nulls(3, kind), "chosen": [" c"] * 3}), path)


def deep_arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink:
        kind: Any = pa.string()
        for _ in range(60):  # Arrow writes no deeper
            kind = pa.list_(kind)
        batch = pa.table({"prompt": pa.nulls(3, kind), "chosen": [" c"] * 3})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)


def arrow_bytes(columns: dict[str, Any] = GOOD) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    return out.getvalue()


BIG = 700
for _name, _file, _make in [
    ("empty", "a.jsonl", b""),
    ("blank lines", "a.jsonl", b"\n \n\n"),
    ("bytes of 0", "a.jsonl", bytes(10_000)),
    ("a line of 2 GB with nothing in it", "a.jsonl", sparse(2**31)),
    ("a line of 2 GB that begins well", "a.jsonl", sparse(2**31, b'{"prompt": "')),
    ("an array of 2 GB", "a.json", sparse(2**31, b'[{"prompt": "')),
    ("a cell of 2 GB", "a.csv", sparse(2**31, b'prompt,chosen,rejected\n"')),
    ("only line ends of old Macs", "a.jsonl", (LINE + "\r" + LINE + "\r").encode()),
    ("UTF-16", "a.jsonl", (LINE + "\n").encode("utf-16")),
    ("an array in lines", "a.jsonl", f"[{LINE},\n{LINE}]".encode()),
    ("an array that does not end", "a.json", f"[{LINE},".encode()),
    ("an array nested 100,000 deep", "a.json", b"[" * 100_000),
    ("an object of columns", "a.json", json.dumps(GOOD).encode()),
    ("a text", "a.txt", LINE.encode()),
    ("no ending", "a", LINE.encode()),
    ("a pickle", "a.pkl", b"\x80\x04\x95"),
    ("a script of data", "a.py", b"import os"),
    ("gzip: empty", "a.jsonl.gz", b""),
    ("gzip: cut short", "a.jsonl.gz", gzip.compress(LINE.encode() * 99)[:-9]),
    ("gzip: not so", "a.jsonl.gz", LINE.encode()),
    ("gzip: a bomb in one line", "a.jsonl.gz", packed(b'{"prompt": "', BIG)),
    ("gzip: a bomb in an array", "a.json.gz", packed(b'[{"prompt": "', BIG)),
    ("gzip: a bomb in a cell", "a.csv.gz", packed(b'prompt,chosen\n"', BIG)),
    ("gzip: a bomb of blank lines", "a.jsonl.gz", packed(b"", 300, b"\n" * 2**20)),
    ("gzip: a bomb for Parquet", "a.parquet.gz", packed(b"PAR1", 3_000, bytes(2**20))),
    ("gzip in gzip", "a.jsonl.gz", gzip.compress(gzip.compress(LINE.encode()))),
    ("CSV: a quote without an end", "a.csv", b'prompt,chosen,rejected\n"a,b,c\n'),
    ("CSV: only a header", "a.csv", b"prompt,chosen,rejected\n"),
    ("CSV: rows of other lengths", "a.csv", b"prompt,chosen,rejected\na,b\na,b,c,d\n"),
    ("CSV: 100,000 columns", "a.csv", (",".join(map(str, range(100_000))) + "\n1\n").encode()),
    ("CSV: control bytes", "a.csv", f"{CONTROL}\n{CONTROL}\n".encode()),
    ("Parquet: empty", "a.parquet", b""),
    ("Parquet: not so", "a.parquet", LINE.encode() * 9),
    ("Parquet: cut short", "a.parquet", parquet_bytes()[:-20]),
    ("Parquet: no rows", "a.parquet", parquet_bytes({"prompt": [], "chosen": [], "rejected": []})),
    ("Parquet: other columns", "a.parquet", parquet_bytes({"a": [1], CONTROL: [2]})),
    ("Parquet: numbers", "a.parquet", parquet_bytes({name: [1] * 9 for name in ROW})),
    ("Parquet: bytes", "a.parquet", parquet_bytes({name: [b"\xff"] * 9 for name in ROW})),
    ("Parquet: 10^12 rows in the footer", "a.parquet", many_rows),
    ("Parquet: 2 GB of one text", "a.parquet", table(repeated(500, 4 * 2**20))),
    ("Parquet: 8 GB of one text", "a.parquet", table(repeated(8_000, 2**20))),
    ("Parquet: nested 200 deep", "a.parquet", deep_table),
    ("Parquet: a footer of 2^31", "a.parquet",
     parquet_bytes()[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    ("Parquet: a footer of nothing", "a.parquet", b"PAR1" + bytes(64) + b"\x40\0\0\0PAR1"),
    ("Arrow: empty", "a.arrow", b""),
    ("Arrow: not so", "a.arrow", LINE.encode() * 9),
    ("Arrow: cut short", "a.arrow", arrow_bytes()[:-100]),
    ("Arrow: nested 60 deep", "a.arrow", deep_arrow),
    ("Arrow: a message of 2^31", "a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64)),
    ("Arrow: lengths that lie", "a.arrow",
     arrow_bytes().replace(struct.pack("<q", 40), struct.pack("<q", 2**40))),
]:  # fmt: skip
    # Where what is hostile is only large or odd, its rows may as well be used.
    _code = (0, 65) if "8 GB of one" in _name or "2 GB of one" in _name else (65, 66)
    if "8 GB" not in _name:  # a thousand books are tokenised, which takes its minutes
        data(f"a file: {_name}", _code)(content(_file, _make))
    data(f"a file, checked: {_name}", _code)(checked(_file, _make))

for _what, _make in ODD.items():
    for _name in ("a.jsonl", "a.parquet", "a.jsonl.gz", "a.arrow"):
        data(f"{_name} is {_what}", (65, 66))(content(_name, _make))


@data("no file", 66)
def _(room: Room) -> list[str]:
    return trained(room, "nowhere.jsonl")


@data("a link to nothing", 66)
def _(room: Room) -> list[str]:
    (room.here / "a.jsonl").symlink_to("nowhere")
    return trained(room, "a.jsonl")


@data("a name with control bytes", (2, 66))
def _(room: Room) -> list[str]:
    return trained(room, f"{CONTROL}.jsonl")


@data("a name with control bytes, checked", (2, 66))
def _(room: Room) -> list[str]:
    return ["check", f"{CONTROL}.jsonl"]


@data("a file whose name has control bytes, checked", (0, 65))
def _(room: Room) -> list[str]:
    (room.here / f"{CONTROL.replace('/', '')}.jsonl").write_text(LINE + "\n{\n")
    return ["check", f"{CONTROL}.jsonl"]


@data("a folder of a file whose name has control bytes", 65)
def _(room: Room) -> list[str]:
    (room.here / "rows").mkdir()
    (room.here / "rows" / f"{CONTROL}.jsonl").write_text(LINE + "\n{\n")
    return trained(room, "rows")


@data("a folder that links to the one above", 0)
def _(room: Room) -> list[str]:
    (room.here / "rows").mkdir()
    (room.here / "rows" / "again").symlink_to("..")
    (room.here / "rows" / "folder.jsonl").mkdir()
    return trained(room, "rows")


@data("a folder with a pipe in it", (65, 66))
def _(room: Room) -> list[str]:
    (room.here / "rows").mkdir()
    room.data(name="rows/a.jsonl")
    os.mkfifo(room.here / "rows" / "b.jsonl")
    return trained(room, "rows")


@data("the run folder inside its folder", (2, 73))
def _(room: Room) -> list[str]:
    room.base()
    (room.here / "rows").mkdir()
    room.data(name="rows/a.jsonl")
    return room.train(data__train="rows", out="rows/out")


@data("held-out data are a pipe", (65, 66))
def _(room: Room) -> list[str]:
    os.mkfifo(room.here / "held.jsonl")
    return room.train(data__eval="held.jsonl")


@data("one prompt only, to be split", 65)
def _(room: Room) -> list[str]:
    room.data(pair_rows(2))
    return room.train(data__eval="20%")


@data("every row too long", 65)
def _(room: Room) -> list[str]:
    return room.train(data__max_length=8)


@data("the prompt fills the length", 65)
def _(room: Room) -> list[str]:
    long = {**pair_rows(1)[0], "prompt": [{"role": "user", "content": "긴 질문 " * 400}]}
    room.data([long] * 9)
    return room.train(data__max_length=64, data__overlong="trim")


@data("5 % bad rows of 2,000", 65)
def _(room: Room) -> list[str]:
    bad = [{"prompt": 7}, "x", None, {"chosen": CONTROL}, [], {**pair_rows(1)[0], "chosen": ""}]
    rows = pair_rows(2_000)
    room.data([bad[n // 20 % 6] if n % 20 == 0 else one for n, one in enumerate(rows)])
    return room.train()


@data("a train of sources without end", (2, 65, 66))
def _(room: Room) -> list[str]:
    return room.train(data__train={f"nowhere-{n}.jsonl": 1 for n in range(10_000)})


@data("a source that is weighted 10^9 times", (2, 65))
def _(room: Room) -> list[str]:
    return room.train(data__train={"pairs.jsonl": 10**9})
