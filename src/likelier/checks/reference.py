"""What a model makes of the pairs before any training: whom it prefers, how its own words read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from likelier.base.errors import DataError
from likelier.batching.layout import Scored, answers_of
from likelier.checks.examine import Question
from likelier.checks.shortcuts import Share, share
from likelier.data.check import open_data, open_rows
from likelier.data.encoder import Encoder, build_encoder
from likelier.data.part import Counted, Task, work
from likelier.data.pool import BATCH
from likelier.data.records import Finding, Pair, TokenPair
from likelier.data.tokens import encode_answer, encode_pairs
from likelier.generation.sample import sample
from likelier.model.load import load
from likelier.model.score import Ready, make_ready
from likelier.reference.build import cached_column
from likelier.reference.column import Column
from likelier.reference.identity import reference_identity

TOKENS_PER_PASS = 2048
OWN = 16  # prompts that the model answers itself
OWN_TOKENS = 64
FAR = 3.5  # robust standard deviations under the median: a label to look at
FEWEST = 20  # pairs; of fewer none stands out


@dataclass(frozen=True)
class ReferenceView:
    """Scores of a sample of pairs under the model, in nats a token.

    ``prefers_chosen`` is how often the model finds the chosen answer likelier, by the mean of its
    tokens; ``own`` is that mean for answers which the model sampled itself: what is far below it
    is off-policy. ``suspects`` counts by source the pairs whose label may be wrong.
    """

    pairs: int
    prefers_chosen: Share
    chosen: float
    rejected: float
    own: float | None
    suspects: Mapping[str, int]


def view_reference(question: Question, rows: int) -> tuple[ReferenceView, list[Finding]]:
    """Score an even sample of ``question.score`` pairs of ``rows`` rows; notes on odd labels.

    Raises what loading the model raises, and DataError where no pair can be used.
    """
    assert question.model is not None
    policy = load(question.model, revision=question.revision)
    generation = policy.causal_lm.generation_config
    encoder = build_encoder(policy.tokenizer, generation, question.template, question.today)
    pairs, origins = _sampled(question, encoder, rows)
    ready = make_ready(policy)
    column = _scores(ready, [answer for pair in pairs for answer in answers_of(pair)])
    means = np.array([[_mean(column, answer) for answer in answers_of(pair)] for pair in pairs])
    gap = means[:, 0] - means[:, 1]
    prompts = np.unique([str(pair.prompt) for pair in pairs], return_inverse=True)[1]
    odd = _odd(gap)
    findings = [
        Finding(
            "noise",
            "note",
            pairs[index].source,
            None,
            f"the model finds rejected likelier by {-gap[index]:.2f} nats a token "
            f"(median {np.median(gap):+.2f})",
            "read this row; hard is not the same as wrong",
        )
        for index in odd
    ]
    view = ReferenceView(
        pairs=len(pairs),
        prefers_chosen=share(np.where(gap == 0, 0.5, gap > 0), prompts),
        chosen=float(means[:, 0].mean()),
        rejected=float(means[:, 1].mean()),
        own=_own(ready, encoder, question, rows),
        suspects=dict(Counter(origins[pairs[index].source] or "unnamed" for index in odd)),
    )
    return view, findings


def _even_rows(question: Question, rows: int, count: int) -> Iterator[Counted]:
    step = max(1, rows // count)
    _, counted = open_rows(open_data(question.data), question.reading)
    yield from islice(counted, 0, None, step)


def _pairs(question: Question, rows: int, count: int) -> Iterator[Pair]:
    """Up to ``count`` pairs, evenly out of all rows."""
    form, _ = open_rows(open_data(question.data), question.reading)
    task = Task(form, question.reading.ranking, keep_pairs=True)
    chosen = _even_rows(question, rows, count)
    left = count
    while left > 0 and (batch := list(islice(chosen, BATCH))):
        found = [pair for pair in work(task, batch).pairs if isinstance(pair, Pair)][:left]
        left -= len(found)
        yield from found


def _sampled(
    question: Question, encoder: Encoder, rows: int
) -> tuple[list[TokenPair], dict[str, str | None]]:
    pairs = list(_pairs(question, rows, question.score))
    encoded, _ = encode_pairs(encoder, pairs)
    if not encoded:
        hint = "look at the findings; labelled answers are not scored"
        raise DataError("no pair can be scored", where=str(question.data), hint=hint)
    return encoded, {pair.source: pair.origin for pair in pairs}


def _scores(ready: Ready, answers: Sequence[Scored]) -> Column:
    identity = reference_identity(ready, base_only=False)
    return cached_column(ready, identity, set(answers), TOKENS_PER_PASS, base_only=False)


def _mean(column: Column, answer: Scored) -> float:
    return column.answer_logp(answer) / answer.num_scored


def _odd(gap: np.ndarray) -> list[int]:
    """Pairs in which the model prefers the rejected answer far more than is usual here."""
    if len(gap) < FEWEST:
        return []
    middle = np.median(gap)
    spread = 1.4826 * np.median(np.abs(gap - middle))
    return np.flatnonzero((gap < 0) & (gap < middle - FAR * spread)).tolist()


def _own(ready: Ready, encoder: Encoder, question: Question, rows: int) -> float | None:
    """The mean log-prob of a token of answers that the model samples itself."""
    prompts = [pair.prompt for pair in _pairs(question, rows, OWN)]
    drawn = sample(
        ready.policy.model,
        ready.policy.tokenizer,
        prompts,
        max_new_tokens=OWN_TOKENS,
        seed=0,
    )
    pairs = []
    for prompt, answer in zip(prompts, drawn, strict=True):
        with suppress(DataError):  # nothing was said, or a character that no row may hold
            ids, own = encode_answer(encoder, prompt, answer.text, stop=answer.stopped)
            pairs.append(TokenPair(ids, own, own, "own"))
    if not pairs:
        return None
    answers = [answers_of(pair)[0] for pair in pairs]
    column = _scores(ready, answers)
    return float(np.mean([_mean(column, answer) for answer in answers]))
