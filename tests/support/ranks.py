"""Runs of several processes, each forked in milliseconds, as torchrun would start them."""

import os
import resource
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from tests.support.children import Child, command, no_report, start
from tests.support.runs import exact_norms

from likelier.commands.launch import free_port
from likelier.model.team import Team

PATIENCE = 1.5  # seconds in which those that are left hear of each other: they are on one machine
Events = Mapping[int, tuple[str, Callable[[], Any]]]


def start_ranks(
    size: int,
    config: Mapping[str, Any],
    logs: Path,
    *,
    local_size: int | None = None,
    exact: bool = False,
    missing: int | None = None,
    events: Events | None = None,
    others: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[Child]:
    """The processes of one run, but for one that is ``missing``; each prints into a file of its
    own, and all share a cache beside it.

    ``local_size`` of them count as those of one machine, None: all. ``exact``: norms compute in
    the model's dtype. ``events`` are what happens to a rank when it comes to a phase, ``others``
    the configs of ranks that have another.
    """
    logs.mkdir(parents=True, exist_ok=True)
    setting = (size, local_size or size, free_port(), exact)
    children = []
    for rank in (rank for rank in range(size) if rank != missing):
        file = logs / f"config-{rank}.yaml"
        file.write_text(yaml.safe_dump(dict((others or {}).get(rank, config))))
        event = (events or {}).get(rank)
        log = logs / f"rank-{rank}.log"
        children.append(start(_run, file, rank, setting, event, log=log, cache=logs / "cache"))
    return children


def run_ranks(size: int, config: Mapping[str, Any], logs: Path, **named: Any) -> list[Child]:
    """`start_ranks`, all of which must end well."""
    children = start_ranks(size, config, logs, **named)
    codes = [child.wait() for child in children]
    assert codes == [0] * size, "\n".join(child.output for child in children)
    return children


def _run(
    config: Path,
    rank: int,
    setting: tuple[int, int, int, bool],
    event: tuple[str, Callable[[], Any]] | None,
) -> None:
    size, local_size, port, exact = setting
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    note = Team.at

    def at(team: Team, phase: str) -> None:
        note(team, phase)
        if event is not None and phase == event[0]:
            event[1]()

    with (
        patch("likelier.run._write_report", no_report),
        patch.object(Team, "at", at),
        patch("likelier.model.team._PATIENCE", PATIENCE),
        exact_norms() if exact else nullcontext(),
    ):
        command("train", str(config))


def small_files() -> None:
    """No file of this process grows beyond a few bytes from here on, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
