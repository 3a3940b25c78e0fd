"""What was found in rows: where it is, how bad it is, and what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Something noticed in the data, located.

    ``code`` is a word (``empty``, ``identical``, ``json``, …), ``field`` the column it stands in
    or None for the whole row, ``message`` what is wrong and ``hint`` what to do, one line each.
    """

    code: str
    severity: Literal["error", "warning", "note"]
    source: str
    field: str | None
    message: str
    hint: str

    @property
    def where(self) -> str:
        """``file:line field``."""
        return f"{self.source} {self.field}" if self.field else self.source


class Unfit(Exception):
    """A row that cannot be used. It becomes a `Finding` where its place is known."""

    def __init__(self, code: str, field: str | None, message: str, hint: str):
        super().__init__(message)
        self.code, self.field, self.message, self.hint = code, field, message, hint

    def at(self, source: str) -> Finding:
        """The error with its place."""
        return Finding(self.code, "error", source, self.field, self.message, self.hint)
