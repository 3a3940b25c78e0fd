"""The gradient of one step, however it is cut into batches, and the values of its pairs.

A batch gives the log-probs of its completions; the loss, a pure function of the step's log-probs,
gives ``g_R = dL/d logp_R``; each batch back-propagates ``sum(g_R * logp_R)``. Losses that look at
one pair at a time need one sweep; those that need the whole step get one without gradient first.
The loss is divided by the pairs of the whole step, so the cut does not matter, nor does the number
of processes that the pairs are dealt to: every one has the values of all.

Axis letters: E entries of a batch, R completions of a batch or step, P pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likelier.base.errors import NotFinite, RunFailed
from likelier.batching.batch import Batch, completions_of, together
from likelier.data.records import TokenPair
from likelier.losses.registry import BoundLoss
from likelier.losses.values import StepValues
from likelier.model.logprob import collisions_of
from likelier.model.policy import Policy, with_idle
from likelier.model.team import own_part
from likelier.training.batches import Batcher, joined, values_of
from likelier.training.checkpoint import good_checkpoint
from likelier.training.optimizer import MasterAdamW

_NAMED_PAIRS = 8  # in an error; the others are counted
_NOTHING_R = torch.zeros(1, dtype=torch.float64)  # the gradient of an idle batch


def gradients_that_fit(
    batcher: Batcher,
    pairs: Sequence[TokenPair],
    optimizer: MasterAdamW,
    following: Sequence[TokenPair] = (),
) -> tuple[list[Batch], StepValues]:
    """`loss_and_gradients` of a step's pairs; out of memory, it begins anew with half the size.

    The gradient is the same for any size. The pairs of the ``following`` step are cut into batches
    while a GPU computes.

    Raises RunFailed where a pair alone does not fit.
    """
    loss, batches = batcher.loss, list[Batch]()
    before = dict(loss.state)
    try:
        batches = batcher(pairs)
        ahead = partial(batcher.prepare, following)
        return batches, loss_and_gradients(batcher.policy, batches, loss, ahead)
    except NotFinite:
        optimizer.forget_gradients()
        raise
    except torch.OutOfMemoryError as error:
        batcher.halve(error, batches)
    except _OthersDidNotFit:
        pass
    # Outside of the handler: the error holds the frames, and they hold the tensors.
    loss.state.clear()
    loss.state.update(before)
    optimizer.forget_gradients()
    torch.cuda.empty_cache()  # nothing where there is no GPU
    return gradients_that_fit(batcher, pairs, optimizer, following)


def loss_and_gradients(
    policy: Policy,
    batches: Sequence[Batch],
    loss: BoundLoss,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepValues:
    """Add the gradient of the mean loss of a step's pairs to the trainable parameters.

    Returns the values in the order of the step, on the CPU. Called inside `Policy.running`.
    ``meanwhile`` is called when a GPU has been given all that it is to compute.

    Raises NotFinite where a log-prob or the loss is not; the gradients are then worth nothing. All
    is computed before it is looked at: a GPU is waited for once a step.
    """
    sweep = _whole_step_first if loss.needs_whole_step else _batch_by_batch
    whole = sweep(policy, batches, loss, meanwhile)
    values = _in_step_order(whole, loss)
    _must_be_finite(policy, values, whole.grad_R)
    return values


def _batch_by_batch(
    policy: Policy, batches: Sequence[Batch], loss: BoundLoss, meanwhile: Callable[[], None]
) -> "_Whole":
    """One sweep: the gradient of a pair's loss needs no other pair."""
    done, grads = [], []
    for batch, is_idle in with_idle(policy, batches):
        if is_idle:
            _backward(policy.scorer(batch), batch, _NOTHING_R)
            continue
        values, logp_E = score_batch(policy, batch, loss, with_gradient=True)
        grad_R, loss_P = _gradient_of_loss(values, loss, batch.num_pairs)
        _backward(logp_E, batch, grad_R)
        done.append(replace(values, loss_P=loss_P))
        grads.append(grad_R)
    meanwhile()
    return _of_all(policy, batches, done, grads)


