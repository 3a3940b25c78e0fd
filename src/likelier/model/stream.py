"""Frozen weights that stay in their files: a layer is brought in for its use, the next meanwhile.

safetensors files are mapped into memory. A weight that keeps the dtype of its file takes no memory
that the system could not take back, and is read from there when it is used. On a CPU only reading
ahead is left to do. On a GPU that does not hold the model, linear layers are copied from there, two
layers of the stack at a time. A forward reads the stack once, upwards, a backward once, downwards.
"""

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from likelier.model.frozen import StoredLinear

# A GPU whose free memory the weights would fill further than this has too little for them.
RESIDENT_SHARE = 0.7

# Weights to copies, by the addresses of the weights.
Bring = Callable[[Sequence[Tensor]], Mapping[int, Tensor]]


def in_file(tensor: Tensor) -> bool:
    """Whether a tensor on a CPU lies in memory that torch did not allocate: in a mapped file."""
    return tensor.device.type == "cpu" and not tensor.untyped_storage().resizable()


def keep_out_of_files(model: nn.Module) -> None:
    """Copy what lies in files into memory: nothing that happens to a file reaches the model."""
    for tensor in chain(model.parameters(), model.buffers()):
        if in_file(tensor):
            tensor.data = tensor.data.clone()


def read_ahead(model: nn.Module) -> None:
    """Have the system read the next layer's weights from their files while a layer computes."""
    layers = layers_of(model)
    advise: Any = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None or not any(in_file(p) for layer in layers for p in layer.parameters()):
        return

    def announce(_: int, following: int) -> None:
        for weight in layers[following].parameters() if following in range(len(layers)) else ():
            if in_file(weight):
                start = weight.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
                length = weight.data_ptr() + weight.nbytes - start
                advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_WILLNEED)

    _hear(layers, announce)


def overfills(model: nn.Module, device: torch.device) -> bool:
    """Whether a GPU has too little free memory for the weights and for training beside them."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(p.nbytes for p in model.parameters()) > RESIDENT_SHARE * free


def stream_to(model: nn.Module, device: torch.device, bring: Bring | None = None) -> int:
    """Move a frozen model to a device, but for the `StoredLinear` layers of its stack, whose
    weights are brought there. Gives the bytes of these.

    ``bring`` is what copies them; None: through pinned memory, on a CUDA stream of its own.
    """
    layers = layers_of(model)
    streamed = [[m for m in layer.modules() if isinstance(m, StoredLinear)] for layer in layers]
    weights = [[module.weight for module in some] for some in streamed]
    stream = _Stream(weights, bring or _copying_to(device))
    _hear(layers, stream.begin)
    for module in chain.from_iterable(streamed):
        module.here = stream.here
    _move_others(model, device)
    return sum(weight.nbytes for some in weights for weight in some)


def move_adapters(model: nn.Module, device: torch.device) -> None:
    """Move adapters, which are made where weights lie, to the device that these are brought to."""
    if _streamed(model):
        _move_others(model, device)


def _move_others(model: nn.Module, device: torch.device) -> None:
    layers = _streamed(model)
    weights = [layer._parameters.pop("weight") for layer in layers]
    model.to(device)
    for layer, weight in zip(layers, weights, strict=True):
        layer._parameters["weight"] = weight


def streamed_weights(model: nn.Module) -> set[int]:
    """The ids of weights that lie elsewhere than they are used."""
    return {id(layer.weight) for layer in _streamed(model)}


def _streamed(model: nn.Module) -> list[StoredLinear]:
    return [m for m in model.modules() if isinstance(m, StoredLinear) and m.here is not None]


class _Stream:
    """Copies of the weights of two layers: of the one that runs, and of the one that follows.

    ``weights`` are those of each layer. A thread of its own makes the copies.
    """

    def __init__(self, weights: Sequence[Sequence[Tensor]], bring: Bring):
        self._weights, self._bring = weights, bring
        self._layer_of = {w.data_ptr(): at for at, some in enumerate(weights) for w in some}
        self._coming: dict[int, Future[Mapping[int, Tensor]]] = {}
        self._thread = ThreadPoolExecutor(1, "stream")

    def begin(self, at: int, following: int) -> None:
        """A layer runs: its weights and those that follow are made ready, others are dropped."""
        near = [one for one in (at, following) if one in range(len(self._weights))]
        self._coming = {one: made for one, made in self._coming.items() if one in near}
        for one in near:
            if one not in self._coming:
                self._coming[one] = self._thread.submit(self._bring, self._weights[one])

    def here(self, weight: Tensor) -> Tensor:
        """The copy of a weight, waited for; that of a layer that does not run is made now."""
        coming = self._coming.get(self._layer_of[weight.data_ptr()])
        copy = (coming.result() if coming else self._bring([weight]))[weight.data_ptr()]
        if copy.is_cuda:  # made on another stream: not to be reused before this one is through
            copy.record_stream(torch.cuda.current_stream(copy.device))
        return copy


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The stack of layers that holds most of a model's weights; empty where there is none."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    numbers = [sum(p.numel() for p in stack.parameters()) for stack in stacks]
    return list(stacks[numbers.index(max(numbers))]) if stacks else []


def _hear(layers: Sequence[nn.Module], begins: Callable[[int, int], None]) -> None:
    """Call ``begins`` with the number of each layer that runs, and of the one that follows.

    In a backward that is the one below, also where a layer runs once more there.
    """

    def hear(at: int, *_: Any) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        begins(at, at - 1 if in_backward else at + 1)

    def await_backward(at: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.requires_grad:
            states.register_hook(partial(hear, at))

    for at, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(hear, at))
        layer.register_forward_hook(partial(await_backward, at))


def _copying_to(device: torch.device) -> Bring:
    """Copies on a GPU that are whole when they are given out; it computes meanwhile."""
    side = torch.cuda.Stream(device)

    def bring(weights: Sequence[Tensor]) -> Mapping[int, Tensor]:
        with torch.no_grad(), torch.cuda.stream(side):
            copies = {w.data_ptr(): w.pin_memory().to(device, non_blocking=True) for w in weights}
        side.synchronize()  # this thread waits, and no other
        return copies

    return bring
