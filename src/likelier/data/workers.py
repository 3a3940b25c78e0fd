"""Rows read and encoded a few hundred at a time, in several processes, and remembered by content.

Rows go in, chunks come out in the order of the file. What comes of a chunk is kept in
``$LIKELIER_CACHE/data`` under a hash of its rows and of all that was asked of them; no path and no
line number is part of the hash, so that the same rows, wherever they stand, are processed once.
"""

import hashlib
import inspect
import json
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from likelier.base.child import CAN_FORK, Child, in_child
from likelier.base.errors import OutputError
from likelier.base.files import cache_dir, make_folder, read_sealed, sweep, write_sealed
from likelier.base.findings import Finding
from likelier.base.limits import TEMPLATE, Spent
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_pairs
from likelier.data.fit import fit, trim_each
from likelier.data.formats import read_row
from likelier.data.records import Pair, Row, TokenPair, pack_tokens, taken
from likelier.data.shapes import Format, without_unused
from likelier.data.split import prompt_keys, prompt_signatures

ROWS_AT_ONCE = 500  # of a chunk
MIN_CHUNKS = 4  # fewer are not worth starting processes for
MAX_PROCESSES = 8  # reading one file feeds no more
_COPIES = re.compile(r"(#\d+)+$")
Item = Row | Pair | Finding  # a row as it was read, the pair in it, or why it cannot be read


class Inspector(Protocol):
    """Finds what is wrong in pairs: in each where it is read, and in all of them together.

    It is pickled for other processes. ``key`` holds everything that decides what it finds, but for
    the code of its package.
    """

    @property
    def key(self) -> str: ...

    def as_read(self, pair: Pair) -> Iterable[Finding]:
        """Findings in one pair."""

    def as_tokens(
        self, encoder: Encoder, pair: Pair, texts: Sequence[str], tokens: TokenPair
    ) -> Iterable[Finding]:
        """Findings in its tokens; ``texts`` are those of the prompt and of both completions."""

    def as_rendered(self, encoder: Encoder, pairs: Sequence[Pair]) -> Iterable[Finding]:
        """Findings in what the chat template makes of the usable pairs of one chunk. What is
        remembered from one pair to the next is forgotten behind the chunk, so that the same is
        found in however many processes.
        """

    def arrays(self, pairs: Sequence[Pair], tokens: Sequence[TokenPair]) -> dict[str, np.ndarray]:
        """Arrays for `Chunk.arrays`; ``tokens`` is empty where there is no encoder."""

    def across(self, chunks: Sequence["Chunk"]) -> Iterable[Finding]:
        """Findings in the pairs of all chunks together, such as a pair that stands twice."""

    def watching(self, held_out: Sequence[Pair]) -> "Inspector":
        """An inspector that also looks for the prompts of these held-out pairs."""

    def leaks(self, chunks: Sequence["Chunk"], used: Collection[str]) -> Iterable[Finding]:
        """One finding for each held-out prompt that a pair with one of these sources has, too."""


@dataclass(frozen=True)
class Task:
    """What is made of every row.

    Attributes:
        encoder: also make tokens.
        max_length: also say which pairs are longer, and fit them (None: any length).
        trim: fit by trimming.
        keep_pairs: return the pairs as they were read.
        keep_tokens: return their tokens.
        split_seed: return signatures of the prompts, and hashes of them keyed by this seed.
        inspector: looks at every pair, and may add arrays.
    """

    form: Format
    encoder: Encoder | None = None
    max_length: int | None = None
    trim: bool = False
    keep_pairs: bool = False
    keep_tokens: bool = False
    split_seed: int | None = None
    inspector: Inspector | None = None


@dataclass(frozen=True)
class Chunk:
    """The usable pairs of a few hundred rows, and what was found in them.

    Attributes:
        rows: how many rows of the file they were.
        sources: the place of each usable pair, in the order of the file.
        counts: for each usable pair how many rows of the file it was made of; 0 where an earlier
            pair of the same row already counts them.
        pairs: as they were read, where they are kept.
        arrays: of the usable pairs: `pack_tokens` of their tokens; ``split_keys`` (n, 16) and
            ``split_signatures`` (n, NUM_HASHES) of their prompts; and the inspector's.
    """

    rows: int
    findings: tuple[Finding, ...]
    sources: Sequence[str]
    counts: tuple[int, ...]
    pairs: tuple[Pair, ...]
    arrays: dict[str, np.ndarray]

    @property
    def left_out(self) -> int:
        """Rows of which nothing can be used; each has an error or a note."""
        return self.rows - sum(self.counts)


