"""Faults at a file call of a process: see shim.c, which is loaded before anything else."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.native import NO_COMPILER, NoCompiler, build

# The kinds of calls: open to write, write, name (rename, link), delete, make, mode, sync, truncate.
CHANGES = "owndmcst"
READS = "Rr"  # open to read, read
LOCK = "l"
_SIZE, _CALL, _KINDS = 16384, 16, 512  # of struct tally in shim.c, and where its texts begin


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th file call below a folder; where ``number`` is 0, calls are counted.

    ``code`` is the errno that the call fails with, 0 for SIGKILL; ``from_then_on`` has every later
    call of these kinds fail too.
    """

    folder: Path
    tally: Path
    number: int = 0
    code: int = 0
    kinds: str = CHANGES
    from_then_on: bool = False

    def arm(self) -> None:
        """Have it happen in this process, which was started under `loaded`."""
        if "LD_PRELOAD" not in os.environ:
            raise NoCompiler(NO_COMPILER)
        # The library is loaded already: this finds it.
        arm = ctypes.CDLL(os.environ["LD_PRELOAD"]).shim_arm
        words = (str(word).encode() for word in (self.tally, self.folder, self.kinds))
        if arm(*words, ctypes.c_long(self.number), self.code, int(self.from_then_on)):
            raise OSError(f"{self.tally}: no file calls can be counted here")


@dataclass(frozen=True)
class Tally:
    """The file calls that were counted: the kind of each, how many were hit, and the first hit."""

    kinds: str
    hits: int
    call: str


def tally_of(path: Path) -> Tally:
    """What a process has counted so far."""
    data = path.read_bytes()
    calls, hits = struct.unpack_from("ll", data)
    texts = (data[_CALL:_KINDS], data[_KINDS:_SIZE])
    call, kinds = (text.partition(b"\0")[0].decode(errors="replace") for text in texts)
    if calls != len(kinds):
        raise ValueError(f"{calls} file calls are more than shim.c keeps")
    return Tally(kinds, hits, call)


@contextmanager
def loaded() -> Iterator[None]:
    """Processes that start here carry the shim.

    Raises NoCompiler where it cannot be made.
    """
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(build("shim.c"))
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before
