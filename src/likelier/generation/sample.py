"""Sampling answers: every decoding setting explicit, nothing of the model or of torch changed."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.child import in_child
from likelier.base.errors import ConfigError
from likelier.chat.messages import Message
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import decode, encode_prompt
from likelier.model.policy import Policy


@dataclass(frozen=True)
class Sample:
    """One answer: its text, and its tokens without the one that ended it.

    ``stopped`` is whether it ended with a stop token rather than at the limit; ``end`` is that
    token, None where it is not known.
    """

    text: str
    stopped: bool
    tokens: tuple[int, ...] = ()
    end: int | None = None

    @property
    def repetition(self) -> float:
        """The share of runs of four tokens that stood in the answer before (seq-rep-4 of
        Welleck et al. 2020, equation 8); 0 where it has fewer than four.
        """
        runs = [self.tokens[at : at + 4] for at in range(len(self.tokens) - 3)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


def decoding(temperature: float, max_new_tokens: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """The settings of `sample`, to be written down beside what was sampled.

    Nothing is cut off the distribution (``top_k`` 0, ``top_p`` 1); temperature 0 is greedy.

    Raises ConfigError where a number makes no sense.
    """
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"{temperature} is no temperature", where="temperature", hint="0 or more")
    if max_new_tokens < 1:
        raise ConfigError(f"{max_new_tokens} is too few", where="max_new_tokens", hint="1 or more")
    drawn = {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0}
    return {
        **(drawn if temperature > 0 else {"do_sample": False}),
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(end_ids),
    }


def sample(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[Message]],
    *,
    temperature: float = 1.0,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 128,
) -> list[Sample]:
    """One answer to each prompt, in their order, without special tokens.

    A prompt of messages goes through the chat template with the header of the assistant's turn;
    text is continued as it is. Both become the very tokens that training sees. An answer ends at
    any end id of the generation config or tokenizer. The same seed and batch size give the same
    answers; torch's own random state, the model's mode and its generation config are as before.

    Raises DataError where a prompt cannot be encoded, ConfigError for impossible settings.
    """
    if batch_size < 1:
        raise ConfigError(f"{batch_size} is too few", where="batch_size", hint="1 or more")
    policy = Policy(model, tokenizer)
    encoder = policy.encoder()
    settings = decoding(temperature, max_new_tokens, sorted(encoder.end_ids.values()))
    ids = in_child(_encoded, encoder, prompts)
    samples: list[Sample] = []
    with decoding_by(policy, encoder, settings, seed):
        for start in range(0, len(ids), batch_size):
            samples += sample_batch(policy, encoder, ids[start : start + batch_size])
    return samples


def seed_at(seed: int, place: int) -> int:
    """The seed of one answer or batch among many, from its place alone."""
    return random.Random(f"sample {seed} {place}").getrandbits(32)


def sample_batch(
    policy: Policy, encoder: Encoder, prompts: Sequence[tuple[int, ...]]
) -> list[Sample]:
    """One answer to each encoded prompt, all at once; inside `decoding_by`."""
    return in_child(read_answers, encoder, generate_batch(policy, prompts))


def generate_batch(
    policy: Policy, prompts: Sequence[tuple[int, ...]], likeliest: int = 0
) -> list[list[int]]:
    """New tokens after each encoded prompt, padded behind their end; inside `decoding_by`.

    The first ``likeliest`` prompts are answered greedily, whatever those settings draw.
    """
    longest = max(map(len, prompts))
    pad: Any = policy.causal_lm.generation_config.pad_token_id
    tokens_BL = torch.full((len(prompts), longest), pad)
    keep_BL = torch.zeros_like(tokens_BL)
    for row, prompt in enumerate(prompts):  # on the left, so that every answer begins at the edge
        tokens_BL[row, longest - len(prompt) :] = torch.tensor(prompt)
        keep_BL[row, longest - len(prompt) :] = 1

    def leave_the_likeliest(_: Tensor, logits_BV: Tensor) -> Tensor:
        best_R1 = logits_BV[:likeliest].argmax(dim=-1, keepdim=True)
        only_RV = torch.full_like(logits_BV[:likeliest], -torch.inf).scatter_(1, best_R1, 0.0)
        return torch.cat([only_RV, logits_BV[likeliest:]])

    generate: Any = policy.causal_lm.generate  # with any adapters, which are inside its layers
    whole_BL = generate(
        tokens_BL.to(policy.device), attention_mask=keep_BL.to(policy.device),
        logits_processor=[leave_the_likeliest] if likeliest else None,
    )  # fmt: skip
    answers: list[list[int]] = whole_BL[:, longest:].tolist()
    return answers


def _encoded(encoder: Encoder, prompts: Sequence[str | Sequence[Message]]) -> list[tuple[int, ...]]:
    return [encode_prompt(encoder, prompt) for prompt in prompts]


def read_answers(encoder: Encoder, answers: Sequence[list[int]]) -> list[Sample]:
    """The answers that new tokens are; in a child, because tokenizers are strangers' code."""
    ends = set(encoder.end_ids.values())
    samples = []
    for tokens in answers:
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        text = decode(encoder.whole, tokens[:length], skip_special_tokens=True)
        stopped = length < len(tokens)
        end = tokens[length] if stopped else None
        samples.append(Sample(text, stopped, tuple(tokens[:length]), end))
    return samples


@contextmanager
def decoding_by(
    policy: Policy, encoder: Encoder, settings: Mapping[str, Any], seed: int
) -> Iterator[None]:
    """Generate by ``settings`` and nothing else, in eval mode, from ``seed`` on.

    The model's own generation config is taken away for the time: transformers fills in from it
    what ours leaves open (a repetition penalty, say), so that samples would depend on it unseen.
    """
    model, pad = policy.causal_lm, policy.tokenizer.pad_token_id
    before = model.generation_config
    training = [module for module in model.modules() if module.training]
    pad = encoder.stop if pad is None else pad
    model.generation_config = GenerationConfig(**settings, pad_token_id=pad)
    model.eval()
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        model.generation_config = before
        for module in training:
            module.training = True