def chunks(
    rows: Iterable[Item],
    task: Task,
    rows_at_once: int | None = None,
) -> Iterator[Chunk]:
    """Rows processed a chunk of at most `ROWS_AT_ONCE` at a time, in their order.

    Many rows are processed by a child for each core, and their chunks are kept in the cache. A few
    rows, and rows whose pairs are kept, are processed here; with an encoder in a child, too: it
    runs the template and the tokenizer of a stranger.

    Raises DataError where these take too much time or memory, and RunFailed where a child ends.
    """
    iterator = iter(rows)
    size = min(rows_at_once or ROWS_AT_ONCE, ROWS_AT_ONCE)
    batches = iter(lambda: taken(iterator, size), [])
    first = list(islice(batches, MIN_CHUNKS))
    batches = chain(first, batches)
    if len(first) < MIN_CHUNKS or task.keep_pairs or not CAN_FORK:
        for batch in batches:
            if task.encoder is None:
                yield process_rows(task, batch)
            else:
                yield _counted(task, in_child(_process, task, batch))
        return
    count = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    with ExitStack() as stack:
        pool = _Pool(task, count, stack)
        waiting: deque[Future[_Processed]] = deque()
        for batch in batches:
            waiting.append(pool.submit(batch))
            few = len(batch) < size  # because its rows are large
            while len(waiting) > (count if few else 2 * count):
                yield _counted(task, waiting.popleft().result())
        while waiting:
            yield _counted(task, waiting.popleft().result())


_Processed = tuple["Chunk", int, float]  # and how often and how long foreign code ran for it


def _process(task: Task, batch: Sequence[Item]) -> _Processed:
    """What is made of rows in a child, and what its encoder took for them."""
    spent = task.encoder.spent if task.encoder else Spent()
    before = spent.times, spent.seconds
    chunk = process_rows(task, batch)
    return chunk, spent.times - before[0], spent.seconds - before[1]


def _counted(task: Task, processed: _Processed) -> Chunk:
    """The chunk, once what it took in a child is counted here, where all of the file is."""
    chunk, times, seconds = processed
    if task.encoder is not None and CAN_FORK:
        task.encoder.spent.add(TEMPLATE, times, seconds)
    return chunk


def process_rows(task: Task, batch: Sequence[Item]) -> Chunk:
    """Everything that a task asks of some rows: read all, then encode all, then fit."""
    findings: list[Finding] = []
    pairs: list[Pair] = []
    unused: Counter[str] = Counter()  # by row: how many rows of the file it was made of
    for item in batch:
        unused[row_of(item.source)] += _count(item)
        for found in read_row(item, task.form) if isinstance(item, Row) else [item]:
            if isinstance(found, Finding):
                findings.append(found)
                continue
            pairs.append(found)
            if task.inspector is not None:
                findings += task.inspector.as_read(found)
    tokens: list[TokenPair] = []
    before_fitting = np.zeros(0, np.int32)
    if task.encoder is not None:
        tokens, found_in_tokens, before_fitting = _encoded(task, task.encoder, pairs)
        findings += found_in_tokens
        usable = {pair.source for pair in tokens}
        pairs = [pair for pair in pairs if pair.source in usable]
        if task.inspector is not None:
            findings += task.inspector.as_rendered(task.encoder, pairs)
    order = {name: number for number, name in enumerate(unused)}
    findings.sort(key=lambda finding: order.get(row_of(finding.source), len(order)))
    arrays = pack_tokens(tokens) if task.keep_tokens else {}
    if task.split_seed is not None:
        arrays["split_keys"] = prompt_keys(pairs, task.split_seed)
        arrays["split_signatures"] = prompt_signatures(pairs)
    if task.inspector is not None:
        arrays |= task.inspector.arrays(pairs, tokens) | {"before_fitting": before_fitting}
    return Chunk(
        rows=sum(unused.values()),
        findings=tuple(findings),
        sources=tuple(pair.source for pair in pairs),
        counts=tuple(unused.pop(row_of(pair.source), 0) for pair in pairs),
        pairs=tuple(pairs) if task.keep_pairs else (),
        arrays=arrays,
    )


def row_of(source: str) -> str:
    """The place of the row that a pair was made from."""
    return source if source[-1:] in ":]" else _COPIES.sub("", source)


def _count(item: Item) -> int:
    """How many rows of the file an item was made of; none where it is a copy of a row."""
    if item.source != row_of(item.source):
        return 0
    return item.count if isinstance(item, Row) else 1


def _encoded(
    task: Task, encoder: Encoder, pairs: Sequence[Pair]
) -> tuple[list[TokenPair], list[Finding], np.ndarray]:
    """The pairs as tokens that fit, what was found, and how long each was before: (n,) tokens."""
    notice = task.inspector.as_tokens if task.inspector is not None else None
    encoded, findings = encode_pairs(encoder, pairs, notice)
    lengths = np.array([pair.length for pair in encoded], np.int32)
    if task.max_length is None:
        return encoded, findings, lengths
    if task.trim:
        fitted, found = trim_each(pairs, encoded, task.max_length, encoder)
    else:
        fitted, found = fit(encoded, task.max_length, encoder)
    return fitted, findings + found, lengths


