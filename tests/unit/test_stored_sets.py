"""A data set from the cache is the one that was read; it is found only where all is the same."""

import errno
import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.loss_runs import rows_for
from tests.support.tiny import pair_rows, tiny_tokenizer, write_rows

from likelier.base.errors import RunFailed
from likelier.chat.tokenizer import build_encoder
from likelier.checks.inspector import PairInspector
from likelier.config import Config, config_from
from likelier.data import load as road
from likelier.data.encode import encode_pairs
from likelier.data.load import Dataset, load
from likelier.data.records import (
    Pair,
    Places,
    TokenBlock,
    TokenPair,
    TokenPairs,
    content_hash,
    pack_tokens,
)
from likelier.data.stored import Spool, SpooledRows, StoredSet

ENCODER = build_encoder(tiny_tokenizer())


@pytest.fixture(autouse=True)
def _small_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.data.stored.MIN_BYTES", 0)
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 8)


def config_of(train: Any, loss: Any = None, **data: Any) -> Config:
    tree = {"model": {"path": "m"}, "out": "o", "loss": loss or {"name": "sigmoid"},
            "data": {"train": train, **data}}  # fmt: skip
    return config_from(tree, [])


def made(config: Config, encoder: Any = ENCODER, seed: int = 0) -> Dataset:
    return load(config.data, encoder, config.loss, seed, inspector=PairInspector())


def kept() -> list[Path]:
    return sorted((Path(os.environ["LIKELIER_CACHE"]) / "data").glob("*.pairs"))


def ranked(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{n} 번?", "responses": [f"가 {n}", f"나 {n}", f"다 {n % 3}"],
         "scores": [n % 4, 1, 2]}
        for n in range(count)
    ]  # fmt: skip


def with_bad_rows(count: int) -> list[dict[str, Any]]:
    rows = pair_rows(count)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[20]["chosen"] = [{"role": "assistant", "content": "길다 " * 300}]
    return rows + rows[:2]


def text_of(folder: Path) -> Config:
    return config_of(str(write_rows(folder / "a.jsonl", pair_rows(50, chat=False))), eval="20%")


