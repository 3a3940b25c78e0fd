"""What training will take of memory and arithmetic, and the `auto`s of a config decided from it.

Where a batch does not fit all the same, `training.step.gradients_that_fit` cuts it smaller.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from likelier.base.child import signals_wait
from likelier.base.environment import multiplies_bfloat16
from likelier.base.errors import ConfigError
from likelier.base.model_folder import numbers_in
from likelier.base.terminal import say
from likelier.batching.batch import Batch, Scored, completions_of, lay_out
from likelier.batching.pack import tokens_of
from likelier.config import Config, resolved
from likelier.data.records import TokenPair
from likelier.model.attention.cpu import Block
from likelier.model.frozen import dtype_name, is_half
from likelier.model.limits import sizes
from likelier.model.logprob import Head, default_chunk
from likelier.model.policy import Policy
from likelier.model.quantise import bytes_of, numbers_of
from likelier.model.recompute import can_checkpoint, checkpoint_layers
from likelier.model.stream import in_file, layers_of, streamed_weights
from likelier.model.team import Team
from likelier.training.adamw8bit import AT_ONCE, bytes_of_averages

_USABLE_SHARE = 0.8  # the rest goes to pieces between tensors, and to what is not counted
_LEAST_TOKENS = 256
# Where products reach their full speed and a larger batch only takes more memory.
_ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384}
_ENOUGH_TO_GATHER = 2048  # computed, not measured: docs/scaling.md
_PROBED_TOKENS = 16, 48
# Of a number of a model: weight, master, gradient and AdamW's two averages; or a frozen weight.
_BYTES_TRAINED, _BYTES_FROZEN = 18, 2
_BYTES_UNPACKED = 20  # of a number whose averages are packed again, at most AT_ONCE of them


@dataclass(frozen=True)
class Memory:
    """Bytes: ``total`` there are, ``fixed`` for weights, masters, gradients and AdamW's
    averages, ``per_token`` for what a token of a batch keeps for the backward, ``head`` for the
    logits of one chunk and the gradient of a head that is trained."""

    total: int
    fixed: int
    per_token: int
    head: int = 0

    def needs(self, tokens: int) -> int:
        """Bytes of a step whose largest batch holds so many tokens."""
        return self.fixed + self.head + tokens * self.per_token

    @property
    def usable(self) -> int:
        """Bytes that training may take."""
        return int(_USABLE_SHARE * self.total)


def mode_of(config: Config, team: Team, is_given: bool = False) -> str:
    """How processes share a model: ``replicate``, ``shard`` or ``hybrid``, as ``parallel.mode``
    says or the size of a local model folder suggests. A model that ``is_given`` stays whole.

    Raises ConfigError where it is not to.
    """
    wanted, folder = config.parallel.mode, Path(config.model.path)
    if is_given and wanted in ("shard", "hybrid"):
        what, hint = "a model that is handed over stays whole", "write parallel.mode: replicate"
        raise ConfigError(what, where="parallel.mode", hint=hint)
    if team.size == 1:
        return "replicate"
    team.must_agree(**{"parallel.mode": wanted})
    of_machines = set(team.gathered(team.local_size))
    if wanted == "hybrid" and len(of_machines) > 1:
        what = "machines with different numbers of processes cannot each hold the model in parts"
        hint = "start as many on each, or write parallel.mode: shard"
        raise ConfigError(what, where="parallel.mode", hint=hint)
    if wanted == "hybrid" and of_machines == {1}:
        return "replicate"  # the part of a machine is all of the model
    if wanted != "auto":
        return wanted
    if is_given or not can_be_cut(config) or not any(folder.glob("*.safetensors")):
        return "replicate"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable = _USABLE_SHARE * min(team.gathered(memory_of_process(device, team)))
    full = config.adapter.kind == "none"
    of_machine = team.local_size if len(of_machines) == 1 else 1
    return mode_by_size(numbers_in(folder), full, usable, team.size, of_machine)


def can_be_cut(config: Config) -> bool:
    """Whether a model may be held in parts: blocks of eight and four bits are not cut."""
    return config.model.quantise == "none" and config.optim.kind == "adamw"


def mode_by_size(numbers: int, full: bool, usable: float, processes: int, of_machine: int) -> str:
    """How processes share a model of so many numbers, of which ``usable`` bytes fit into each."""
    needed = numbers * (_BYTES_TRAINED if full else _BYTES_FROZEN)
    if needed <= usable:
        return "replicate"
    several = 1 < of_machine < processes
    return "hybrid" if several and needed <= usable * of_machine else "shard"


def memory_of_process(device: torch.device, team: Team) -> int:
    """Bytes there are for one process: of a GPU all, of a machine its share."""
    total = device_memory(device)
    return total if device.type == "cuda" else total // team.local_size


def memory_of(
    policy: Policy, optimizer: str = "adamw", card: int | None = None, shares: int = 1
) -> Memory:
    """Count what is saved for the backward on two tiny batches: exact, and the same every time.

    ``optimizer`` is what ``optim.kind`` says, ``card`` the bytes of a device that is not here;
    ``shares`` processes hold the model together, each a part, and two layers and what belongs to no
    layer whole.
    """
    fixed = sum(held(policy, optimizer, on_card=card is not None).values())
    if shares > 1:
        layers = [sum(map(bytes_of, m.parameters())) for m in layers_of(policy.causal_lm)]
        outside = sum(map(bytes_of, policy.model.parameters())) - sum(layers)
        fixed = fixed // shares + outside + 2 * max(layers, default=0)
    short, long = _PROBED_TOKENS
    long = min(long, sizes(policy.causal_lm)["positions"] or long)
    per_token = (_saved_by(policy, long) - _saved_by(policy, short)) // (long - short)
    total = memory_of_process(policy.device, policy.team) if card is None else card
    return Memory(total, fixed, max(1, per_token), _bytes_of_head(policy))


def held(policy: Policy, optimizer: str = "adamw", on_card: bool = False) -> dict[str, int]:
    """Bytes that training holds from its second step on, by what they are; ``on_card``: on a device
    that is not here, to which all weights are copied.

    Gradients are float32, and so are the masters of weights that are not.
    """
    parts = held_by(policy.model.parameters(), optimizer)
    return parts if on_card else parts | {"weights": _bytes_of_weights(policy)}


def held_by(parameters: Iterable[Tensor], optimizer: str) -> dict[str, int]:
    """`held` by some weights that all lie on the device; nothing is read of them."""
    weights = list(parameters)
    trained = [p for p in weights if p.requires_grad]
    return {
        "weights": sum(map(bytes_of, weights)),
        "masters": sum(4 * p.numel() for p in trained if is_half(p.dtype)),
        "averages": sum(bytes_of_averages(p.numel(), optimizer) for p in trained),
        "gradients": sum(4 * p.numel() for p in trained),
    }


def _bytes_of_weights(policy: Policy) -> int:
    """What weights take of the device. Those in files count for half of its memory at most: pages
    of files that find no room are taken back. Of those that are brought, two layers are there.
    """
    brought = streamed_weights(policy.model)
    stay = [p for p in policy.model.parameters() if id(p) not in brought]
    in_files = sum(p.nbytes for p in stay if in_file(p))
    layers = [
        sum(p.nbytes for p in layer.parameters() if id(p) in brought)
        for layer in (layers_of(policy.causal_lm) if brought else ())
    ]
    counted = min(in_files, device_memory(policy.device) // 2)
    return sum(map(bytes_of, stay)) - in_files + counted + 2 * max(layers, default=0)


def _bytes_of_head(policy: Policy) -> int:
    return bytes_of_head(policy.scorer.head(), policy.dtype)


def bytes_of_head(head: Head, dtype: torch.dtype) -> int:
    """What `likelier.model.logprob` makes at once, computing in a dtype: logits, and the gradient
    of a trained weight. Where a processor has no bfloat16 products their gradient is widened.
    """
    values, half = default_chunk(head) * len(head.weight), is_half(dtype)
    trained = head.weight.numel() if head.weight.requires_grad else 0
    here = head.weight.device.type
    widened = dtype == torch.bfloat16 and here == "cpu" and not multiplies_bfloat16(here)
    return (10 if widened else 6 if half else 4) * values + (6 if half else 4) * trained


def tokens_per_batch(memory: Memory, device: torch.device) -> int:
    """A power of two that fits, and no more than the device needs for its full speed."""
    fitting = (memory.usable - memory.fixed - memory.head) // memory.per_token
    largest = 1 << fitting.bit_length() - 1 if fitting > 0 else 0
    return max(_LEAST_TOKENS, min(_ENOUGH_TOKENS.get(device.type, _ENOUGH_TOKENS["cpu"]), largest))


def tokens_for(
    config: Config, policy: Policy, memory: Memory | None = None, device: torch.device | None = None
) -> int:
    """The tokens of a batch that a config asks for, or those that are right for this model.

    ``memory`` is what `memory_of` says, where it was asked already; ``device`` one that is not
    the policy's.
    """
    wanted = config.train.tokens_per_batch
    if wanted != "auto":
        return wanted
    memory = memory or memory_of(policy, config.optim.kind)
    return tokens_per_batch(memory, device or policy.device)


def checkpoint_if_needed(
    config: Config,
    policy: Policy,
    pairs: Sequence[TokenPair],
    card: int | None = None,
    shares: int = 1,
) -> tuple[str, Memory | None]:
    """What ``train.checkpointing`` means for some pairs; a model that needs it is told to.

    ``auto`` is ``layers`` where memory does not hold a batch of the longest pair alone without.
    The second value is what `memory_of` says then, where it had to be asked. ``card`` are the
    bytes of a device that is not here, ``shares`` as `memory_of` has it.
    """
    model, backend = policy.causal_lm, policy.backend
    if config.train.checkpointing != "auto":
        return config.train.checkpointing, None
    memory = memory_of(policy, config.optim.kind, card, shares)
    longest = max((tokens_of(completions_of(pair), backend) for pair in pairs), default=0)
    longest = batch_to_hold(longest, shares)
    if memory.needs(longest) <= memory.usable or not can_checkpoint(model):
        return "none", memory
    checkpoint_layers(model)
    what = "the longest pair" if shares == 1 else "a batch"
    needed, usable = (size / 2**30 for size in (memory.needs(longest), memory.usable))
    say(
        f"train.checkpointing: layers, because {what} ({longest:,} tokens) needs "
        f"{needed:.1f} GiB without it, and training may take {usable:.1f}"
    )
    return "layers", None


def batch_to_hold(longest: int, shares: int) -> int:
    """Tokens that memory must hold at once: the longest pair, and where weights are gathered from
    ``shares`` processes for every batch enough to compute as long as that takes."""
    return longest if shares == 1 else max(longest, _ENOUGH_TO_GATHER)


def without_autos(
    config: Config,
    policy: Policy,
    pairs: Sequence[TokenPair],
    before: dict[str, Any] | None = None,
    mode: str = "replicate",
) -> dict[str, Any]:
    """The config with every ``auto`` decided, as ``config.yaml`` of a run holds it.

    ``before`` is what was decided when a run began that now resumes: that stays. Of a team the
    first process decides; ``mode`` is how they will share the model, which is still whole.
    """
    team = policy.team

    def decide() -> dict[str, Any]:
        shares = {"shard": team.size, "hybrid": team.local_size}.get(mode, 1)
        on_gpu = shares > 1 and torch.cuda.is_available()
        device = torch.device("cuda") if on_gpu else policy.device
        card = device_memory(device) if on_gpu else None
        checkpointing, memory = checkpoint_if_needed(config, policy, pairs, card, shares)
        if memory is None and config.train.tokens_per_batch == "auto":
            memory = memory_of(policy, config.optim.kind, card, shares)
        tokens = tokens_for(config, policy, memory, device)
        return decided(config, policy, checkpointing, tokens)

    settings = team.agreed(decide) if before is None else before
    if settings["train"]["checkpointing"] == "layers":
        checkpoint_layers(policy.causal_lm)
    return settings


def decided(config: Config, policy: Policy, checkpointing: str, tokens: int) -> dict[str, Any]:
    """The config with every ``auto`` replaced, by what the policy is and what memory allows."""
    dtype = dtype_name(policy.dtype)
    return resolved(
        config,
        dtype=dtype,
        save_dtype="auto" if policy.has_adapter else dtype,
        checkpointing=checkpointing,
        tokens_per_batch=tokens,
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


class _Alive(TorchDispatchMode):
    """Inside, the bytes of all tensors that are alive, each storage once, and the most so far.

    ``outside`` are tensors that do not count, nor do views of them.
    """

    def __init__(self, outside: Iterable[Tensor], held: int = 0):
        super().__init__()
        self.now = self.most = held
        self._bytes: Any = weakref.WeakKeyDictionary()
        for tensor in outside:
            self._bytes[tensor.untyped_storage()] = [0]

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operation itself; what it made is counted."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._bytes:
                storage = tensor.untyped_storage()
                counted = self._bytes[storage] = [storage.nbytes()]
                weakref.finalize(storage, self._end, counted)
                self._add(counted[0])
        return made

    def hand_over(self, tensor: Tensor, size: int) -> None:
        """A tensor counts as so many bytes from here on, for good."""
        counted = self._bytes.get(tensor.untyped_storage(), [0])
        self._end(counted)
        self._add(size)

    def _end(self, counted: list[int]) -> None:
        self._add(-counted[0])
        counted[0] = 0

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


class _OneBlock(dict[Any, Any]):
    """Attention of all tokens as one block: the many blocks of a tree hold as much, but each is an
    operation of its own, and counting an operation takes as long whatever its size."""

    def __init__(self, tokens: int):
        super().__init__()
        self._blocks = [Block((0, tokens), (0, tokens), causal=True)]

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: object) -> list[Block]:
        return self._blocks


def most_alive(
    policy: Policy, batch: Batch, *, backward: bool = True, adds: bool = False
) -> dict[str, int]:
    """Bytes that a batch takes beside the weights, without computing it: fake tensors have none.

    ``saved`` at the end of the forward, ``most`` at any time; of a ``backward`` that includes the
    gradients, which are there before where it ``adds`` to those of other batches.

    Raises RuntimeError where the architecture asks for the values of a tensor.
    """
    if batch.tree is not None:
        batch = replace(batch, tree=replace(batch.tree, memo=_OneBlock(batch.num_tokens)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trained = [p for p in policy.model.parameters() if p.requires_grad] if backward else []
    known = [*policy.model.parameters(), *policy.model.buffers()]
    known += [mode.from_tensor(tensor) for tensor in known]  # the mode holds them weakly
    alive = _Alive(known, sum(4 * p.numel() for p in trained) if adds else 0)

    def handed_over(parameter: Tensor) -> Callable[[Tensor], None]:
        size = 0 if adds else 4 * parameter.numel()
        return lambda grad: alive.hand_over(grad, size)

    with ExitStack() as stack:
        stack.enter_context(signals_wait())  # torch aborts where Ctrl-C comes inside what it calls
        for parameter in trained:
            stack.callback(parameter.register_hook(handed_over(parameter)).remove)
        scorer = stack.enter_context(policy.running())
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(mode)
        stack.enter_context(alive)
        logp_E = scorer(batch)
        saved = alive.now
        if backward:
            torch.autograd.grad(logp_E, trained, torch.ones_like(logp_E), allow_unused=True)
    return {"saved": saved, "most": alive.most}


def linear_in_tokens(
    policy: Policy, batch: Batch, *, backward: bool = True, adds: bool = False
) -> dict[str, int]:
    """`most_alive`, foretold from two tiny batches: for an architecture that cannot be counted so.

    What passes is the head alone.
    """
    memory, gradients = memory_of(policy), held(policy)["gradients"] if backward else 0
    saved = (memory.per_token * batch.num_tokens if backward else 0) + (gradients if adds else 0)
    return {"saved": saved, "most": saved + memory.head + (0 if adds else gradients)}


def bytes_of_update(trained: Iterable[Tensor], optimizer: str) -> int:
    """What an update takes beside all that is `held`: averages in eight bits are unpacked."""
    if optimizer != "adamw8bit":
        return 0
    return _BYTES_UNPACKED * min(AT_ONCE, max((p.numel() for p in trained), default=0))


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


@dataclass(frozen=True)
class Costs:
    """Operations of a forward: of a computed ``token``, of a query that attends to a key, of a
    ``position`` that predicts. Whole numbers, so that sums do not depend on their order."""

    token: int
    attended: int
    position: int

    def of(self, tokens: int, attended: int, positions: int) -> int:
        """Operations of so many of each."""
        return self.token * tokens + self.attended * attended + self.position * positions

    def of_batch(self, batch: Batch) -> int:
        """Operations of a batch, as if there were no sliding window."""
        allowed = int((batch.depth_BL + 1).sum())  # a token sees its ancestors and itself
        return self.of(batch.num_tokens, allowed, len(batch.predict_N))

    def with_backward(self, full: bool, again: bool) -> "Costs":
        """Of a forward and its backward. A product needs two more there, one where its weight is
        frozen (not ``full`` tuning); the head's logits are made again, and with ``again`` layers
        run again."""
        token, attended = self.token * (2 + full + again), self.attended * (3 + again)
        return Costs(token, attended, self.position * (3 + full))


def costs_of(model: PreTrainedModel) -> Costs:
    """What a model computes, by its shapes: no weight is read.

    A weight of a layer takes two operations for every token, a weight of the head two for every
    predicting position. The embedding and everything elementwise count as nothing.
    """
    config = model.config.get_text_config()
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    weights = sum(
        numbers_of(p)
        for p in model.parameters()
        if p.ndim >= 2 and id(p) not in embeddings and id(p) not in head
    )
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = size * config.num_attention_heads
    return Costs(
        token=2 * weights,
        attended=2 * 2 * width * config.num_hidden_layers,
        position=2 * config.hidden_size * config.vocab_size,
    )


def operations_of(batch: Batch, model: PreTrainedModel) -> dict[str, float]:
    """Operations of a forward over a batch, by what needs them; a backward needs twice as many.

    Attention is counted over the pairs of tokens that the layout allows, as if there were no
    sliding window.
    """
    costs = costs_of(model)
    return {
        "layers": float(replace(costs, attended=0, position=0).of_batch(batch)),
        "head": float(replace(costs, token=0, attended=0).of_batch(batch)),
        "attention": float(replace(costs, token=0, position=0).of_batch(batch)),
    }
