"""What a model prefers among the pairs before any training, and how likely its own answers are."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from likelier.base.child import in_child
from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.batching.batch import Scored, completions_of
from likelier.chat.tokenizer import Encoder
from likelier.checks.examine import Question
from likelier.checks.rules import finding
from likelier.checks.shortcuts import estimate
from likelier.checks.summary import Examination, ModelView, Tally
from likelier.data.encode import encode_completion, encode_pairs
from likelier.data.records import Pair, TokenPair
from likelier.data.shapes import recognised
from likelier.data.sources import read_data
from likelier.data.workers import Task, process_rows
from likelier.generation.sample import Sample, sample
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.reference.cache import cached_reference

TOKENS_PER_BATCH = 2048
NUM_OWN = 16  # prompts that the model answers itself
MAX_OWN_TOKENS = 64  # of such an answer
MAX_DEVIATIONS = 3.5  # robust standard deviations under the median: a label to look at
MIN_PAIRS = 20  # of fewer none stands out


def add_model_view(found: Examination, question: Question) -> Examination:
    """The examination with scores of an even sample of ``question.score`` pairs, and notes on odd
    labels.

    Raises what loading the model raises, and DataError where no pair can be used.
    """
    encoder = question.encoder
    assert question.model is not None and encoder is not None
    scored, answered = _samples(question, found.rows, (question.score, NUM_OWN))
    pairs, _ = in_child(encode_pairs, encoder, scored)
    if not pairs:
        hint = "look at the findings; unpaired examples are not scored"
        raise DataError("no pair can be scored", where=str(question.data), hint=hint)
    policy = load(question.model, revision=question.revision, frozen=True)
    means = _means(policy, [one for pair in pairs for one in completions_of(pair)]).reshape(-1, 2)
    gap = means[:, 0] - means[:, 1]
    prompts = np.unique([str(pair.prompt) for pair in pairs], return_inverse=True)[1]
    odd = _odd(gap)
    origins = {pair.source: pair.origin or "unnamed" for pair in scored}
    view = ModelView(
        pairs=len(pairs),
        prefers_chosen=estimate(np.where(gap == 0, 0.5, gap > 0), prompts),
        chosen=float(means[:, 0].mean()),
        rejected=float(means[:, 1].mean()),
        own=_own(policy, encoder, answered),
        suspects=dict(Counter(origins[pairs[index].source] for index in odd)),
    )
    tally = Tally()
    tally.add(_noise(pairs[index].source, gap[index], np.median(gap)) for index in odd)
    return replace(found, kinds=(*found.kinds, *tally.kinds()), model_view=view)


def _samples(question: Question, num_rows: int, counts: Sequence[int]) -> list[list[Pair]]:
    """For each of ``counts`` up to so many pairs, evenly out of all rows, in one reading."""
    form, rows = recognised(read_data(question.data), question.format)
    task = Task(form, keep_pairs=True)
    steps = [max(1, num_rows // count) for count in counts]
    kept = [
        (number, row)
        for number, row in enumerate(rows)
        if any(number % step == 0 for step in steps)
    ]
    found = []
    for count, step in zip(counts, steps, strict=True):
        pairs = process_rows(task, [row for number, row in kept if number % step == 0]).pairs
        found.append([pair for pair in pairs if pair.label is None][:count])
    return found


def _means(policy: Policy, answers: Sequence[Scored]) -> np.ndarray:
    """(n,): the mean log-prob of a scored token of each answer."""
    scores = cached_reference(policy, set(answers), TOKENS_PER_BATCH)
    return np.array([scores.completion_logp(answer) / answer.num_scored for answer in answers])


def _noise(source: str, gap: float, median: float) -> Finding:
    message = f"the model finds rejected likelier by {-gap:.2f} nats a token (median {median:+.2f})"
    return finding("noise", source, message)


def _odd(gap: np.ndarray) -> list[int]:
    """Pairs in which the model prefers the rejected answer far more than is usual here."""
    if len(gap) < MIN_PAIRS:
        return []
    middle = np.median(gap)
    spread = 1.4826 * np.median(np.abs(gap - middle))
    return np.flatnonzero((gap < 0) & (gap < middle - MAX_DEVIATIONS * spread)).tolist()


def _own(policy: Policy, encoder: Encoder, asked: Sequence[Pair]) -> float | None:
    """The mean log-prob a token of answers that the model samples itself; None without any."""
    prompts = [pair.prompt for pair in asked]
    drawn = sample(policy.model, policy.tokenizer, prompts, max_new_tokens=MAX_OWN_TOKENS, seed=0)
    pairs = in_child(_answered, encoder, prompts, drawn)
    return (
        float(_means(policy, [completions_of(pair)[0] for pair in pairs]).mean()) if pairs else None
    )


def _answered(encoder: Encoder, prompts: Sequence[Any], drawn: Sequence[Sample]) -> list[TokenPair]:
    """The sampled answers behind their prompts as tokens, those that can be."""
    pairs = []
    for prompt, answer in zip(prompts, drawn, strict=True):
        with suppress(DataError):  # nothing was said, or a character that no row may hold
            ids, own = encode_completion(encoder, prompt, answer.text, stop=answer.stopped)
            pairs.append(TokenPair(ids, own, own, "own"))
    return pairs
