"""How a loss is declared: one decorated function is its code, its card and its config section.

No torch here: the losses are listed, and configs are read, without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from likelier.base.errors import ConfigError

LOSSES: dict[str, "Loss"] = {}
ALIASES: dict[str, str] = {}
_MARGIN = "((pc - rc) - (pr - rr))"  # what {margin} stands for in a formula


@dataclass(frozen=True)
class Hyper:
    """A hyper-parameter: a number in a range, or one of ``choices``.

    A default that is text is allowed beside the numbers. The ends of the range are named as in
    pydantic: over ``gt`` or from ``ge``, under ``lt`` or up to ``le``. ``start`` is where to begin
    and what people use. ``only_if`` is the (name, value) that another hyper-parameter must have
    for this one to be read.
    """

    default: float | str
    meaning: str
    start: str
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    only_if: tuple[str, str] | None = None
    name: str = ""

    @property
    def range(self) -> str:
        """The range in words: ``a number over 0 and up to 100``."""
        if self.choices:
            return " or ".join(self.choices)
        low = f"over {self.gt:g}" if self.gt is not None else f"from {self.ge:g}"
        to = "to" if self.gt is None else "and up to"
        high = f"to under {self.lt:g}" if self.lt is not None else f"{to} {self.le:g}"
        word = f"{self.default}, or " if isinstance(self.default, str) else ""
        return f"{word}a number {low} {high}"

    def allows(self, value: Any) -> bool:
        """Whether a value lies in the range; NaN does not."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return value == self.default
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = self.gt is None or value > self.gt, self.ge is None or value >= self.ge
        below = self.lt is None or value < self.lt, self.le is None or value <= self.le
        return all((*above, *below))

    def is_read(self, values: Mapping[str, Any]) -> bool:
        """Whether the loss reads it beside these hyper-parameters."""
        return self.only_if is None or values.get(self.only_if[0]) == self.only_if[1]


hyper: Any = Hyper  # as the default of a keyword that is declared a number


def hyper_beta(default: float = 0.1, start: str = "0.1; 0.01 to 0.5 are in use") -> Any:
    """The usual beta."""
    meaning = "scale of the rewards; a larger beta keeps the policy nearer to the reference, if any"
    return hyper(default, meaning, start, gt=0, le=100)


def hyper_smoothing(default: float, start: str) -> Any:
    """The usual smoothing of labels."""
    return hyper(default, "the share of pairs whose labels are flipped", start, ge=0, lt=0.5)


def hyper_shift() -> Any:
    """The shift of rewards in binary classifier optimization; ``running`` is state of the run."""
    meaning = "the reward shift: the running mean of all rewards of the run, or a number"
    return hyper("running", meaning, "running", ge=-10_000, le=10_000)


