"""`likelier plan`: what a run will take, from two measured steps and no update."""

import json
import re
import resource
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig

from likelier.base.environment import multiplies_bfloat16
from likelier.base.errors import ConfigError
from likelier.base.model_files import base_of_adapter, place_of
from likelier.base.terminal import console, say
from likelier.batching.batch import Batch, Scored, completions_of, lay_out
from likelier.batching.pack import pack, tokens_of
from likelier.commands.needs import (
    MARGIN,
    Asked,
    Phases,
    changes,
    longest_of,
    most,
    phases,
    streamed,
)
from likelier.config import Config, learning_rate, live
from likelier.data.load import Dataset, load
from likelier.data.records import TokenPair
from likelier.losses.registry import BoundLoss, bind
from likelier.model.adapters import adapt, for_training
from likelier.model.frozen import is_half
from likelier.model.limits import say_limits
from likelier.model.load import initial_policy
from likelier.model.policy import Policy, score_sequences
from likelier.model.quantise import bytes_of
from likelier.model.running import deterministic, freed_memory_kept
from likelier.reference.cache import NoReference, StoredReference, completion_key
from likelier.training import scaling
from likelier.training.adamw8bit import bytes_of_averages
from likelier.training.batches import Batcher
from likelier.training.dealing import deal
from likelier.training.memory import (
    checkpoint_if_needed,
    costs_of,
    decided,
    device_memory,
    held,
    memory_of,
    operations_of,
    tokens_for,
)
from likelier.training.optimizer import MasterAdamW
from likelier.training.order import Order, make_order
from likelier.training.pair_log import arrow_table
from likelier.training.preflight import pairs_to_compare, preflight
from likelier.training.step import loss_and_gradients

SAMPLED_STEPS = 32
_DRIVER = 600 << 20  # what CUDA takes of a card for itself, before any tensor
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", re.IGNORECASE)
_UNITS = {f"{letter}{i}b": (1024 if i else 1000) ** power
          for power, letter in enumerate("kmgt", 1) for i in ("", "i")}  # fmt: skip
_REPEATS = 2  # after one that warms up; their mean, because a run has its slow steps, too

Steps = Sequence[tuple[list[TokenPair], list[Batch]]]


