"""What an exception becomes for a user: one line, how to mend it, and an exit code."""

import errno
import re
import sys

from likelier.errors import LikelierError

BUG = 70
CLOSED_PIPE = 141  # as a shell says of a program ended by SIGPIPE
INTERRUPTED = 130
NO_ROOM = 73

# Hub tokens, and passwords inside URLs, that a library may have put into its message.
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=://)[^/\s@]+(?=@)")


def told(error: Exception) -> tuple[str, str | None, int]:
    """What to say of an exception: the line, how to mend it, the exit code."""
    if isinstance(error, LikelierError):
        return str(error), None, error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        what = f"{error.filename or 'output'}: {error.strerror}"
        return what, "make room or choose another folder; what was complete is kept", NO_ROOM
    first_line = next(iter(str(error).splitlines()), "")
    what = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    mend = "this is a bug of ours: run again with --debug and report what it shows"
    return what, mend, BUG


def say(what: str, mend: str | None, code: int) -> int:
    """Print an error to stderr and return the exit code."""
    message = f"error: {what}" + (f"\n  {mend}" if mend else "")
    print(without_secrets(message), file=sys.stderr)
    return code


def without_secrets(text: str) -> str:
    """Text with Hub tokens and passwords starred out."""
    return _SECRET.sub("***", text)
