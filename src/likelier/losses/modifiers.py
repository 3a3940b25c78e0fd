"""What combines with losses: a likelihood term, weights, token weights, and running figures.

Running figures live in a dictionary that belongs to the run and goes into its checkpoints.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from likelier.losses.values import StepValues

# Keys of the config's loss section that any loss of pairs takes.
OPTIONS = ("nll", "nll_per", "pair_weights", "tokens", "stop_token", "wpo", "dynamic_beta")
MIN_BETA = 1e-3  # of dynamic beta, as in its paper

PerPair = Callable[[StepValues], Tensor]
Observe = Callable[[StepValues], None]
Weights = tuple[float, ...]


def plus_nll(loss_P: Tensor, values: StepValues, *, weight: float, per: str) -> Tensor:
    """Add ``weight`` times the negative log-likelihood of the chosen completion.

    Per ``token``: the mean over pairs is the mean over all chosen tokens of the step, however it
    is cut (Llama 3, arXiv 2407.21783, section 4.1.4). Per ``answer``: the mean of each answer's
    mean (Iterative RPO, arXiv 2404.19733). ``sum``: RPO (arXiv 2405.16436).
    """
    chosen = values.chosen
    if per == "token":
        if values.mean_tokens is None:
            raise ValueError("the mean over tokens needs the mean length of the step's answers")
        return loss_P - weight * chosen.policy_P / values.mean_tokens
    return loss_P - weight * (chosen.mean_P if per == "answer" else chosen.policy_P)


def times_pair_weight(loss_P: Tensor, values: StepValues) -> Tensor:
    """Multiply by the pair's own weight; the mean is still over the number of pairs."""
    if values.weight_P is None:
        raise ValueError("this loss needs a weight for every pair")
    return loss_P * values.weight_P


def times_wpo_weight(loss_P: Tensor, values: StepValues) -> Tensor:
    """Multiply by WPO's weight: pairs that the policy would write count more.

    ``wpo_log_weight_R`` is the mean over tokens of ``log p(token) - log sum(p^2)``; the product of
    both completions' exponentials is at most 1, as in the authors' code, and carries no gradient
    (Zhou et al. 2024, arXiv 2406.11827).
    """
    log_R = values.wpo_log_weight_R
    if log_R is None:
        raise ValueError("WPO needs token statistics of every answer")
    log_P = log_R[values.chosen_P] + log_R[values.rejected_P]
    return loss_P * torch.exp(log_P.clamp(max=0)).detach()


def shifted(
    function: Callable[..., Tensor], fixed: Mapping[str, Any], state: dict[str, float], key: str
) -> tuple[PerPair, Observe]:
    """A loss whose ``delta`` is the running mean of the rewards of all completions seen so far.

    The present step counts too, and every completion counts alike.
    """

    def observe(values: StepValues) -> None:
        ratio = values.chosen.ratio_P
        if values.label_P is None:
            ratio = torch.cat([ratio, values.rejected.ratio_P])
        count = state.get(f"{key}/count", 0.0) + len(ratio)
        mean = state.get(f"{key}/mean", 0.0)
        reward = float(fixed["beta"] * ratio.detach().double().mean())
        state[f"{key}/mean"] = mean + (reward - mean) * len(ratio) / count
        state[f"{key}/count"] = count

    def per_pair(values: StepValues) -> Tensor:
        return function(values, **{**fixed, "delta": state.get(f"{key}/mean", 0.0)})

    return per_pair, observe


def dynamic_beta(
    function: Callable[..., Tensor],
    fixed: Mapping[str, Any],
    state: dict[str, float],
    options: Mapping[str, float],
) -> tuple[PerPair, Observe]:
    """Wu et al. 2024, beta-DPO (arXiv 2407.08639): beta follows the margins of the step.

    ``beta = (1 + alpha * (M - M0)) * beta0``, where M is the mean reward margin of the step and M0
    its moving average, this step included. Of the pairs, the share ``keep`` whose margins are most
    likely under a normal distribution around M0 is used: the nearest ones, where the paper draws
    them at random, so that a run can be repeated.
    """
    beta = float(fixed["beta"])

    def observe(values: StepValues) -> None:
        mean = float(beta * values.log_ratio_margin_P.detach().double().mean())
        before = state.get("margin", mean)
        state["margin"] = before + (1 - options["momentum"]) * (mean - before)

    def per_pair(values: StepValues) -> Tensor:
        margin_P = beta * values.log_ratio_margin_P.detach()
        centre = state.get("margin", 0.0)
        factor = 1 + options["alpha"] * (margin_P.mean() - centre)
        now = (factor * beta).clamp(min=MIN_BETA)
        kept = max(1, round(options["keep"] * len(margin_P)))
        nearest_P = (margin_P - centre).abs().argsort(stable=True)[:kept]
        share_P = torch.zeros_like(margin_P)
        share_P[nearest_P] = len(margin_P) / kept
        return function(values, **{**fixed, "beta": now}) * share_P

    return per_pair, observe


def token_weights(
    rule: Mapping[str, Any], chosen: int, rejected: int, key: bytes
) -> tuple[Weights, Weights]:
    """The weights of the scored tokens of the chosen and of the rejected completion of a pair.

    They apply to policy and reference alike. Applied to the policy alone, as some trainers do,
    they leave the reference's whole log-prob in the margin.

    Args:
        rule: ``{kind: ld, alpha}`` (LD-DPO, Liu et al. 2024, arXiv 2409.06411): tokens beyond the
            shorter answer's length count alpha. ``{kind: sampo}`` (Lu et al. 2024, arXiv
            2406.10957): as many tokens of the longer answer as the shorter one has, drawn once a
            pair. ``{kind: decay, gamma}`` (D2PO, Shao et al. 2025, arXiv 2502.14340): gamma to the
            number of tokens before.
        chosen, rejected: the scored tokens of each completion.
        key: the content of the pair and the seed, which decide the draw.
    """
    shorter = min(chosen, rejected)

    def weights(length: int) -> Weights:
        if rule["kind"] == "ld":
            return (1.0,) * shorter + (rule["alpha"],) * (length - shorter)
        if rule["kind"] == "decay":
            return tuple(rule["gamma"] ** t for t in range(length))
        return _drawn(length, shorter, key)

    return weights(chosen), weights(rejected)


def _drawn(length: int, count: int, key: bytes) -> Weights:
    if length == count:
        return (1.0,) * length
    generator = np.random.default_rng(int.from_bytes(blake2b(key, digest_size=8).digest()))
    kept = set(generator.permutation(length)[:count].tolist())
    return tuple(1.0 if t in kept else 0.0 for t in range(length))
