"""Before the first update: the backend must equal the plain path, the policy its reference.

The plain path is the model's own attention and head, one sequence at a time. Where a check fails
the run stops and says which, and the likely cause: nothing is trained on wrong numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from likelier.base.errors import RunFailed
from likelier.batching.batch import Scored, completions_of, lay_out, padded_batch
from likelier.data.records import TokenPair
from likelier.model.frozen import computing_in, is_half
from likelier.model.policy import Policy
from likelier.training.batches import Batcher
from likelier.training.step import located, step_values

NUM_PAIRS = 8
TOLERANCE = 1e-4  # nats an answer, float32 and better
ROUNDINGS = 2  # of the whole log-prob that come on top: long answers are sums of many tokens
HALF_FACTOR = 1.5  # half precision: our error against float32 over that of the plain path
PARTS_TOLERANCE = 0.25  # nats a token: half precision where there is no float32 to compare with
EXPERT_FACTOR = 2.0  # routing flips on a rounding, so single answers may differ more: medians


def preflight(
    batcher: Batcher, pairs: Sequence[TokenPair], initial_is_reference: bool
) -> dict[str, Any]:
    """Compare on up to 8 real pairs, the longest and two of one prompt among them.

    Returns what ``run.json`` keeps. ``difference`` is in nats: in float32 the largest of an
    answer; in half precision the root mean square error of a token against float32, for which the
    plain path's own error sets the ``tolerance``. ``loss`` and ``largest_reward`` are those of the
    same pairs under the initial policy.

    Raises RunFailed where the backend differs from the plain path, or where the reference is
    the initial policy and the policy's rewards are not 0.
    """
    policy, loss, chosen = batcher.policy, batcher.loss, pairs_to_compare(pairs)
    sequences = list(dict.fromkeys(one for pair in chosen for one in completions_of(pair)))
    found, noise, measured = _compare_backends(policy, sequences)
    if not found["difference"] <= found["tolerance"]:
        raise RunFailed(
            f"the {policy.backend} backend differs from the model's own forward by "
            f"{found['difference']:.2g} nats {found['unit']}; {found['tolerance']:.2g} is allowed",
            hint="this architecture or kernel gives wrong numbers here: please report it, with the "
            "output of `likelier env`",
        )
    with located("before the first update", chosen), policy.running():
        values = step_values(policy, batcher(chosen), loss)
    assert values.loss_P is not None
    ratios = torch.cat([values.chosen.ratio_P, values.rejected.ratio_P])
    reward = float(loss.beta * ratios.abs().max())
    # The reference was scored by the same path, but in other batches: twice the backend's noise.
    allowed = loss.beta * 2 * noise
    if initial_is_reference and not reward <= allowed:
        raise RunFailed(
            f"the policy is the reference, but a reward is {reward:.2g} before the first update; "
            f"{allowed:.2g} is allowed",
            hint="the reference log-probs do not belong to this model: empty $LIKELIER_CACHE",
        )
    return {
        "pairs": len(chosen),
        **found,
        "loss": float(values.loss_P.mean()),
        "largest_reward": reward,
        "noise": measured,
    }


def pairs_to_compare(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The two longest pairs, two pairs of one prompt where there are any, then the first ones."""
    by_length = sorted(range(len(pairs)), key=lambda index: -pairs[index].num_tokens)
    first_of: dict[tuple[int, ...], int] = {}
    shared: list[int] = []
    for index, pair in enumerate(pairs):
        if pair.prompt in first_of:
            shared = [first_of[pair.prompt], index]
            break
        first_of[pair.prompt] = index
    wanted = dict.fromkeys([*by_length[:2], *shared, *range(len(pairs))])
    return [pairs[index] for index in list(wanted)[:NUM_PAIRS]]


@torch.no_grad()
def _by_backend(policy: Policy, sequences: Sequence[Scored]) -> list[Tensor]:
    """Log-probs of each completion's tokens in one batch of the backend, as training makes them."""
    batch = lay_out(sequences, policy.backend)
    with policy.running() as scorer:
        return list(batch.token_logps(scorer(batch.to(policy.device)).cpu().double()))


@torch.no_grad()
def _plainly(policy: Policy, sequences: Sequence[Scored]) -> list[Tensor]:
    """One sequence at a time, no padding, the model's own attention and its own head."""
    with policy.running("padded") as plain, plain.with_own_head():
        batches = [padded_batch([one]).to(policy.device) for one in sequences]
        return [plain(batch)[batch.entry_K].double().cpu() for batch in batches]


def _compare_backends(
    policy: Policy, sequences: Sequence[Scored]
) -> tuple[dict[str, Any], float, float]:
    """How far the backend is from the plain path, what is allowed, and per what.

    The second value is what rounding alone may do to one answer, in nats, the third what it did.
    """
    model = policy.causal_lm
    has_experts = any("expert" in name for name, _ in model.named_modules())
    ours, plain = _by_backend(policy, sequences), _plainly(policy, sequences)
    if not is_half(policy.dtype):
        apart = (_sums(ours) - _sums(plain)).abs()
        difference = float(apart.median() if has_experts else apart.max())
        largest = float(_sums(plain).abs().max())
        allowed = TOLERANCE + ROUNDINGS * torch.finfo(policy.dtype).eps * largest
        found = {"difference": difference, "tolerance": allowed, "unit": "an answer"}
        return found, max(difference, allowed), difference
    if policy.in_parts:  # whose weights cannot be widened: both paths are compared with each other
        rms = _error(ours, plain, has_experts)
        found = {"difference": rms, "tolerance": PARTS_TOLERANCE, "unit": "a token"}
        noise = float((_sums(ours) - _sums(plain)).abs().max())
        return found, noise + TOLERANCE, noise
    try:
        with computing_in(model, torch.float32):
            truth = _plainly(policy, sequences)
    except (RuntimeError, TypeError):  # a layer reads another's weight, or takes its dtype
        with computing_in(model, torch.float32, casts=False):
            truth = _plainly(policy, sequences)
    # By tokens, thousands of them: the sums of a dozen answers differ by a factor of two by chance.
    our_error, plain_error = (_error(values, truth, has_experts) for values in (ours, plain))
    factor = EXPERT_FACTOR if has_experts else HALF_FACTOR
    noise = max(float((_sums(values) - _sums(truth)).abs().max()) for values in (ours, plain))
    allowed = factor * plain_error + TOLERANCE
    found = {"difference": our_error, "tolerance": allowed, "unit": "a token"}
    return found, noise + TOLERANCE, noise


def _sums(tokens: Sequence[Tensor]) -> Tensor:
    return torch.stack([answer.sum() for answer in tokens])


def _error(values: Sequence[Tensor], truth: Sequence[Tensor], has_experts: bool) -> float:
    """Root mean square of the tokens' errors, their median where experts may flip."""
    apart = (torch.cat(list(values)) - torch.cat(list(truth))).abs()
    return float(apart.median() if has_experts else apart.square().mean().sqrt())
