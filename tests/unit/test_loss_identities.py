"""What the losses must be at step 0, in their limits, and against each other."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import likelier
from likelier.api import kto_loss, preference_loss
from likelier.base.errors import ConfigError
from likelier.losses.declare import LOSSES, find_loss
from likelier.losses.values import Side

LN2 = math.log(2)
# Policy chosen, policy rejected, reference chosen, reference rejected.
FOUR = (
    torch.tensor([-10.0, -22.5, -85.25, -3.0, -41.0], dtype=torch.float64),
    torch.tensor([-12.0, -19.0, -90.5, -3.5, -40.0], dtype=torch.float64),
    torch.tensor([-11.0, -20.0, -85.0, -3.0, -47.5], dtype=torch.float64),
    torch.tensor([-11.5, -21.0, -86.5, -4.5, -39.0], dtype=torch.float64),
)
NC = torch.tensor([4.0, 9.0, 30.0, 1.0, 12.0], dtype=torch.float64)
NR = torch.tensor([6.0, 7.0, 31.0, 2.0, 12.0], dtype=torch.float64)
MARGIN = torch.tensor([0.5, 0.0, 1.5, -0.25, 3.0], dtype=torch.float64)
PAIRED = [name for name, one in LOSSES.items() if one.paired]
WITH_REFERENCE = [name for name in PAIRED if LOSSES[name].reads("reference")]


def loss(name: str, four: tuple[Tensor, ...] = FOUR, **parameters: Any) -> Tensor:
    columns = {"chosen_tokens": NC, "rejected_tokens": NR, "margin": MARGIN}
    return preference_loss(name, *four, **(columns | parameters))


def same(ours: Tensor, theirs: Tensor, rel: float = 1e-12) -> None:
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=rel, abs=1e-14)


def x(beta: float = 0.1) -> Tensor:
    pc, pr, rc, rr = FOUR
    return beta * ((pc - rc) - (pr - rr))


STEP_0 = [
    ("sigmoid", {}, LN2), ("cdpo", {"smoothing": 0.2}, LN2), ("robust", {"smoothing": 0.2}, LN2),
    ("sigmoid_mean", {}, LN2), ("hinge", {}, 1.0), ("ipo_sum", {"tau": 0.1}, 25.0),
    ("ipo_mean", {"tau": 0.5}, 1.0), ("exo", {"smoothing": 1e-3}, 2.761231),
    ("nca", {}, 2 * LN2), ("bco", {}, 2 * LN2), ("sppo", {"beta": 0.1}, 50.0),
    ("apo_zero", {}, 1.0), ("apo_down", {}, 1.0), ("discopop", {}, (LN2 + 1) / 2),
    ("aot", {}, LN2), ("aot_unpaired", {}, LN2), ("dpop", {}, LN2), ("dpo_shift", {}, LN2),
    ("chi_po", {}, LN2), ("cal_dpo", {"beta": 0.1}, LN2 + 50.0),
    ("f_dpo", {"divergence": "forward_kl"}, LN2), ("focalpo", {"gamma": 1.0}, LN2 / 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "value"), STEP_0, ids=[s[0] for s in STEP_0])
def test_where_the_policy_is_the_reference(name: str, parameters: dict, value: float) -> None:
    start = (FOUR[0], FOUR[1], FOUR[0], FOUR[1])
    assert loss(name, start, **parameters).tolist() == pytest.approx([value] * 5, abs=1e-6)


def test_step_0_of_the_others() -> None:
    start = (FOUR[0], FOUR[1], FOUR[0], FOUR[1])
    same(
        loss("rdpo", start, chosen_tokens=NC, rejected_tokens=NC),
        LN2 * torch.ones(5, dtype=torch.float64),
    )
    same(loss("odpo", start, margin=torch.zeros(5)), LN2 * torch.ones(5, dtype=torch.float64))
    for label in (0, 1):
        assert kto_loss(-3.0, -3.0, label, 0.0).item() == 0.5


EQUAL_TO_DPO: list[tuple[str, dict[str, Any]]] = [
    ("cdpo", {"smoothing": 0.0}), ("robust", {"smoothing": 0.0}), ("rdpo", {"alpha": 0.0}),
    ("rdpo", {"chosen_tokens": NC, "rejected_tokens": NC}), ("odpo", {"alpha": 0.0}),
    ("odpo", {"margin": torch.zeros(5)}), ("dpop", {"penalty": 0.0}), ("dpo_shift", {"alpha": 1.0}),
    ("sigmoid_mean", {"chosen_tokens": torch.ones(5), "rejected_tokens": torch.ones(5)}),
    ("focalpo", {"gamma": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), EQUAL_TO_DPO)
def test_equal_to_dpo(name: str, parameters: dict[str, Any]) -> None:
    same(loss(name, beta=0.1, **parameters), loss("sigmoid", beta=0.1))


def test_dpop_is_dpo_where_the_chosen_answer_rose() -> None:
    rose = FOUR[0] >= FOUR[2]
    assert 0 < rose.sum() < 5
    same(loss("dpop", beta=0.1)[rose], loss("sigmoid", beta=0.1)[rose])
    assert bool((loss("dpop", beta=0.1) > loss("sigmoid", beta=0.1))[~rose].all())


def test_transport_of_one_pair_is_dpo_and_of_many_is_not() -> None:
    for name in ("aot", "aot_unpaired"):
        for i in range(5):
            one = tuple(column[i : i + 1] for column in FOUR)
            alone = preference_loss(name, *one, beta=0.1)
            same(alone, preference_loss("sigmoid", *one, beta=0.1))
        together = loss(name, beta=0.1)
        assert not torch.allclose(together, loss("sigmoid", beta=0.1))
        pc, pr, rc, rr = FOUR
        up, down = (pc - pr, rc - rr) if name == "aot" else (pc - rc, pr - rr)
        sorted_x = 0.1 * (up.sort().values - down.sort().values)
        plain = -torch.nn.functional.logsigmoid(sorted_x)
        same(together.sort().values, plain.sort().values)


def test_robust_takes_the_flips_out_again() -> None:
    swapped = (FOUR[1], FOUR[0], FOUR[3], FOUR[2])
    for e in (0.05, 0.3, 0.45):
        told = (1 - e) * loss("robust", smoothing=e) + e * loss("robust", swapped, smoothing=e)
        same(told, loss("sigmoid"))
        dpo = (1 - e) * loss("sigmoid") + e * loss("sigmoid", swapped)
        same(loss("cdpo", smoothing=e), dpo)


def test_swapping_a_pair_turns_the_margin_round() -> None:
    swapped = (FOUR[1], FOUR[0], FOUR[3], FOUR[2])
    same(loss("sigmoid") - loss("sigmoid", swapped), -x())


def test_divergences_in_their_limits() -> None:
    near = tuple(column / 50 for column in FOUR)
    same(loss("sigmoid", near, divergence="alpha", alpha=1e-9), loss("sigmoid", near), 1e-7)
    forward = loss("sigmoid", near, divergence="forward_kl")
    same(loss("sigmoid", near, divergence="alpha", alpha=1 - 1e-9), forward, 1e-7)
    js = loss("sigmoid", near, divergence="js")
    assert not torch.allclose(js, forward) and not torch.allclose(js, loss("sigmoid", near))


def test_f_dpo_is_dpo_with_the_divergence_and_in_its_limits() -> None:
    for divergence, more in (("forward_kl", {}), ("js", {}), ("alpha", {"alpha": 0.3})):
        same(loss("f_dpo", divergence=divergence, **more),
             loss("sigmoid", divergence=divergence, **more), 0.0)  # fmt: skip
    same(loss("f_dpo"), loss("sigmoid", divergence="js"), 0.0)
    near = tuple(column / 50 for column in FOUR)
    same(loss("f_dpo", near, divergence="alpha", alpha=1e-9), loss("sigmoid", near), 1e-7)
    forward = loss("f_dpo", near, divergence="forward_kl")
    same(loss("f_dpo", near, divergence="alpha", alpha=1 - 1e-9), forward, 1e-7)
    # log sigmoid(d) is d far below 0: there js holds as reverse KL does
    fallen = (FOUR[0] - 60, FOUR[1] - 60, FOUR[2], FOUR[3])
    same(loss("f_dpo", fallen, divergence="js"), loss("sigmoid", fallen))


def test_reference_free_losses_in_their_limits() -> None:
    none = (FOUR[0], FOUR[1], torch.zeros(5), torch.zeros(5))
    same(loss("simpo", beta=2.0, gamma=0.0), loss("sigmoid_mean", none, beta=2.0))
    same(loss("alphapo", beta=2.0, gamma=1.0, alpha=1e-9), loss("simpo", beta=2.0, gamma=1.0), 1e-6)
    same(loss("alphapo", beta=2.0, gamma=1.0, alpha=0.0), loss("simpo", beta=2.0, gamma=1.0))
    same(loss("cpo", alpha=0.0), loss("sigmoid", none))


def slope(name: str, ratio_c: float, ratio_r: float = 0.0, **parameters: Any) -> float:
    chosen = torch.tensor(-50.0 + ratio_c, dtype=torch.float64, requires_grad=True)
    value = preference_loss(
        name,
        chosen,
        -60.0 + ratio_r,
        -50.0,
        -60.0,
        chosen_tokens=1,
        rejected_tokens=1,
        **parameters,
    )
    return torch.autograd.grad(value, chosen)[0].item()


def test_where_gradients_are_zero() -> None:
    for e in (1e-3, 0.2):
        target = math.log((1 - e) / e)
        assert slope("exo", target / 0.5, beta=0.5, smoothing=e) == pytest.approx(0, abs=1e-12)
        assert slope("cdpo", target / 0.5, beta=0.5, smoothing=e) == pytest.approx(0, abs=1e-12)
    assert slope("nca", LN2 / 0.5, beta=0.5) == pytest.approx(0, abs=1e-12)
    for name in ("ipo_sum", "ipo_mean"):
        assert slope(name, 5.0, tau=0.1) == pytest.approx(0, abs=1e-12)
    assert slope("hinge", 20.1, beta=0.05) == 0.0 > slope("hinge", 19.9, beta=0.05)


def test_discopop_starts_by_pushing_the_wrong_way() -> None:
    """Its paper's formula does: its trap says so."""
    slopes = [slope("discopop", r / 0.05) / 0.05 for r in (-0.12, -0.118, 0.0, 0.071, 0.073)]
    assert [s > 0 for s in slopes] == [False, True, True, True, False]
    assert slopes[2] == pytest.approx(0.784, abs=1e-3)


