"""The gradient of one step, however it is cut into passes, and the values of its pairs.

A pass gives the log-probs of its answers; the loss, a pure function of the step's log-probs,
gives ``g_R = dL/d logp_R``; each pass back-propagates ``sum(g_R * logp_R)``. Losses that look at
one pair at a time need one sweep; those that couple pairs get a sweep without gradient first.
The loss is divided by the pairs of the whole step, so the cut does not matter.

Axis letters: E entries of a pass, R answers of a pass or step, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from likelier.base.errors import RunFailed
from likelier.losses.registry import BoundLoss
from likelier.losses.values import StepValues
from likelier.model.scorer import Scorer
from likelier.training.passes import PairPass, cut_passes, joined

__all__ = ["PairPass", "PairValues", "cut_passes", "step_gradients", "step_values"]


@dataclass(frozen=True)
class PairValues:
    """Per pair, in the order of the step: float64 on the CPU, log-probs and loss in nats.

    ``score_chosen`` and ``score_rejected`` are what the loss optimises, None where that is the
    reward. ``label`` is 1 or 0 for rows of one answer, whose rejected side is a mismatched one.
    """

    loss: Tensor
    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    score_chosen: Tensor | None = None
    score_rejected: Tensor | None = None
    label: Tensor | None = None


def step_gradients(scorer: Scorer, passes: Sequence[PairPass], loss: BoundLoss) -> PairValues:
    """Add the gradient of the mean loss of a step's pairs to the trainable parameters.

    Raises RunFailed where a log-prob or the loss is not finite; no gradient of that pass has
    then been added.
    """
    num_pairs = sum(len(item.place_P) for item in passes)
    if loss.needs_whole_step:
        whole = _swept(scorer, passes, loss)
        if loss.observe is not None:
            loss.observe(whole)
        grad_R, loss_P = _with_gradient(scorer, whole, loss, num_pairs)
        grads = grad_R.split([len(item.reference_R) for item in passes])
        for item, part_R in zip(passes, grads, strict=True):
            _backward(scorer(item.batch), item, part_R)
        return _in_step_order(passes, whole, loss_P, loss)
    policy, wpo_log_weight, losses = [], [], []
    for item in passes:
        logp_E, wpo_log_weight_R = _scored(scorer, item, loss)
        policy_R = item.answer_logps(logp_E.detach())
        values = item.values(policy_R, wpo_log_weight_R)
        grad_R, loss_P = _with_gradient(scorer, values, loss, num_pairs)
        _backward(logp_E, item, grad_R)
        policy.append(policy_R)
        wpo_log_weight.append(wpo_log_weight_R)
        losses.append(loss_P)
    return _in_step_order(passes, joined(passes, policy, wpo_log_weight), torch.cat(losses), loss)


@torch.no_grad()
def step_values(scorer: Scorer, passes: Sequence[PairPass], loss: BoundLoss) -> PairValues:
    """The same values without any gradient, and without any change to the loss's own state.

    Raises RunFailed where a log-prob or the loss is not finite.
    """
    values = _swept(scorer, passes, loss)
    loss_P = (loss.held_out or loss.per_pair)(values)
    _must_be_finite(scorer, values.policy_R, loss_P)
    return _in_step_order(passes, values, loss_P, loss)


@torch.no_grad()
def _swept(scorer: Scorer, passes: Sequence[PairPass], loss: BoundLoss) -> StepValues:
    """The values of all passes, without gradient."""
    policy, wpo_log_weight = [], []
    for item in passes:
        logp_E, wpo_log_weight_R = _scored(scorer, item, loss)
        policy.append(item.answer_logps(logp_E))
        wpo_log_weight.append(wpo_log_weight_R)
    return joined(passes, policy, wpo_log_weight)


def _scored(scorer: Scorer, item: PairPass, loss: BoundLoss) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the entries of a pass, and how sure the policy is of each answer if asked."""
    if not loss.reads_wpo_log_weight:
        return scorer(item.batch), None
    logp_E, collision_E = scorer(item.batch, collisions=True)
    surprise_K = (logp_E.detach() - collision_E)[item.batch.entry_K]
    return logp_E, item.mean_over_tokens(surprise_K)


def _with_gradient(
    scorer: Scorer, values: StepValues, loss: BoundLoss, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """dL/d logp_R for L = sum of the pairs' losses / num_pairs, and the losses."""
    policy_R = values.policy_R.detach().requires_grad_()
    with torch.enable_grad():
        loss_P = loss.per_pair(replace(values, policy_R=policy_R))
        (grad_R,) = torch.autograd.grad(loss_P.sum() / num_pairs, policy_R)
    _must_be_finite(scorer, values.policy_R, loss_P, grad_R)
    return grad_R, loss_P.detach()


def _must_be_finite(scorer: Scorer, logp_R: Tensor, *loss: Tensor) -> None:
    """A log-prob of -inf can have a loss of 0, so both are looked at."""
    for what, values in (("log-prob", logp_R), *(("loss", values) for values in loss)):
        if not bool(values.isfinite().all()):
            model = scorer.model
            weights = (name for name, p in model.named_parameters() if not p.isfinite().all())
            because = next((f" because {name} is not" for name in weights), "")
            raise RunFailed(
                f"a {what} is not finite{because}, so no update was made",
                hint="look at model.dtype and optim.lr; the last checkpoint is good",
            )


def _backward(logp_E: Tensor, item: PairPass, grad_R: Tensor) -> None:
    logp_E.backward(item.entry_gradients(grad_R).to(logp_E.dtype))


@torch.no_grad()
def _in_step_order(
    passes: Sequence[PairPass], step: StepValues, loss_P: Tensor, loss: BoundLoss
) -> PairValues:
    order = torch.argsort(torch.cat([item.place_P for item in passes]))

    def ordered(value_P: Tensor) -> Tensor:
        return value_P.double().cpu()[order]

    scores = (None, None) if loss.scores is None else tuple(map(ordered, loss.scores(step)))
    return PairValues(
        loss=ordered(loss_P),
        policy_chosen=ordered(step.chosen.policy_P),
        policy_rejected=ordered(step.rejected.policy_P),
        reference_chosen=ordered(step.chosen.reference_P),
        reference_rejected=ordered(step.rejected.reference_P),
        chosen_tokens=ordered(step.chosen.tokens_P),
        rejected_tokens=ordered(step.rejected.tokens_P),
        score_chosen=scores[0],
        score_rejected=scores[1],
        label=None if step.label_P is None else ordered(step.label_P),
    )
