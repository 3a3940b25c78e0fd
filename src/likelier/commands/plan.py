"""`likelier plan`: what a run will take, from two measured steps and no update."""

import json
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from statistics import mean

import torch
from rich.table import Table

from likelier.base.errors import ConfigError
from likelier.base.terminal import console, say
from likelier.batching.batch import Batch, Scored, completions_of, lay_out
from likelier.batching.pack import pack
from likelier.config import Config, live
from likelier.data.load import Dataset, load
from likelier.data.records import TokenPair
from likelier.losses.registry import bind
from likelier.model.adapters import adapt, for_training
from likelier.model.limits import say_limits
from likelier.model.load import initial_policy
from likelier.model.policy import Policy, score_sequences
from likelier.model.running import deterministic, freed_memory_kept
from likelier.reference.cache import NoReference, StoredReference, completion_key
from likelier.training.adamw8bit import bytes_of_averages
from likelier.training.batches import Batcher
from likelier.training.memory import (
    Memory,
    checkpoint_if_needed,
    device_memory,
    memory_of,
    operations_of,
    tokens_for,
)
from likelier.training.optimizer import MasterAdamW
from likelier.training.order import Order, make_order
from likelier.training.preflight import pairs_to_compare, preflight
from likelier.training.step import loss_and_gradients

SAMPLED_STEPS = 32
_REPEATS = 2  # after one that warms up; their mean, because a run has its slow steps, too

Steps = Sequence[tuple[list[TokenPair], list[Batch]]]


@dataclass(frozen=True)
class Plan:
    """What a run will take. Times in seconds, sizes in bytes, ``tokens`` summed over the run.

    ``plain_tokens`` are those computed if every sequence had a row of its own, without padding.
    ``seconds`` counts opening, reference, preflight and evaluations, too.
    """

    steps: int
    pairs: int
    batches_per_step: float
    tokens: int
    plain_tokens: int
    tokens_per_batch: int
    longest_batch: int
    seconds_per_step: float
    seconds_reference: float
    seconds: float
    peak_memory: int
    memory: int
    disk: int
    checkpointing: str = "none"


def plan(config: Config) -> Plan:
    """Measure two steps of a run and estimate the whole from them.

    The model is loaded and the data read as `train` does; nothing is written and no weight
    changes.

    Raises ConfigError where the largest batch does not fit into memory, and what `train` raises
    before its first step.
    """
    began = time.perf_counter()
    objective = bind(live(config)["loss"])
    initial = initial_policy(config)
    encoder = initial.encoder(config.data.template, config.data.today)
    data = load(config.data, encoder, config.loss, config.train.seed)
    say_limits(initial.causal_lm, config.data.max_length, data.pairs)
    policy = adapt(config, initial)
    with for_training(policy):
        checkpointing, counted = checkpoint_if_needed(config, policy, data.train)
        memory = counted or memory_of(policy, config.optim.kind)
        batcher = Batcher(policy, NoReference(), objective, tokens_for(config, policy, memory))
        order = make_order(data.train, config.train)
        steps = [(pairs, batcher(pairs)) for pairs in _sampled(order, data.train)]
        largest = max(batch.num_tokens for _, batches in steps for batch in batches)
        _must_fit(memory, largest, checkpointing)
        opened = time.perf_counter() - began
        with deterministic(config.train.deterministic), freed_memory_kept():
            pace = _measure(config, data.train, batcher, steps)
        planned = _whole_run(config, data, batcher, order, steps, pace)
    return replace(planned, seconds=opened + planned.seconds, checkpointing=checkpointing)


