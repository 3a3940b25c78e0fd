"""Every loss against its oracle: value and both slopes, random and extreme, in two precisions."""

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.support.oracles import ORACLES, Answers, kto, spread, truth

from likelier.api import kto_loss, preference_loss
from likelier.losses.declare import LOSSES

PAIRED = sorted(name for name, one in LOSSES.items() if one.paired)
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
GRID = 2.0**-8  # nats; log-probs on it are numbers of float32, and of any means and differences
LEAST = 1e-300  # float64 ends there, and so does any relative accuracy
LEAST_32 = 1e-37
# log-prob per token and its distance to the reference, in steps of the grid
LEVELS = st.one_of(st.integers(-1500, 0), st.integers(-40, 0))
SHIFTS = st.one_of(st.integers(-5, 5), st.integers(-2000, 2000))


@st.composite
def pairs(draw: Any, longest: int = 4096) -> Answers:
    """Answers of 1 to 4096 tokens, log-probs from 0 to -1e5, margins to 1e4 and beyond.

    Log-probs are whole steps of the grid per token, so that sums, differences and means are
    exact and the loss alone is judged.
    """
    lengths = st.one_of(st.integers(1, longest), st.sampled_from([1, 2, 16, longest]))
    sides = []
    for _ in range(2):
        tokens = draw(lengths)
        deepest = int(min(1e5 / tokens / GRID, 2.0**23 / tokens))  # on the grid in float32, too
        policy = max(-deepest, draw(LEVELS) * draw(st.sampled_from([1, 64, 4096])))
        reference = min(
            0, max(-deepest, policy + draw(SHIFTS) * draw(st.sampled_from([0, 1, 512])))
        )
        sides.append((policy * tokens * GRID, reference * tokens * GRID, tokens))
    (pc, rc, nc), (pr, rr, nr) = sides
    return Answers(pc, pr, rc, rr, nc, nr, draw(st.integers(-512, 512)) / 64)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    """A number of float32, so that both precisions are asked for the same loss."""
    return st.floats(low, high, width=32)


@st.composite
def settings_of(draw: Any, name: str) -> dict[str, Any]:
    """Hyper-parameters in their useful range, or the defaults."""
    ranges = {
        "beta": number(2.0**-10, 4.0),
        "tau": number(2.0**-6, 1.0),
        "smoothing": number(2.0**-10, 0.4375),
        "penalty": number(0.0, 100.0),
        "gamma": number(0.0, 8.0),
        "alpha": number(2.0**-6, 0.96875),
        "delta": number(-8.0, 8.0),
        "bound": number(0.5, 64.0),
    }
    chosen = {
        h.name: draw(st.sampled_from(h.choices) if h.choices else ranges[h.name])
        for h in LOSSES[name].hypers
    }
    if name == "slic":
        chosen["delta"] = abs(chosen["delta"])
    if chosen.get("divergence", "alpha") != "alpha":
        del chosen["alpha"]
    return chosen


def found(
    name: str, a: Answers, parameters: dict[str, Any], dtype: torch.dtype
) -> tuple[float, float, float]:
    pc, pr, rc, rr, nc, nr, margin = (
        torch.tensor([float(v)], dtype=dtype)
        for v in (a.pc, a.pr, a.rc, a.rr, a.nc, a.nr, a.margin)
    )
    pc.requires_grad_()
    pr.requires_grad_()
    loss = preference_loss(
        name, pc, pr, rc, rr, chosen_tokens=nc, rejected_tokens=nr, margin=margin, **parameters
    )
    assert loss.dtype is dtype and loss.shape == (1,)
    slopes = torch.autograd.grad(loss.sum(), (pc, pr), allow_unused=True)
    return loss.item(), *(0.0 if s is None else s.item() for s in slopes)  # type: ignore[return-value]


def kinked(name: str, a: Answers, p: dict[str, Any]) -> bool:
    """Where the loss has a corner there are two slopes, and a comparison has no meaning."""
    up, down = a.pc - a.rc, a.pr - a.rr
    corners = {
        "hinge": [p.get("beta", 0) * (up - down) - 1],
        "dpop": [up],
        "slic": [p.get("delta", 0) - a.pc + a.pr],
        "sigmoid": [up + 30, down + 30],
        "f_dpo": [up + 30, down + 30],
        "alphapo": [p.get("alpha", 0) * side + 30 for side in (a.pc / a.nc, a.pr / a.nr)],
        "orpo": [a.pc, a.pr],
    }
    if name == "chi_po":
        phi = [d + math.exp(min(d, 30.0)) for d in (up, down)]
        x = p["beta"] * (phi[0] - phi[1])
        corners["chi_po"] = [up - 30, down - 30, abs(x) - 2 * p["bound"]]
    return any(abs(c) < 1e-9 for c in corners.get(name, []))