def test_gradients_in_closed_form() -> None:
    """g_w of the sigmoid is -beta sigmoid(-x); robust's never ends."""
    s = 1 / (1 + math.exp(0.4))
    assert slope("sigmoid", 4.0, beta=0.1) == pytest.approx(-0.1 * s, rel=1e-14)
    assert slope("robust", 1e4, beta=0.1, smoothing=0.1) == pytest.approx(-0.1 * 0.1 / 0.8)
    assert slope("sigmoid", 1e4, beta=0.1) == 0.0


def test_focalpo_weighs_pairs_by_how_well_they_are_ranked() -> None:
    """Its slope is DPO's times p^gamma (1 + gamma ln p): 0 where p = exp(-1 / gamma)."""
    weights = []
    for ratio in (-40.0, -5.0, 0.0, 5.0, 40.0):
        log_p = -math.log1p(math.exp(-0.1 * ratio))
        weight = math.exp(0.3 * log_p) * (1 + 0.3 * log_p)
        weights.append(slope("focalpo", ratio, gamma=0.3) / slope("sigmoid", ratio))
        assert weights[-1] == pytest.approx(weight, rel=1e-12)
    assert weights == sorted(weights) and weights[-1] < 1
    turn = -math.log(math.e - 1) / 0.1  # there p = 1 / e
    assert slope("focalpo", turn, gamma=1.0) == pytest.approx(0, abs=1e-15)
    assert slope("focalpo", turn - 1, gamma=1.0) > 0 > slope("focalpo", turn + 1, gamma=1.0)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_constant_of_both_models_changes_nothing(name: str) -> None:
    moved = (FOUR[0] - 3, FOUR[1] + 1.5, FOUR[2] - 3, FOUR[3] + 1.5)
    if name == "aot":  # it sorts the policy's and the reference's margins apart
        moved = (FOUR[0] - 3, FOUR[1] - 3, FOUR[2] - 3, FOUR[3] - 3)
    same(loss(name, moved), loss(name), 1e-9)