def chat_gzipped(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", pair_rows(50))
    with gzip.open(folder / "b.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    return config_of(str(folder / "b.jsonl.gz"), eval="20%")


def lists(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", ranked(50))
    return config_of(str(path), eval=None, ranked={"pairs": "all"})


def dropped(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", with_bad_rows(60))
    return config_of(str(path), eval="10%", on_bad_row="drop", max_length=300)


def trimmed(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", pair_rows(50))
    return config_of(str(path), eval="10%", overlong="trim", max_length=40)


def labelled(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", rows_for("kto", 50))
    return config_of(str(path), {"name": "kto"}, eval="20%")


def numbers(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", rows_for("odpo", 50))
    return config_of(str(path), {"name": "odpo", "pair_weights": True}, eval="20%")


def no_stops(folder: Path) -> Config:
    path = write_rows(folder / "a.jsonl", pair_rows(50))
    return config_of(str(path), {"name": "sigmoid", "stop_token": False}, eval=None)


def mixture(folder: Path) -> Config:
    one = write_rows(folder / "a.jsonl", pair_rows(40))
    pq.write_table(pa.Table.from_pylist(pair_rows(30, seed=1)), folder / "b.parquet")
    return config_of({str(one): 1.5, str(folder / "b.parquet"): 0.5}, eval="20%")


def leaking(folder: Path) -> Config:
    one, two = pair_rows(60), pair_rows(50, seed=1)[40:]
    held = write_rows(folder / "held.jsonl", two)
    return config_of(str(write_rows(folder / "a.jsonl", one)), eval=str(held))


LAYOUTS: list[Callable[[Path], Config]] = [
    text_of, chat_gzipped, lists, dropped, trimmed, labelled, numbers, no_stops, mixture, leaking,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_comes_from_the_cache_is_what_was_read(
    layout: Callable[[Path], Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the cache, when it is filled and from it; nothing is read again."""
    config = layout(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(road, "stored_set", lambda *asked: None)
        plain = made(config)
    first = made(config)
    assert len(kept()) == 1
    monkeypatch.setattr(road, "_read_side", None)
    second = made(config)
    for data in (first, second):
        assert data == plain
        assert (data.describe(), data.form.describe()) == (plain.describe(), plain.form.describe())
        assert content_hash(data.pairs) == content_hash(list(plain.pairs))
    known = next(iter(second.pairs))
    assert {type(n) for n in known.prompt} == {int}
    assert {type(flag) for flag in known.chosen.scored} == {bool}


def test_the_layouts_show_what_they_are_for(tmp_path: Path) -> None:
    """Findings, drops, leaks, numbers and context are there to be lost."""
    found = {}
    for layout in LAYOUTS:
        (folder := tmp_path / layout.__name__).mkdir()
        found[layout.__name__] = made(layout(folder))
    assert found["dropped"].counts["dropped_by"] == {"identical": 1, "overlong": 1}
    assert found["trimmed"].counts["trimmed"] > 3
    assert found["leaking"].counts["eval"]["findings"]["leak"] > 0
    assert {p.label for p in found["labelled"].pairs} == {True, False}
    assert all(p.margin is not None and p.weight is not None for p in found["numbers"].pairs)
    assert not any(p.chosen.scored[-1] for p in found["no_stops"].pairs)
    assert len(found["mixture"].eval) > 2 and found["mixture"].counts["dropped_by"]["weight"] > 5
    assert found["lists"].form.rivals and len(found["lists"].pairs) > 50


def plainly(rows: list[dict[str, Any]], name: str) -> list[TokenPair]:
    pairs = [
        Pair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"]), f"{name}:{n}")
        for n, row in enumerate(rows, start=1)
    ]
    return encode_pairs(ENCODER, pairs)[0]


def test_the_pairs_are_those_encoded_one_by_one(tmp_path: Path) -> None:
    rows = pair_rows(50)
    path = write_rows(tmp_path / "a.jsonl", rows)
    for _ in range(2):
        data = made(config_of(str(path), eval=None))
        assert list(data.train) == plainly(rows, str(path))
        assert data.train == tuple(plainly(rows, str(path)))


# Every entry makes another data set of the same file.
OTHERS: dict[str, dict[str, Any]] = {
    "share": {"eval": "30%"},
    "seed": {"seed": 1},
    "max_length": {"max_length": 50},
    "chat": {"chat": True},
    "on_bad_row": {"on_bad_row": "drop"},
    "stop_token": {"loss": {"name": "sigmoid", "stop_token": False}},
    "weights": {"loss": {"name": "sigmoid", "pair_weights": True}},
    "margin": {"loss": {"name": "odpo"}},
    "encoder": {"encoder": replace(ENCODER, positions=500)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_another_data_set(name: str, tmp_path: Path) -> None:
    asked = dict(OTHERS[name])
    outside = {key: asked.pop(key) for key in ("seed", "encoder") if key in asked}
    path = str(write_rows(tmp_path / "a.jsonl", rows_for("odpo", 50)))
    made(config_of(path, eval="20%"))
    made(config_of(path, **{"eval": "20%", **asked}), **outside)
    assert len(kept()) == 2


def test_other_bytes_other_names_another_language_and_no_inspector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", pair_rows(50))
    made(config_of(str(path)))
    (tmp_path / "b.jsonl").write_bytes(path.read_bytes())
    made(config_of(str(tmp_path / "b.jsonl")))
    assert len(kept()) == 2
    before = path.stat()
    path.write_bytes(path.read_bytes().replace("파이썬".encode(), "파이선".encode()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    made(config_of(str(path)))
    assert len(kept()) == 3
    load(config_of(str(path)).data, ENCODER)
    assert len(kept()) == 4
    monkeypatch.setattr("likelier.data.stored.catalogue", lambda code: {"a word": "다른 말"})
    made(config_of(str(path)))
    assert len(kept()) == 5


def test_a_damaged_or_foreign_file_costs_time_only(tmp_path: Path) -> None:
    config = text_of(tmp_path)
    plain, (file,) = made(config), kept()
    whole = file.read_bytes()
    stored = StoredSet(file.stem, {})
    for cut in range(0, len(whole), 401):
        file.write_bytes(whole[:cut])
        assert stored.get() is None, f"cut to {cut} bytes"
        file.write_bytes(whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :])
        assert stored.get() is None, f"another bit at {cut}"
    assert made(config) == plain
    assert file.read_bytes() == whole  # it is made again
    made(config_of(config.data.train, eval=None))
    (other,) = set(kept()) - {file}
    other.replace(file)  # whole, and of another data set
    assert made(config) == plain
    for put in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        file.unlink() if not file.is_dir() else file.rmdir()
        put(file)
        assert made(config) == plain


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_of(tmp_path)
    plain = made(config)
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "a file"))
    (tmp_path / "a file").touch()
    assert made(config) == plain
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "full"))

    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert made(config) == plain


def test_of_a_file_that_changes_meanwhile_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been hashed before, and read after."""
    config = text_of(tmp_path)
    read = road._read_side

    def change(*given: Any) -> Any:
        write_rows(tmp_path / "a.jsonl", pair_rows(50, chat=False, seed=7))
        return read(*given)

    monkeypatch.setattr(road, "_read_side", change)
    made(config)
    assert kept() == []


def test_an_example_that_json_cannot_hold_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, get = text_of(tmp_path), StoredSet.put
    for odd in (b"bytes", float("nan"), {1: "a key that is no text"}):

        def put(stored: StoredSet, train: Any, eval: Any, odd: Any = odd, **beside: Any) -> None:
            example = replace(beside.pop("example"), tools=({"odd": odd},))
            get(stored, train, eval, example=example, **beside)

        monkeypatch.setattr(StoredSet, "put", put)
        made(config)
        assert kept() == []


def test_a_file_cut_short_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    config = text_of(tmp_path)
    made(config)
    data = made(config)
    os.truncate(kept()[0], 2000)
    with pytest.raises(RunFailed, match="can no longer be read") as found:
        list(data.train)
    assert "run the same command again" in str(found.value)
    data = made(config)
    kept()[0].unlink()
    assert len(list(data.train)) == len(data.train)  # it is open


def test_small_files_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.data.stored.MIN_BYTES", 2**18)
    made(text_of(tmp_path))
    assert kept() == []


# ---- the sequence -------------------------------------------------------------------------------


def blocks() -> tuple[list[TokenPair], TokenPairs]:
    """Pairs as a list, and in three blocks, of which one waits in a file."""
    pairs = plainly(pair_rows(30), "a.jsonl")
    pairs[4] = replace(pairs[4], margin=0.1, weight=2.0)
    pairs[5] = replace(pairs[5], label=False)
    parts = [pairs[:11], pairs[11:12], pairs[12:]]
    packed = [TokenBlock(**pack_tokens(p), places=Places([x.source for x in p])) for p in parts]
    return pairs, TokenPairs([Spool().block(packed[0]), *packed[1:]])


def test_pairs_in_blocks_are_a_sequence() -> None:
    plain, pairs = blocks()
    assert len(pairs) == 30 and list(pairs) == plain and pairs == plain and pairs != plain[:-1]
    assert pairs != [*plain[:-1], plain[0]]
    assert [pairs[n] for n in range(-30, 30)] == plain + plain
    with pytest.raises(IndexError):
        pairs[30]
    assert pairs[3:25:4] == plain[3:25:4] and pairs[::-1] == plain[::-1]
    mask = np.arange(30) % 3 == 0
    assert pairs.take(mask) == plain[::3]
    again = pairs[20:].followed_by(pairs[:7])
    assert again == plain[20:] + plain[:7]
    other = TokenPairs([pairs.blocks[2]])
    assert pairs[:5].followed_by(other) == plain[:5] + plain[12:]
    assert list(pairs.places) == [pair.source for pair in plain]
    assert [list(sizes) for sizes in again.sizes] == [
        [len(p.prompt), len(p.chosen.tokens), len(p.rejected.tokens)] for p in again
    ]
    assert TokenPairs([]) == [] and list(TokenPairs([]).places) == []


def test_the_hash_of_arrays_is_that_of_records() -> None:
    plain, pairs = blocks()
    for some in (slice(None), slice(4, 6), slice(None, None, -2), slice(0, 0)):
        assert content_hash(pairs[some]) == content_hash(plain[some])
    assert content_hash(pairs[:4]) != content_hash(plain[1:5])


def test_equal_tokens_are_one_object() -> None:
    """Else a list of all pairs would take five times the memory."""
    _, pairs = blocks()
    large = [n for pair in pairs for n in pair.prompt if n > 256]  # Python shares the small ones
    assert len(large) > len(set(large)) and len({id(n) for n in large}) == len(set(large))


@pytest.mark.parametrize(
    "sources", [[], ["a:1"], ["a:1", "a:2", "a:13"], ["a:1#2", "b:1"], ["가:1", "가:2\udc80"]]
)
def test_places_are_texts_again(sources: list[str]) -> None:
    assert list(Places(sources)) == sources
    assert list(Places.joined([Places(sources), Places(["a:1"])])) == [*sources, "a:1"]
    assert list(Places(sources)[1:]) == sources[1:]


@pytest.mark.parametrize("most", [0, 2**20])
def test_rows_that_wait_in_a_file_are_those_of_the_table(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.data.stored.MAX_TABLE", most)
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 99, (n, 4), dtype=np.uint32) for n in (5, 0, 7, 1)]
    spool, order = Spool(), np.array([12, 0, 3, 5, 6, 9])
    flat = [parts[0].ravel(), *(spool.put(part.ravel()) for part in parts[1:])]
    rows = SpooledRows(flat, [5, 0, 7, 1], 4, order)
    for asked in ([0], [5, 1, 1, 0], [], [4, 3, 2, 1, 0]):
        found = rows[np.array(asked, np.int64)]
        assert np.array_equal(found, np.concatenate(parts)[order][asked])
        assert isinstance(found, np.memmap) == (most == 0 and len(asked) > 0)
