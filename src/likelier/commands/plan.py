"""`likelier plan`: what a run will take, from two measured steps and no update."""

import json
import resource
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from likelier.base.errors import ConfigError
from likelier.base.terminal import say
from likelier.batching.layout import Scored, answers_of
from likelier.batching.pack import layout, pack
from likelier.config import Config, live
from likelier.data.load import Dataset, load, needs_of
from likelier.data.order import Order, make_order
from likelier.data.records import TokenPair
from likelier.losses.registry import BoundLoss, bind
from likelier.model.heap import freed_memory_kept
from likelier.model.score import Ready, make_ready, score_sequences
from likelier.reference.column import Column, NoReference, Reference, answer_key
from likelier.start import adapt, encoder_of, open_start
from likelier.training.budget import Memory, memory_of, settled
from likelier.training.determinism import deterministic
from likelier.training.gate import pass_gate, telling_pairs
from likelier.training.optimizer import MasterAdamW
from likelier.training.passes import PairPass, cut_passes
from likelier.training.step import step_gradients
from likelier.training.work import work_of

SAMPLED_STEPS = 32
_REPEATS = 2  # after one that warms up; their mean, because a run has its slow steps, too


@dataclass(frozen=True)
class Plan:
    """What a run will take. Times in seconds, sizes in bytes, ``tokens`` summed over the run.

    ``plain_tokens`` is what one row a sequence would compute, without padding. The gate,
    the reference pass and the evaluations are part of ``seconds``.
    """

    steps: int
    pairs: int
    passes_per_step: float
    tokens: int
    plain_tokens: int
    tokens_per_batch: int
    longest_pass: int
    seconds_per_step: float
    seconds_reference: float
    seconds: float
    peak_memory: int
    memory: int
    disk: int


def plan(config: Config) -> Plan:
    """Measure two steps on the passes of a run and reckon the whole from them.

    The model is loaded and the data read as `train` does; nothing is written and no weight
    changes.

    Raises ConfigError where the longest pair does not fit into memory, and what `train` raises
    before its first step.
    """
    began = time.perf_counter()
    objective = bind(live(config)["loss"])
    start = open_start(config, None, None)
    needs = needs_of(config.loss)
    data = load(config.data, encoder_of(config, start), needs, config.train.seed)
    ready = make_ready(adapt(config, start))
    memory = memory_of(ready)
    budget = settled(config, ready, memory)
    order = make_order(data.train, config.train)
    steps = _sampled(order, data.train)
    cut = [_cut(pairs, ready, budget, objective) for pairs in steps]
    _must_fit(memory, max(item.batch.num_tokens for passes in cut for item in passes), config)
    opened = time.perf_counter() - began
    with deterministic(config.train.deterministic), freed_memory_kept():
        compiled = replace(ready, compiled=config.train.compile)
        pace = _measure(config, data.train, compiled, objective, steps, cut, budget)
    read = objective.needs("reference")
    return _reckoned(config, data, ready, order, steps, cut, budget, memory, pace, opened, read)