def assert_equal_to_the_oracle(name: str, a: Answers, p: dict[str, Any]) -> None:
    assume(not kinked(name, a, p))
    wanted = truth(ORACLES[name], a, p)
    ours = found(name, a, p, torch.float64)
    single = found(name, a, p, torch.float32)
    assert all(map(math.isfinite, ours + single))
    allowed = [1e-12 * abs(value) + LEAST for value in wanted]
    errors = [abs(mpmath.mpf(x) - value) for x, value in zip(ours, wanted, strict=True)]
    if any(error > most for error, most in zip(errors, allowed, strict=True)):
        moved = spread(ORACLES[name], a, p)
        allowed = [most + 16 * by for most, by in zip(allowed, moved, strict=True)]
    for what, error, most in zip(("value", "chosen", "rejected"), errors, allowed, strict=True):
        assert error <= most, (
            f"{what}: off by {mpmath.nstr(error, 5)}, {mpmath.nstr(most, 5)} is allowed"
        )
    for x, value, most in zip(single, wanted, allowed, strict=True):
        assert abs(mpmath.mpf(x) - value) <= 1e-6 * abs(value) + most + LEAST_32


@pytest.mark.parametrize("name", PAIRED)
@settings(max_examples=25)
@given(data=st.data())
def test_any_pair(name: str, data: st.DataObject) -> None:
    assert_equal_to_the_oracle(name, data.draw(pairs()), data.draw(settings_of(name)))


EXTREMES = [
    Answers(-1e5, 0, 0, -1e5, 4096, 1),
    Answers(0, -1e5, -1e5, 0, 1, 4096),
    Answers(-1e5, -1e5, -9e4, -9e4, 1, 1),
    Answers(-1e4, 0, 0, 0, 4096, 4096),
    Answers(0, -1e4, 0, 0, 4096, 4096),
    Answers(0, 0, 0, 0, 1, 1),
    Answers(-1e-7, -1e-9, -1e-8, -1e-6, 1, 4096),
    Answers(-40960, -4096, -20480, -8192, 4096, 4096),
    Answers(-87, -200.5, -110.25, -90.125, 29, 64, 3),
]


@pytest.mark.parametrize("a", EXTREMES, ids=range(len(EXTREMES)))
@pytest.mark.parametrize("name", PAIRED)
def test_extremes_are_finite_and_right(name: str, a: Answers) -> None:
    """With the defaults, and with beta large enough to overflow every exponential."""
    for beta in (None, 4.0):
        p: dict[str, Any] = dict(LOSSES[name].defaults)
        if p.get("delta") == "running":
            p["delta"] = 0.0
        if p.get("divergence", "alpha") != "alpha":
            del p["alpha"]
        if beta and "beta" in p:
            p["beta"] = beta
        ours = found(name, a, p, torch.float64) + found(name, a, p, torch.float32)
        assert all(map(math.isfinite, ours)), ours
        if not kinked(name, a, p):
            error = abs(mpmath.mpf(ours[0]) - (wanted := truth(ORACLES[name], a, p)[0]))
            if error > (allowed := 1e-12 * abs(wanted) + LEAST):
                assert error <= allowed + 16 * spread(ORACLES[name], a, p)[0]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_have_no_nan(divergence: str) -> None:
    """A rejected log-ratio of -88 made the gradient of forward KL NaN elsewhere."""
    more = {"alpha": 0.5} if divergence == "alpha" else {}
    for a in (*EXTREMES, Answers(-10, -400, -10, -10), Answers(-400, -10, -10, -10)):
        for dtype in (torch.float64, torch.float32):
            got = found("sigmoid", a, {"beta": 0.125, "divergence": divergence, **more}, dtype)
            assert all(map(math.isfinite, got))


@settings(max_examples=60)
@given(
    a=pairs(),
    up=st.booleans(),
    z0=st.integers(0, 1000),
    beta=number(2.0**-10, 4.0),
    weights=st.tuples(number(0.125, 4), number(0.125, 4)),
)
@example(a=EXTREMES[0], up=True, z0=0, beta=0.125, weights=(1.0, 1.0))
@example(a=EXTREMES[1], up=False, z0=0, beta=0.125, weights=(1.0, 1.0))
def test_kto(a: Answers, up: bool, z0: int, beta: float, weights: tuple[float, float]) -> None:
    p = {"up": up, "z0": z0 / 8, "beta": beta, "desirable": weights[0], "undesirable": weights[1]}
    wanted = truth(kto, a, p)
    allowed = [1e-12 * abs(v) + 16 * by + LEAST
               for v, by in zip(wanted, spread(kto, a, p), strict=True)]  # fmt: skip
    for dtype, relative in ((torch.float64, 0.0), (torch.float32, 1e-6)):
        policy = torch.tensor([float(a.pc)], dtype=dtype, requires_grad=True)
        reference = torch.tensor([float(a.rc)], dtype=dtype)
        loss = kto_loss(policy, reference, torch.tensor([up]), p["z0"], beta,
                        desirable=weights[0], undesirable=weights[1])  # fmt: skip
        (slope,) = torch.autograd.grad(loss.sum(), policy)
        for x, value, most in ((loss.item(), wanted[0], allowed[0]),
                               (slope.item(), wanted[1], allowed[1])):  # fmt: skip
            least = LEAST_32 if relative else 0
            assert abs(mpmath.mpf(x) - value) <= relative * abs(value) + most + least


def test_every_loss_of_pairs_has_an_oracle() -> None:
    assert set(PAIRED) == set(ORACLES)
