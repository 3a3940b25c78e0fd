"""Runs of several processes, each forked in milliseconds, as torchrun would start them."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.support.children import Child, run, start
from tests.support.runs import exact_norms


def start_ranks(
    size: int,
    config: Mapping[str, Any],
    folder: Path,
    local_size: int | None = None,
    work: Callable[..., Any] = run,
    exact: bool = False,
) -> list[Child]:
    """The processes of one run; each prints into a file of its own in a folder.

    ``local_size`` of them count as those of one machine, None: all. ``exact``: norms compute in
    the model's dtype.
    """  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    local = local_size or size
    return [
        start(
            _ranked, rank, size, local, port, exact, work, config, log=folder / f"rank-{rank}.log"
        )
        for rank in range(size)
    ]


def run_ranks(size: int, config: Mapping[str, Any], folder: Path, **named: Any) -> list[Child]:
    """`start_ranks`, all of which must end well."""
    children = start_ranks(size, config, folder, **named)
    codes = [child.wait() for child in children]
    assert codes == [0] * size, "\n".join(child.output for child in children)
    return children


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _ranked(
    rank: int, size: int, local: int, port: int, exact: bool, work: Callable[..., Any],
    *arguments: Any,
) -> None:  # fmt: skip
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with exact_norms() if exact else nullcontext():
        work(*arguments)
