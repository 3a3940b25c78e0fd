"""Every loss by name: its card joined with its function.

To add a loss: a card in `likelier.cards`, a function in this folder, and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from likelier.cards import CARDS, Card
from likelier.losses import anchored, coupled, lengths, margins, sigmoid
from likelier.losses.values import StepValues


@dataclass(frozen=True)
class Loss:
    """One loss: ``function(values, **parameters)`` gives a value per pair, shape (P,), in nats.

    ``couples`` says that a pair's value depends on the other pairs of the step; the engine then
    scores the whole step before it takes any gradient. ``scores`` gives what is optimised of
    chosen and rejected, where that is not the reward; it reads some of the parameters.
    """

    name: str
    function: Callable[..., Tensor]
    card: Card
    scores: Callable[..., tuple[Tensor, Tensor]] | None = None
    scaled: bool = True  # the scores are yet to be multiplied by beta

    @property
    def paper(self) -> str:
        """Where it comes from."""
        return self.card.paper

    @property
    def needs_whole_step(self) -> bool:
        """Whether pairs of a step look at each other."""
        return self.card.reads("whole step")


def _means(values: StepValues) -> tuple[Tensor, Tensor]:
    return values.chosen.mean_P, values.rejected.mean_P


def _mean_ratios(values: StepValues) -> tuple[Tensor, Tensor]:
    return values.chosen.mean_ratio_P, values.rejected.mean_ratio_P


def _ratios(values: StepValues) -> tuple[Tensor, Tensor]:
    return values.chosen.ratio_P, values.rejected.ratio_P


def _logps(values: StepValues) -> tuple[Tensor, Tensor]:
    return values.chosen.policy_P, values.rejected.policy_P


def _sureness(values: StepValues) -> tuple[Tensor, Tensor]:
    chosen_P, rejected_P = _means(values)
    return chosen_P.exp(), rejected_P.exp()


_FUNCTIONS: tuple[tuple[Any, ...], ...] = (
    ("sigmoid", sigmoid.sigmoid, sigmoid.f_scores),
    ("cdpo", margins.cdpo),
    ("robust", margins.robust),
    ("hinge", margins.hinge),
    ("exo", margins.exo),
    ("discopop", margins.discopop),
    ("dpop", margins.dpop, margins.dpop_scores),
    ("rdpo", margins.rdpo),
    ("odpo", margins.odpo),
    ("dpo_shift", margins.dpo_shift, margins.dpo_shift_scores),
    ("chi_po", margins.chi_po, margins.chi_scores),
    ("ipo_sum", anchored.ipo_sum, _ratios, False),
    ("ipo_mean", anchored.ipo_mean, _mean_ratios, False),
    ("sppo", anchored.sppo, _ratios, False),
    ("cal_dpo", anchored.cal_dpo, _ratios, False),
    ("nca", anchored.nca),
    ("bco", anchored.bco),
    ("apo_zero", anchored.apo_zero),
    ("apo_down", anchored.apo_down),
    ("sigmoid_mean", lengths.sigmoid_mean, _mean_ratios),
    ("simpo", lengths.simpo, _means),
    ("alphapo", lengths.alphapo, lengths.alpha_scores),
    ("simper", lengths.simper, _sureness, False),
    ("orpo", lengths.orpo, lengths.log_odds, False),
    ("cpo", lengths.cpo, _logps),
    ("slic", lengths.slic, _logps, False),
    ("aot", coupled.aot),
    ("aot_unpaired", coupled.aot_unpaired),
    ("kto", coupled.kto),
    ("bco_unpaired", coupled.bco_unpaired),
    ("apo_zero_unpaired", coupled.apo_zero_unpaired),
)
LOSSES = {name: Loss(name, function, CARDS[name], *more) for name, function, *more in _FUNCTIONS}
