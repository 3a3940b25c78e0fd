"""Every loss once more, in mpmath, written from the papers and not from the code under test.

An oracle takes an object with the policy's and reference's summed log-probs, the lengths and the
margin of one pair, and the hyper-parameters, all as exact numbers, and gives the loss of the pair,
or the terms that it is the sum of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import mpmath
from mpmath import mpf

DIGITS = 45
MOST_DIGITS = 400  # for a slope of exp(-700) in a loss of 1


@dataclass(frozen=True)
class Answers:
    """One pair: policy and reference log-probs (nats), token counts, margin of the data."""

    pc: Any
    pr: Any
    rc: Any = 0
    rr: Any = 0
    nc: Any = 1
    nr: Any = 1
    margin: Any = 0

    def exact(self) -> "Answers":
        return Answers(*(mpf(getattr(self, field.name)) for field in fields(self)))


Oracle = Callable[..., Any]


def sig(z: Any) -> Any:
    return 1 / (1 + mpmath.exp(-z))


def nls(z: Any) -> Any:
    """-log sigmoid(z) = log(1 + exp(-z))."""
    return mpmath.log1p(mpmath.exp(-z))


def margin_of(a: Answers) -> Any:
    """log pi(yw)/ref(yw) - log pi(yl)/ref(yl)."""
    return (a.pc - a.rc) - (a.pr - a.rr)


def f_prime(divergence: str, ratio: Any, alpha: Any) -> Any:
    """f'(u) at u = exp(ratio) for the f of f-DPO, table 1; the ratio clamped as documented."""
    u = mpmath.exp(max(ratio, mpf(-30)))
    if divergence == "reverse_kl":  # f = u log u
        return ratio + 1
    if divergence == "forward_kl":  # f = -log u
        return -1 / u
    if divergence == "js":  # f = u log u - (u + 1) log((u + 1) / 2)
        whole = mpmath.exp(ratio)
        return mpmath.log(2 * whole / (1 + whole))
    return (1 - u ** (-alpha)) / alpha  # f = (u^(1-alpha) - (1-alpha) u - alpha) / alpha(alpha-1)


def sigmoid(a: Answers, beta: Any, divergence: str = "reverse_kl", alpha: Any = 0) -> Any:
    return f_dpo(a, beta, divergence, alpha)


def f_dpo(a: Answers, beta: Any, divergence: str, alpha: Any = 0) -> Any:
    scores = [f_prime(divergence, ratio, alpha) for ratio in (a.pc - a.rc, a.pr - a.rr)]
    return nls(beta * (scores[0] - scores[1]))


def cdpo(a: Answers, beta: Any, smoothing: Any) -> Any:
    h = beta * margin_of(a)
    return (1 - smoothing) * nls(h), smoothing * nls(-h)


def robust(a: Answers, beta: Any, smoothing: Any) -> Any:
    h = beta * margin_of(a)
    whole = 1 - 2 * smoothing
    return (1 - smoothing) * nls(h) / whole, -smoothing * nls(-h) / whole


def hinge(a: Answers, beta: Any) -> Any:
    return max(mpf(0), 1 - beta * margin_of(a))


def exo(a: Answers, beta: Any, smoothing: Any) -> Any:
    """KL of the softmax over two log-ratios from the smoothed label (1 - eps, eps)."""
    up, down = beta * (a.pc - a.rc), beta * (a.pr - a.rr)
    log_total = mpmath.log(mpmath.exp(up) + mpmath.exp(down))
    logits = ((up - log_total, 1 - smoothing), (down - log_total, smoothing))
    return tuple(mpmath.exp(logit) * (logit - mpmath.log(label)) for logit, label in logits)


def discopop(a: Answers, beta: Any, tau: Any) -> Any:
    rho = beta * margin_of(a)
    gate = sig(rho / tau)
    return (1 - gate) * nls(rho), gate * mpmath.exp(-rho)


