"""A model as whoever runs it sees it: a folder, a GGUF file or a server, each asked the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from likelier.base.child import in_child
from likelier.batching.batch import Scored
from likelier.chat.messages import Message
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import encode_prompt
from likelier.generation.sample import decoding, decoding_by, sample_batch
from likelier.model.policy import Policy
from likelier.reference.cache import cached_reference, completion_key
from likelier.training.memory import memory_of, tokens_per_batch

Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Asked:
    """A prompt that is to be answered: as it was read (None: not known), and its ids."""

    prompt: Prompt | None
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What was said greedily, whether it ended by itself, and its token ids (None: not known)."""

    text: str
    stopped: bool
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Artefact:
    """What an artefact can be asked; None is what it cannot, and is then not compared.

    ``kind`` is what it is, in words. ``logps`` gives the log-probs, in nats, of the scored tokens
    of a sequence of ids. ``prompt_ids`` are the ids that it makes of a prompt by its own template
    and tokenizer. ``ends_at`` says whether a token ends its answers. ``answer`` is greedy and takes
    the most tokens of an answer. ``most_tokens`` it scores in a reasonable time; None: all.
    """

    kind: str
    logps: Callable[[Sequence[Scored]], list[np.ndarray]] | None = None
    prompt_ids: Callable[[Prompt], tuple[int, ...]] | None = None
    ends_at: Callable[[int], bool] | None = None
    answer: Callable[[Asked, int], Answer] | None = None
    most_tokens: int | None = None


def of_policy(policy: Policy, encoder: Encoder, kind: str) -> Artefact:
    """A model in this process."""

    def logps(sequences: Sequence[Scored]) -> list[np.ndarray]:
        budget = tokens_per_batch(memory_of(policy), policy.device)
        stored = cached_reference(policy, set(sequences), budget).values
        return [stored[completion_key(one)].double().numpy() for one in sequences]

    def answer(asked: Asked, most: int) -> Answer:
        settings = decoding(0, most, sorted(encoder.end_ids.values()))
        with decoding_by(policy, encoder, settings, seed=0):
            said = sample_batch(policy, encoder, [asked.ids])[0]
        return Answer(said.text, said.stopped, said.tokens)

    return Artefact(
        kind,
        logps,
        prompt_ids=lambda prompt: in_child(encode_prompt, encoder, prompt),
        ends_at=lambda token: token in encoder.end_ids.values(),
        answer=answer,
    )
