"""The gradient of one step, however it is cut into passes, and the values of its pairs.

A pass gives the log-probs of its answers; the loss, a pure function of the step's log-probs,
gives ``g_R = dL/d logp_R``; each pass back-propagates ``sum(g_R * logp_R)``. Losses that look at
one pair at a time need one sweep; those that couple pairs get a sweep without gradient first.
The loss is divided by the pairs of the whole step, so the cut does not matter.

Axis letters: E entries of a pass, R answers of a pass or step, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from likelier.batch.layout import Pass, Scored, answers_of
from likelier.batch.pack import layout, pack
from likelier.data.records import TokenPair
from likelier.errors import RunFailed
from likelier.loss.registry import BoundLoss
from likelier.loss.values import AnswerValues
from likelier.model.scorer import Scorer
from likelier.reference.column import Column


@dataclass(frozen=True)
class PairPass:
    """Some pairs of a step in one pass.

    ``reference_R`` summed log-probs (float64); ``chosen_P`` and ``rejected_P`` index the answers
    of the pass; ``place_P`` is each pair's place in the step.
    """

    batch: Pass
    reference_R: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    place_P: Tensor

    def values(self, policy_R: Tensor) -> AnswerValues:
        """What the loss reads, for the policy's log-probs of the answers of this pass."""
        return AnswerValues(
            policy_R, self.reference_R, self.batch.length_R, self.chosen_P, self.rejected_P
        )


@dataclass(frozen=True)
class PairValues:
    """Per pair, in the order of the step: float64 on the CPU, log-probs and loss in nats."""

    loss: Tensor
    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def cut_passes(
    pairs: Sequence[TokenPair],
    column: Column,
    backend: str,
    budget: int,
    device: torch.device | str = "cpu",
) -> list[PairPass]:
    """Cut the pairs of a step into passes of at most ``budget`` tokens; a pair is never cut."""
    units = [answers_of(pair) for pair in pairs]
    return [
        _pair_pass([(place, units[place]) for place in places], column, backend, device)
        for places in pack(units, budget, backend)
    ]


def _pair_pass(
    units: Sequence[tuple[int, tuple[Scored, Scored]]],
    column: Column,
    backend: str,
    device: torch.device | str,
) -> PairPass:
    number: dict[Scored, int] = {}  # answers that several pairs share stand once
    for _, unit in units:
        for sequence in unit:
            number.setdefault(sequence, len(number))
    reference = [column.answer_logp(sequence) for sequence in number]
    return PairPass(
        layout(backend)(list(number)).to(device),
        torch.tensor(reference, dtype=torch.float64, device=device),
        torch.tensor([number[chosen] for _, (chosen, _) in units], device=device),
        torch.tensor([number[rejected] for _, (_, rejected) in units], device=device),
        torch.tensor([place for place, _ in units]),
    )


def step_gradients(scorer: Scorer, passes: Sequence[PairPass], loss: BoundLoss) -> PairValues:
    """Add the gradient of the mean loss of a step's pairs to the trainable parameters.

    Raises RunFailed where a log-prob or the loss is not finite; no gradient of that pass has
    then been added.
    """
    num_pairs = sum(len(item.place_P) for item in passes)
    if loss.couples:
        with torch.no_grad():
            policy = [item.batch.answer_logps(scorer(item.batch)) for item in passes]
        whole, loss_P = _with_gradient(scorer, _joined(passes, policy), loss, num_pairs)
        grads = whole.split([len(item.reference_R) for item in passes])
        for item, grad_R in zip(passes, grads, strict=True):
            _backward(scorer(item.batch), item.batch, grad_R)
        return _in_step_order(passes, policy, [loss_P])
    policy, losses = [], []
    for item in passes:
        logp_E = scorer(item.batch)
        policy_R = item.batch.answer_logps(logp_E.detach())
        grad_R, loss_P = _with_gradient(scorer, item.values(policy_R), loss, num_pairs)
        _backward(logp_E, item.batch, grad_R)
        policy.append(policy_R)
        losses.append(loss_P)
    return _in_step_order(passes, policy, losses)


@torch.no_grad()
def step_values(scorer: Scorer, passes: Sequence[PairPass], loss: BoundLoss) -> PairValues:
    """The same values without any gradient.

    Raises RunFailed where a log-prob or the loss is not finite.
    """
    policy = [item.batch.answer_logps(scorer(item.batch)) for item in passes]
    values = _joined(passes, policy)
    loss_P = loss.per_pair(values)
    _must_be_finite(scorer, values.policy_R, loss_P)
    return _in_step_order(passes, policy, [loss_P])


def _with_gradient(
    scorer: Scorer, values: AnswerValues, loss: BoundLoss, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """dL/d logp_R for L = sum of the pairs' losses / num_pairs, and the losses."""
    policy_R = values.policy_R.detach().requires_grad_()
    given = {field.name: getattr(values, field.name) for field in fields(values)}
    with torch.enable_grad():
        loss_P = loss.per_pair(AnswerValues(**{**given, "policy_R": policy_R}))
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
                mend="look at model.dtype and optim.lr; the last checkpoint is good",
            )


def _backward(logp_E: Tensor, batch: Pass, grad_R: Tensor) -> None:
    logp_E.backward(batch.entry_gradients(grad_R).to(logp_E.dtype))


def _joined(passes: Sequence[PairPass], policy: Sequence[Tensor]) -> AnswerValues:
    """The answers of several passes as one step's."""
    starts = [0]
    for item in passes:
        starts.append(starts[-1] + len(item.reference_R))
    return AnswerValues(
        torch.cat(list(policy)),
        torch.cat([item.reference_R for item in passes]),
        torch.cat([item.batch.length_R for item in passes]),
        torch.cat([item.chosen_P + at for item, at in zip(passes, starts, strict=False)]),
        torch.cat([item.rejected_P + at for item, at in zip(passes, starts, strict=False)]),
    )


def _in_step_order(
    passes: Sequence[PairPass], policy: Sequence[Tensor], losses: Sequence[Tensor]
) -> PairValues:
    step = _joined(passes, policy)
    order = torch.argsort(torch.cat([item.place_P for item in passes]))

    def per_pair(values_R: Tensor, index_P: Tensor) -> Tensor:
        return values_R[index_P].double().cpu()[order]

    return PairValues(
        loss=torch.cat(list(losses)).double().cpu()[order],
        policy_chosen=per_pair(step.policy_R, step.chosen_P),
        policy_rejected=per_pair(step.policy_R, step.rejected_P),
        reference_chosen=per_pair(step.reference_R, step.chosen_P),
        reference_rejected=per_pair(step.reference_R, step.rejected_P),
        chosen_tokens=per_pair(step.length_R, step.chosen_P),
        rejected_tokens=per_pair(step.length_R, step.rejected_P),
    )
