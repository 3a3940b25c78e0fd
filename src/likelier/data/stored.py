"""Token pairs in files: while they are read, and a whole data set as it is kept for the next run.

What `likelier.data.load` makes of files is kept in ``$LIKELIER_CACHE/data`` under a hash of their
bytes, their names, and of all that was asked of them. Read again, nothing is parsed or encoded: the
numbers of each pair come into memory, its tokens stay in the file until they are asked for.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from weakref import finalize

import numpy as np

from likelier.base.errors import LikelierError, OutputError, RunFailed
from likelier.base.files import cache_dir, make_folder, open_sealed, sha256, write_sealed
from likelier.base.findings import Finding
from likelier.data.records import Flat, Pair, Places, TokenBlock, TokenPairs
from likelier.data.shapes import Format
from likelier.data.sources import Data, files_of, names_of
from likelier.data.workers import Task, task_key
from likelier.pages.texts import catalogue, language

MIN_BYTES = 2**18  # of files that are worth keeping; smaller ones are read as fast
MAX_TABLE = 64 * 2**20  # bytes of a table in memory


class _Open:
    """A file that stays open for as long as somebody holds this."""

    def __init__(self, file: IO[bytes]):
        self.descriptor = os.dup(file.fileno())
        finalize(self, os.close, self.descriptor)


class _InFile:
    """A flat array in an open file. It is read, not mapped: what is not in use takes no memory of
    the process, and a file that is cut short is an error, not a crash.
    """

    def __init__(self, file: _Open, start: int, kind: Any):
        self._file, self._start, self._kind = file, start, np.dtype(kind)

    def __getitem__(self, part: slice) -> np.ndarray:
        first, wide = self._start + part.start * self._kind.itemsize, self._kind.itemsize
        size = (part.stop - part.start) * wide
        with suppress(OSError):
            content = os.pread(self._file.descriptor, size, first)
            if len(content) == size:
                return np.frombuffer(content, self._kind)
        what = "the file of encoded data can no longer be read"
        raise RunFailed(what, where=str(cache_dir()), hint="run the same command again")


class Spool:
    """A file without a name, gone with its process, where arrays wait outside of memory. Where it
    cannot be made or is full, they stay in memory.
    """

    def __init__(self) -> None:
        self._file: _Open | None = None
        self._end = 0
        with suppress(OSError, OutputError):
            make_folder(folder := cache_dir() / "data")
            with TemporaryFile(dir=folder) as file:
                self._file = _Open(file)

    def put(self, array: np.ndarray) -> Flat:
        """The array, to be read from the file."""
        start, content = self._end, np.ascontiguousarray(array).data.cast("B")
        try:
            while self._file is not None and len(content):
                written = os.pwrite(self._file.descriptor, content, self._end)
                self._end, content = self._end + written, content[written:]
        except OSError:
            self._file = None  # what is there already can still be read
        return array if self._file is None else _InFile(self._file, start, array.dtype)

    def block(self, block: TokenBlock) -> TokenBlock:
        """Token pairs of which the tokens wait here."""
        ids, scored = (self.put(array) for array in block.flat(0, len(block)))
        return TokenBlock(ids, scored, block.sizes, block.beside, block.places)


class SpooledRows:
    """Rows of a table (n, width) that came in parts, of which some wait in a file; ``order`` (m,)
    numbers those that are asked for.
    """

    def __init__(self, parts: Sequence[Flat], sizes: Sequence[int], width: int, order: np.ndarray):
        self._parts, self._width, self._order = parts, width, order
        self._starts = [0, *np.cumsum(sizes).tolist()]

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Some rows, in the order of ``numbers``: in memory, or where they are many in a file that
        is mapped, so that the system can take the memory back.
        """
        asked = self._order[numbers]
        by_part = np.argsort(asked, kind="stable")
        bounds = np.searchsorted(asked[by_part], self._starts)
        found = _table((len(asked), self._width), np.uint32)
        for number, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                start, end = self._starts[number : number + 2]
                rows = self._parts[number][0 : (end - start) * self._width]
                chosen = by_part[first:last]
                found[chosen] = rows.reshape(-1, self._width)[asked[chosen] - start]
        return found


def _table(shape: tuple[int, int], kind: Any) -> np.ndarray:
    """Room for a table: in memory, or in a file without a name where it is large."""
    if prod(shape) * np.dtype(kind).itemsize > MAX_TABLE:
        with suppress(OSError, OutputError):
            make_folder(folder := cache_dir() / "data")
            with TemporaryFile(dir=folder) as file:
                return np.memmap(file, kind, "w+", shape=shape)
    return np.empty(shape, kind)


