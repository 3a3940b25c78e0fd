"""Verdicts of judges, kept by content: what was asked once, and paid for, is not asked again.

A file of verdicts holds one JSON object a line, added and flushed to disk as each verdict comes. A
line that a kill cut short, or that is damaged, is left out.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, Literal

from likelier.base.errors import OutputError
from likelier.base.files import is_locked, make_folder, open_own, output_errors
from likelier.chat.messages import Chat

Better = Literal["first", "second", "tie"]
SIDES: tuple[Better, ...] = ("first", "second", "tie")


@dataclass(frozen=True)
class JudgeQuestion:
    """Which of two answers to a prompt is better? ``prompt`` is text or messages."""

    prompt: str | Chat
    first: str
    second: str

    def key(self, judge: Mapping[str, Any]) -> str:
        """The address of this question's verdict by a judge, whose identity is part of it."""
        content = [judge, self.prompt, self.first, self.second]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class JudgeVerdict:
    """What a judge said; ``better`` is None where it gave no verdict, asked twice.

    ``input_tokens`` and ``output_tokens`` are those of all requests it took, ``cost`` is in
    dollars, 0 where no price is known.
    """

    better: Better | None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@contextmanager
def open_verdicts(path: Path, where: str) -> Iterator["VerdictFile"]:
    """A file of verdicts, made where it is not there, and held alone.

    Raises OutputError where another process holds it, something else stands there, or the disk
    refuses; ``where`` names the option.
    """
    make_folder(path.parent)
    with output_errors(path), os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if is_locked(error):
                raise OutputError("another process writes this file", where=where) from error
        yield VerdictFile(file, where)


class VerdictFile:
    """An open file of verdicts, which it ``known`` holds by their keys. Threads may add to it."""

    def __init__(self, file: BufferedRandom, where: str):
        self._file, self._lock = file, threading.Lock()
        self.known: dict[str, JudgeVerdict] = {}
        foreign = end = 0
        for line in file:
            found = _read(line)
            foreign += found is None and line.endswith(b"\n")
            end += len(line) if line.endswith(b"\n") else 0
            if found is not None:
                self.known[found[0]] = found[1]
        if foreign and not self.known:
            hint = "name another file"
            raise OutputError("this is no file of verdicts", where=where, hint=hint)
        file.seek(end)
        file.truncate()  # what is behind was cut short: a line put there would be lost

    def add(self, key: str, verdict: JudgeVerdict) -> None:
        """Keep a verdict, on the disk before this returns."""
        row = {"key": key, "better": verdict.better, "input_tokens": verdict.input_tokens,
               "output_tokens": verdict.output_tokens, "cost": verdict.cost}  # fmt: skip
        with self._lock:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.known[key] = verdict


def _read(line: bytes) -> tuple[str, JudgeVerdict] | None:
    """The key and the verdict of a line, None where it holds none."""
    try:
        row = json.loads(line)
        better, cost = row["better"], float(row["cost"])
        if not line.endswith(b"\n") or better not in (*SIDES, None) or not 0 <= cost < 1e9:
            return None
        tokens = int(row["input_tokens"]), int(row["output_tokens"])
        return str(row["key"]), JudgeVerdict(better, *tokens, cost)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
