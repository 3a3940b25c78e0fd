"""A loss by its name, its hyper-parameters fixed and its modifiers applied, for the engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.losses import modifiers
from likelier.losses.declare import Loss, find_loss
from likelier.losses.modifiers import PerPair
from likelier.losses.values import StepValues

TwoSides = Callable[[StepValues], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its hyper-parameters fixed, ready for the engine.

    ``beta`` scales the logged rewards. ``observe`` is called once a step with the values of the
    whole step, before any gradient, and may change ``state``: figures that belong to the run, and
    to its checkpoints. ``held_out`` stands in for ``per_pair`` on held-out pairs. ``losses`` are
    those of the registry that it is made of; ``fixed`` are the hyper-parameters where it is one.
    """

    name: str
    per_pair: PerPair
    beta: float
    needs_whole_step: bool = False
    formula: str = ""
    scores: TwoSides | None = None
    losses: tuple[Loss, ...] = ()
    reads_wpo_log_weight: bool = False
    tokens: Mapping[str, Any] | None = None  # the rule by which tokens count
    observe: Callable[[StepValues], None] | None = None
    held_out: PerPair | None = None
    state: dict[str, float] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def needs(self, what: str) -> bool:
        """Whether it reads an input; a caller's function may read the reference."""
        if not self.losses:
            return what == "reference"
        return any(loss.reads(what) for loss in self.losses)

    @property
    def paired(self) -> bool:
        """Whether its rows are pairs, rather than unpaired examples with a label."""
        return all(loss.paired for loss in self.losses)

    def as_record(self) -> dict[str, Any]:
        """What a report must know: what rewards are compared with and scaled by, and whether a
        policy that is its reference has a loss of ln 2.
        """
        plain = self.name in ("sigmoid", "f_dpo") and bool(self.losses)
        return {
            "reads_reference": self.needs("reference"),
            "reward_scale": self.beta,
            "starts_at_ln2": plain and self.formula == self.losses[0].objective(self.fixed),
        }


def bind(
    parameters: Mapping[str, Any],
    function: Callable[[StepValues], Tensor] | None = None,
    seed: int = 0,
) -> BoundLoss:
    """The loss that a config's ``loss`` section names, or a caller's ``function``. ``seed`` is
    that of what it draws.

    Such a function may look at any pair of the step. The section's ``beta`` then only scales the
    rewards that are logged.

    Raises ConfigError where no loss has this name, or a hyper-parameter is wrong.
    """
    options = {key: value for key, value in parameters.items() if key in modifiers.OPTIONS}
    given = {key: value for key, value in parameters.items() if key not in modifiers.OPTIONS}
    if function is not None:
        if dead := [key for key in given if key not in ("name", "beta")]:
            raise ConfigError(
                "has no effect: a loss function was handed over",
                where=f"loss.{dead[0]}",
                hint="remove it; loss.beta alone is read: it scales the logged rewards",
            )
        name, per_pair = getattr(function, "__name__", "own"), partial(_one_a_pair, function)
        whole = BoundLoss(name, per_pair, given.get("beta", 0.1), True, formula=f"{name}(values)")
        return with_options(whole, options, seed)
    state: dict[str, float] = {}
    if given["name"] == "mixture":
        losses = [_one(part, state, f"{n}/") for n, part in enumerate(given["parts"])]
        whole = _mixture(losses, [part.get("weight", 1.0) for part in given["parts"]], state)
    else:
        whole = _one(given, state, "")
    return with_options(whole, options, seed)


def _one(given: Mapping[str, Any], state: dict[str, float], prefix: str) -> BoundLoss:
    """One loss of the registry; hyper-parameters that are left out take their defaults."""
    chosen = {key: value for key, value in given.items() if key not in ("name", "weight")}
    loss = find_loss(given["name"])
    loss.check(chosen)
    fixed = loss.defaults | chosen
    per_pair: PerPair = partial(loss.function, **fixed)
    observe = None
    if fixed.get("delta") == "running":
        per_pair, observe = modifiers.shifted(loss.function, fixed, state, prefix + "shift")
    return BoundLoss(
        name=loss.name,
        per_pair=per_pair,
        beta=float(fixed[loss.reward]) if loss.reward else 1.0,
        needs_whole_step=loss.needs_whole_step and fixed.get("delta") in (None, "running"),
        formula=loss.objective(fixed),
        scores=_scores(loss, fixed),
        losses=(loss,),
        observe=observe,
        state=state,
        fixed=fixed,
    )


