"""What can go wrong for a user: one class per exit code, one clear message each."""

import copyreg
import errno
from collections.abc import Sequence
from typing import Any

from likelier.base.foreign import harmless

BUG = 70
CLOSED_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
INTERRUPTED = 130
UNWRITABLE = 73
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DISK_HINT = "make room or choose another folder; what was complete is kept"


class LikelierError(Exception):
    """Anything that ends a command with a message and no traceback.

    What a foreign file or the user put into the message neither drives a terminal nor is secret.

    Args:
        what: what is wrong, in one line.
        where: ``file:line field`` of the data, or the config key.
        hint: what to do about it, in one line.
    """

    exit_code = 1  # each kind of error has its own, and keeps it
    is_said = False  # by another process of the same run

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None):
        self.what = harmless(what)
        self.where = where and harmless(where)
        self.hint = hint and harmless(hint, keep="\n")
        located = f"{self.where}: {self.what}" if where else self.what
        super().__init__(f"{located}\n  {self.hint}" if hint else located)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, from a child: made again from its message alone, it would say another."""
        new = copyreg.__newobj__  # type: ignore[attr-defined]  # what pickle itself calls
        return new, (type(self), *self.args), self.__dict__


class RunFailed(LikelierError):
    """A run failed: numbers not finite, no valid checkpoint, the preflight check not passed."""


class NotFinite(RunFailed):
    """A number that is not finite, before its place is known.

    Args:
        what: the first bad number, in one line.
        hint: where to look.
        positions: of the pairs that have it, among those computed; None: any of them.
        completion: the sequence that has it, where that is what is known.
    """

    def __init__(
        self,
        what: str,
        *,
        hint: str,
        positions: Sequence[int] | None = None,
        completion: object = None,
    ):
        super().__init__(what, hint=hint)
        self.positions, self.completion = positions, completion


class ConfigError(LikelierError):
    """A key, value or argument is wrong; nothing was started."""

    exit_code = 2


class GateMissed(LikelierError):
    """Data miss a limit that the user set with ``check --gate``."""

    exit_code = 3


class DataError(LikelierError):
    """The content of a data file, tokenizer or template cannot be used."""

    exit_code = 65


class InputMissing(LikelierError):
    """A file or folder that should be read is not there or not readable."""

    exit_code = 66


class OutputError(LikelierError):
    """The output folder is not writable, full, in use, or holds another run."""

    exit_code = UNWRITABLE


class StoppedEarly(LikelierError):
    """The run was asked to stop; the same command resumes it from the checkpoint just written."""

    exit_code = 75


class Interrupted(StoppedEarly):
    """The run was stopped with Ctrl-C: as StoppedEarly, with the exit code that shells use."""

    exit_code = INTERRUPTED


def describe_error(error: Exception) -> tuple[str, str | None, int]:
    """What a user is told about an exception: the line, what to do about it, the exit code."""
    if isinstance(error, LikelierError):
        return str(error), None, error.exit_code
    if isinstance(error, OSError) and error.errno in _FULL:
        what = f"{error.filename or 'output'}: {error.strerror}"
        return harmless(what), DISK_HINT, UNWRITABLE
    first_line = harmless(str(error).partition("\n")[0])
    what = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    hint = "this is a bug of ours: run again with --debug and report what it shows"
    return what, hint, BUG
