"""Same run, same bytes: torch's deterministic algorithms for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic as torch_deterministic


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
