"""Conformance checks for a loss that a caller hands over: what a step of the engine relies on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from likelier.losses.values import StepValues

LossFunction = Callable[[StepValues], Any]
_EXTREMES = (0.0, -1e-9, -1.0, -88.0, -745.0, -1e4, -1e5)  # nats of a whole answer


def check_loss(loss: LossFunction) -> tuple[str, ...]:
    """Check a loss that could be handed to `likelier.train`, and say which checks failed.

    Args:
        loss: ``loss(values) -> (P,)``, one value a pair, in nats; see `StepValues`.

    Returns:
        The names of the checks, all passed: it gives one value a pair, keeps the graph to the
        policy, is the same function each time and leaves its input alone, follows the order of the
        pairs, has the gradient of its values, and is finite for log-probs from 0 to -1e5, lengths
        from 1 to 4096 and margins of either sign.

    Raises:
        AssertionError: naming every check that failed and what was found.
    """
    failed = []
    for name, check in _CHECKS.items():
        try:
            problem = check(loss)
        except Exception as error:  # a loss that raises has failed, whatever it raises
            problem = f"it raised {type(error).__name__}: {error}"
        if problem:
            failed.append(f"{name}: {problem}")
    if failed:
        raise AssertionError("\n".join([f"{len(failed)} of {len(_CHECKS)} checks failed", *failed]))
    return tuple(_CHECKS)


def example_values() -> StepValues:
    """Five answers of two prompts in four pairs: answers are shared, lengths differ."""
    return StepValues(
        policy_R=torch.tensor([-10.0, -12.5, -9.25, -85.0, -91.5], dtype=torch.float64),
        reference_R=torch.tensor([-11.0, -11.5, -9.0, -84.0, -90.25], dtype=torch.float64),
        length_R=torch.tensor([4, 6, 3, 29, 31]),
        chosen_P=torch.tensor([0, 2, 3, 0]),
        rejected_P=torch.tensor([1, 1, 4, 2]),
        margin_P=torch.tensor([0.5, 1.0, 0.25, 2.0], dtype=torch.float64),
        weight_P=torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64),
        wpo_log_weight_R=torch.tensor([-0.5, -1.0, -0.25, -0.75, -1.25], dtype=torch.float64),
        mean_tokens=11.5,
    )


def _gradient(loss: LossFunction, values: StepValues) -> tuple[Tensor, Tensor]:
    policy_R = values.policy_R.clone().requires_grad_()
    loss_P = loss(replace(values, policy_R=policy_R))
    (grad_R,) = torch.autograd.grad(loss_P.sum(), policy_R)
    return loss_P.detach(), grad_R


def _one_value_a_pair(loss: LossFunction) -> str | None:
    loss_P = loss(example_values())
    if not isinstance(loss_P, Tensor):
        return f"it gives a {type(loss_P).__name__}, not a tensor"
    if loss_P.shape != (4,):
        return f"it gives shape {tuple(loss_P.shape)} for 4 pairs; leave the mean to the engine"
    if loss_P.dtype is not torch.float64:
        return f"it gives {loss_P.dtype} for float64: figures were rounded on the way"
    return None


def _keeps_the_graph(loss: LossFunction) -> str | None:
    policy_R = example_values().policy_R.requires_grad_()
    loss_P = loss(replace(example_values(), policy_R=policy_R))
    if not loss_P.requires_grad:
        return "no gradient reaches the policy: something was detached, or made by torch.tensor"
    (grad_R,) = torch.autograd.grad(loss_P.sum(), policy_R)
    if not bool(grad_R.any()):
        return "the gradient of the policy's log-probs is 0 everywhere"
    return None


def _same_each_time(loss: LossFunction) -> str | None:
    values = example_values()
    first, second = loss(values), loss(values)
    if not torch.equal(first, second):
        return f"it gave {first.tolist()}, then {second.tolist()} for the same input"
    for name, tensor in vars(example_values()).items():
        if isinstance(tensor, Tensor) and not torch.equal(tensor, getattr(values, name)):
            return f"it changed {name}"
    return None


def _follows_the_order(loss: LossFunction) -> str | None:
    values, order = example_values(), torch.tensor([2, 0, 3, 1])
    turned = {n: v[order] for n, v in vars(values).items() if n.endswith("_P") and v is not None}
    loss_P, grad_R = _gradient(loss, values)
    turned_P, turned_grad_R = _gradient(loss, replace(values, **turned))
    if not torch.allclose(loss_P[order], turned_P, rtol=1e-10):
        return f"with the pairs in another order it gives {turned_P.tolist()}: other values"
    if not torch.allclose(grad_R, turned_grad_R, rtol=1e-10):
        return "with the pairs in another order the gradient differs"
    return None


def _has_the_gradient(loss: LossFunction) -> str | None:
    values = example_values()
    _, grad_R = _gradient(loss, values)
    for answer, gradient in enumerate(grad_R.tolist()):
        step = torch.zeros_like(values.policy_R)
        step[answer] = 1e-6
        up, down = (
            loss(replace(values, policy_R=values.policy_R + s)).sum() for s in (step, -step)
        )
        slope = float((up - down) / 2e-6)
        if abs(slope - gradient) > 1e-5 * (1 + abs(slope)):
            return f"answer {answer}: the gradient is {gradient:.6g}, the slope {slope:.6g}"
    return None


def _finite(loss: LossFunction) -> str | None:
    for values in _extremes():
        loss_P, grad_R = _gradient(loss, values)
        for what, found in (("value", loss_P), ("gradient", grad_R)):
            if not bool(found.isfinite().all()):
                return (
                    f"a {what} is {found[~found.isfinite()][0].item()} at policy "
                    f"{values.policy_R.tolist()}, reference {values.reference_R.tolist()}, "
                    f"lengths {values.length_R.tolist()}"
                )
    return None


def _extremes() -> Iterator[StepValues]:
    """One pair of two completions, whose log-probs and lengths are as far apart as they get."""
    one = torch.ones(1, dtype=torch.float64)
    for a, b, lengths in product(_EXTREMES, _EXTREMES, ((1, 1), (1, 4096), (4096, 1))):
        for policy, reference in (((a, b), (b, a)), ((a, b), (a, b)), ((a, a), (b, b))):
            yield StepValues(
                torch.tensor(policy, dtype=torch.float64),
                torch.tensor(reference, dtype=torch.float64),
                torch.tensor(lengths),
                torch.tensor([0]),
                torch.tensor([1]),
                margin_P=one,
                weight_P=one,
                wpo_log_weight_R=-torch.ones(2, dtype=torch.float64),
                mean_tokens=float(lengths[0]),
            )


_CHECKS: dict[str, Callable[[LossFunction], str | None]] = {
    "one value a pair": _one_value_a_pair,
    "keeps the graph": _keeps_the_graph,
    "the same each time": _same_each_time,
    "follows the order of the pairs": _follows_the_order,
    "has the gradient of its values": _has_the_gradient,
    "finite at extremes": _finite,
}