def _whole_step_first(
    policy: Policy, batches: Sequence[Batch], loss: BoundLoss, meanwhile: Callable[[], None]
) -> "_Whole":
    """Two sweeps, the first without gradient: the loss of a pair depends on the whole step."""
    whole = _of_all(policy, batches, _scored_all(policy, batches, loss))
    if loss.observe is not None:
        loss.observe(whole.values)
    grad_R, loss_P = _gradient_of_loss(whole.values, loss, len(whole.position_P))
    counts = [len(batch.scored_R) for batch in batches]
    parts = iter(grad_R[whole.first :][: sum(counts)].split(counts))
    try:
        for batch, is_idle in with_idle(policy, batches):
            _backward(policy.scorer(batch), batch, _NOTHING_R if is_idle else next(parts))
    except torch.OutOfMemoryError:
        _all_fit(policy, False)
        raise
    if not _all_fit(policy, True):
        raise _OthersDidNotFit
    meanwhile()
    return replace(whole, values=replace(whole.values, loss_P=loss_P), grad_R=grad_R)


def _all_fit(policy: Policy, fits: bool) -> bool:
    """Whether this process and the others had memory for their second sweep: who has not begins the
    first anew, which needs all of them. Where they run each batch together, nobody can.
    """
    return fits if policy.in_parts else all(policy.team.gathered(fits))


class _OthersDidNotFit(Exception):
    """Another process is out of memory in the second sweep: all begin the step anew."""


def _scored_all(policy: Policy, batches: Sequence[Batch], loss: BoundLoss) -> list[StepValues]:
    """The values of this process's batches, without gradient."""
    scored = (
        (score_batch(policy, b, loss)[0], is_idle) for b, is_idle in with_idle(policy, batches)
    )
    return [values for values, is_idle in scored if not is_idle]


@torch.no_grad()
def step_values(policy: Policy, batches: Sequence[Batch], loss: BoundLoss) -> StepValues:
    """The same values without any gradient, and without any change to the loss's own state.

    Raises NotFinite where a log-prob or the loss is not.
    """
    whole = _of_all(policy, batches, _scored_all(policy, batches, loss))
    loss_P = (loss.held_out or loss.per_pair)(whole.values)
    values = _in_step_order(replace(whole, values=replace(whole.values, loss_P=loss_P)), loss)
    _must_be_finite(policy, values)
    return values


@dataclass(frozen=True)
class _Whole:
    """The values of a step's batches, ``position_P`` of their pairs in the step, and the gradient
    of the loss where it is known; ``first`` is this process's own first completion among them.
    """

    values: StepValues
    position_P: Tensor
    grad_R: Tensor | None = None
    first: int = 0


def _of_all(
    policy: Policy,
    batches: Sequence[Batch],
    done: Sequence[StepValues],
    grads: Sequence[Tensor] = (),
) -> _Whole:
    """The values of all batches, of every process of the team in the order of their ranks."""
    team, own = policy.team, None
    if batches:
        position_P = torch.cat([batch.position_P for batch in batches])
        own = _Whole(joined(done), position_P, torch.cat(list(grads)) if grads else None)
    if team.size == 1:
        assert own is not None  # a step has pairs
        return own
    shares = team.gathered(own and _on_cpu(own))
    there = [share for share in shares if share is not None]
    first = sum(len(share.values.policy_R) for share in shares[: team.rank] if share)
    grad_Rs = [share.grad_R for share in there if share.grad_R is not None]
    return _Whole(
        joined([share.values for share in there]),
        torch.cat([share.position_P for share in there]),
        torch.cat(grad_Rs) if grad_Rs else None,
        first,
    )


def _on_cpu(whole: _Whole) -> _Whole:
    named = vars(whole.values).items()
    moved: dict[str, Any] = {name: v.cpu() for name, v in named if isinstance(v, Tensor)}
    grad_R = whole.grad_R if whole.grad_R is None else whole.grad_R.cpu()
    return _Whole(replace(whole.values, **moved), whole.position_P.cpu(), grad_R)


def score_batch(
    policy: Policy, batch: Batch, loss: BoundLoss, with_gradient: bool = False
) -> tuple[StepValues, Tensor]:
    """The values of a batch, and the log-probs of its entries, with their graph where asked."""
    wpo_log_weight_R = None
    with torch.set_grad_enabled(with_gradient):
        if loss.reads_wpo_log_weight:
            logp_E, collision_E = policy.scorer(batch, also=collisions_of)
            surprise_K = (logp_E.detach() - collision_E)[batch.entry_K]
            wpo_log_weight_R = batch.mean_over_tokens(surprise_K)
        else:
            logp_E = policy.scorer(batch)
    policy_R = batch.completion_logps(logp_E.detach())
    return values_of(batch, policy_R, wpo_log_weight_R), logp_E