def dpop(a: Answers, beta: Any, penalty: Any) -> Any:
    return nls(beta * (margin_of(a) - penalty * max(mpf(0), a.rc - a.pc)))


def rdpo(a: Answers, beta: Any, alpha: Any) -> Any:
    return nls(beta * margin_of(a) + (alpha * a.nc - alpha * a.nr))


def odpo(a: Answers, beta: Any, alpha: Any) -> Any:
    return nls(beta * margin_of(a) - alpha * a.margin)


def dpo_shift(a: Answers, beta: Any, alpha: Any) -> Any:
    return nls(beta * (a.pc - a.rc) - alpha * beta * (a.pr - a.rr))


def chi_po(a: Answers, beta: Any, bound: Any) -> Any:
    def phi(ratio: Any) -> Any:
        return mpmath.exp(min(ratio, mpf(30))) + ratio

    inside = beta * phi(a.pc - a.rc) - beta * phi(a.pr - a.rr)
    return nls(max(-2 * bound, min(2 * bound, inside)))


def focalpo(a: Answers, beta: Any, gamma: Any) -> Any:
    p = sig(beta * margin_of(a))
    return -(p**gamma) * mpmath.log(p)


def ipo_sum(a: Answers, tau: Any) -> Any:
    return (margin_of(a) - 1 / (2 * tau)) ** 2


def ipo_mean(a: Answers, tau: Any) -> Any:
    return ((a.pc - a.rc) / a.nc - (a.pr - a.rr) / a.nr - 1 / (2 * tau)) ** 2


def sppo(a: Answers, beta: Any) -> Any:
    return (a.pc - a.rc - 1 / (2 * beta)) ** 2, (a.pr - a.rr + 1 / (2 * beta)) ** 2


def cal_dpo(a: Answers, beta: Any) -> Any:
    half = 1 / (2 * beta)
    return nls(margin_of(a)), (a.pc - a.rc - half) ** 2, (a.pr - a.rr + half) ** 2


def nca(a: Answers, beta: Any) -> Any:
    up, down = beta * (a.pc - a.rc), beta * (a.pr - a.rr)
    return nls(up), nls(-up) / 2, nls(-down) / 2


def bco(a: Answers, beta: Any, delta: Any) -> Any:
    return nls(beta * (a.pc - a.rc) - delta), nls(-(beta * (a.pr - a.rr) - delta))


def apo_zero(a: Answers, beta: Any) -> Any:
    return 1 - sig(beta * (a.pc - a.rc)), sig(beta * (a.pr - a.rr))


def apo_down(a: Answers, beta: Any) -> Any:
    up = beta * (a.pc - a.rc)
    return sig(up), 1 - sig(up - beta * (a.pr - a.rr))


def sigmoid_mean(a: Answers, beta: Any) -> Any:
    return nls(beta / a.nc * (a.pc - a.rc) - beta / a.nr * (a.pr - a.rr))


def simpo(a: Answers, beta: Any, gamma: Any) -> Any:
    return nls(beta / a.nc * a.pc - beta / a.nr * a.pr - gamma)


def alphapo(a: Answers, beta: Any, gamma: Any, alpha: Any) -> Any:
    def reward(logp: Any, tokens: Any) -> Any:
        if alpha == 0:
            return logp / tokens
        return (1 - mpmath.exp(min(-alpha * logp / tokens, mpf(30)))) / alpha

    return nls(beta * reward(a.pc, a.nc) - beta * reward(a.pr, a.nr) - gamma)


def simper(a: Answers) -> Any:
    return -mpmath.exp(a.pc / a.nc), mpmath.exp(a.pr / a.nr)


def orpo(a: Answers, beta: Any) -> Any:
    def odds(logp: Any, tokens: Any) -> Any:
        p = mpmath.exp(min(logp / tokens, mpf(-1e-15)))
        return p / (1 - p)

    ratio = mpmath.log(odds(a.pc, a.nc)) - mpmath.log(odds(a.pr, a.nr))
    return -a.pc / a.nc, beta * nls(ratio)