def _scores(loss: Loss, fixed: Mapping[str, Any]) -> TwoSides | None:
    """What gives the scores that are optimised, or None where they are the rewards."""
    figure = loss.scores
    if figure is None or fixed.get("divergence") == "reverse_kl":
        return None
    scale = float(fixed["beta"]) if loss.times_beta else 1.0
    read = {} if isinstance(figure, str) else figure.__annotations__
    given = {name: value for name, value in fixed.items() if name in read}

    def scores(values: StepValues) -> tuple[Tensor, Tensor]:
        if isinstance(figure, str):
            sides = getattr(values.chosen, figure), getattr(values.rejected, figure)
        else:
            sides = figure(values, **given)
        return scale * sides[0], scale * sides[1]

    return scores


def _mixture(
    losses: Sequence[BoundLoss], weights: Sequence[float], state: dict[str, float]
) -> BoundLoss:
    """A weighted sum of losses; the first one's beta scales the rewards."""
    observers = [loss.observe for loss in losses if loss.observe is not None]

    def per_pair(values: StepValues) -> Tensor:
        terms = [w * loss.per_pair(values) for w, loss in zip(weights, losses, strict=True)]
        return sum(terms[1:], terms[0])

    def observe(values: StepValues) -> None:
        for each in observers:
            each(values)

    terms = zip(weights, losses, strict=True)
    return BoundLoss(
        name="mixture",
        per_pair=per_pair,
        beta=losses[0].beta,
        needs_whole_step=any(loss.needs_whole_step for loss in losses),
        formula=" + ".join(f"{weight:g} * ({loss.formula})" for weight, loss in terms),
        losses=tuple(one for loss in losses for one in loss.losses),
        observe=observe if observers else None,
        state=state,
    )


def with_options(loss: BoundLoss, options: Mapping[str, Any], seed: int = 0) -> BoundLoss:
    """The loss with what the config adds to any of them, in the order of the formula."""
    if dynamic := options.get("dynamic_beta"):
        loss = _with_dynamic_beta(loss, dynamic)
    if rule := options.get("tokens"):
        how = ", ".join(f"{k} {v}" for k, v in rule.items())
        tokens = {**rule, "seed": seed}
        loss = replace(loss, tokens=tokens, formula=f"{loss.formula}, tokens counted by {how}")
    if options.get("wpo"):
        formula = f"w * [{loss.formula}], w = min(1, w_c * w_r)"
        loss = _changed(loss, modifiers.times_wpo_weight, formula)
        loss = replace(loss, reads_wpo_log_weight=True)
    if nll := options.get("nll"):
        per = options.get("nll_per", "token")
        add = partial(modifiers.plus_nll, weight=nll, per=per)
        loss = _changed(loss, add, f"{loss.formula} + {nll:g} * NLL({per})")
    if options.get("stop_token") is False:
        loss = replace(loss, formula=f"{loss.formula}, stop tokens left out")
    if options.get("pair_weights"):
        loss = _changed(loss, modifiers.times_pair_weight, f"weight * [{loss.formula}]")
    return loss


def _with_dynamic_beta(loss: BoundLoss, options: Mapping[str, float]) -> BoundLoss:
    if "beta" not in loss.fixed:
        raise ConfigError(
            f"{loss.name} has no single beta to follow the margins",
            where="loss.dynamic_beta",
            hint="remove it, or use a loss such as sigmoid",
        )
    per_pair, observe = modifiers.dynamic_beta(
        loss.losses[0].function, loss.fixed, loss.state, options
    )
    return replace(
        loss,
        per_pair=per_pair,
        observe=observe,
        held_out=loss.per_pair,
        needs_whole_step=True,
        formula=f"{loss.formula}, beta = {loss.beta:g} * (1 + {options['alpha']:g} * (M - M0))",
    )


def _changed(
    loss: BoundLoss, change: Callable[[Tensor, StepValues], Tensor], formula: str
) -> BoundLoss:
    """The loss with a change applied to its values, also to those of held-out pairs."""

    def after(function: PerPair) -> PerPair:
        return lambda values: change(function(values), values)

    held_out = None if loss.held_out is None else after(loss.held_out)
    return replace(loss, per_pair=after(loss.per_pair), held_out=held_out, formula=formula)


def _one_a_pair(function: Callable[[StepValues], Tensor], values: StepValues) -> Tensor:
    """A caller's loss, checked: a mean would be divided by the number of pairs twice."""
    loss_P = function(values)
    if loss_P.shape != values.chosen_P.shape:
        raise ConfigError(
            f"it gives shape {tuple(loss_P.shape)} for {len(values.chosen_P)} pairs",
            where="loss (the function handed over)",
            hint="give one value a pair, without a mean",
        )
    return loss_P
