"""What a run needs of memory, phase by phase, counted without computing it; and what needs less.

A step is counted on fake tensors (`likelier.training.memory.most_alive`), which have shapes and no
memory, so a card that is not here can be asked about. A change is tried and counted like the config
itself: what is said of it is what `likelier plan` says once it is made.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from likelier.batching.batch import Batch, completions_of
from likelier.config import Config
from likelier.config.schema import LoraConfig
from likelier.data.records import TokenPair
from likelier.model.adapters import attach_lora, for_training
from likelier.model.frozen import MOST_CAST, is_half
from likelier.model.policy import Policy
from likelier.model.quantise import bytes_of, method_of, numbers_of
from likelier.model.recompute import can_checkpoint, checkpoint_layers
from likelier.model.stream import RESIDENT_SHARE, layers_of
from likelier.reference.cache import NoReference
from likelier.training.batches import cut_batches
from likelier.training.memory import bytes_of_update, held, linear_in_tokens, most_alive
from likelier.training.preflight import pairs_to_compare

MARGIN = 0.05  # of a device: pieces between tensors, and what the driver and others hold
WORTH_SAYING = 0.9  # of what is needed now

COMPARISON, UPDATE = "the comparison before the first step", "an update"
COPIES = "copies of masters and averages"

Phases = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Asked:
    """What is counted: a policy as it is trained, the pairs of some steps, and where.

    ``base`` are the bytes that are held beside the model: Python, its libraries and the data, or
    what a driver takes. ``pairs`` are all pairs to train on and ``longest`` the longest of them,
    ``num_steps`` the steps of the run; ``card`` are the bytes of one that is not here.
    """

    config: Config
    policy: Policy
    steps: Sequence[Sequence[TokenPair]]
    pairs: Sequence[TokenPair]
    longest: TokenPair
    tokens_per_batch: int
    num_steps: int
    base: int
    layers_again: bool = False
    card: int | None = None
    compared: dict[str, int] | None = None  # what the comparison takes, where it was counted


def most(found: Phases) -> int:
    """Bytes of the phase that needs most."""
    return max(sum(parts.values()) for parts in found.values())


def phases(asked: Asked) -> Phases:
    """Bytes of every phase of a run, by what they are.

    A policy's layers run again in the backward where they do when this is called.
    """
    policy, config = asked.policy, asked.config
    parts = held(policy, config.optim.kind, on_card=asked.card is not None)
    gradients = parts.pop("gradients")
    parts["weights"] -= streamed(asked)
    if config.reference.update_every is not None:
        parts["a reference that moves"] = sum(4 * p.numel() for p in _trained(policy))
    base = {"Python and its libraries" if asked.card is None else "the driver": asked.base}
    weights = {**base, "weights": parts["weights"]}
    batch, several = largest_batch(asked)
    step = _alive(policy, batch, adds=several)
    there = gradients if several else 0  # of the batches before
    found = {
        COMPARISON: weights | (asked.compared or _compared(asked)),
        "a step": {
            **base, **parts, "gradients": there,
            "saved for the backward": step["saved"] - there,
            "logits, new gradients and what passes": step["most"] - step["saved"],
        },
        UPDATE: {
            **base, **parts, "gradients": gradients,
            "eight bits unpacked": bytes_of_update(_trained(policy), config.optim.kind),
        },
    }  # fmt: skip
    if config.reference.path is not None:
        other = _bytes_of_files(config.reference.path) or parts["weights"]
        found["the reference"] = weights | {
            "the reference's weights": other,
            "logits and what passes": _alive(policy, batch, backward=False)["most"],
        }
    every = config.train.save_every
    if asked.card is None and every is not None and every <= asked.num_steps:
        copied = parts["averages"] + sum(4 * p.numel() for p in _trained(policy))
        found["a checkpoint"] = {**base, **parts, COPIES: copied}
    return found


def streamed(asked: Asked) -> int:
    """Bytes of frozen weights that do not stay on a card, because it is too small for all of them.

    Of the layers of the stack two are there at a time (`likelier.model.stream`).
    """
    config, model = asked.config, asked.policy.causal_lm
    stays = config.adapter.kind == "none" or config.model.quantise != "none"
    if asked.card is None or stays or config.model.stream == "never":
        return 0
    if sum(map(bytes_of, model.parameters())) <= RESIDENT_SHARE * asked.card:
        return 0
    layers = [
        sum(
            m.weight.nbytes
            for m in layer.modules()
            if isinstance(m, nn.Linear) and not m.weight.requires_grad
        )
        for layer in layers_of(model)
    ]
    return sum(layers) - 2 * max(layers)


def _trained(policy: Policy) -> list[nn.Parameter]:
    return [p for p in policy.model.parameters() if p.requires_grad]


def largest_batch(asked: Asked) -> tuple[Batch, bool]:
    """The largest batch of the steps or the longest pair, and whether any step has several."""
    policy, budget = asked.policy, asked.tokens_per_batch
    steps = [cut_batches(s, NoReference(), policy.backend, budget) for s in asked.steps]
    alone = cut_batches([asked.longest], NoReference(), policy.backend, budget)
    batches = [batch for step in steps for batch in step] + alone
    largest = max(batches, key=lambda batch: batch.num_tokens)
    return largest.to(policy.device), any(len(step) > 1 for step in steps)


def _alive(policy: Policy, batch: Batch, **how: bool) -> dict[str, int]:
    """`most_alive`; where an architecture asks for values, what two tiny batches say of a token."""
    try:
        return most_alive(policy, batch, **how)
    except (RuntimeError, TypeError, ValueError):
        return linear_in_tokens(policy, batch, **how)


def _compared(asked: Asked) -> dict[str, int]:
    """What the comparison takes beside the weights.

    The pairs run as one batch, then each text alone with all its logits and their logarithms, in
    float32 at last: weights in half precision are cast a block at a time.
    """
    policy, pairs = asked.policy, pairs_to_compare(asked.pairs)
    (batch,) = cut_batches(pairs, NoReference(), policy.backend, 2**31)
    longest = max(len(one.inputs) for pair in pairs for one in completions_of(pair))
    vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
    largest = max(p.numel() for p in policy.model.parameters())
    cast = 4 * min(largest, MOST_CAST) if is_half(policy.dtype) else 0
    together = _alive(policy, batch.to(policy.device), backward=False)["most"]
    return {"logits and what passes": max(together, 8 * longest * vocabulary + cast)}


def _bytes_of_files(path: str) -> int:
    """Bytes of the weights in a folder; 0 where it is none."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return 0


