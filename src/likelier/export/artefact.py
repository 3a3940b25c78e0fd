"""A model as whoever runs it sees it: a folder, a GGUF file or a server, each asked the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from likelier.base.child import in_child
from likelier.base.errors import DataError
from likelier.batching.batch import Scored
from likelier.chat.messages import Message
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_prompt
from likelier.generation.sample import Sample, decoding, decoding_by, sample_batch
from likelier.model.policy import Policy
from likelier.reference.cache import cached_reference, completion_key
from likelier.training.memory import memory_of, tokens_per_batch

Prompt = str | Sequence[Message]
Answers = Callable[[Sequence[Prompt | None], Sequence[tuple[int, ...]], int], list[Sample]]


@dataclass(frozen=True)
class Artefact:
    """What an artefact can be asked; None is what it cannot, and is then not compared.

    ``kind`` is what it is, in words. ``logps`` gives the log-probs, in nats, of the scored tokens
    of a sequence of ids. ``prompt_ids`` are the ids that it makes of prompts by its own template
    and tokenizer. ``ends_at`` says whether a token ends its answers. ``answers`` are greedy, to
    prompts as they were read (None: not known), their ids, of so many tokens at most; where it
    tells no ids, its samples have none. ``most_tokens`` it scores in a reasonable time; None: all.
    """

    kind: str
    logps: Callable[[Sequence[Scored]], list[np.ndarray]] | None = None
    prompt_ids: Callable[[Sequence[Prompt]], list[tuple[int, ...]]] | None = None
    ends_at: Callable[[int], bool] | None = None
    answers: Answers | None = None
    most_tokens: int | None = None


def of_policy(policy: Policy, encoder: Encoder, kind: str) -> Artefact:
    """A model in this process."""

    def logps(sequences: Sequence[Scored]) -> list[np.ndarray]:
        budget = tokens_per_batch(memory_of(policy), policy.device)
        stored = cached_reference(policy, set(sequences), budget).values
        return [stored[completion_key(one)].double().numpy() for one in sequences]

    def prompt_ids(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        try:
            return in_child(lambda: [_ids(encoder, prompt) for prompt in prompts])
        except DataError:  # a template that kills: which prompts it does so at is not told
            return [()] * len(prompts)

    def answers(_: object, prompts: Sequence[tuple[int, ...]], most: int) -> list[Sample]:
        settings = decoding(0, most, sorted(encoder.end_ids.values()))
        with decoding_by(policy, encoder, settings, seed=0):
            return sample_batch(policy, encoder, prompts)

    return Artefact(
        kind,
        logps,
        prompt_ids,
        ends_at=lambda token: token in encoder.end_ids.values(),
        answers=answers,
    )


def _ids(encoder: Encoder, prompt: Prompt) -> tuple[int, ...]:
    try:
        return encode_prompt(encoder, prompt)
    except DataError:  # no template, or one that refuses this chat: none of the ids are there
        return ()