def _gradient_of_loss(values: StepValues, loss: BoundLoss, num_pairs: int) -> tuple[Tensor, Tensor]:
    """dL/d logp_R for L = sum of the pairs' losses / num_pairs, and the losses."""
    policy_R = values.policy_R.detach().requires_grad_()
    with torch.enable_grad():
        loss_P = loss.per_pair(replace(values, policy_R=policy_R))
        (grad_R,) = torch.autograd.grad(loss_P.sum() / num_pairs, policy_R)
    return grad_R, loss_P.detach()


def _must_be_finite(policy: Policy, values: StepValues, grad_R: Tensor | None = None) -> None:
    """A log-prob of -inf can have a loss of 0, so all are looked at. Pairs are in step order."""
    assert values.loss_P is not None
    numbers = {"log-prob": values.policy_R, "reference log-prob": values.reference_R}
    numbers["loss"] = values.loss_P
    numbers |= {} if grad_R is None else {"gradient of the loss": grad_R.cpu()}
    for what, found in numbers.items():
        finite = found.isfinite()
        if bool(finite.all()):
            continue
        if what != "loss":  # a pair has two answers
            finite = finite[values.chosen_P] & finite[values.rejected_P]
        named = policy.scorer.model.named_parameters()
        weights = (name for name, p in named if not own_part(p).isfinite().all())
        bad = next(filter(None, policy.team.gathered(next(weights, None))), None)
        because = f" because {bad} is not" if bad else ""
        raise NotFinite(
            f"a {what} is not finite{because}, so no update was made",
            hint="model.dtype and optim.lr",
            positions=torch.nonzero(~finite).flatten().tolist(),
        )


def _backward(logp_E: Tensor, batch: Batch, grad_R: Tensor) -> None:
    grad_R = grad_R.to(logp_E.device)
    logp_E.backward(batch.entry_gradients(grad_R).to(logp_E.dtype))


@torch.no_grad()
def _in_step_order(whole: _Whole, loss: BoundLoss) -> StepValues:
    """The values with the scores of the loss, pairs in the order of the step, on the CPU."""
    values = whole.values
    if loss.scores is not None:
        chosen_P, rejected_P = loss.scores(values)
        values = replace(values, score_chosen_P=chosen_P, score_rejected_P=rejected_P)
    order_P = torch.argsort(whole.position_P).cpu()
    tensors = {name: value for name, value in vars(values).items() if isinstance(value, Tensor)}
    moved: dict[str, Any] = {}
    arrived = together([value.detach() for value in tensors.values()], torch.device("cpu"))
    for name, there in zip(tensors, arrived, strict=True):
        there = there.double() if there.is_floating_point() else there
        moved[name] = there[order_P] if name.endswith("_P") else there
    return replace(values, **moved)


@contextmanager
def located(
    when: str, pairs: Sequence[TokenPair], checkpoints: Path | None = None
) -> Iterator[None]:
    """Say of a `NotFinite` what the run was doing, with which pairs, and what is left of it.

    ``checkpoints`` is the folder of those of the run; None: there are none yet.

    Raises RunFailed.
    """
    try:
        yield
    except NotFinite as error:
        hint = f"look at these pairs and at {error.hint}"
        if checkpoints is not None:
            good = good_checkpoint(checkpoints)
            kept = f"{good} is good" if good else "no checkpoint was written before"
            hint += f", and give another out; {kept}, nothing else was saved"
        what = f"{error.what}; {_named(_concerned(error, pairs))}"
        raise RunFailed(what, where=when, hint=hint) from error


def _concerned(error: NotFinite, pairs: Sequence[TokenPair]) -> list[TokenPair]:
    if error.completion is not None:
        return [pair for pair in pairs if error.completion in completions_of(pair)]
    return [pairs[at] for at in error.positions] if error.positions else list(pairs)


def _named(pairs: Sequence[TokenPair]) -> str:
    """The places of pairs, each once; of several in one file the numbers."""
    named: list[str] = []
    last = None
    for source in list(dict.fromkeys(pair.source for pair in pairs))[:_NAMED_PAIRS]:
        file, _, number = source.rpartition(":")
        named.append(number if file and file == last else source)
        last = file
    more = len({pair.source for pair in pairs}) - len(named)
    return f"pairs: {', '.join(named)}" + (f" and {more} more" if more else "")