# ---- what would need less -----------------------------------------------------------------------


def changes(asked: Asked, counted: Phases) -> list[dict[str, Any]]:
    """Changes of the config that need less memory: ``keys``, ``memory`` in bytes and ``costs``.

    Each is counted alone, the one that costs least first. ``counted`` is what is needed without.
    """
    found = []
    for keys, costs, without in _tried(asked, counted):
        if most(without) < WORTH_SAYING * most(counted):
            found.append({"keys": keys, "memory": most(without), "costs": costs})
    return found


def _tried(asked: Asked, counted: Phases) -> Iterator[tuple[str, str, Phases]]:
    """Every change that this config can follow, what it costs, and its phases."""
    config, policy = asked.config, asked.policy
    model, compared = policy.causal_lm, counted[COMPARISON]
    same = replace(asked, compared={name: compared[name] for name in list(compared)[2:]})
    with for_training(policy):
        yield from _smaller_batches(same)
        if config.optim.kind == "adamw" and config.adapter.kind == "none":
            costs = "exactness: averages are rounded to eight bits"
            yield "optim.kind=adamw8bit", costs, _in_eight_bits(policy, counted)
        if can_checkpoint(model) and not asked.layers_again:
            with _again(policy):
                costs = "time: every layer runs once more, a third more arithmetic"
                yield "train.checkpointing=layers", costs, phases(same)
    packs = config.adapter.kind == "lora" and config.model.quantise == "none"
    if packs and asked.card is not None and method_of(model.config) is None:
        yield "model.quantise=nf4", "exactness: weights are rounded to four bits", _packed(same)
    if config.adapter.kind == "none":
        lora = LoraConfig()
        model.requires_grad_(False)
        small: Any = attach_lora(policy, lora.r, lora.alpha, "all-linear", config.train.seed)
        with for_training(small):
            changed = replace(_with(asked, "optim", kind="adamw"), policy=small)
            yield "adapter.kind=lora", "all weights but an adapter's stay", phases(changed)
        small.model.unload()
        model.requires_grad_(True)