@dataclass(frozen=True)
class Loss:
    """One loss: ``function(values, **hypers)`` gives a value per pair, shape (P,), in nats.

    ``formula`` is a template: ``{beta}`` stands for the hyper-parameter. ``variants`` are the
    formulas for certain choices of a hyper-parameter. ``needs`` is made of ``reference``,
    ``lengths``, ``margin`` (a data column), ``label``, ``mismatched`` (completions of other
    prompts) and ``whole step``. ``reward`` names the hyper-parameter that scales the log-ratio in
    the logged rewards; None means 1.

    Where the loss does not optimise the reward, ``score`` says in words what it does optimise.
    ``scores`` is then the name of a figure of `Side`, or a function that gives the figures of the
    chosen and the rejected side; they are multiplied by beta if ``times_beta``.
    """

    name: str
    title: str
    function: Callable[..., Any]
    hypers: tuple[Hyper, ...]
    paper: str
    formula: str
    use: str
    trap: str
    needs: tuple[str, ...] = ("reference",)
    aliases: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    reward: str | None = "beta"
    score: str | None = None
    scores: str | Callable[..., Any] | None = None
    times_beta: bool = True

    @property
    def paired(self) -> bool:
        """Whether it learns from pairs, rather than from unpaired examples with a label."""
        return "label" not in self.needs

    @property
    def needs_whole_step(self) -> bool:
        """Whether a value depends on the other pairs of the step.

        The engine then scores the whole step before it takes any gradient.
        """
        return "whole step" in self.needs

    @property
    def defaults(self) -> dict[str, float | str]:
        """Every hyper-parameter at its default."""
        return {hyper.name: hyper.default for hyper in self.hypers}

    def reads(self, need: str) -> bool:
        """Whether it needs this input."""
        return need in self.needs

    def objective(self, values: Mapping[str, Any]) -> str:
        """The formula with these numbers in it."""
        shown = {k: f"{v:g}" if isinstance(v, int | float) else str(v) for k, v in values.items()}
        variants = (f for choice, f in self.variants.items() if choice in values.values())
        return next(variants, self.formula).format(margin=_MARGIN, **shown)

    @property
    def formulas(self) -> list[str]:
        """The formula and its variants with the names of the hyper-parameters in them."""
        names = {hyper.name: hyper.name for hyper in self.hypers}
        written = [self.formula, *(f"{choice}: {f}" for choice, f in self.variants.items())]
        return [formula.format(margin=_MARGIN, **names) for formula in written]

    def check(
        self,
        given: Mapping[str, Any],
        where: str = "loss",
        shown: Callable[[Any], str] = str,
    ) -> None:
        """Check hyper-parameters that stand under the key ``where``; ``shown`` writes a value.

        Raises ConfigError for the first that the loss does not read, or whose value is impossible.
        """
        known = {hyper.name: hyper for hyper in self.hypers}
        for name, value in given.items():
            if name not in known:
                what, hint = f"{self.name} does not read {name}", self._instead_of(name)
                raise ConfigError(what, where=f"{where}.{name}", hint=hint)
            if not known[name].allows(value):
                what = f"{shown(value)} is not possible; write {known[name].range}"
                hint = f"{known[name].meaning}; begin with {known[name].start}"
                raise ConfigError(what, where=f"{where}.{name}", hint=hint)
        for name in given:
            if not known[name].is_read(self.defaults | dict(given)):
                other, value = known[name].only_if or ("", "")
                what = f"has no effect: {other} is not {value}"
                raise ConfigError(what, where=f"{where}.{name}", hint=f"remove {name}")

    def _instead_of(self, name: str) -> str:
        if near := get_close_matches(name, self.defaults, n=1):
            hint = f"did you mean {near[0]}?"
        else:
            hint = f"it reads {', '.join(self.defaults) or 'no hyper-parameter'}"
        readers = [other.name for other in LOSSES.values() if name in other.defaults]
        return f"{hint}; {name} is read by {', '.join(readers)}" if readers else hint


def loss(**card: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a loss by its name; ``card`` is the rest of its `Loss`.

    Its hyper-parameters are its keywords, each with a `hyper` as default; its title is the first
    line of its docstring. Returns the function itself, its defaults made plain values.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        declared: Mapping[str, Hyper] = function.__kwdefaults__ or {}
        hypers = tuple(replace(one, name=name) for name, one in declared.items())
        title = (function.__doc__ or "").partition("\n")[0].removesuffix(".")
        name = function.__name__
        LOSSES[name] = Loss(name, title, function, hypers, **card)
        ALIASES.update(dict.fromkeys(LOSSES[name].aliases, name))
        function.__kwdefaults__ = LOSSES[name].defaults
        return function

    return register


def find_loss(name: str, where: str = "loss.name") -> Loss:
    """The loss of a name or alias.

    Raises ConfigError where there is none, with the nearest one; also for a bare ``ipo``.
    """
    name = ALIASES.get(name, name)
    if name in LOSSES:
        return LOSSES[name]
    if name in ("ipo", "ipo_norm"):
        raise ConfigError(
            f"{name} is two losses",
            where=where,
            hint="write ipo_sum (summed log-probs, the paper's text; tau counts nats per answer) "
            "or ipo_mean (per-token means, as most trainers run it; tau counts nats per token)",
        )
    near = get_close_matches(name, [*LOSSES, *ALIASES], n=1)
    known = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"no loss is called {name}", where=where, hint=f"{known}There are: {', '.join(LOSSES)}"
    )