@dataclass(frozen=True)
class Plan:
    """What a run will take. Times in seconds, sizes in bytes, ``tokens`` summed over the run.

    ``plain_tokens`` are those computed if every sequence had a row of its own, without padding.
    ``seconds`` counts opening, reference, preflight and evaluations, too; times are None for a card
    that is not here. ``peak_memory`` is what this process reached in two steps, or what `phases`
    counts where that is more; on a card that is not here it is counted alone. ``settings`` are the
    keys that the config leaves to the run, ``less_memory`` and ``less_time`` changes of it.
    ``gpus`` are those of a plan for several: then memory, batches and phases are those of one.
    """

    steps: int
    pairs: int
    batches_per_step: float
    tokens: int
    plain_tokens: int
    tokens_per_batch: int
    longest_batch: int
    peak_memory: int
    memory: int
    disk: int
    seconds_per_step: float | None = None
    seconds_reference: float | None = None
    seconds: float | None = None
    checkpointing: str = "none"
    learning_rate: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    phases: Phases = field(default_factory=dict)
    less_memory: list[dict[str, Any]] = field(default_factory=list)
    less_time: list[dict[str, Any]] = field(default_factory=list)
    gpus: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the memory holds it, and what is not counted."""
        return self.peak_memory <= (1 - MARGIN) * self.memory


def plan(config: Config, card: int | None = None, cluster: scaling.Cluster | None = None) -> Plan:
    """Measure two steps of a run and estimate the whole from them.

    The model is loaded and the data read as `train` does; nothing is written and no weight
    changes. With a ``card``, the bytes of one that is not here, nothing is computed: memory is
    counted, and times are None. So it is with a ``cluster`` of GPUs that are not here, but for a
    step's time by data sheets where it names its card.

    Raises ConfigError where a run does not fit into the memory that is here, and what `train`
    raises before its first step.
    """
    began = time.perf_counter()
    import_module("likelier.run")  # all that a run has loaded takes memory, too,
    arrow_table([{"step": 0}])  # also what its first write of the pair log loads
    _forget_peak()
    card = cluster.memory if cluster else card
    objective = bind(live(config)["loss"])
    initial = initial_policy(config if card is None else _for_card(config))
    encoder = initial.encoder(config.data.template, config.data.today)
    data = load(config.data, encoder, config.loss, config.train.seed)
    say_limits(initial.causal_lm, config.data.max_length, data.pairs)
    policy = adapt(config, initial)
    total = device_memory(policy.device) if card is None else card
    with for_training(policy):
        if cluster is not None:
            return _on_gpus(config, policy, data, objective, cluster)
        checkpointing, memory = checkpoint_if_needed(config, policy, data.train, card)
        memory = memory or memory_of(policy, config.optim.kind, card)
        budget = tokens_for(config, policy, memory, torch.device("cuda") if card else None)
        batcher = Batcher(policy, NoReference(), objective, budget)
        order = make_order(data.train, config.train)
        sampled = _sampled(order, data.train)
        asked = Asked(
            config, policy, sampled, data.train, longest_of(data.train), budget, order.num_steps,
            _base(policy, card), checkpointing == "layers", card,
        )  # fmt: skip
        counted = phases(asked)
        if size := streamed(asked):
            say(f"{_size(size)} of weights are brought to the card layer by layer, which is slow")
        steps = [(pairs, batcher(pairs)) for pairs in sampled]
        planned = Plan(
            **_counts(batcher, order, steps), peak_memory=most(counted), memory=total,
            disk=_disk(config, policy, data), checkpointing=checkpointing,
            learning_rate=learning_rate(config), phases=counted,
            settings=_decided(config, policy, checkpointing, budget),
        )  # fmt: skip
        opened = time.perf_counter() - began
        if card is None and planned.fits:
            with deterministic(config.train.deterministic), freed_memory_kept():
                pace = _measure(config, data.train, batcher, steps)
            planned = _timed(planned, config, data, batcher, steps, pace, opened)
    planned = replace(planned, less_memory=changes(asked, counted))
    if card is None and not planned.fits:
        raise does_not_fit(planned)
    return planned


def _on_gpus(
    config: Config, policy: Policy, data: Dataset, objective: BoundLoss, cluster: scaling.Cluster
) -> Plan:
    """A plan for GPUs that are not here: memory is that of one, a step's pairs are dealt to all."""
    numbers = sum(p.numel() for p in policy.model.parameters())
    mode, kind = scaling.mode_on(config, numbers, cluster), config.optim.kind
    shards = cluster.shards(mode)
    way, found = checkpoint_if_needed(config, policy, data.train, cluster.memory, shards)
    memory = found or memory_of(policy, kind, cluster.memory, shards)
    budget = tokens_for(config, policy, memory, torch.device("cuda"))
    batcher, order = (
        Batcher(policy, NoReference(), objective, budget),
        make_order(data.train, config.train),
    )
    full, weights = config.adapter.kind == "none", scaling.weights_of(policy.causal_lm)
    whole = {"the driver": _DRIVER, **held(policy, kind, on_card=True)}
    costs = costs_of(policy.causal_lm).with_backward(full, way == "layers")
    steps, seconds = [], []
    for pairs in _sampled(order, data.train):
        dealt = deal(pairs, cluster.ranks, costs, policy.backend)
        ranks = [[pairs[index] for index in some] for some in dealt if some]
        steps += (of_ranks := [(some, batcher(some)) for some in ranks])
        work = [sum(map(costs.of_batch, batches)) for _, batches in of_ranks]
        several = max(len(batches) for _, batches in of_ranks)
        seconds.append(scaling.seconds_of_step(work, several, weights, cluster, mode))
    took = {name: mean(one[name] for one in seconds) for name in seconds[0]}
    counts = _counts(batcher, order, steps)
    longest = tokens_of(completions_of(longest_of(data.train)), policy.backend)
    tokens, parts = (
        max(counts["longest_batch"], longest),
        scaling.on_one_gpu(whole, weights, shards),
    )
    parts |= {scaling.SAVED: tokens * memory.per_token, "logits": memory.head}
    gpus = {"nodes": cluster.nodes, "gpus": cluster.gpus, "card": cluster.name, "mode": mode,
            "slowest": 1 + took["waiting"] / took["arithmetic"],
            "bound": scaling.bound_of(parts, int((1 - MARGIN) * cluster.memory), took),
            "seconds": took if cluster.card else {}}  # fmt: skip
    return Plan(
        **counts, peak_memory=sum(parts.values()), memory=cluster.memory, checkpointing=way,
        disk=_disk(config, policy, data), learning_rate=learning_rate(config), gpus=gpus,
        phases={"a step": parts},
        settings={**_decided(config, policy, way, budget), "parallel.mode": mode},
        seconds_per_step=sum(took.values()) if cluster.card else None,
    )  # fmt: skip