def _in_eight_bits(policy: Policy, counted: Phases) -> Phases:
    """The phases with averages in eight bits: nothing else of a forward or backward changes."""
    averages = held(policy, "adamw8bit")["averages"]
    found = {}
    for name, parts in counted.items():
        found[name] = dict(parts)
        if "averages" in parts:
            found[name]["averages"] = averages
        if COPIES in parts:
            found[name][COPIES] += averages - parts["averages"]
    found[UPDATE]["eight bits unpacked"] = bytes_of_update(_trained(policy), "adamw8bit")
    return found


def _smaller_batches(asked: Asked) -> Iterator[tuple[str, str, Phases]]:
    largest, _ = largest_batch(asked)
    half = asked.tokens_per_batch // 2
    if len(largest.position_P) > 1 and half >= 16:
        costs = "little: smaller products may be slower"
        yield f"train.tokens_per_batch={half}", costs, phases(replace(asked, tokens_per_batch=half))
        return
    limit = _length(asked.longest) // 2
    kept = [pair for pair in asked.pairs if _length(pair) <= limit]
    if kept:
        steps = [[pair for pair in step if _length(pair) <= limit] for step in asked.steps]
        shorter = replace(
            asked, pairs=kept, longest=longest_of(kept), steps=[step for step in steps if step],
            compared=None,
        )  # fmt: skip
        lost = f"{len(asked.pairs) - len(kept)} of {len(asked.pairs)} pairs"
        yield f"data.max_length={limit}", f"{lost}, and data.overlong=drop", phases(shorter)


def _length(pair: TokenPair) -> int:
    """What `data.max_length` limits."""
    return len(pair.prompt) + max(len(pair.chosen.tokens), len(pair.rejected.tokens))


def longest_of(pairs: Sequence[TokenPair]) -> TokenPair:
    """The pair of most tokens, the prompt once."""
    return max(pairs, key=lambda pair: pair.num_tokens - len(pair.prompt))


def _with(asked: Asked, section: str, **keys: Any) -> Asked:
    """What is counted of a config with other keys in a section."""
    changed = getattr(asked.config, section).model_copy(update=keys)
    return replace(asked, config=asked.config.model_copy(update={section: changed}))


@contextmanager
def _again(policy: Policy) -> Iterator[None]:
    """Layers run again in the backward, inside."""
    model: Any = policy.causal_lm
    checkpoint_layers(model)
    try:
        yield
    finally:
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()


def _packed(asked: Asked) -> Phases:
    """The phases with every linear layer but the head in four bits, and scales of 64 numbers."""
    policy = asked.policy
    head: Any = policy.causal_lm.get_output_embeddings()
    linear = [
        m.weight
        for m in policy.model.modules()
        if isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
    ]
    shrinks = sum(bytes_of(w) - _in_four_bits(numbers_of(w)) for w in linear)
    unpacked = max(w.numel() for w in linear) * (2 if is_half(policy.dtype) else 4)
    with for_training(policy):
        found = phases(asked)
    for parts in found.values():
        parts["weights"] -= shrinks
        parts["a layer unpacked"] = unpacked
    return found


def _in_four_bits(numbers: int) -> int:
    return -(-numbers // 2) + -(-numbers // 64)
