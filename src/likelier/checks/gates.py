"""Limits that data must keep, such as ``conflicts<=0.01``: reading them, and enforcing them."""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from likelier.base.errors import ConfigError, GateMissed
from likelier.chat.messages import suggestion
from likelier.checks.rules import RULES
from likelier.checks.summary import Examination

_GATE = re.compile(r"\s*([a-z_-]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)\s*")
FIGURES = ("errors", "warnings", "usable", "rows", "pairs", "prompts", "probe", "longer")
SIGNS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


@dataclass(frozen=True)
class Gate:
    """A limit as it was written, the figure it is for, how they are compared, and the limit."""

    text: str
    figure: str
    sign: str
    limit: float


def read_gate(text: str) -> Gate:
    """Read a limit such as ``conflicts<=0.01`` or ``conflict <= 1%``. Raises ConfigError."""
    found = _GATE.fullmatch(text)
    if found is None:
        hint = "write a figure, a sign and a number, such as conflicts<=0.01"
        raise ConfigError(f"cannot read the limit {text!r}", where="--gate", hint=hint)
    name, sign, number, percent = found.groups()
    known = (*RULES, *FIGURES)
    for figure in (name, name.removesuffix("s"), name.removesuffix("es")):
        if figure in known:
            return Gate(text, figure, sign, float(number) / (100 if percent else 1))
    hint = suggestion(name, known, f"name a finding or {', '.join(FIGURES)}")
    raise ConfigError(f'there is no figure "{name}"', where="--gate", hint=hint)


def enforce_gates(gates: Sequence[Gate], found: Examination) -> None:
    """Raise GateMissed where a limit is not kept, naming every one of them."""
    values = [(gate, _figure(gate.figure, found)) for gate in gates]
    missed = [
        f"{gate.text.strip()}: it is {value:.4g}"
        for gate, value in values
        if not SIGNS[gate.sign](value, gate.limit)
    ]
    if missed:
        raise GateMissed(
            "; ".join(missed), where="--gate", hint="fix the data, or change the limit"
        )


def _figure(name: str, found: Examination) -> float:
    """One of `FIGURES`, or a finding's share of the rows."""
    statistics = found.statistics
    figures = {
        "rows": found.rows,
        "pairs": statistics.pairs,
        "prompts": statistics.prompts,
        "usable": found.usable / found.rows,
        "probe": statistics.probe.accuracy.value if statistics.probe else 0.5,
        "longer": statistics.lengths.chosen_longer.value if statistics.lengths else 0.5,
        "errors": found.count("error") / found.rows,
        "warnings": found.count("warning") / found.rows,
    }
    if name in figures:
        return figures[name]
    return sum(kind.count for kind in found.kinds if kind.code == name) / found.rows