class StoredSet:
    """One data set in the cache: found by ``key``, where its files are still what they were."""

    def __init__(self, key: str, files: Mapping[Path, Any]):
        self.key, self._files = key, files
        self._path = cache_dir() / "data" / f"{key}.pairs"

    def get(self) -> dict[str, Any] | None:
        """What `put` was given; None where it is not known."""
        stream = open_sealed(self._path, self.key)
        if stream is None:
            return None
        arrays: dict[str, Any] = {}
        with stream, suppress(OSError):
            facts = json.loads(stream.readline())
            file, at = _Open(stream), stream.tell()
            for name, (kind, shape) in facts["arrays"].items():
                size = prod(shape) * np.dtype(kind).itemsize
                if name in ("ids", "scored"):
                    arrays[name] = _InFile(file, at, kind)
                else:
                    arrays[name] = np.frombuffer(stream.read(size), kind).reshape(shape)
                at += size
            places = Places.of(facts["start"], arrays.pop("ends"))
            pairs = TokenPairs([TokenBlock(**arrays, places=places)])
            train, eval = pairs[: facts["train"]], pairs[facts["train"] :]
            return {"train": train, "eval": eval, **_restored(facts["beside"])}
        return None

    def put(self, train: TokenPairs, eval: TokenPairs, **beside: Any) -> None:
        """Keep a data set, if it comes back as it is. A cache that cannot be written is no error,
        and of files that changed meanwhile nothing is kept.
        """
        with suppress(OSError, OutputError, TypeError):  # TypeError: no JSON, as a date of Parquet
            plain = _plain(beside)
            back = _restored(json.loads(json.dumps(plain)))
            if back != beside or _stats(self._files) != self._files:
                return
            make_folder(self._path.parent)
            write_sealed(self._path, self.key, _pieces(train, eval, plain))


def stored_set(data: Sequence[Data], task: Task, settings: Mapping[str, Any]) -> StoredSet | None:
    """Where the cache keeps what is made of data by a task and settings; None of little data, and
    of data that cannot be read: the reader says why.
    """
    try:
        files = [file for one in data for name in names_of(one) for file in files_of(name)]
        before = _stats(files)
        if sum(stat[0] for stat in before.values()) < MIN_BYTES:
            return None
        hashes = [(str(file), sha256(file)) for file in files]
    except (LikelierError, OSError, ValueError):
        return None
    words = sorted(catalogue(language()).items())
    asked = [hashes, [str(one) for one in data], settings, words]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
    digest.update(task_key(task))
    return StoredSet(digest.hexdigest(), before)


def _stats(files: Iterator[Path] | Sequence[Path] | Mapping[Path, Any]) -> dict[Path, Any]:
    """What tells that a file is another than before."""
    stats = {file: os.stat(file) for file in files}
    return {file: (s.st_size, s.st_mtime_ns, s.st_ino, s.st_dev) for file, s in stats.items()}


def _pieces(
    train: TokenPairs, eval: TokenPairs, plain: Mapping[str, Any]
) -> Iterator[bytes | memoryview]:
    """The content of a file: a line of facts, then every array, the tokens last."""
    pairs = train.followed_by(eval)
    sizes, places = pairs.sizes, pairs.places
    arrays = {  # the kind and the shape of each, in their order
        "sizes": ("<i4", sizes.shape), "beside": ("<f8", sizes.shape),
        "ends": (places.ends.dtype.str, places.ends.shape),
        "ids": ("<i4", (int(sizes.sum()),)), "scored": ("|b1", (int(sizes[:, 1:].sum()),)),
    }  # fmt: skip
    facts = {"train": len(train), "start": places.start, "arrays": arrays, "beside": plain}
    yield json.dumps(facts).encode() + b"\n"
    for array in (sizes, pairs.beside, places.ends):
        yield np.ascontiguousarray(array).tobytes()
    for number in (0, 1):
        for block, first, stop in pairs.stretches():
            yield block.flat(first, stop)[number].tobytes()


def _plain(beside: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept beside the pairs, as JSON writes it."""
    example = beside["example"]
    return {
        "counts": beside["counts"],
        "findings": [asdict(finding) for finding in beside["findings"]],
        "form": asdict(beside["form"]),
        "example": example and vars(example),
    }


def _restored(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `_plain` was given: lists are tuples again."""
    form, example = dict(plain["form"]), plain["example"]
    form["ignored"] = tuple(form["ignored"])
    form["rivals"] = {name: tuple(others) for name, others in form["rivals"].items()}
    if example:
        example = {k: tuple(v) if isinstance(v, list) else v for k, v in example.items()}
    return {
        "counts": plain["counts"],
        "findings": tuple(Finding(**finding) for finding in plain["findings"]),
        "form": Format(**form),
        "example": example and Pair(**example),
    }
