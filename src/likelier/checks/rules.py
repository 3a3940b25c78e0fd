"""Every kind of finding: its code, its severity, why it matters and what to do about it."""

from typing import Literal

from likelier.base.findings import Finding
from likelier.pages.texts import text

Severity = Literal["error", "warning", "note"]

# Why each kind matters and what to do about it: pages/texts/en.yaml, under findings.
RULES: dict[str, Severity] = {
    # reading
    "json": "error", "utf8": "error", "csv": "error", "parquet": "error", "arrow": "error",
    "gzip": "error",
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
    "turn": "error", "reasoning": "error", "generation": "note", "closed": "note",
    "ended": "note", "continued": "note", "block": "note",
    "template": "error", "prefix": "error", "stop": "error", "merged": "error",
    "vocabulary": "error", "control": "warning", "unknown": "warning", "foreign": "warning",
    "bos": "warning",
    "drops": "warning", "lost": "warning", "adds": "note", "plain": "warning", "clock": "warning",
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


def finding(code: str, source: str, message: str, field: str | None = None) -> Finding:
    """A finding with the severity of its kind, and what to do about its kind as the hint."""
    return Finding(code, RULES[code], source, field, message, cure(code))