class _Pool:
    """Threads that take chunks from the cache, or have them made by a child each."""

    def __init__(self, task: Task, count: int, stack: ExitStack):
        self._task, self._cache = task, _Cache(task)
        self._idle: SimpleQueue[Child] = SimpleQueue()
        for _ in range(count):  # before there are threads, whose locks a child would keep
            child = Child(partial(_process, task))
            stack.callback(child.close)
            self._idle.put(child)
        self._threads = stack.enter_context(ThreadPoolExecutor(count))

    def submit(self, batch: Sequence[Item]) -> Future[_Processed]:
        return self._threads.submit(self._chunk, batch)

    def _chunk(self, batch: Sequence[Item]) -> _Processed:
        form = self._task.form
        batch = [without_unused(item, form) if isinstance(item, Row) else item for item in batch]
        if (known := self._cache.get(batch)) is not None:
            return known, 0, 0.0
        child = self._idle.get()
        try:
            processed: _Processed = child.ask(batch)
        finally:
            self._idle.put(child)
        self._cache.put(batch, processed[0])
        return processed


class _Cache:
    """The chunks of one task in ``$LIKELIER_CACHE/data``, found by the content of their rows."""

    def __init__(self, task: Task):
        self._folder = cache_dir() / "data"
        self._task = task_key(task)
        sweep(self._folder, alone=False)

    def get(self, batch: Sequence[Item]) -> Chunk | None:
        """What was made of such rows, with the places of these; None where it is not known."""
        path = self._path(batch)
        content = read_sealed(path, path.stem)
        try:
            with np.load(BytesIO(content or b""), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            plain = json.loads(bytes(arrays.pop("chunk")))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, SystemError):
            return None  # SystemError: in threads, Python 3.11's parser may fail at numpy's header
        places = [item.source for item in batch]
        return Chunk(
            rows=plain["rows"],
            findings=tuple(_found(found, places) for found in plain["findings"]),
            sources=tuple(places[number] + copy for number, copy in plain["sources"]),
            counts=tuple(plain["counts"]),
            pairs=(),
            arrays=arrays,
        )

    def put(self, batch: Sequence[Item], chunk: Chunk) -> None:
        """Keep what was made of rows. A cache that cannot be written is no error."""
        number = {item.source: index for index, item in enumerate(batch)}

        def place(source: str) -> list[Any]:
            row = source if source in number else row_of(source)
            return [number.get(row, -1), source[len(row) :]]

        plain = {
            "rows": chunk.rows,
            "findings": [[*place(found.source), asdict(found)] for found in chunk.findings],
            "sources": [place(source) for source in chunk.sources],
            "counts": chunk.counts,
        }
        arrays = {**chunk.arrays, "chunk": np.frombuffer(json.dumps(plain).encode(), np.uint8)}
        path, content = self._path(batch), BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        with suppress(OSError, OutputError):
            make_folder(self._folder)
            write_sealed(path, path.stem, content.getvalue())

    def _path(self, batch: Sequence[Item]) -> Path:
        digest = hashlib.sha256(self._task)
        for item in batch:
            content = item.record if isinstance(item, Row) else {**asdict(item), "source": ""}
            plain = json.dumps([_count(item), content], ensure_ascii=False, default=repr)
            digest.update(plain.encode(errors="surrogatepass") + b"\n")
        return self._folder / f"{digest.hexdigest()}.npz"


def _found(stored: list[Any], places: Sequence[str]) -> Finding:
    number, copy, plain = stored
    found = Finding(**plain)
    return found if number < 0 else replace(found, source=places[number] + copy)


def task_key(task: Task) -> bytes:
    """A hash of all that decides what is made of a row, the code among it."""
    encoder, inspector = task.encoder, task.inspector
    asked = [
        asdict(replace(task, encoder=None, inspector=None)),
        inspector and inspector.key,
        encoder
        and [
            encoder.whole.to_str(),
            encoder.tail.to_str(),
            str(getattr(encoder.tokenizer, "chat_template", None)),
            str(getattr(encoder.tokenizer, "special_tokens_map", None)),
            [encoder.frozen, encoder.tool_frozen],
            [encoder.boundary, encoder.turns, encoder.positions, encoder.vocabulary],
            dict(encoder.template),
            [encoder.leading, encoder.stop, sorted(encoder.control), encoder.unknown],
            dict(encoder.end_ids),
            [version(name) for name in ("tokenizers", "transformers", "jinja2")],
        ],
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
    for module in (__file__, inspect.getfile(Encoder)):
        digest.update(_code_of(Path(module).parent))
    if inspector is not None:
        digest.update(_code_of(Path(inspect.getfile(type(inspector))).parent))
    return digest.digest()


@lru_cache
def _code_of(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
