"""Every finding there is: its code, how grave it is, why it matters, what to do."""

from typing import Literal

from likelier.pages.texts import text

Severity = Literal["error", "warning", "note"]

# Why each matters and what to do about it stand in the catalogue of texts, under findings.
RULES: dict[str, Severity] = {
    # reading
    "json": "error", "utf8": "error", "csv": "error", "parquet": "error", "gzip": "error",
    "column": "error", "type": "error", "text": "error", "mixed": "error", "role": "error",
    "prompt": "error", "tools": "error", "score": "error", "label": "error", "tie": "note",
    "weight": "note",
    # one pair
    "empty": "error", "identical": "error", "huge": "error", "doubled": "warning",
    "turns": "warning", "decomposed": "warning", "damaged": "warning", "inverted": "warning",
    "language": "note",
    # between rows
    "duplicate": "warning", "near": "warning", "conflict": "warning", "cycle": "warning",
    "leak": "warning",
    # with a model
    "template": "error", "prefix": "error", "stop": "error", "merged": "error",
    "control": "warning", "unknown": "warning", "foreign": "warning", "bos": "warning",
    "drops": "warning", "adds": "note", "plain": "warning", "clock": "warning",
    "overlong": "warning", "trimmed": "warning", "truncated": "error", "noise": "note",
    # of the whole file
    "shortcut": "warning", "length": "warning",
}  # fmt: skip


def why(code: str) -> str:
    """Why a kind of finding matters; empty for a code that is none of ours."""
    return text(f"findings.{code}.why") if code in RULES else ""


def cure(code: str) -> str:
    """What to do about a kind of finding; empty for a code that is none of ours."""
    return text(f"findings.{code}.cure") if code in RULES else ""
