"""What holds while a model runs: no dropout, freed memory kept, the same bits each time.

Freed memory: glibc hands large blocks back to the system when they are freed, and every page of
the next tensor is then cleared and mapped again, which is up to a fifth of a step on a CPU.

Compiled products: in bfloat16 oneDNN compiles one for each shape, 0.3 MiB, and keeps 1024; torch
keeps as many descriptions of them, 0.26 MiB each. One batch has about 50 shapes, and hardly two
have the same number of tokens, so that most are never met again. Of either the last 128 are kept.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import deterministic as torch_deterministic

_CHANCE = re.compile(r"drop|jitter", re.IGNORECASE)
# From malloc.h. The limits that stand afterwards are the largest that glibc sets by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _HUGE = -1, 2**31 - 1
_AFTER = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}

for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read by the first product
    os.environ.setdefault(_name, "128")


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every probability of a model, its modules and its configuration to 0.

    The model can then stay in train mode (some models switch activation checkpointing off
    otherwise) and two forwards give the same bits. On leaving, all values stand as before, so
    that a saved configuration is the original one.
    """
    before: list[tuple[Any, str, float]] = []
    for holder in _holders(model):
        for name, value in vars(holder).items():
            chance = _CHANCE.search(name) or (name == "p" and isinstance(holder, nn.Module))
            if chance and type(value) is float and value != 0.0:
                before.append((holder, name, value))
    for holder, name, _ in before:
        setattr(holder, name, 0.0)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def _holders(model: nn.Module) -> list[Any]:
    """Modules, and the configurations some of them read at every call; each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        found[id(module)] = module
        config = getattr(module, "config", None)
        if hasattr(config, "__dict__"):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next allocation, give it back on leaving; the peak is the same.

    Nothing happens where the C library is not glibc.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version")):
        yield
        return
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    library.mallopt(_MMAP_THRESHOLD, _HUGE)
    try:
        yield
    finally:
        for limit, value in _AFTER.items():
            library.mallopt(limit, value)
        library.malloc_trim(0)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms where ``wanted``; the caller's choice comes back afterwards.

    The promise holds for one machine, number of threads and set of versions.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch_deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by CUDA's first product
        torch.use_deterministic_algorithms(True)
        # Filling memory that is written anyway costs time and changes nothing.
        torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch_deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
