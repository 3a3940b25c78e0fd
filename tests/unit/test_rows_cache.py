"""What is remembered of rows is found only where all that decided it is the same, and unharmed."""

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.tiny import pair_rows, tiny_tokenizer
from tokenizers import Tokenizer, models

from likelier.base.files import read_sealed, write_sealed
from likelier.chat.tokenizer import build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data import workers
from likelier.data.records import Row
from likelier.data.shapes import Format, recognised
from likelier.data.workers import Task, _Cache, process_rows, task_key

ENCODER = build_encoder(tiny_tokenizer())


def rows(file: str) -> list[Row]:
    """Four rows, of which the third is in error."""
    records = pair_rows(4)
    records[2]["chosen"] = records[2]["rejected"]
    return [Row(f"{file}:{line}", record) for line, record in enumerate(records, start=1)]


FORM, _ = recognised(iter(rows("a.jsonl")), Format())
TASK = Task(FORM, ENCODER, 64, split_seed=1, inspector=PairInspector(), keep_tokens=True)


def other_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


# Every entry makes something else of the same rows.
OF_THE_TASK: dict[str, Any] = {
    "form": replace(FORM, chat=True),
    "max_length": 63,
    "trim": True,
    "keep_tokens": False,
    "split_seed": 2,
    "inspector": PairInspector(statistics=True),
}
OF_THE_ENCODER: dict[str, Any] = {
    "tokenizer": other_tokenizer(),  # its chat template
    "template": {"enable_thinking": False},
    "leading": (1,),
    "stop": 2,
    "end_ids": {"<|end|>": 1, "<|user|>": 3},
    "control": frozenset({1}),
    "unknown": 0,
    "whole": Tokenizer(models.BPE()),
    "tail": Tokenizer(models.BPE()),
    "frozen": "today is 2024-07-27",
    "tool_frozen": "today is 2024-07-27",
    "boundary": "history",
    "turns": "last",
    "vocabulary": 400,
    "positions": 60,
}


@pytest.mark.parametrize("name", OF_THE_TASK)
def test_every_question_is_in_the_key(name: str) -> None:
    assert task_key(replace(TASK, **{name: OF_THE_TASK[name]})) != task_key(TASK)


@pytest.mark.parametrize("name", OF_THE_ENCODER)
def test_everything_that_makes_tokens_is_in_the_key(name: str) -> None:
    encoder = replace(ENCODER, **{name: OF_THE_ENCODER[name]})
    assert task_key(replace(TASK, encoder=encoder)) != task_key(TASK)


@pytest.mark.parametrize("package", ["tokenizers", "transformers", "jinja2"])
def test_another_version_of_what_makes_tokens_is_another_key(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = task_key(TASK), workers.version
    monkeypatch.setattr(workers, "version", lambda name: version(name) + "x" * (name == package))
    assert task_key(TASK) != before


@pytest.mark.parametrize("room", ["data", "chat", "checks"])
def test_the_code_is_in_the_key(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, code_of = task_key(TASK), workers._code_of
    monkeypatch.setattr(
        workers, "_code_of", lambda folder: code_of(folder) + b"x" * (folder.name == room)
    )
    assert task_key(TASK) != before


def test_the_same_rows_elsewhere_have_their_own_places() -> None:
    cache, there, here = _Cache(TASK), rows("a.jsonl"), rows("b.jsonl")
    made = process_rows(TASK, there)
    cache.put(there, made)
    known, fresh = cache.get(here), process_rows(TASK, here)
    assert known is not None and known.findings == fresh.findings
    assert (known.rows, known.sources, known.counts) == (fresh.rows, fresh.sources, fresh.counts)
    assert {found.source for found in known.findings} >= {"b.jsonl:3"}
    for name, array in fresh.arrays.items():
        assert known.arrays[name].tobytes() == array.tobytes(), name


def test_a_row_made_of_several_is_another_row() -> None:
    cache, batch = _Cache(TASK), rows("a.jsonl")
    cache.put(batch, process_rows(TASK, batch))
    assert cache.get(batch) is not None
    assert cache.get([replace(batch[0], count=2), *batch[1:]]) is None
    assert cache.get([replace(batch[0], source="a.jsonl:1#2"), *batch[1:]]) is None


def kept(cache: _Cache, batch: list[Row]) -> Path:
    cache.put(batch, process_rows(TASK, batch))
    return cache._path(batch)


def test_what_is_damaged_is_not_known() -> None:
    cache, batch = _Cache(TASK), rows("a.jsonl")
    path = kept(cache, batch)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        assert cache.get(batch) is None, f"cut to {cut} bytes"
        path.write_bytes(whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :])
        assert cache.get(batch) is None, f"another bit at {cut}"
    path.write_bytes(whole)
    assert cache.get(batch) is not None


def test_what_stands_under_another_name_is_not_known() -> None:
    """It is whole, and it is of other rows."""
    cache, batch, others = _Cache(TASK), rows("a.jsonl"), rows("a.jsonl")[::-1]
    ours, theirs = kept(cache, batch), kept(cache, others)
    theirs.replace(ours)
    assert cache.get(batch) is None


def test_what_is_no_file_costs_time_only() -> None:
    """Nothing is waited for, and the chunk is made anew."""
    cache, batch = _Cache(TASK), rows("a.jsonl")
    path = kept(cache, batch)
    for put in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path.unlink()
        put(path)
        assert cache.get(batch) is None
        cache.put(batch, process_rows(TASK, batch))
        if path.is_dir():  # is left alone: it may be anything
            path.rmdir()
            path.touch()
        else:
            assert cache.get(batch) is not None
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.write_text("a file where the folder belongs")
    cache.put(batch, process_rows(TASK, batch))
    assert cache.get(batch) is None


def test_what_python_cannot_parse_just_now_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen once, of a header that numpy had written: the counter of the parser is all threads'."""

    def fails(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    cache, batch = _Cache(TASK), rows("a.jsonl")
    cache.put(batch, process_rows(TASK, batch))
    with monkeypatch.context() as parser:
        parser.setattr("ast.parse", fails)
        assert cache.get(batch) is None
    assert cache.get(batch) is not None


def test_left_overs_of_the_dead_are_swept() -> None:
    path = kept(_Cache(TASK), rows("a.jsonl"))
    (path.parent / ".x.npz.1.2.tmp").mkdir()
    (path.parent / ".y.npz.1.2.tmp").touch()  # as older versions wrote
    _Cache(TASK)
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_nothing_pickled_is_read() -> None:
    """Not even where the seal says that it is ours."""
    cache, batch = _Cache(TASK), rows("a.jsonl")
    path, made = kept(cache, batch), []
    content = read_sealed(path, path.stem)
    assert content is not None
    with np.load(BytesIO(content)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in arrays:
        stream = BytesIO()
        pickled = np.array([Payload()], dtype=object)
        np.savez(stream, **{**arrays, name: pickled})  # type: ignore[arg-type]
        write_sealed(path, path.stem, stream.getvalue())
        made.append(cache.get(batch))
    assert not any(made) and not Payload.loaded


class Payload:
    loaded = False

    def __setstate__(self, state: object) -> None:
        Payload.loaded = True

    def __getstate__(self) -> object:
        return {"a": 1}
