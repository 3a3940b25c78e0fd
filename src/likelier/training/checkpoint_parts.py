"""The files of a checkpoint whose tensors are cut over processes: each writes and reads its own.

PyTorch's distributed checkpoint does it, in safetensors files that say where in the whole tensor
each part belongs, so that any number of processes can read them. Nothing is pickled in them. They
lie in the folder that the first process makes, seals and puts in place like any other checkpoint.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from likelier.base.files import output_errors
from likelier.model.sharding import like
from likelier.model.team import Team
from likelier.training.optimizer import MasterAdamW

State = Mapping[str, Mapping[str, Tensor]]


def save_together(
    team: Team, put: Callable[[Callable[[Path], None]], None], state: State, optimizer: MasterAdamW
) -> None:
    """Have every process write its parts of a ``state`` of the optimizer's masters.

    ``put(write)`` is called on the first one: it makes a folder, lets ``write`` fill it, and seals
    it.

    Raises OutputError where a disk refuses, on the process that wrote there.
    """
    named = {
        f"{part}/{name}": like(tensor, optimizer.parameters[name])
        for part, tensors in state.items()
        for name, tensor in tensors.items()
    }

    def write(target: Path) -> None:
        path = team.agreed(lambda: target)
        writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
        with output_errors(path), _own_failure(team), _quietly():
            dcp.save(named, storage_writer=writer)

    if team.leads:
        put(write)
    else:
        write(Path())
    team.meet()  # the checkpoint stands


def load_parts(path: Path, optimizer: MasterAdamW) -> dict[str, dict[str, Tensor]]:
    """A state that `save_together` wrote, as far as this process holds it.

    Parts of tensors that the optimizer does not train are left out.
    """
    wanted: dict[str, Tensor] = {}
    state: dict[str, dict[str, Tensor]] = {part: {} for part in optimizer.parts}
    for key in sorted(_keys(path)):
        part, _, name = key.partition("/")
        if name not in optimizer.masters or part not in (*state, "reference"):
            continue
        master = optimizer.masters[name]
        own = torch.zeros(()) if part == "count" else torch.empty_like(master)
        state.setdefault(part, {})[name] = own
        wanted[key] = like(own, optimizer.parameters[name])
    with _quietly():  # each reads by itself, so that any of them may be the only one
        dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    return state


def _keys(path: Path) -> set[str]:
    found: set[str] = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= set(opened.keys())
    return found


@contextmanager
def _own_failure(team: Team) -> Iterator[None]:
    """Raise what went wrong on this process, of all that torch tells every process of."""
    try:
        yield
    except CheckpointException as error:
        of_rank: Any = error.failures
        raise of_rank.get(team.rank, next(iter(of_rank.values())))[0] from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's notes that no process group is used, or that a folder is there."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
