"""An answer while it is generated: its text in whole characters as they come."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from likelier.base.child import asking
from likelier.chat.thinking import MARKERS
from likelier.chat.tokenizer import Encoder
from likelier.data.encode import decode
from likelier.generation.sample import Sample, decoding, decoding_by
from likelier.model.policy import Policy

UNFINISHED = "\ufffd"  # what decoding gives for the first bytes of a character


class TextOfTokens:
    """Tokens into text, one after the other. Control tokens are left out, but for those that open
    or close a thinking block.

    The new text is what a few tokens give together beyond what all but the last of them gave:
    a decoder may treat the first of a text in its own way.
    """

    def __init__(self, encoder: Encoder):
        markers = {encoder.whole.token_to_id(text) for both in MARKERS.items() for text in both}
        self._decoder, self._hidden = encoder.whole, encoder.control - markers
        self._unknown = encoder.unknown
        self._shown: list[int] = []  # whose text is out, as far back as the next ones need them
        self._waiting: list[int] = []  # that end within a character

    def add(self, token: int) -> str:
        """The text that a token finishes; empty while a character is not whole."""
        if token in self._hidden or token == self._unknown:
            return ""
        self._waiting.append(token)
        before = decode(self._decoder, self._shown)
        text = decode(self._decoder, self._shown + self._waiting)
        if len(text) <= len(before) or text.endswith(UNFINISHED):
            return ""
        self._shown, self._waiting = self._waiting, []
        return text[len(before) :]


def stream(
    policy: Policy,
    encoder: Encoder,
    prompt: tuple[int, ...],
    show: Callable[[str], object],
    stop: Callable[[], bool],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Sample:
    """One answer to an encoded prompt; ``show`` is given every piece of its text as it comes.

    ``stop`` is asked after each token whether to break off. The text of the answer is what was
    shown: the bytes of a character that was not finished are no part of it. What is decoded by
    and what stays as it was is said of `sample`.

    Raises ConfigError for impossible settings, DataError where the tokenizer takes too much time.
    """
    ends = set(encoder.end_ids.values())
    settings = decoding(temperature, max_new_tokens, sorted(ends))
    text: list[str] = []
    tokens: list[int] = []
    ended = broken_off = False

    def hear(ids_BL: Tensor, *_: object, **__: object) -> Tensor:
        """Called after each token, as what decides whether to stop; perhaps once too often."""
        nonlocal ended, broken_off
        if not (ended or broken_off):
            token = int(ids_BL[0, -1])
            ended = token in ends
            if not ended:
                tokens.append(token)
                text.append(text_of(token))
                show(text[-1])
            broken_off = stop()
        return torch.full((1,), ended or broken_off, device=ids_BL.device)

    generate: Any = policy.causal_lm.generate
    with (
        asking(TextOfTokens(encoder).add) as text_of,
        decoding_by(policy, encoder, settings, seed),
    ):
        ids_BL = torch.tensor([prompt], device=policy.device)
        whole = torch.ones_like(ids_BL)
        generate(ids_BL, attention_mask=whole, stopping_criteria=StoppingCriteriaList([hear]))
    return Sample("".join(text), stopped=ended, tokens=tuple(tokens))
