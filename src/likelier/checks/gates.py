"""Limits that data must keep, such as ``conflicts<=0.01``: what is asked and whether it is met."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from likelier.base.errors import ConfigError, GateMissed
from likelier.checks.examine import Examination
from likelier.checks.rules import RULES
from likelier.data.messages import nearest

_GATE = re.compile(r"\s*([a-z_-]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)\s*")
FIGURES = ("errors", "warnings", "usable", "rows", "pairs", "prompts", "probe", "longer")


@dataclass(frozen=True)
class Gate:
    """A limit: a figure, how it is compared, and with what."""

    text: str
    name: str
    sign: str
    limit: float

    def value(self, found: Examination) -> float:
        """The figure: a finding's share of the rows, or one of `FIGURES`."""
        summary, statistics = found.summary, found.statistics
        counts = {"rows": summary.rows, "pairs": statistics.pairs, "prompts": statistics.prompts}
        if self.name in counts:
            return float(counts[self.name])
        if self.name == "probe":
            return statistics.probe.accuracy.value if statistics.probe else 0.5
        if self.name == "longer":
            return statistics.lengths.chosen_longer.value if statistics.lengths else 0.5
        if self.name == "usable":
            return summary.usable / summary.rows
        wanted = self.name.removesuffix("s") if self.name in ("errors", "warnings") else self.name
        field = "severity" if self.name in ("errors", "warnings") else "code"
        count = sum(kind.count for kind in summary.kinds if getattr(kind, field) == wanted)
        return count / summary.rows

    def is_met(self, found: Examination) -> bool:
        """Whether the data keep the limit."""
        value = self.value(found)
        return {
            "<=": value <= self.limit,
            "<": value < self.limit,
            ">=": value >= self.limit,
            ">": value > self.limit,
        }[self.sign]


def read_gate(text: str) -> Gate:
    """A gate as it is written, such as ``conflicts<=0.01`` or ``conflict <= 1%``.

    Raises ConfigError where it is none.
    """
    found = _GATE.fullmatch(text)
    if found is None:
        hint = "write a figure, a sign and a number, such as conflicts<=0.01"
        raise ConfigError(f"{text!r} is no gate", where="--gate", hint=hint)
    name, sign, number, percent = found.groups()
    known = (*RULES, *FIGURES)
    for form in (name, name.removesuffix("s"), name.removesuffix("es")):
        if form in known:
            return Gate(text, form, sign, float(number) / (100 if percent else 1))
    meant = nearest(name, known)
    hint = f'did you mean "{meant}"?' if meant else f"name a finding or {', '.join(FIGURES)}"
    raise ConfigError(f'no figure "{name}"', where="--gate", hint=hint)


def pass_gates(gates: Sequence[Gate], found: Examination) -> None:
    """Raise GateMissed where a limit is not kept, naming every one of them."""
    missed = [
        f"{gate.text.strip()}: it is {gate.value(found):.4g}"
        for gate in gates
        if not gate.is_met(found)
    ]
    if missed:
        raise GateMissed("; ".join(missed), where="--gate", hint="fix the data, or the limit")
