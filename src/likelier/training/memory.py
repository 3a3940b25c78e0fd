"""What training will take of memory and arithmetic, and the `auto`s of a config decided from it.

Where a batch does not fit all the same, `training.step.gradients_that_fit` cuts it smaller.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from likelier.base.terminal import say
from likelier.batching.batch import Batch, Scored, completions_of, lay_out
from likelier.batching.pack import tokens_of
from likelier.config import Config, resolved
from likelier.data.records import TokenPair
from likelier.model.frozen import dtype_name, is_half
from likelier.model.limits import sizes
from likelier.model.policy import Policy
from likelier.model.quantise import bytes_of, numbers_of
from likelier.model.recompute import can_checkpoint, checkpoint_layers
from likelier.training.adamw8bit import bytes_of_averages

_USABLE_SHARE = 0.8  # the rest goes to pieces between tensors, and to what is not counted
_LEAST_TOKENS = 256
# Where products reach their full speed and a larger batch only takes more memory.
_ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384}
_PROBED_TOKENS = 16, 48


@dataclass(frozen=True)
class Memory:
    """Bytes: ``total`` there are, ``fixed`` for weights, masters, gradients and AdamW's
    averages, ``per_token`` for what a token of a batch keeps for the backward."""

    total: int
    fixed: int
    per_token: int

    def needs(self, tokens: int) -> int:
        """Bytes of a step whose largest batch holds so many tokens."""
        return self.fixed + tokens * self.per_token

    @property
    def usable(self) -> int:
        """Bytes that training may take."""
        return int(_USABLE_SHARE * self.total)


def memory_of(policy: Policy, optimizer: str = "adamw") -> Memory:
    """Count what is saved for the backward on two tiny batches: exact, and the same every time.

    ``optimizer`` is what ``optim.kind`` says.
    """
    fixed = 0
    for parameter in policy.model.parameters():
        fixed += bytes_of(parameter)
        if parameter.requires_grad:
            # A float32 gradient, and a master where the weight is not one.
            fixed += (8 if is_half(parameter.dtype) else 4) * parameter.numel()
            fixed += bytes_of_averages(parameter.numel(), optimizer)
    short, long = _PROBED_TOKENS
    long = min(long, sizes(policy.causal_lm)["positions"] or long)
    per_token = (_saved_by(policy, long) - _saved_by(policy, short)) // (long - short)
    return Memory(device_memory(policy.device), fixed, max(1, per_token))


def tokens_per_batch(memory: Memory, device: torch.device) -> int:
    """A power of two that fits, and no more than the device needs for its full speed."""
    fitting = (memory.usable - memory.fixed) // memory.per_token
    largest = 1 << fitting.bit_length() - 1 if fitting > 0 else 0
    return max(_LEAST_TOKENS, min(_ENOUGH_TOKENS.get(device.type, _ENOUGH_TOKENS["cpu"]), largest))


def tokens_for(config: Config, policy: Policy, memory: Memory | None = None) -> int:
    """The tokens of a batch that a config asks for, or those that are right for this model.

    ``memory`` is what `memory_of` says, where it was asked already.
    """
    wanted = config.train.tokens_per_batch
    if wanted != "auto":
        return wanted
    return tokens_per_batch(memory or memory_of(policy, config.optim.kind), policy.device)


def checkpoint_if_needed(
    config: Config, policy: Policy, pairs: Sequence[TokenPair]
) -> tuple[str, Memory | None]:
    """What ``train.checkpointing`` means for some pairs; a model that needs it is told to.

    ``auto`` is ``layers`` where memory does not hold a batch of the longest pair alone without.
    The second value is what `memory_of` says then, where it had to be asked.
    """
    model, backend = policy.causal_lm, policy.backend
    if config.train.checkpointing != "auto":
        return config.train.checkpointing, None
    memory = memory_of(policy, config.optim.kind)
    longest = max((tokens_of(completions_of(pair), backend) for pair in pairs), default=0)
    if memory.needs(longest) <= memory.usable or not can_checkpoint(model):
        return "none", memory
    checkpoint_layers(model)
    needed, usable = (size / 2**30 for size in (memory.needs(longest), memory.usable))
    say(
        f"train.checkpointing: layers, because the longest pair ({longest:,} tokens) needs "
        f"{needed:.1f} GiB without it, and training may take {usable:.1f}"
    )
    return "layers", None


def without_autos(
    config: Config,
    policy: Policy,
    pairs: Sequence[TokenPair],
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config with every ``auto`` decided, as ``config.yaml`` of a run holds it.

    ``before`` is what was decided when a run began that now resumes: that stays.
    """
    if before is not None:
        if before["train"]["checkpointing"] == "layers":
            checkpoint_layers(policy.causal_lm)
        return before
    dtype = dtype_name(policy.dtype)
    checkpointing, memory = checkpoint_if_needed(config, policy, pairs)
    return resolved(
        config,
        dtype=dtype,
        save_dtype="auto" if policy.has_adapter else dtype,
        checkpointing=checkpointing,
        tokens_per_batch=tokens_for(config, policy, memory),
    )


def bytes_saved(policy: Policy, batch: Batch) -> int:
    """Bytes that a forward over a batch keeps for the backward, each storage once, no weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
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
        policy.running() as scorer,
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        scorer(batch)
    return sum(saved.values())


def _saved_by(policy: Policy, tokens: int) -> int:
    """`bytes_saved` of one sequence of so many tokens, the second half of it scored."""
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    ids = tuple(token % vocabulary for token in range(tokens + 1))
    scored = Scored(ids, (False,) * (tokens // 2) + (True,) * (len(ids) - tokens // 2))
    return bytes_saved(policy, lay_out([scored], policy.backend).to(policy.device))


def device_memory(device: torch.device) -> int:
    """Bytes there are: of the GPU, what is free or holds this process's tensors already; else the
    memory of this machine.
    """
    if device.type == "cuda":  # other processes may use it, too
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def operations_of(batch: Batch, model: PreTrainedModel) -> dict[str, float]:
    """Operations of a forward over a batch, by what needs them; a backward needs twice as many.

    A weight of a layer takes two for every token, a weight of the head two for every predicting
    position. Attention is counted over the pairs of tokens that the layout allows, as if there
    were no sliding window. The embedding and everything elementwise count as nothing.
    """
    config = model.config.get_text_config()
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    weights = sum(
        numbers_of(p)
        for p in model.parameters()
        if p.ndim >= 2 and id(p) not in embeddings and id(p) not in head
    )
    allowed = int((batch.depth_BL + 1).sum())  # a token sees its ancestors and itself
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = size * config.num_attention_heads
    return {
        "layers": 2.0 * batch.num_tokens * weights,
        "head": 2.0 * len(batch.predict_N) * config.hidden_size * config.vocab_size,
        "attention": 2.0 * 2 * allowed * width * config.num_hidden_layers,
    }
