"""The loss section: strict for every loss, and a wrong key or value gets the right one."""

import pytest

from likelier.base.errors import ConfigError
from likelier.config import Config, config_from, live
from likelier.losses.declare import LOSSES

BASE = {"model": {"path": "m"}, "data": {"train": "a.jsonl"}, "out": "o"}


def read(loss: dict, **more: dict) -> Config:
    return config_from({**BASE, **more, "loss": loss})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_with_its_defaults(name: str) -> None:
    config = read({"name": name})
    tree = live(config)["loss"]
    assert live(config_from(live(config))) == live(config)
    assert tree["name"] == name
    loss = LOSSES[name]
    expected = {hyper.name for hyper in loss.hypers if hyper.is_read(loss.defaults)}
    if name == "sigmoid":
        expected -= {"divergence"}
    assert set(tree) == {"name", *expected}


def test_aliases_become_our_names() -> None:
    assert live(read({"name": "bco_pair", "beta": 0.5}))["loss"]["name"] == "bco"
    assert live(read({"name": "sigmoid", "divergence": "alpha"}))["loss"] == {
        "name": "sigmoid", "beta": 0.1, "divergence": "alpha", "alpha": 0.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"smoothing": 0.1}, r"loss.smoothing: sigmoid does not read smoothing\n.*read by cdpo"),
        ({"name": "ipo"}, r"loss.name: ipo is two losses\n.*ipo_sum.*ipo_mean"),
        ({"name": "sigmiod"}, r"no loss is called sigmiod\n.*did you mean sigmoid"),
        ({"name": "cdpo", "smoothing": 0.5}, "write a number from 0 to under 0.5"),
        ({"name": "slic", "delta": -1}, "write a number from 0 to 10000"),
        ({"name": "bco", "delta": "walking"}, "write running, or a number"),
        ({"name": "simper", "beta": 0.1}, "simper does not read beta"),
        ({"alpha": 0.5}, "divergence is not alpha"),
        ({"name": "f_dpo", "alpha": 0.5}, "divergence is not alpha"),
        ({"name": "f_dpo", "divergence": "reverse_kl"}, "write forward_kl or js or alpha"),
        ({"nll_per": "sum"}, r"loss.nll_per: has no effect: loss.nll is 0"),
        ({"nll": 1.0, "tokens": {"kind": "ld"}}, "keep one of the two"),
        ({"name": "kto", "nll": 1.0}, "loss.nll: unknown key"),
        ({"tokens": {"kind": "lda"}}, "write ld or sampo or decay"),
        ({"name": "mixture", "parts": [{"name": "sigmoid"}]}, "loss.parts"),
        ({"name": "mixture", "parts": [{"name": "ipo"}, {}]}, "loss.parts.name: ipo is two"),
    ],
)
def test_refusals(loss: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(loss)


@pytest.mark.parametrize(
    ("loss", "reference", "where"),
    [
        ({"name": "simpo"}, {"path": "x"}, "reference.path"),
        ({"name": "orpo"}, {"update_every": 5}, "reference.update_every"),
        ({}, {"update_mix": 0.5}, "reference.update_mix"),
        ({}, {"update_every": 5, "path": "x"}, "reference.path and reference.update_every"),
    ],
)
def test_references_that_would_not_be_read(loss: dict, reference: dict, where: str) -> None:
    with pytest.raises(ConfigError) as found:
        read(loss, reference=reference)
    assert found.value.where == where


def test_options_are_live_only_where_they_are_set() -> None:
    given = {
        "nll": 0.2, "nll_per": "token", "wpo": True, "stop_token": False, "pair_weights": True,
        "dynamic_beta": {"alpha": 0.3},
    }  # fmt: skip
    tree = live(read(given))["loss"]
    assert tree["dynamic_beta"] == {"alpha": 0.3, "momentum": 0.9, "keep": 0.8}
    assert {k: v for k, v in tree.items() if k in given and k != "dynamic_beta"} == {
        k: v for k, v in given.items() if k != "dynamic_beta"
    }
    assert set(live(read({}))["loss"]) == {"name", "beta"}
    mixed = {"name": "mixture", "parts": [{"weight": 0.8}, {"name": "bco", "weight": 0.2}]}
    assert live(read(mixed))["loss"]["parts"] == [
        {"name": "sigmoid", "beta": 0.1, "weight": 0.8, "divergence": "reverse_kl"},
        {"name": "bco", "beta": 0.01, "delta": "running", "weight": 0.2},
    ]