def _sampled(order: Order, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
    """The pairs of steps at even distances, of at most so many."""
    count = min(order.num_steps, SAMPLED_STEPS)
    numbers = sorted({1 + i * order.num_steps // count for i in range(count)})
    return [[pairs[index] for _, index in order.step(number)] for number in numbers]


def _cut(
    pairs: Sequence[TokenPair],
    ready: Ready,
    budget: int,
    loss: BoundLoss,
    column: Reference | None = None,
) -> list[PairPass]:
    reference = column or NoReference()
    return cut_passes(pairs, reference, ready.backend, budget, ready.policy.device, loss.tokens)


def _must_fit(memory: Memory, tokens: int, config: Config) -> None:
    if memory.needs(tokens) <= memory.total:
        return
    raise ConfigError(
        f"the largest pass has {tokens:,} tokens and a step would need "
        f"{_size(memory.needs(tokens))} of the {_size(memory.total)} there are",
        where="train.tokens_per_batch",
        hint="set a shorter data.max_length, or a smaller model"
        if config.train.gradient_checkpointing
        else "set train.gradient_checkpointing: true, or a smaller train.tokens_per_batch",
    )


@dataclass(frozen=True)
class _Pace:
    """Seconds: ``fixed + work * slope`` for a pass of a step, ``forward`` per operation of a
    pass without gradient, ``update`` for the optimizer, ``cutting`` to lay a step out, ``gate``
    for the comparison before the first step."""

    fixed: float
    slope: float
    forward: float
    update: float
    cutting: float
    gate: float

    def of(self, work: float) -> float:
        """Seconds of a pass with gradient."""
        return self.fixed + self.slope * work


def _measure(
    config: Config,
    pairs_of_run: Sequence[TokenPair],
    ready: Ready,
    loss: BoundLoss,
    steps: Sequence[Sequence[TokenPair]],
    cut: Sequence[Sequence[PairPass]],
    budget: int,
) -> _Pace:
    """The gate, then the median and the longest pass as steps of their own; updates at a rate of 0.

    Raises what the gate raises.
    """
    model = ready.policy.causal_lm
    found = [
        (work_of(item.batch, model).total, [pairs[place] for place in item.place_P.tolist()])
        for pairs, passes in zip(steps, cut, strict=True)
        for item in passes
    ]
    found.sort(key=lambda one: one[0])
    # The longest last: in a run, too, smaller passes came before and left the memory in pieces.
    chosen = [found[len(found) // 2], found[-1]]
    began = time.perf_counter()
    _cut(steps[0], ready, budget, loss)
    cutting = time.perf_counter() - began
    looked_at = [*telling_pairs(pairs_of_run), *(pair for _, pairs in chosen for pair in pairs)]
    sequences = list(dict.fromkeys(answer for pair in looked_at for answer in answers_of(pair)))
    column, forward = _scored(replace(ready, compiled=False), sequences, budget)
    began = _now(ready)
    pass_gate(ready, pairs_of_run, column, loss, budget, start_is_reference=False)
    gate = _now(ready) - began
    updates, seconds = [], []
    adamw = MasterAdamW(ready.policy.model.named_parameters(), config.optim)
    with closing(adamw) as optimizer, ready.running() as scorer:
        for _, pairs in chosen:
            passes = _cut(pairs, ready, budget, loss, column)
            took = []
            for _ in range(1 + _REPEATS):
                began = _now(ready)
                step_gradients(scorer, passes, loss)
                halfway = _now(ready)
                optimizer.step(0.0)
                updates.append(_now(ready) - halfway)
                took.append(halfway - began)
            seconds.append(mean(took[1:]))
    (middle, _), (most, _) = chosen
    slope, fixed = seconds[1] / most, 0.0
    if most > 1.2 * middle:  # nearer to each other, two points say nothing of a line
        slope = max(0.0, (seconds[1] - seconds[0]) / (most - middle))
        fixed = max(0.0, seconds[0] - slope * middle)
    return _Pace(fixed, slope, forward, mean(updates[1:]), cutting, gate)


def _scored(ready: Ready, sequences: Sequence[Scored], budget: int) -> tuple[Column, float]:
    """The reference of some answers, and seconds an operation of scoring them."""
    for _ in range(2):  # the first warms up
        began = _now(ready)
        values: dict[bytes, Tensor] = {
            answer_key(sequences[index]): logps
            for index, logps in score_sequences(ready, sequences, budget)
        }
        took = _now(ready) - began
    return Column("plan", values), took / _forward_work(ready, sequences, budget)


def _forward_work(ready: Ready, sequences: Sequence[Scored], budget: int) -> float:
    return sum(
        work_of(layout(ready.backend)([sequences[i] for i in places]), ready.policy.causal_lm).total
        for places in pack([(one,) for one in sequences], budget, ready.backend)
    )


def _now(ready: Ready) -> float:
    if ready.policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reckoned(
    config: Config,
    data: Dataset,
    ready: Ready,
    order: Order,
    steps: Sequence[Sequence[TokenPair]],
    cut: Sequence[Sequence[PairPass]],
    budget: int,
    memory: Memory,
    pace: _Pace,
    opened: float,
    reads_reference: bool,
) -> Plan:
    model = ready.policy.causal_lm
    visited = sum(map(len, steps))
    share = order.total / visited  # visits of the run for each one looked at
    works = [work_of(item.batch, model).total for passes in cut for item in passes]
    in_passes = sum(map(pace.of, works)) * share
    seconds_per_step = in_passes / order.num_steps + pace.update + pace.cutting
    forward_per_pair = pace.forward * sum(works) / visited
    every = config.train.eval_every
    evaluations = 1 + (-(-order.num_steps // every) if every else 1) if data.eval else 0
    reference = forward_per_pair * len(data.pairs) if reads_reference else 0.0
    evaluating = forward_per_pair * len(data.eval) * evaluations
    plain = sum(
        2 * len(pair.prompt) + len(pair.chosen.tokens) + len(pair.rejected.tokens)
        for pairs in steps
        for pair in pairs
    )
    tokens = [item.batch.num_tokens for passes in cut for item in passes]
    return Plan(
        steps=order.num_steps,
        pairs=order.total,
        passes_per_step=len(works) / len(steps),
        tokens=round(sum(tokens) * share),
        plain_tokens=round(plain * share),
        tokens_per_batch=budget,
        longest_pass=max(tokens),
        seconds_per_step=seconds_per_step,
        seconds_reference=reference,
        seconds=opened + pace.gate + reference + evaluating + seconds_per_step * order.num_steps,
        peak_memory=_peak(ready),
        memory=memory.total,
        disk=_disk(config, ready, data),
    )


def _peak(ready: Ready) -> int:
    """The most that the device, or on a CPU this process, has held so far."""
    if ready.policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _disk(config: Config, ready: Ready, data: Dataset) -> int:
    """Checkpoints (masters and two averages, one more while it is written), model and column."""
    trainable = sum(p.numel() for p in ready.policy.model.parameters() if p.requires_grad)
    kept = config.train.keep + 1 if config.train.save_every is not None else 0
    saved = trainable * (4 if ready.policy.has_adapter else 0)
    if not ready.policy.has_adapter:
        saved = sum(p.nbytes for p in ready.policy.model.parameters())
    column = 4 * sum(a.num_scored for pair in data.pairs for a in answers_of(pair))
    return 12 * trainable * kept + saved + column


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
        ("passes", f"{planned.passes_per_step:.1f} a step, of at most "
                   f"{planned.longest_pass:,} tokens"),
        ("a step", _duration(planned.seconds_per_step)),
        ("reference", f"{_duration(planned.seconds_reference)}, less where the cache holds it"),
        ("in all", _duration(planned.seconds)),
        ("peak memory", f"{_size(planned.peak_memory)} of {_size(planned.memory)}"),
        ("disk", _size(planned.disk)),
        ("settings", f"train.tokens_per_batch={planned.tokens_per_batch}"),
    ]  # fmt: skip
    table = Table(show_header=False)
    for name, text in rows:
        table.add_row(name, text)
    Console(highlight=False, markup=False, emoji=False).print(table)
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
