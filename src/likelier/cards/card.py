"""What a card says of a loss, and what values its hyper-parameters may take."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Value = float | str


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter: a number between ``low`` and ``high``, or one of ``choices``.

    An open end (``"(low, high)"`` in ``ends``) is not a value itself. ``start`` is where to begin
    and what people use.
    """

    name: str
    default: Value
    meaning: str
    start: str
    low: float = 0.0
    high: float = 100.0
    ends: str = "(]"
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The range in words: ``a number over 0 and up to 100``."""
        if self.choices:
            return " or ".join(self.choices)
        closed_low, closed_high = self.ends[0] == "[", self.ends[1] == "]"
        low = f"{'from' if closed_low else 'over'} {self.low:g}"
        to = "to" if closed_low else "and up to"
        high = f"{to if closed_high else 'to under'} {self.high:g}"
        own = f"{self.default}, or " if isinstance(self.default, str) else ""
        return f"{own}a number {low} {high}"

    def allows(self, value: Any) -> bool:
        """Whether a value lies in the range; NaN does not."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return value == self.default
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)


@dataclass(frozen=True)
class Card:
    """One loss.

    ``formula`` is a template: ``{beta}`` stands for the parameter. ``needs`` is made of
    ``reference``, ``lengths``, ``margin`` (a data column) and ``whole step``. ``reward`` names the
    parameter that scales the log-ratio in the logged rewards; None means 1. ``score`` says in
    words what is optimised where that is not the reward.
    """

    name: str
    title: str
    paper: str
    formula: str
    needs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    when: str
    trap: str
    aliases: tuple[str, ...] = ()
    reward: str | None = "beta"
    score: str | None = None
    paired: bool = True
    variants: tuple[tuple[str, str], ...] = ()  # (choice of a parameter, its own formula)

    @property
    def defaults(self) -> dict[str, Value]:
        """Every hyper-parameter at its default."""
        return {parameter.name: parameter.default for parameter in self.parameters}

    def reads(self, need: str) -> bool:
        """Whether it needs this input."""
        return need in self.needs

    def objective(self, values: Mapping[str, Any]) -> str:
        """The formula with these numbers in it."""
        shown = {k: f"{v:g}" if isinstance(v, int | float) else str(v) for k, v in values.items()}
        formula = next((own for choice, own in self.variants if choice in values.values()), None)
        return (formula or self.formula).format(**shown)

    @property
    def symbols(self) -> str:
        """The formula with the names of the parameters in it."""
        return self.formula.format(**{p.name: p.name for p in self.parameters})

    def problem(self, given: Mapping[str, Any]) -> tuple[str, str, str] | None:
        """(key, what is wrong, how to fix it) for the first wrong hyper-parameter, or None."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in given.items():
            if name not in known:
                return name, f"{self.name} does not read {name}", self._instead(name, known)
            if not known[name].allows(value):
                hint = f"{known[name].meaning}; begin with {known[name].start}"
                return name, f"{value} is not possible; write {known[name].range}", hint
        if "divergence" in known and "alpha" in given and given.get("divergence") != "alpha":
            return "alpha", "would not be read: divergence is not alpha", "take alpha away"
        return None

    def _instead(self, name: str, known: Mapping[str, Parameter]) -> str:
        near = get_close_matches(name, known, n=1)
        if near:
            return f"did you mean {near[0]}?"
        return f"it reads {', '.join(known)}" if known else "it has no hyper-parameter"


def beta(default: float = 0.1, start: str = "0.1; 0.01 to 0.5 are in use") -> Parameter:
    """The usual beta."""
    return Parameter("beta", default, "how strongly the policy is held near", start)