def test_weights_multiply() -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    same(loss("nca", weight=weight), weight * loss("nca"))


# Names, ranges and refusals


@pytest.mark.parametrize(
    ("alias", "name"),
    [("sigmoid_norm", "sigmoid_mean"), ("exo_pair", "exo"), ("nca_pair", "nca"),
     ("bco_pair", "bco"), ("sppo_hard", "sppo")],
)  # fmt: skip
def test_names_of_other_trainers(alias: str, name: str) -> None:
    assert find_loss(alias).name == name
    same(loss(alias), loss(name))


def test_a_bare_ipo_is_two_losses() -> None:
    with pytest.raises(ValueError, match=r"ipo is two losses.*ipo_sum.*per answer.*ipo_mean"):
        loss("ipo")
    with pytest.raises(ConfigError, match="ipo is two losses"):
        find_loss("ipo")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("sigmoyd", {}, "no loss is called sigmoyd.*did you mean sigmoid"),
        ("sigmoid", {"smoothing": 0.1}, "sigmoid does not read smoothing"),
        ("sigmoid", {"bete": 0.1}, "did you mean beta"),
        ("sigmoid", {"beta": 0.0}, "0.0 is not possible; write a number over 0 and up to 100"),
        ("sigmoid", {"beta": math.nan}, "nan is not possible"),
        ("sigmoid", {"beta": True}, "True is not possible"),
        ("sigmoid", {"alpha": 0.3}, "divergence is not alpha"),
        ("sigmoid", {"divergence": "kl"}, "reverse_kl or forward_kl or js or alpha"),
        ("robust", {"smoothing": 0.5}, "from 0 to under 0.5"),
        ("exo", {"smoothing": 0.0}, "over 0 to under 0.5"),
        ("simper", {"beta": 1.0}, "it reads no hyper-parameter"),
        ("kto", {}, "single answers"),
        ("simpo", {"chosen_tokens": None}, "needs chosen_tokens and rejected_tokens"),
        ("simpo", {"chosen_tokens": torch.zeros(5)}, "at least one token"),
        ("odpo", {"margin": None}, "needs margin"),
        ("sigmoid", {"chosen_tokens": torch.ones(4)}, "differ in shape"),
    ],
)
def test_refusals(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(name, **parameters)


def test_a_missing_reference_is_refused_and_one_too_many_is_not() -> None:
    with pytest.raises(ValueError, match="sigmoid needs reference_chosen"):
        preference_loss("sigmoid", -1.0, -2.0)
    bare = preference_loss("cpo", -1.0, -2.0).item()
    assert preference_loss("cpo", -1.0, -2.0, -5.0, -6.0, chosen_tokens=3).item() == bare


@pytest.mark.parametrize("wrong", [{"label": 2}, {"z0": math.nan}, {"beta": -1.0}])
def test_kto_refusals(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        kto_loss(**({"policy": -1.0, "reference": -2.0, "label": 1, "z0": 0.0} | wrong))


def test_functions_declare_what_they_read() -> None:
    """Every keyword is a hyper-parameter, and the scores read none that the loss has not."""
    for name, one in LOSSES.items():
        names = set(one.function.__annotations__) - {"values", "return"}
        assert names == {h.name for h in one.hypers} and one.function.__name__ == name
        if isinstance(one.scores, str):
            assert hasattr(Side, one.scores) or one.scores in Side.__dataclass_fields__
        read = set(getattr(one.scores, "__annotations__", ())) - {"values", "return"}
        assert read <= names and (one.scores is None) == (one.score is None), name
        assert one.title and one.reward in (None, *names)


def test_public_names() -> None:
    assert likelier.preference_loss is preference_loss and likelier.kto_loss is kto_loss
