"""What can go wrong for a user: one class per exit code, one clear message each."""

import errno
import re
import sys

BUG = 70
CLOSED_PIPE = 141  # as a shell says of a program ended by SIGPIPE
INTERRUPTED = 130
NO_ROOM = 73

# Hub tokens, and passwords inside URLs, that a library may have put into its message.
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=://)[^/\s@]+(?=@)")


class LikelierError(Exception):
    """Anything that ends a command with a message and no traceback.

    Args:
        what: what is wrong, in one line.
        where: ``file:line field`` of the data, or the config key.
        hint: what to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None):
        self.what, self.where, self.hint = what, where, hint
        located = f"{where}: {what}" if where else what
        super().__init__(f"{located}\n  {hint}" if hint else located)


class RunFailed(LikelierError):
    """The work itself failed: numbers not finite, no valid checkpoint, a step-0 gate not met."""

    exit_code = 1


class ConfigError(LikelierError):
    """A key, value or argument is wrong; nothing has been started."""

    exit_code = 2


class GateMissed(LikelierError):
    """A quality gate that the user asked for is not met."""

    exit_code = 3


class DataError(LikelierError):
    """The content of a data file, tokenizer or template cannot be used."""

    exit_code = 65


class InputMissing(LikelierError):
    """A file or folder that should be read is not there or not readable."""

    exit_code = 66


class OutputError(LikelierError):
    """The output folder is not writable, full, in use, or holds another run."""

    exit_code = 73


class StoppedEarly(LikelierError):
    """Asked to stop; a good checkpoint was written and the same command goes on from it."""

    exit_code = 75


class Interrupted(StoppedEarly):
    """Ctrl-C: as StoppedEarly, with the shell's own exit code."""

    exit_code = 130


def summary(error: Exception) -> tuple[str, str | None, int]:
    """What to say of an exception: the line, how to fix it, the exit code."""
    if isinstance(error, LikelierError):
        return str(error), None, error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        what = f"{error.filename or 'output'}: {error.strerror}"
        return what, "make room or choose another folder; what was complete is kept", NO_ROOM
    first_line = next(iter(str(error).splitlines()), "")
    what = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    hint = "this is a bug of ours: run again with --debug and report what it shows"
    return what, hint, BUG


def print_error(what: str, hint: str | None, code: int) -> int:
    """Print an error to stderr and return the exit code."""
    message = f"error: {what}" + (f"\n  {hint}" if hint else "")
    print(without_secrets(message), file=sys.stderr)
    return code


def without_secrets(text: str) -> str:
    """Text with Hub tokens and passwords starred out."""
    return _SECRET.sub("***", text)
