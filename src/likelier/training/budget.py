"""What training takes of the memory, counted on the model itself, and what a pass may hold."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from likelier.batching.layout import Pass, Scored
from likelier.batching.pack import layout
from likelier.config import Config
from likelier.model.score import Ready

_SHARE = 0.8  # of all memory there is, not of what is free now: the same every time
_LEAST = 256
# Where products reach their full speed and a larger pass only takes more memory.
_ENOUGH = {"cpu": 2048, "cuda": 16384}
_PROBE = 16, 48  # tokens: within every model's positions


@dataclass(frozen=True)
class Memory:
    """Bytes: ``total`` of the device, ``fixed`` for weights, masters, gradients and AdamW's
    averages, ``per_token`` what a token of a pass keeps for the backward."""

    total: int
    fixed: int
    per_token: int

    def needs(self, tokens: int) -> int:
        """Bytes of a step whose largest pass holds so many tokens."""
        return self.fixed + tokens * self.per_token

    @property
    def usable(self) -> int:
        """Bytes that training may take."""
        return int(_SHARE * self.total)


def memory_of(ready: Ready) -> Memory:
    """Count what is saved for the backward on two tiny passes: exact, and the same every time."""
    fixed = 0
    for parameter in ready.policy.model.parameters():
        fixed += parameter.nbytes
        if parameter.requires_grad:
            half = parameter.dtype in (torch.bfloat16, torch.float16)
            # A float32 gradient and two averages, and a master where the weight is not one.
            fixed += (16 if half else 12) * parameter.numel()
    short, long = _PROBE
    per_token = (_saved_by(ready, long) - _saved_by(ready, short)) // (long - short)
    return Memory(_memory(ready.policy.device), fixed, max(1, per_token))


def tokens_per_batch(memory: Memory, device: torch.device) -> int:
    """A power of two that fits, and no more than the device needs for its full speed."""
    fitting = (memory.usable - memory.fixed) // memory.per_token
    largest = 1 << fitting.bit_length() - 1 if fitting > 0 else 0
    return max(_LEAST, min(_ENOUGH.get(device.type, _ENOUGH["cpu"]), largest))


def settled(config: Config, ready: Ready, memory: Memory | None = None) -> int:
    """The tokens of a pass that a config asks for, or those that are right for this model.

    ``memory`` is what `memory_of` says, where it was asked already.
    """
    wanted = config.train.tokens_per_batch
    if wanted != "auto":
        return wanted
    return tokens_per_batch(memory or memory_of(ready), ready.policy.device)


def bytes_saved(ready: Ready, batch: Pass) -> int:
    """Bytes that a forward over a pass keeps for the backward, each storage once, no weights."""
    weights = {p.untyped_storage().data_ptr() for p in ready.policy.model.parameters()}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no two share an address

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with (
        torch.enable_grad(),
        ready.running() as scorer,
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        scorer(batch)
    return sum(saved.values())


def _saved_by(ready: Ready, tokens: int) -> int:
    """The same of one sequence of so many tokens, the second half of it scored."""
    vocabulary = ready.policy.causal_lm.config.get_text_config().vocab_size
    ids = tuple(token % vocabulary for token in range(tokens + 1))
    scored = Scored(ids, (False,) * (tokens // 2) + (True,) * (len(ids) - tokens // 2))
    return bytes_saved(ready, layout(ready.backend)([scored]).to(ready.policy.device))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
