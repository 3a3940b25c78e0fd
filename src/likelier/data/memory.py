"""What was made of rows before, found again by their content: no path or line is in the key."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from likelier.base.files import cache_dir
from likelier.checks.leaks import Watch
from likelier.data.encoder import Encoder
from likelier.data.packed import Packed
from likelier.data.part import Counted, Part, Task, row_of
from likelier.data.records import Finding, Row

ARRAYS = ("keys", "prompts", "prompt_keys", "nears", "features", "lengths")


class Memory:
    """The parts of one task in ``$LIKELIER_CACHE/data``."""

    def __init__(self, task: Task):
        self._folder = cache_dir() / "data"
        self._task = _task_key(task)

    def get(self, batch: Sequence[Counted]) -> Part | None:
        """What was made of such rows, with the places of these; None where it is not known."""
        try:
            with np.load(self._path(batch), allow_pickle=False) as stored:
                told = json.loads(bytes(stored["told"]))
                arrays = {name: stored[name] for name in ARRAYS}
                tokens = (
                    Packed(*(stored[name] for name in ("ids", "scored", "token_lengths")))
                    if "ids" in stored
                    else None
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        places = [row.source for _, row in batch]
        return Part(
            rows=told["rows"],
            left_out=told["left_out"],
            findings=tuple(_found(found, places) for found in told["findings"]),
            sources=tuple(places[number] + part for number, part in told["sources"]),
            counts=tuple(told["counts"]),
            hits=tuple((hit, places[number] + part) for hit, number, part in told["hits"]),
            origins=tuple(told["origins"]),
            pairs=(),
            tokens=tokens,
            **arrays,
        )

    def put(self, batch: Sequence[Counted], part: Part) -> None:
        """Keep what was made of rows. A cache that cannot be written is no error."""
        number = {row.source: index for index, (_, row) in enumerate(batch)}

        def place(source: str) -> list[Any]:
            row = source if source in number else row_of(source)
            return [number.get(row, -1), source[len(row) :]]

        told = {
            "rows": part.rows,
            "left_out": part.left_out,
            "findings": [[*place(f.source), asdict(f)] for f in part.findings],
            "sources": [place(source) for source in part.sources],
            "counts": part.counts,
            "hits": [[hit, *place(source)] for hit, source in part.hits],
            "origins": part.origins,
        }
        arrays = {name: getattr(part, name) for name in ARRAYS}
        arrays["told"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        if part.tokens is not None:
            arrays |= {"ids": part.tokens.ids, "scored": part.tokens.scored}
            arrays["token_lengths"] = part.tokens.lengths
        path = self._path(batch)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with suppress(OSError):  # not synced to disk: what a crash leaves is known by its checksum
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez(stream, **arrays)
            os.replace(temporary, path)

    def _path(self, batch: Sequence[Counted]) -> Path:
        digest = hashlib.sha256(self._task)
        for count, row in batch:
            content = row.record if isinstance(row, Row) else [row.code, row.message]
            told = json.dumps([count, content], ensure_ascii=False, default=repr)
            digest.update(told.encode(errors="surrogatepass") + b"\n")
        return self._folder / f"{digest.hexdigest()}.npz"


def _found(stored: list[Any], places: Sequence[str]) -> Finding:
    number, part, told = stored
    found = Finding(**told)
    return found if number < 0 else replace(found, source=places[number] + part)


def _task_key(task: Task) -> bytes:
    """A hash of all that decides what is made of a row, this folder's code among it."""
    told = {field.name: _plain(getattr(task, field.name)) for field in fields(task)}
    content = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(content.encode() + _code()).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, Encoder):
        return [
            value.whole.to_str(),
            value.tail.to_str(),
            str(getattr(value.tokenizer, "chat_template", None)),
            str(getattr(value.tokenizer, "special_tokens_map", None)),
            value.frozen,
            dict(value.template),
            [value.leading, value.stop, sorted(value.control), value.unknown],
            dict(value.end_ids),
        ]
    if isinstance(value, Watch):
        return [sorted(value.texts), sorted(value.grams)]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


@cache
def _code() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
