"""What can go wrong for a user: one class per exit code, one clear message each."""


class LikelierError(Exception):
    """Anything that ends a command with a message and no traceback.

    Args:
        what: what is wrong, in one line.
        where: ``file:line field`` of the data, or the config key.
        mend: what to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None):
        self.what, self.where, self.mend = what, where, mend
        located = f"{where}: {what}" if where else what
        super().__init__(f"{located}\n  {mend}" if mend else located)


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