def does_not_fit(planned: Plan) -> ConfigError:
    """What is said of a plan that does not fit, with the first change that does."""
    room = int((1 - MARGIN) * planned.memory)
    phase = max(planned.phases, key=lambda name: sum(planned.phases[name].values()))
    cure = next((one for one in planned.less_memory if one["memory"] <= room), None)
    hint = "take a smaller model or shorter pairs: no change of one key is enough"
    hint = planned.gpus.get("bound", hint)
    if cure is not None:
        hint = f"set {cure['keys']}, which needs {_size(cure['memory'])}"
    return ConfigError(
        f"{phase} needs {_size(planned.peak_memory)} of {_size(planned.memory)}, of which "
        f"{MARGIN:.0%} are left for what is not counted",
        where="memory",
        hint=hint,
    )


def _for_card(config: Config) -> Config:
    """The config with the compute dtype that a card with bfloat16 products gives it."""
    if config.model.dtype != "auto" or multiplies_bfloat16():
        return config  # here auto is the same
    where = place_of(config.model.path, config.model.revision)
    home, revision = base_of_adapter(where, config.model.revision) or (where, config.model.revision)
    stored = AutoConfig.from_pretrained(home, revision=revision, trust_remote_code=False).dtype
    if not isinstance(stored, torch.dtype) or not is_half(stored):
        return config
    model = config.model.model_copy(update={"dtype": "bfloat16"})
    return config.model_copy(update={"model": model})


def _decided(config: Config, policy: Policy, checkpointing: str, budget: int) -> dict[str, Any]:
    """Every key that the config leaves to the run, and what it becomes."""
    after = decided(config, policy, checkpointing, budget)
    return {
        f"{section}.{key}": after[section][key]
        for section, keys in live(config).items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if value == "auto" and after[section][key] != "auto"
    }


