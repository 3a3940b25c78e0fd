"""check_loss passes every loss of ours and catches every fault that it names."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import likelier
from likelier.losses.declare import LOSSES
from likelier.losses.registry import bind
from likelier.losses.values import StepValues
from likelier.testing import check_loss


@pytest.mark.parametrize("name", [name for name, one in LOSSES.items() if one.paired])
def test_ours_pass(name: str) -> None:
    fixed = LOSSES[name].defaults
    if fixed.get("delta") == "running":
        fixed["delta"] = 0.0
    assert len(check_loss(partial(LOSSES[name].function, **fixed))) == 6


def test_what_combines_passes() -> None:
    for options in ({"nll": 0.2}, {"nll": 1.0, "nll_per": "sum"}, {"pair_weights": True}):
        check_loss(bind({"name": "sigmoid", "beta": 0.1, **options}).per_pair)
    check_loss(bind({"name": "sigmoid", "beta": 0.1, "wpo": True}).per_pair)


def naive(values: StepValues) -> Tensor:
    return -torch.log(torch.sigmoid(values.log_ratio_margin_P))


def mean(values: StepValues) -> Tensor:
    return naive(values).mean()


def item(values: StepValues) -> Tensor:
    return torch.tensor(naive(values).tolist(), dtype=torch.float64)


def rounded(values: StepValues) -> Tensor:
    return naive(values).float()


def by_place(values: StepValues) -> Tensor:
    return -values.log_ratio_margin_P * torch.arange(1, len(values.chosen_P) + 1).double()


def half_detached(values: StepValues) -> Tensor:
    chosen, rejected = values.chosen, values.rejected
    return (rejected.ratio_P.detach() - chosen.ratio_P) ** 2


def random(values: StepValues) -> Tensor:
    return -values.log_ratio_margin_P + torch.rand(len(values.chosen_P), dtype=torch.float64)


def changing(values: StepValues) -> Tensor:
    with torch.no_grad():
        values.reference_R.sub_(1.0)
    return -torch.nn.functional.logsigmoid(values.chosen.ratio_P - values.rejected.ratio_P)


def raising(values: StepValues) -> Tensor:
    raise KeyError("margin")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (naive, r"1 of 6 checks failed\nfinite at extremes: a \w+ is"),
        (mean, r"one value a pair: it gives shape \(\) for 4 pairs"),
        (item, "keeps the graph: no gradient reaches the policy"),
        (rounded, "one value a pair: it gives torch.float32"),
        (by_place, "follows the order of the pairs: with the pairs in another order"),
        (half_detached, "has the gradient of its values: answer 1"),
        (random, "the same each time: it gave"),
        (changing, "the same each time: it changed reference_R"),
        (raising, "6 of 6 checks failed(.|\n)*it raised KeyError"),
    ],
)
def test_faults_are_named(loss: Callable[[StepValues], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_loss(loss)


def test_the_public_name() -> None:
    assert likelier.testing.check_loss is check_loss
