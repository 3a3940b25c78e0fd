"""How far a policy went from the initial one, and how sure it is, on answers of its own.

The answers must be draws at temperature 1 from the whole distribution: of others the estimates are
none. Axis letters: R answers, K tokens of one answer, its end token included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from likelier.batching.batch import Scored, lay_out
from likelier.config import Config
from likelier.config.schema import IN_MEMORY
from likelier.generation.sample import Sample
from likelier.model.adapters import adapters_off
from likelier.model.load import load
from likelier.model.logprob import entropies_of
from likelier.model.policy import Policy


@dataclass(frozen=True)
class Drawn:
    """What each drawn answer's tokens were to the policy that drew them: a tensor of shape (K,) for
    each answer, log-probs and entropies of the predictions in nats.
    """

    sequences: tuple[Scored, ...]
    logp_RK: tuple[Tensor, ...]
    entropy_RK: tuple[Tensor, ...]


def score_drawn(
    policy: Policy, prompts: Sequence[tuple[int, ...]], samples: Sequence[Sample]
) -> Drawn:
    """Score answers with the policy that drew them. An answer of no token has empty tensors."""
    answers = [(*one.tokens, *(() if one.end is None else (one.end,))) for one in samples]
    sequences = tuple(
        Scored((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    both = list(_scored(policy, sequences))
    return Drawn(sequences, *(tuple(one[at] for one in both) for at in (0, 1)))


@torch.no_grad()
def _scored(policy: Policy, sequences: Sequence[Scored]) -> Iterator[tuple[Tensor, Tensor]]:
    nothing = torch.zeros(0, dtype=torch.float64)
    with policy.running() as scorer:
        for sequence in sequences:
            if not any(sequence.scored):
                yield nothing, nothing
                continue
            batch = lay_out([sequence], policy.backend)
            found = scorer(batch.to(policy.device), also=entropies_of)
            (logp_K,), (entropy_K,) = (list(batch.token_logps(one.cpu())) for one in found)
            yield logp_K.double(), entropy_K.double()


def divergences(drawn: Drawn, initial: Policy) -> list[tuple[float, float]]:
    """Two estimates of KL(policy || initial) from each answer, in nats an answer: k1 and k3.

    With Δ the log-ratio of a token, k1 is the sum of Δ, which is unbiased and may be negative; k3
    is the sum of ``exp(-Δ) - 1 + Δ``, unbiased too, never negative, and less scattered where the
    two are near (Schulman 2020, Approximating KL divergence). An answer that was cut counts as far
    as it goes.
    """
    found = []
    for logp_K, (before_K, _) in zip(drawn.logp_RK, _scored(initial, drawn.sequences), strict=True):
        ratio_K = logp_K - before_K
        found.append((float(ratio_K.sum()), float((torch.expm1(-ratio_K) + ratio_K).sum())))
    return found


@contextmanager
def initial_again(policy: Policy, config: Config, fresh_adapter: bool) -> Iterator[Policy | None]:
    """The initial policy beside the trained one: its own weights with the adapter off, or read
    again. None where it was in memory only, or the trained one is in parts.
    """
    if policy.in_parts:
        yield None
    elif fresh_adapter:
        with adapters_off(policy.model):
            yield policy
    elif config.model.path == IN_MEMORY:
        yield None
    else:
        wanted = config.model
        yield load(wanted.path, dtype=wanted.dtype, revision=wanted.revision, frozen=True,
                   quantise=wanted.quantise, stream=wanted.stream)  # fmt: skip
