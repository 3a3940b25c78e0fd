"""Answers to many prompts in a file that is continued where it was stopped, to the same bytes.

The file grows by whole batches. What each is drawn from follows from its place alone, and a record
beside the file says how the answers are made: nothing else is continued into it.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from likelier.base.errors import OutputError
from likelier.base.files import (
    is_locked,
    open_own,
    output_errors,
    read_json,
    sealed,
    sweep,
    write_json,
)
from likelier.base.terminal import say
from likelier.config import difference

Place = tuple[str, int]  # the source of a prompt, and the number of an answer to it


def record_of(path: Path) -> Path:
    """The file that says how the answers in a file are made."""
    return path.with_name(f"{path.name}.settings.json")


def begin(path: Path, asked: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a file of answers, or find the one of answers that are there already.

    ``asked`` is what all answers of a file must have in common, ``facts`` what is also written down
    when the file is begun. Returns the facts that hold for it.

    Raises OutputError where the file holds answers that were made otherwise, or something else.
    """
    record = record_of(path)
    is_empty = not path.is_file() or path.stat().st_size == 0
    if os.path.lexists(path) and not path.is_file():
        raise OutputError("this is no file", where=f"--out {path}", hint="name another file")
    sweep(path.parent, alone=False, of=record.name)
    if is_empty:  # a record without answers binds nobody
        write_json(record, sealed({"format": 2, "asked": dict(asked), **facts}))
        return dict(facts)
    before = read_json(record)
    if before is None:
        what = f"is there already, and {record.name} beside it does not say how it was made"
        raise OutputError(what, where=f"--out {path}", hint="name another file")
    if different := difference(before["asked"], asked):
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise OutputError(
            f"this holds other answers: {different[0]}{more}",
            where=f"--out {path}",
            hint="name another file, or give the settings of before",
        )
    return {name: before.get(name, fact) for name, fact in facts.items()}


@contextmanager
def continued(path: Path, places: Sequence[Place], batch_size: int) -> Iterator["AnswerFile"]:
    """The file of the answers that are to stand at ``places``, held alone and cut back to whole
    batches.

    Raises OutputError where another process writes it, or the disk refuses.
    """
    with output_errors(path), os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if is_locked(error):
                what = "another process writes this file"
                raise OutputError(what, where=f"--out {path}") from error
        yield AnswerFile(file, places, batch_size)


class AnswerFile:
    """An open file of answers, of which the first ``done`` are there."""

    def __init__(self, file: BufferedRandom, places: Sequence[Place], batch_size: int):
        self._file = file
        ends = [0]
        for line, place in zip(file, places, strict=False):
            if not _is_whole(line, place):
                break
            ends.append(ends[-1] + len(line))
        rows = len(ends) - 1
        self.done = rows if rows == len(places) else rows - rows % batch_size
        if file.seek(0, os.SEEK_END) > ends[self.done]:
            file.truncate(ends[self.done])
            file.seek(0, os.SEEK_END)
        if 0 < self.done < len(places):
            say(f"continuing behind {self.done} answers")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch, whole and on the disk before this returns."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(rows)


def _is_whole(line: bytes, place: Place) -> bool:
    """Whether a line is the answer of this place, and not what a kill or a bad disk left of it."""
    try:
        row = json.loads(line)
        return line.endswith(b"\n") and (row["source"], row["index"]) == place
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