def _sampled(order: Order, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
    """The pairs of up to ``SAMPLED_STEPS`` steps, at even distances over the run."""
    count = min(order.num_steps, SAMPLED_STEPS)
    numbers = sorted({1 + i * order.num_steps // count for i in range(count)})
    return [[pairs[index] for _, index in order.step(number)] for number in numbers]


def _must_fit(memory: Memory, tokens: int, checkpointing: str) -> None:
    if memory.needs(tokens) <= memory.total:
        return
    raise ConfigError(
        f"the largest batch has {tokens:,} tokens and a step would need "
        f"{_size(memory.needs(tokens))} of the {_size(memory.total)} there are",
        where="train.tokens_per_batch",
        hint="set a shorter data.max_length, or a smaller model"
        if checkpointing == "layers"
        else "set train.checkpointing: layers, or a smaller train.tokens_per_batch",
    )


@dataclass(frozen=True)
class _Pace:
    """Measured seconds: ``fixed + slope * operations`` for a batch of a step, ``forward`` for an
    operation of a batch without gradient, ``update`` for the optimizer, ``cutting`` to lay a step
    out, ``preflight`` for the comparison before the first step."""

    fixed: float
    slope: float
    forward: float
    update: float
    cutting: float
    preflight: float

    def of(self, operations: float) -> float:
        """Seconds of a batch with gradient."""
        return self.fixed + self.slope * operations


def _measure(
    config: Config, pairs_of_run: Sequence[TokenPair], batcher: Batcher, steps: Steps
) -> _Pace:
    """The preflight, then the median and the longest batch as steps of their own.

    Updates are at a rate of 0. Raises what the preflight raises.
    """
    policy = batcher.policy
    found = [
        (_operations(policy, batch), [pairs[at] for at in batch.position_P.tolist()])
        for pairs, batches in steps
        for batch in batches
    ]
    found.sort(key=lambda one: one[0])
    # The longest last: in a run, too, smaller batches came before and left the memory in pieces.
    chosen = [found[len(found) // 2], found[-1]]
    began = time.perf_counter()
    batcher(steps[0][0])
    cutting = time.perf_counter() - began
    read = [*pairs_to_compare(pairs_of_run), *(pair for _, pairs in chosen for pair in pairs)]
    sequences = list(dict.fromkeys(one for pair in read for one in completions_of(pair)))
    reference, forward = _scored(policy, sequences, batcher.tokens_per_batch)
    with_reference = Batcher(policy, reference, batcher.loss, batcher.tokens_per_batch)
    began = _now(policy)
    preflight(with_reference, pairs_of_run, initial_is_reference=False)
    compared = _now(policy) - began
    updates, seconds = [], []
    adamw = MasterAdamW(policy.model.named_parameters(), config.optim)
    with closing(adamw) as optimizer, policy.running():
        for _, pairs in chosen:
            batches = with_reference(pairs)
            took = []
            for _ in range(1 + _REPEATS):
                began = _now(policy)
                loss_and_gradients(policy, batches, batcher.loss)
                halfway = _now(policy)
                optimizer.step(0.0)
                updates.append(_now(policy) - halfway)
                took.append(halfway - began)
            seconds.append(mean(took[1:]))
    (middle, _), (most, _) = chosen
    slope, fixed = seconds[1] / most, 0.0
    if most > 1.2 * middle:  # nearer to each other, two points say nothing of a line
        slope = max(0.0, (seconds[1] - seconds[0]) / (most - middle))
        fixed = max(0.0, seconds[0] - slope * middle)
    return _Pace(fixed, slope, forward, mean(updates[1:]), cutting, compared)


def _scored(
    policy: Policy, sequences: Sequence[Scored], budget: int
) -> tuple[StoredReference, float]:
    """The reference of some completions, and the seconds that an operation took to score them."""
    for _ in range(2):  # the first warms up
        began = _now(policy)
        values = {
            completion_key(sequences[index]): logps
            for index, logps in score_sequences(policy, sequences, budget)
        }
        took = _now(policy) - began
    operations = sum(
        _operations(policy, lay_out([sequences[i] for i in indices], policy.backend))
        for indices in pack([(one,) for one in sequences], budget, policy.backend)
    )
    return StoredReference("plan", values), took / operations


def _operations(policy: Policy, batch: Batch) -> float:
    """How many operations a forward over a batch takes."""
    return sum(operations_of(batch, policy.causal_lm).values())


def _now(policy: Policy) -> float:
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _whole_run(
    config: Config, data: Dataset, batcher: Batcher, order: Order, steps: Steps, pace: _Pace
) -> Plan:
    """What a run takes once model and data are open, by the ``steps`` sampled from it."""
    policy = batcher.policy
    sampled = [pair for pairs, _ in steps for pair in pairs]
    every_batch = [batch for _, batches in steps for batch in batches]
    tokens = [batch.num_tokens for batch in every_batch]
    operations = [_operations(policy, batch) for batch in every_batch]
    share = order.total / len(sampled)  # visits of the run for each one sampled
    in_batches = sum(map(pace.of, operations)) * share
    seconds_per_step = in_batches / order.num_steps + pace.update + pace.cutting
    forward_per_pair = pace.forward * sum(operations) / len(sampled)
    every = config.train.eval_every
    evaluations = 1 + (-(-order.num_steps // every) if every else 1) if data.eval else 0
    evaluating = forward_per_pair * len(data.eval) * evaluations
    reads_reference = batcher.loss.needs("reference")
    reference = forward_per_pair * len(data.pairs) if reads_reference else 0.0
    return Plan(
        steps=order.num_steps,
        pairs=order.total,
        batches_per_step=len(every_batch) / len(steps),
        tokens=round(sum(tokens) * share),
        plain_tokens=round(sum(pair.num_tokens for pair in sampled) * share),
        tokens_per_batch=batcher.tokens_per_batch,
        longest_batch=max(tokens),
        seconds_per_step=seconds_per_step,
        seconds_reference=reference,
        seconds=pace.preflight + reference + evaluating + seconds_per_step * order.num_steps,
        peak_memory=_peak(policy),
        memory=device_memory(policy.device),
        disk=_disk(config, policy, data),
    )


def _peak(policy: Policy) -> int:
    """The most that the device, or on a CPU this process, has held so far."""
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _disk(config: Config, policy: Policy, data: Dataset) -> int:
    """Checkpoints (masters, two averages, one more while it is written), model and reference."""
    trained = [p.numel() for p in policy.model.parameters() if p.requires_grad]
    averages = sum(bytes_of_averages(numbers, config.optim.kind) for numbers in trained)
    kept = config.train.keep + 1 if config.train.save_every is not None else 0
    saved = sum(trained) * (4 if policy.has_adapter else 0)
    if not policy.has_adapter:
        saved = sum(p.nbytes for p in policy.model.parameters())
    reference = 4 * sum(one.num_scored for pair in data.pairs for one in completions_of(pair))
    return (4 * sum(trained) + averages) * kept + saved + reference


def print_plan(planned: Plan, as_json: bool) -> None:
    """A table for people, or one JSON object."""
    if as_json:
        print(json.dumps(asdict(planned)))
        return
    shared = 1 - planned.tokens / planned.plain_tokens
    rows = [
        ("steps", f"{planned.steps:,} of {planned.pairs / planned.steps:.0f} pairs"),
        ("tokens", f"{planned.tokens:,}; {shared:.0%} of {planned.plain_tokens:,} saved by "
                   "sharing"),
        ("batches", f"{planned.batches_per_step:.1f} a step, of at most "
                   f"{planned.longest_batch:,} tokens"),
        ("a step", _duration(planned.seconds_per_step)),
        ("reference", f"{_duration(planned.seconds_reference)}, less where the cache holds it"),
        ("in all", _duration(planned.seconds)),
        ("peak memory", f"{_size(planned.peak_memory)} of {_size(planned.memory)}"),
        ("disk", _size(planned.disk)),
        ("settings", f"train.tokens_per_batch={planned.tokens_per_batch} "
                     f"train.checkpointing={planned.checkpointing}"),
    ]  # fmt: skip
    table = Table(show_header=False)
    for name, text in rows:
        table.add_row(name, text)
    console().print(table)
    say("measured on two steps; nothing was written")


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
