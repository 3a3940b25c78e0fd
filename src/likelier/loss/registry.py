"""Every loss by name, with what it needs and where it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from likelier.errors import ConfigError
from likelier.loss.sigmoid import sigmoid
from likelier.loss.values import AnswerValues


@dataclass(frozen=True)
class Loss:
    """One loss: ``function(values, **parameters)`` gives a value per pair, shape (P,), in nats.

    ``couples`` says that a pair's value depends on the other pairs of the step; the engine then
    scores the whole step before it takes any gradient.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str
    couples: bool = False


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("sigmoid", sigmoid, "Direct Preference Optimization, arXiv 2305.18290, equation 7"),
    )
}


@dataclass(frozen=True)
class BoundLoss:
    """A loss with its hyper-parameters fixed, ready for the engine."""

    name: str
    per_pair: Callable[[AnswerValues], Tensor]
    beta: float
    couples: bool = False


def bind(
    parameters: Mapping[str, Any], function: Callable[[AnswerValues], Tensor] | None = None
) -> BoundLoss:
    """The loss that a config's ``loss`` section names, or a caller's own ``function``.

    A function of one's own may look at any pair of the step. Its ``beta`` only scales the
    rewards that are logged.

    Raises ConfigError where no loss has this name.
    """
    given = dict(parameters)
    name = given.pop("name")
    if function is not None:
        own = partial(_one_a_pair, function)
        return BoundLoss(getattr(function, "__name__", "own"), own, given["beta"], True)
    if name not in LOSSES:
        raise ConfigError(
            f"no loss is called {name}", where="loss.name", mend=f"there are: {', '.join(LOSSES)}"
        )
    loss = LOSSES[name]
    return BoundLoss(name, partial(loss.function, **given), given["beta"], loss.couples)


def _one_a_pair(function: Callable[[AnswerValues], Tensor], values: AnswerValues) -> Tensor:
    """A caller's loss. Its mean would be divided by the pairs of the step a second time."""
    loss_P = function(values)
    if loss_P.shape != values.chosen_P.shape:
        raise ConfigError(
            f"it gives shape {tuple(loss_P.shape)} for {len(values.chosen_P)} pairs",
            where="loss (the function handed over)",
            mend="give one value a pair, without a mean",
        )
    return loss_P
