"""What a step takes of many GPUs: bytes by mode, seconds by data sheets, and what bounds it.

Computed: nothing of it was measured on a GPU.

``replicate`` holds everything on every GPU. ``shard`` cuts weights, masters, averages and gradients
over all GPUs, ``hybrid`` over those of a node. Cut weights are gathered layer by layer, the next
one meanwhile; what stands outside the layers (embeddings, norm and head) is gathered for a batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from likelier.config import Config
from likelier.model.quantise import bytes_of
from likelier.model.stream import layers_of
from likelier.training.memory import Memory, can_be_cut, mode_by_size

# Assumptions, none measured here: what products reach of a card's rate, and transfers of a link's.
PRODUCTS_REACH, TRANSFERS_REACH = 0.4, 0.7
ASSUMED = f"{PRODUCTS_REACH:.0%} of a data sheet's rate, {TRANSFERS_REACH:.0%} of its links"
GATHERED, SAVED = "gathered weights and their gradients", "saved for the backward"
_CUT = ("weights", "masters", "averages", "gradients")
_WORTH_NAMING = 0.1  # of a step


@dataclass(frozen=True)
class DataSheet:
    """Of a card: bytes of memory, dense bfloat16 operations a second, and bytes a second in one
    direction to GPUs of the node and, over a network card of its own, to others."""

    memory: int
    rate: float
    link: float
    network: float


CARDS = {
    "A100": DataSheet(80 * 10**9, 312e12, 300e9, 25e9),
    "H100": DataSheet(80 * 10**9, 989e12, 450e9, 50e9),
    "H200": DataSheet(141 * 10**9, 989e12, 450e9, 50e9),
}


@dataclass(frozen=True)
class Cluster:
    """``nodes`` with ``gpus`` each, of so many bytes; ``name`` where the card is a known one."""

    nodes: int
    gpus: int
    memory: int
    name: str | None = None

    @property
    def card(self) -> DataSheet | None:
        """Its data sheet."""
        return CARDS[self.name] if self.name else None

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus

    def shards(self, mode: str) -> int:
        """Over how many GPUs a mode cuts what it holds."""
        return {"replicate": 1, "hybrid": self.gpus, "shard": self.ranks}[mode]


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the largest layer, of all layers and of the root, which is in none, as they are
    computed with; and of float32 gradients of the largest layer, of all weights and of the root."""

    layer: int
    layers: int
    root: int
    layer_gradients: int
    gradients: int
    root_gradients: int


def weights_of(model: PreTrainedModel) -> WeightBytes:
    """The weights of a model by where they are; those of torch's meta device count, too."""
    layers = [list(layer.parameters()) for layer in layers_of(model)]
    inside = {id(p) for layer in layers for p in layer}
    root = [p for p in model.parameters() if id(p) not in inside]

    def gradients(parameters: Iterable[Tensor]) -> int:
        return sum(4 * p.numel() for p in parameters if p.requires_grad)

    return WeightBytes(
        layer=max((sum(map(bytes_of, layer)) for layer in layers), default=0),
        layers=sum(bytes_of(p) for layer in layers for p in layer),
        root=sum(map(bytes_of, root)),
        layer_gradients=max(map(gradients, layers), default=0),
        gradients=gradients(model.parameters()),
        root_gradients=gradients(root),
    )


def on_one_gpu(parts: Mapping[str, int], weights: WeightBytes, shards: int) -> dict[str, int]:
    """Bytes on each GPU, by what they are, of ``parts`` that one alone would hold. Two layers are
    gathered at a time, the gradients of one, and all of the root; masters stand for what they are
    masters of."""
    if shards == 1:
        return dict(parts)
    cut = {name: -(-size // shards) if name in _CUT else size for name, size in parts.items()}
    cut["weights"] -= cut["masters"] // 2  # of twice the bytes
    layers = 2 * weights.layer + weights.layer_gradients
    return {**cut, GATHERED: layers + weights.root + weights.root_gradients}


def mode_on(config: Config, numbers: int, cluster: Cluster) -> str:
    """What ``parallel.mode`` becomes for a model of so many numbers, as `mode_of` says in a run."""
    asked, full = config.parallel.mode, config.adapter.kind == "none"
    if cluster.ranks == 1 or (asked == "auto" and not can_be_cut(config)):
        return "replicate"
    usable = Memory(cluster.memory, 0, 0).usable
    by_size = mode_by_size(numbers, full, usable, cluster.ranks, cluster.gpus)
    return by_size if asked == "auto" else asked


def seconds_of_step(
    work: Sequence[float], batches: int, weights: WeightBytes, cluster: Cluster, mode: str
) -> dict[str, float]:
    """Where the seconds of a step go, from the operations of each rank that has any and the batches
    of the one that has most: all gather together. Operations, where the card is not known.

    ``arithmetic`` is the mean rank's, ``waiting`` what the slowest takes longer, ``gathering`` what
    does not fit beside its arithmetic, ``reducing`` of gradients what follows behind it. The update
    and the work of processors are not counted.
    """
    mean, slowest = sum(work) / cluster.ranks, max(work)
    if (card := cluster.card) is None:
        return {"arithmetic": mean, "waiting": slowest - mean, "gathering": 0.0, "reducing": 0.0}
    mean, slowest = (one / PRODUCTS_REACH / card.rate for one in (mean, slowest))
    shards = cluster.shards(mode)
    link = TRANSFERS_REACH * card.link
    between = min(link, TRANSFERS_REACH * card.network * cluster.gpus)  # all GPUs of a node send

    def ring(size: float, members: int, rate: float) -> float:
        return size * (members - 1) / members / rate

    # A batch gathers layers for the forward and the backward, and sends gradients to their owners;
    # those who hold the same add them up, whole models once a step, parts of them every batch.
    moved = 2 * weights.layers + weights.root + weights.gradients
    inside = ring(moved, shards, link if shards <= cluster.gpus else between)
    adding = 2 * ring(
        weights.gradients, cluster.ranks // shards, link if cluster.nodes == 1 else between
    )
    gathering = batches * (inside + adding) if shards > 1 else 0.0
    reducing = adding if shards == 1 else 0.0
    waits = {"waiting": slowest - mean, "gathering": max(0.0, gathering - slowest)}
    return {"arithmetic": mean, **waits, "reducing": reducing}


_MEANT = {
    "waiting": "pairs do not fill the GPUs evenly: more pairs a step (train.pairs_per_step)",
    "gathering": "gathering weights takes longer than computing with them: more pairs a step, "
    "and larger batches (train.checkpointing=layers makes room)",
    "reducing": "sending gradients takes a large part of a step: more pairs a step",
}
_NEEDED = {
    GATHERED: "memory: what is gathered is too large, which needs tensor parallelism",
    SAVED: "memory: one pair is too long, which needs context parallelism or data.max_length",
}


def bound_of(parts: Mapping[str, int], room: int, seconds: Mapping[str, float]) -> str:
    """What bounds a step, in words: the ``room`` of a GPU for its ``parts``, or where its
    ``seconds`` go beside arithmetic; and what would help."""
    if sum(parts.values()) <= room:
        name = max(_MEANT, key=lambda name: seconds[name])
        lost = seconds[name] / sum(seconds.values())
        return f"{_MEANT[name]}; {lost:.0%} of a step" if lost >= _WORTH_NAMING else "arithmetic"
    kept = {name: size for name, size in parts.items() if name not in _CUT}
    if sum(kept.values()) <= room:
        return "memory: more GPUs to cut over would hold it"
    return _NEEDED.get(max(kept, key=kept.__getitem__), "memory: a card this small holds no step")