def cpo(a: Answers, beta: Any, alpha: Any) -> Any:
    return nls(beta * a.pc - beta * a.pr), -alpha * a.pc


def slic(a: Answers, delta: Any, alpha: Any) -> Any:
    return max(mpf(0), delta - a.pc + a.pr), -alpha * a.pc


def kto(a: Answers, up: bool, z0: Any, beta: Any, desirable: Any, undesirable: Any) -> Any:
    """One answer: pc and rc. lambda_y - v, with the value v of a label 1 or 0."""
    ratio = a.pc - a.rc
    if up:
        return desirable - desirable * sig(beta * (ratio - z0))
    return undesirable - undesirable * sig(beta * (z0 - ratio))


ORACLES: dict[str, Oracle] = {
    oracle.__name__: oracle
    for oracle in (
        *(sigmoid, f_dpo, cdpo, robust, hinge, exo, discopop, dpop, rdpo, odpo, dpo_shift, chi_po),
        focalpo,
        *(ipo_sum, ipo_mean, sppo, cal_dpo, nca, bco, apo_zero, apo_down),
        *(sigmoid_mean, simpo, alphapo, simper, orpo, cpo, slic),
    )
}
# With one pair a step they are DPO with smoothed labels.
ORACLES |= {"aot": cdpo, "aot_unpaired": cdpo}


def truth(oracle: Oracle, answers: Answers, parameters: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The loss, and its slopes in the policy's two log-probs by central differences."""
    for digits in (DIGITS, MOST_DIGITS):
        with mpmath.workdps(2 * digits):
            a, b, c = _three(oracle, answers.exact(), _exact(parameters), digits)
            largest = sum(map(abs, a)) * mpf(10) ** (20 - digits)
            if min(abs(sum(b)), abs(sum(c)), *map(abs, a)) > largest:
                break
    return sum(a), sum(b), sum(c)


def spread(oracle: Oracle, answers: Answers, parameters: Mapping[str, Any]) -> list[Any]:
    """How well each of the three can be known: no arithmetic in float64 can do better.

    By how much it moves when a number that goes in is rounded once, or one of its terms.
    """
    with mpmath.workdps(2 * MOST_DIGITS):
        exact, given = answers.exact(), _exact(parameters)
        found = _three(oracle, exact, given, MOST_DIGITS)
        once = 1 + mpf(2) ** -52
        near = [
            _three(
                oracle, replace(exact, **{name: getattr(exact, name) * once}), given, MOST_DIGITS
            )
            for name in ("pc", "pr", "rc", "rr")
        ]
        near += [
            _three(oracle, exact, {**given, name: value * once}, MOST_DIGITS)
            for name, value in given.items()
            if not isinstance(value, str | bool)
        ]
        moves = [max(abs(sum(other[k]) - sum(found[k])) for other in near) for k in range(3)]
        terms = [(once - 1) * sum(map(abs, found[k])) for k in range(3)]
        return [move + term for move, term in zip(moves, terms, strict=True)]


def _exact(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str | bool) else mpf(v) for k, v in parameters.items()}


Terms = tuple[Any, ...]


def _three(
    oracle: Oracle, a: Answers, given: Mapping[str, Any], digits: int
) -> tuple[Terms, Terms, Terms]:
    """The terms of the loss, and of its slopes: differences at the middle of the precision."""
    h = mpf(10) ** -digits

    def at(**moved: Any) -> Terms:
        terms = oracle(replace(a, **moved), **given)
        return terms if isinstance(terms, tuple) else (terms,)

    def slopes(above: Terms, below: Terms) -> Terms:
        return tuple((x - y) / (2 * h) for x, y in zip(above, below, strict=True))

    chosen = slopes(at(pc=a.pc + h), at(pc=a.pc - h))
    return at(), chosen, slopes(at(pr=a.pr + h), at(pr=a.pr - h))
