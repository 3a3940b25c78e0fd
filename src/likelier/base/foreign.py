"""Foreign text made harmless: what drives a terminal is written out, what is secret is starred.

Names, values and texts of files, of the command line and of libraries' errors come from strangers.
They leave through one of these functions, whatever the message that holds them.
"""

import codecs
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO, cast

STARS = "***"
_END = r"\s\"'<>\\"  # no value of a query or of a header reaches beyond one of these
_NAMES = "token|secret|passw|pwd|key|sig|signature|credential|auth|session"
_SECRETS = [
    (re.compile(pattern, re.IGNORECASE), rf"\g<1>{STARS}")
    for pattern in (
        # What stands before the host of a URL; its first half alone where a message was cut.
        rf"(:/{{1,3}})[^/{_END}]+(?=@)",
        rf"(:/{{1,3}})[^/@:{_END}]+:(?!\d+(?:[/?#,;)\]{_END}]|$))[^/@{_END}]+",
        rf"([?&;](?:[\w.~-]|%[0-9a-f]{{2}})*(?:{_NAMES})[\w.~-]*=)"
        rf"(?:(?!:\d+(?!\w))[^&#{_END}])+",  # the number of a line behind it stays
        r"(?<!\w)(?<!\w-)((?:(?:hub|hf|access|auth|api|refresh|session)[_-]?)?token=)"
        rf"[^&,;){_END}]{{6,}}",
        r"((?:api|access|secret|private)[_-]?key(?:[_-]?id)?[\"']?\s*[=:]\s*[\"']?)"
        rf"[^&,;){_END}]{{6,}}",
        rf"((?:password|passwd|client[_-]?secret)[\"']?\s*[=:]\s*[\"']?)[^&,;){_END}]+",
        r"(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)"
        rf"[^,;{_END}]{{3,}}",
        rf"(\bbearer\s+)(?=\S*\d)[^,;{_END}]{{8,}}",
    )
]
_MAY_HOLD = re.compile(r"[:=]|bearer\s", re.IGNORECASE)  # as what any of these finds does
# A Hub token; a name such as hf_models is none.
_HUB_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}")
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:API|ACCESS|PRIVATE|SECRET)_?KEY)$"
)
_SHORTEST_VALUE = 8  # of a variable that is looked for: a shorter one is in too many words


def without_secrets(text: str) -> str:
    """The text with stars for passwords, keys and tokens, always the same for the same text.

    Known by their form are: what stands before the host of a URL, parameters of a query and
    assignments whose names say so, headers, and tokens of the Hub; by their value those of the
    environment's variables whose names say so, such as ``HF_TOKEN``.
    """
    return starring()(text)


def starring() -> Callable[[str], str]:
    """`without_secrets` for many texts: the environment is read once, which takes longer than most
    texts.
    """
    values = [
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_VALUE and _SECRET_VARIABLE.search(name)
    ]
    return partial(_starred, values=values)


def _starred(text: str, values: Sequence[str]) -> str:
    for pattern, stars in _SECRETS if _MAY_HOLD.search(text) else ():
        text = pattern.sub(stars, text)
    text = _HUB_TOKEN.sub(STARS, text)
    for value in values:
        text = text.replace(value, STARS)
    return text


def masked(tree: Any) -> Any:
    """Plain data with every text in it `without_secrets`, keys too; the data stay as they are."""
    starred = starring()

    def plain(tree: Any) -> Any:
        if isinstance(tree, str):
            return starred(tree)
        if isinstance(tree, Mapping):
            return {plain(key): plain(value) for key, value in tree.items()}
        return [plain(item) for item in tree] if isinstance(tree, list | tuple) else tree

    return plain(tree)


def visible(text: str, keep: str = "") -> str:
    """The text, control and reordering characters written out, but for those to ``keep``.

    Each is written so that JSON which held it says the same as before.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else _written(letter) for letter in text
    )


def _written(letter: str) -> str:
    # A joiner of emoji and of Indian scripts, and spaces of other widths, drive nothing.
    if letter == "\u200d" or unicodedata.category(letter) == "Zs":
        return letter
    if ord(letter) < 0x20:  # JSON has written these out already
        return letter.encode("unicode_escape").decode()
    return _as_in_json(letter)


def _as_in_json(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def _not_encodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _as_in_json(error.object[error.start : error.end]), error.end


WRITTEN_OUT = "written_out"  # how a stream treats letters that its encoding lacks
codecs.register_error(WRITTEN_OUT, _not_encodable)


def harmless(text: str, keep: str = "") -> str:
    """The text without secrets and without what drives a terminal, but for letters to ``keep``."""
    return visible(without_secrets(text), keep)


class HarmlessStream:
    """A stream in front of another: what is written there is harmless, whoever writes it."""

    def __init__(self, behind: TextIO):
        self.behind = behind

    def write(self, text: str) -> int:
        """Write the text, made harmless."""
        self.behind.write(harmless(text, keep="\n"))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write the lines in one go."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


@contextmanager
def harmless_streams() -> Iterator[None]:
    """Have all that Python code writes to stdout and stderr meanwhile made harmless.

    This holds for warnings, logs and tracebacks of libraries as for our own lines, which need
    nothing of their own. Our bars and colours go past it: see `base.terminal.console`.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, HarmlessStream) else cast(TextIO, HarmlessStream(stream))
        for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
