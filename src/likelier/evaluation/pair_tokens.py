"""Pairs token by token: what policy and reference give each token, and where the margin lies.

The implicit reward of a token is ``beta * (log policy - log reference)``; those of an answer add up
to its reward (Rafailov et al. 2024, From r to Q*, arXiv 2404.12358). Axis letters: E entries of a
batch, P pairs, R completions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likelier.base.child import in_child
from likelier.base.files import write_lines
from likelier.batching.batch import Batch, completions_of
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import token_texts
from likelier.data.records import Completion, TokenPair, common_length
from likelier.evaluation.metrics import TIE
from likelier.evaluation.pair_formula import pair_formula
from likelier.losses.registry import BoundLoss
from likelier.losses.values import Side, StepValues
from likelier.model.policy import Policy
from likelier.reference.cache import NoReference, completion_key
from likelier.reference.moving import MovingReference, Reference
from likelier.training.batches import cut_batches
from likelier.training.step import score_batch

FIRST_TOKENS = 3  # of an answer, which tell its manner rather than what it says
TOP_SHARE = 0.1  # of the tokens: those that move most
MAX_COMPARED_TOKENS = 2000  # of an answer: beyond, only what both begin with is marked as shared


@dataclass(frozen=True)
class SideTokens:
    """A completion token by token; a list has an item for each of its tokens.

    ``logps`` and ``reference_logps`` are in nats, None for a token that is not scored;
    ``reference_logps`` is None where the loss reads no reference. ``weights`` is what each token
    counts in the log-prob, None where all count alike.
    """

    completion: Completion
    logps: list[float | None]
    reference_logps: list[float | None] | None
    weights: list[float | None] | None

    @property
    def log_ratios(self) -> list[float | None]:
        """What each token adds to the completion's log-ratio, in nats; without a reference, to its
        log-prob.
        """
        reference = self.reference_logps or [0.0] * len(self.logps)
        weights = self.weights or [1.0] * len(self.logps)
        return [
            None if ours is None or theirs is None or weight is None else weight * (ours - theirs)
            for ours, theirs, weight in zip(self.logps, reference, weights, strict=True)
        ]


@dataclass(frozen=True)
class ScoredPair:
    """A pair, its sides token by token, and its ``values``: those of a step of this pair alone."""

    pair: TokenPair
    sides: dict[str, SideTokens]
    values: StepValues


@torch.no_grad()
def scored_pairs(
    policy: Policy, pairs: Sequence[TokenPair], loss: BoundLoss, reference: Reference
) -> Iterator[ScoredPair]:
    """Score pairs as a step does, each as if it were a step's only one: sums, weights of tokens and
    the loss are those of the training. Nothing of the policy or the loss is changed.

    A loss that follows the margins of the run (``dynamic_beta``) has its own beta here, as it has
    for held-out pairs. Raises KeyError where the reference lacks a completion.
    """
    with policy.running():
        for pair in pairs:
            (batch,) = cut_batches([pair], reference, policy.backend, pair.num_tokens, loss.tokens)
            batch = batch.to(policy.device)
            reference_E = None
            if isinstance(reference, MovingReference) and reference.moved:
                (reference_E,) = reference.scored([batch])
                (batch,) = reference.rescored([batch])
            values, logp_E = score_batch(policy, batch, loss)
            loss_P = (loss.held_out or loss.per_pair)(values)
            scores = loss.scores(values) if loss.scores is not None else (None, None)
            values = _on_cpu(values, loss_P, *scores)
            yield ScoredPair(pair, _sides(pair, batch, logp_E, reference, reference_E), values)


def _on_cpu(values: StepValues, loss_P: Tensor, *scores: Tensor | None) -> StepValues:
    made = {"loss_P": loss_P, "score_chosen_P": scores[0], "score_rejected_P": scores[1]}
    named = {**vars(values), **made}.items()
    moved: dict[str, Any] = {name: v.cpu() for name, v in named if isinstance(v, Tensor)}
    return replace(values, **moved)


def _sides(
    pair: TokenPair, batch: Batch, logp_E: Tensor, reference: Reference, reference_E: Tensor | None
) -> dict[str, SideTokens]:
    """The completions of a batch of one pair; of an unpaired example its own alone."""
    logps = [one.tolist() for one in batch.token_logps(logp_E.double())]
    references: list[list[float]] | None = None
    if reference_E is not None:
        references = [one.tolist() for one in batch.token_logps(reference_E.double())]
    weights = None
    if batch.weight_K is not None:
        weights = [one.tolist() for one in batch.weight_K.split(batch.scored_R.tolist())]
    completions = {"chosen": pair.chosen, "rejected": pair.rejected}
    indices = (int(batch.chosen_P[0]), int(batch.rejected_P[0]))
    sides = {}
    for (name, completion), sequence, at in zip(
        completions.items(), completions_of(pair), indices, strict=True
    ):
        known = references[at] if references else None
        if known is None and not isinstance(reference, NoReference):
            known = reference.values[completion_key(sequence)].double().tolist()
        sides[name] = SideTokens(
            completion,
            _placed(logps[at], completion),
            None if known is None else _placed(known, completion),
            None if weights is None else _placed(weights[at], completion),
        )
    return sides if pair.label is None else {"completion": sides["chosen"]}


def _placed(values: Sequence[float], completion: Completion) -> list[float | None]:
    """The values of the scored tokens at their places."""
    following = iter(values)
    return [next(following) if is_scored else None for is_scored in completion.scored]


# ---- where the margin lies -------------------------------------------------------------------


def movement(sides: Sequence[Sequence[float | None]], common: int) -> dict[tuple[int, int], float]:
    """What each token adds to the margin, by (side, index); they add up to it.

    ``sides`` are the figures of one or of both completions, token by token. A chosen token adds
    its own, a rejected one takes it away. The first ``common`` tokens, which both begin with, stand
    once: what they add is what is left of both, usually 0.
    """
    added: dict[tuple[int, int], float] = {}
    for side, values in enumerate(sides):
        for at, value in enumerate(values):
            if value is not None:
                place = (0 if at < common else side, at)
                added[place] = added.get(place, 0.0) + (-value if side else value)
    return added


def margin_shares(
    sides: Sequence[Sequence[float | None]], common: int, ends: Sequence[set[int]]
) -> dict[str, Any]:
    """Where the margin of a pair lies: shares of all movement, which is the sum of what every token
    adds to the margin or takes from it, each without its sign. So every share is in [0, 1].

    ``ends`` are the places of end tokens on each side. Gives ``tokens``, the ``total`` movement,
    and for the groups ``first`` (token of each answer), ``begin`` (its first `FIRST_TOKENS`),
    ``end``, ``manner`` (begin and end) and ``top`` (the tenth of the tokens that move most): their
    number of ``tokens``, the signed ``sum`` that they add to the margin, and their ``share`` of the
    movement.
    """
    added = movement(sides, common)
    total = sum(map(abs, added.values()))
    scored = [[at for at, value in enumerate(side) if value is not None] for side in sides]
    places = sorted(added, key=lambda place: -abs(added[place]))
    begin = {(side, at) for side, first in enumerate(scored) for at in first[:FIRST_TOKENS]}
    groups = {
        "first": {(side, at) for side, first in enumerate(scored) for at in first[:1]},
        "end": {(side, at) for side, those in enumerate(ends) for at in those},
        "top": set(places[: ceil(TOP_SHARE * len(places))]),
    }
    groups |= {"begin": begin, "manner": begin | groups["end"]}
    found: dict[str, Any] = {"tokens": len(added), "total": total}
    for name, group in groups.items():
        values = [added[place] for place in group if place in added]
        moved = sum(map(abs, values))
        share = moved / total if total else 0.0
        found[name] = {"tokens": len(values), "sum": sum(values), "share": share}
    return found


# ---- as rows ---------------------------------------------------------------------------------


def pair_rows(
    scored: Sequence[ScoredPair], loss: BoundLoss, encoder: Encoder, most: int
) -> list[dict[str, Any]]:
    """Pairs token by token as plain data, for JSON, a page or a terminal; tokens are decoded in a
    child.

    Log-probs and the log-ratio margin are in nats, rewards and the margin in beta x nats. Of a
    side with more than ``most`` tokens those in the middle are left out, but of no figure.
    """
    rows = [_pair_row(one, loss, encoder, most) for one in scored]
    sides = [side for row in rows for side in row["sides"].values()]
    for side, each in zip(sides, in_child(_texts, sides, encoder), strict=True):
        side["texts"] = each
    return rows


def _texts(sides: Sequence[dict[str, Any]], encoder: Encoder) -> list[list[str]]:
    """The texts of the tokens of each side; what was left out parts no character."""
    cuts = (side["left_out_at"] or side["tokens"] for side in sides)
    parts = ((side["ids"][:cut], side["ids"][cut:]) for side, cut in zip(sides, cuts, strict=True))
    return [token_texts(encoder, a) + token_texts(encoder, b) for a, b in parts]


def _pair_row(scored: ScoredPair, loss: BoundLoss, encoder: Encoder, most: int) -> dict[str, Any]:
    pair, values = scored.pair, scored.values
    sides = list(scored.sides.values())
    tokens = [side.completion.tokens for side in sides]
    common, shared = 0, [set[int]()]
    ratio = float(values.chosen.ratio_P[0])
    if len(sides) > 1:
        common, shared = common_length(*tokens), _shared(*tokens)
        ratio = float(values.log_ratio_margin_P[0])
    ends = [_ends(side.completion, encoder) for side in sides]
    rewards = [[None if x is None else loss.beta * x for x in side.log_ratios] for side in sides]
    figures = values.chosen, values.rejected
    assert values.loss_P is not None  # made when it was scored
    return {
        "source": pair.source,
        "label": pair.label,
        "beta": loss.beta,
        "reads_reference": loss.needs("reference"),
        "log_ratio_margin": ratio,
        "margin": loss.beta * ratio,
        "is_tie": abs(ratio) < TIE,
        "loss": float(values.loss_P[0]),
        "objective": pair_formula(loss, values),
        "common": common,
        "shares": margin_shares(rewards, common, ends),
        "sides": {
            name: _side_row(side, figures[at], shared[at], ends[at], most)
            for at, (name, side) in enumerate(scored.sides.items())
        },
    }


def _side_row(
    side: SideTokens, figures: Side, shared: set[int], ends: set[int], most: int
) -> dict[str, Any]:
    tokens = side.completion.tokens
    last = most // 4  # so many from the end
    kept = [*range(len(tokens))]
    if len(kept) > most:
        kept = [*kept[: most - last], *kept[-last:]]
    columns = {
        "logps": side.logps, "reference_logps": side.reference_logps, "weights": side.weights,
    }  # fmt: skip
    return {
        "logp": float(figures.policy_P[0]),
        "reference_logp": float(figures.reference_P[0]) if side.reference_logps else None,
        "counted": float(figures.tokens_P[0]),
        "tokens": len(tokens),
        "left_out": len(tokens) - len(kept),
        "left_out_at": most - last if len(tokens) > most else None,
        "ids": [tokens[at] for at in kept],
        "shared": [at for at, place in enumerate(kept) if place in shared],
        "ends": [at for at, place in enumerate(kept) if place in ends],
    } | {name: [each[at] for at in kept] for name, each in columns.items() if each}


def _ends(completion: Completion, encoder: Encoder) -> set[int]:
    """The places of scored tokens at which generation ends, and of a control token at the end."""
    last = {*completion.tokens[-1:]}
    ends = {*encoder.end_ids.values(), *encoder.control & last}
    flags = zip(completion.tokens, completion.scored, strict=True)
    return {at for at, (token, is_scored) in enumerate(flags) if is_scored and token in ends}


def _shared(ours: Sequence[int], theirs: Sequence[int]) -> list[set[int]]:
    """The places of the tokens that stand in both, in the same order."""
    common = common_length(tuple(ours), tuple(theirs))
    found = [set(range(common)), set(range(common))]
    if max(len(ours), len(theirs)) <= MAX_COMPARED_TOKENS:  # the time grows with the square
        match = SequenceMatcher(None, ours, theirs, autojunk=False)
        for block in match.get_matching_blocks():
            found[0] |= set(range(block.a, block.a + block.size))
            found[1] |= set(range(block.b, block.b + block.size))
    return found


def keep_pair_tokens(
    path: Path, scored: Sequence[ScoredPair], loss: BoundLoss, encoder: Encoder, most: int
) -> None:
    """Write pairs token by token as JSON lines, log-probs exact to float32.

    Raises OutputError where the disk refuses.
    """
    write_lines(path, map(_rounded, pair_rows(scored, loss, encoder, most)))


def _rounded(value: Any) -> Any:
    """The value with every number in it to nine digits, which tell all float32 apart."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value