def _sampled(order: Order, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
    """The pairs of up to ``SAMPLED_STEPS`` steps, at even distances over the run."""
    count = min(order.num_steps, SAMPLED_STEPS)
    numbers = sorted({1 + i * order.num_steps // count for i in range(count)})
    return [[pairs[index] for _, index in order.step(number)] for number in numbers]


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
    """The preflight, then steps of the median and the longest batch, as a run would take them.

    The first step warms up, with another batch in the place of the median: memory in pieces is
    part of a run. Updates are at a rate of 0. Raises what the preflight raises.
    """
    policy = batcher.policy
    found = [
        (_operations(policy, batch), [pairs[at] for at in batch.position_P.tolist()])
        for pairs, batches in steps
        for batch in batches
    ]
    found.sort(key=lambda one: one[0])
    # The longest last: in a run, too, smaller batches came before and left the memory in pieces.
    chosen, first = [found[len(found) // 2], found[-1]], [found[len(found) // 4], found[-1]]
    began = time.perf_counter()
    batcher(steps[0][0])
    cutting = time.perf_counter() - began
    read = [*pairs_to_compare(pairs_of_run)]
    read += [pair for _, pairs in chosen + first for pair in pairs]
    sequences = list(dict.fromkeys(one for pair in read for one in completions_of(pair)))
    reference, forward = _scored(policy, sequences, batcher.tokens_per_batch)
    with_reference = Batcher(policy, reference, batcher.loss, batcher.tokens_per_batch)
    began = _now(policy)
    preflight(with_reference, pairs_of_run, initial_is_reference=False)
    compared = _now(policy) - began
    updates: list[float] = []
    took: list[list[float]] = [[], []]
    several = any(len(batches) > 1 for _, batches in steps)
    adamw = MasterAdamW(policy.model.named_parameters(), config.optim)
    with closing(adamw) as optimizer, policy.running():
        for turn in [first] + [chosen] * _REPEATS:
            for place, (_, pairs) in enumerate(turn):
                batches = with_reference(pairs)
                began = _now(policy)
                loss_and_gradients(policy, batches, batcher.loss)
                halfway = _now(policy)
                took[place].append(halfway - began)
                if place or not several:  # the gradients of a step's batches add up
                    optimizer.step(0.0)
                    updates.append(_now(policy) - halfway)
    seconds = [mean(times[1:]) for times in took]
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


def _counts(batcher: Batcher, order: Order, steps: Steps) -> dict[str, Any]:
    """Steps, pairs and tokens of a run, by the ``steps`` sampled from it."""
    sampled = [pair for pairs, _ in steps for pair in pairs]
    tokens = [batch.num_tokens for _, batches in steps for batch in batches]
    share = order.total / len(sampled)  # visits of the run for each one sampled
    return {
        "steps": order.num_steps,
        "pairs": order.total,
        "batches_per_step": len(tokens) / len(steps),
        "tokens": round(sum(tokens) * share),
        "plain_tokens": round(sum(pair.num_tokens for pair in sampled) * share),
        "tokens_per_batch": batcher.tokens_per_batch,
        "longest_batch": max(tokens),
    }


def _timed(
    planned: Plan,
    config: Config,
    data: Dataset,
    batcher: Batcher,
    steps: Steps,
    pace: _Pace,
    opened: float,
) -> Plan:
    """A plan with its times and the peak of this process, once model and data are open."""
    policy = batcher.policy
    visits = sum(len(pairs) for pairs, _ in steps)
    operations = [_operations(policy, batch) for _, batches in steps for batch in batches]
    in_batches = sum(map(pace.of, operations)) * planned.pairs / visits
    seconds_per_step = in_batches / planned.steps + pace.update + pace.cutting
    forward_per_pair = pace.forward * sum(operations) / visits
    every = config.train.eval_every
    evaluations = 1 + (-(-planned.steps // every) if every else 1) if data.eval else 0
    evaluating = forward_per_pair * len(data.eval) * evaluations
    reads_reference = batcher.loss.needs("reference")
    reference = forward_per_pair * len(data.pairs) if reads_reference else 0.0
    planned = replace(
        planned,
        seconds_per_step=seconds_per_step,
        seconds_reference=reference,
        seconds=opened + pace.preflight + reference + evaluating + seconds_per_step * planned.steps,
        peak_memory=max(_peak(policy), _not_measured(planned.phases)),
    )
    return replace(planned, less_time=_less_time(config, planned, evaluating, reference))


def _not_measured(counted: Phases) -> int:
    """The most that a phase needs which only the run goes through."""
    names = counted.keys() & {"a checkpoint", "the reference"}
    return max((sum(counted[name].values()) for name in names), default=0)


def _less_time(
    config: Config, planned: Plan, evaluating: float, reference: float
) -> list[dict[str, Any]]:
    """Changes that save a tenth of the run or more: ``keys``, ``seconds``, ``costs``."""
    assert planned.seconds is not None and planned.seconds_per_step is not None
    length = "epochs" if config.train.steps is None else "steps"
    half: Any = (config.train.steps or 0) // 2 or (config.train.epochs or 0) / 2
    stepping = planned.seconds_per_step * planned.steps
    saved = [
        (f"train.{length}={half}", stepping / 2, "half of the training"),
        ("train.eval_every=null", evaluating, "only the last evaluation is left"),
        ("a second run", reference, "nothing: the cache then holds the reference"),
    ]
    if config.train.checkpointing == "layers":
        saved.append(("train.checkpointing=none", stepping / 4, "memory, if it fits"))
    return [
        {"keys": keys, "seconds": planned.seconds - seconds, "costs": costs}
        for keys, seconds, costs in sorted(saved, key=lambda one: -one[1])
        if seconds >= planned.seconds / 10
    ]


def _base(policy: Policy, card: int | None) -> int:
    """Bytes held beside the weights: of this process on a CPU, of the driver on a card."""
    if card is not None:
        return _DRIVER
    if policy.device.type == "cuda":
        return 0  # what is free is what its memory is counted from
    return max(0, _status("VmRSS") - sum(map(bytes_of, policy.model.parameters())))


def _forget_peak() -> None:
    """What this process held at most before does not count for a plan."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # a system without it counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(policy: Policy) -> int:
    """The most that the device, or on a CPU this process, has held so far."""
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    """Bytes that this process holds (VmRSS) or held at most (VmHWM)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
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
        print(json.dumps(asdict(planned) | {"fits": planned.fits}))
        return
    shared = 1 - planned.tokens / planned.plain_tokens
    rows = [
        ("steps", f"{planned.steps:,} of {planned.pairs / planned.steps:.0f} pairs"),
        ("learning rate", f"{planned.learning_rate:g}"),
        ("tokens", f"{planned.tokens:,}; {shared:.0%} of {planned.plain_tokens:,} saved by "
                   "sharing"),
        ("batches", f"{planned.batches_per_step:.1f} a step, of at most "
                   f"{planned.longest_batch:,} tokens"),
    ]  # fmt: skip
    if planned.gpus:
        rows += _gpus_in_words(planned)
    if planned.seconds is not None:
        rows += [
            ("a step", _duration(planned.seconds_per_step or 0.0)),
            ("reference", f"{_duration(planned.seconds_reference or 0.0)}, less where the cache "
                          "holds it"),
            ("in all", _duration(planned.seconds)),
        ]  # fmt: skip
    fits = "it fits" if planned.fits else "it does not fit"
    rows += [
        ("peak memory", f"{_size(planned.peak_memory)} of {_size(planned.memory)}: {fits}"),
        *(("", line) for line in _phases_in_words(planned.phases)),
        ("disk", _size(planned.disk)),
        ("settings", "\n".join(f"{key}={value}" for key, value in planned.settings.items())),
        *(("less memory", f"{_size(one['memory'])} with {one['keys']}; costs {one['costs']}")
          for one in planned.less_memory),
        *(("less time", f"{_duration(one['seconds'])} with {one['keys']}; costs {one['costs']}")
          for one in planned.less_time),
    ]  # fmt: skip
    table = Table(show_header=False)
    for name, text in rows:
        table.add_row(name, text)
    console().print(table)
    if planned.gpus:
        say(f"computed, not measured; assumed of time: {scaling.ASSUMED}")
    elif planned.seconds is None:
        say("counted, not measured: a card that is not here says nothing of time")
    else:
        say("measured on two steps; nothing was written")


def _gpus_in_words(planned: Plan) -> list[tuple[str, str]]:
    """How many GPUs do what, how long a step takes, and what bounds it."""
    found, time = planned.gpus, "unknown: name a card, as in --gpus 8xH100"
    if found["seconds"]:
        parts = (f"{name} {_duration(took)}" for name, took in found["seconds"].items() if took)
        time = f"{_duration(planned.seconds_per_step or 0.0)}: {', '.join(parts)}"
    return [
        ("GPUs", f"{found['nodes']} x {found['gpus']}, mode {found['mode']}; the slowest computes "
                 f"{found['slowest']:.2f} times the mean"),
        ("a step", time),
        ("bound by", found["bound"]),
    ]  # fmt: skip


def _phases_in_words(counted: Phases) -> list[str]:
    """Every phase and its parts, the phase that needs most first."""
    order = sorted(counted, key=lambda name: -sum(counted[name].values()))
    return [
        f"{name}, counted {_size(sum(counted[name].values()))}: "
        + ", ".join(f"{part} {_size(size)}" for part, size in counted[name].items() if size)
        for name in order
    ]


def parse_size(text: str, where: str = "--device") -> int:
    """Bytes of a size such as ``24GB`` or ``80GiB``.

    Raises ConfigError for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) * _UNITS[found[2].lower()] if found else 0.0
    if not 2**20 <= size <= 2**50:
        raise ConfigError(
            f"{text!r} is no size of a memory",
            where=where,
            hint="write it like 24GB (billions of bytes) or 80GiB (of 1024 x 1024 x 1024)",
        )
    return int(size)


def parse_gpus(text: str) -> scaling.Cluster:
    """``8x80GB``, ``2x8x80GB`` (nodes, GPUs of each, memory) or ``2x8xH100``, a card that is known.

    Raises ConfigError for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d{0,4})x)?([1-9]\d{0,4})x(\S.*)", text.strip(), re.IGNORECASE)
    size = found[3].upper() if found else ""
    if not found or (size not in scaling.CARDS and not _SIZE.fullmatch(size)):
        raise ConfigError(
            f"{text!r} are no GPUs",
            where="--gpus",
            hint="write them like 8x80GB, 2x8x80GB (nodes, GPUs of each, memory) or 8xH100; "
            f"known cards are {', '.join(scaling.CARDS)}",
        )
    name = size if size in scaling.CARDS else None
    memory = scaling.CARDS[name].memory if name else parse_size(size, "--gpus")
    return scaling.Cluster(int(found[1] or 1), int(found[2]), memory, name)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
