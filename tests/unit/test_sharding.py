"""What a model must be to be cut into parts, what is held meanwhile, and who shares it how."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.support.tiny import tiny_model, tiny_tokenizer
from torch.distributed.tensor import DTensor

from likelier.base.errors import ConfigError, RunFailed
from likelier.config import Config, config_from
from likelier.config.schema import ParallelConfig
from likelier.model import sharding
from likelier.model.policy import Policy
from likelier.model.stream import layers_of
from likelier.model.team import Team, joined_team
from likelier.training.memory import mode_of


def _policy() -> Policy:
    tokenizer = tiny_tokenizer()
    return Policy(tiny_model(tokenizer, torch.bfloat16).train(), tokenizer)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_layer_after_the_other_is_held_in_float32(alone: None, monkeypatch: Any) -> None:
    """A process that held all of a large model so, before it took its part, would need it all."""
    policy, cut, held = _policy(), sharding.fully_shard, []

    def counted(module: Any, **settings: Any) -> Any:
        held.append(sum(map(_is_wide, layers_of(policy.causal_lm))))
        return cut(module, **settings)

    monkeypatch.setattr(sharding, "fully_shard", counted)
    sharding.in_parts_of(policy, "shard")
    assert held == [1, 1, 0]


def _is_wide(layer: torch.nn.Module) -> bool:
    return any(p.dtype == torch.float32 and not isinstance(p, DTensor) for p in layer.parameters())


def test_a_table_that_depends_on_the_length_is_refused() -> None:
    """Rows on both sides of its limit go through the layers apart: each process as often as it has
    such rows, which the others would wait for.
    """
    policy = _policy()
    policy.causal_lm.config.rope_parameters = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="longrope"):
        sharding.in_parts_of(policy, "shard")


def _config(mode: str) -> Config:
    return config_from({"model": {"path": "base"}, "data": {"train": "pairs.jsonl"}, "out": "out",
                        "parallel": {"mode": mode}}, [])  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "of_machines", "found"),
    [("hybrid", [2, 2, 2, 2], "hybrid"), ("hybrid", [1, 1], "replicate"),
     ("shard", [2, 2, 1], "shard")],
)  # fmt: skip
def test_how_machines_share_a_model(
    wanted: str, of_machines: list[int], found: str, monkeypatch: Any
) -> None:
    _tell(monkeypatch, of_machines)
    team = Team(0, len(of_machines), of_machines[0])
    assert mode_of(_config(wanted), team) == found


def test_machines_with_more_and_fewer_processes_share_no_model(monkeypatch: Any) -> None:
    _tell(monkeypatch, [2, 2, 1])
    with pytest.raises(ConfigError, match="different numbers of processes"):
        mode_of(_config("hybrid"), Team(0, 3, 2))


def _tell(monkeypatch: Any, of_machines: list[int]) -> None:
    def gathered(team: Team, value: Any) -> list[Any]:
        return of_machines if isinstance(value, int) else [value] * team.size

    monkeypatch.setattr(Team, "gathered", gathered)


def test_more_processes_than_gpus_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="no GPU of its own: 1"), joined_team(ParallelConfig()):
        pass


def test_a_process_group_of_somebody_else_is_refused(alone: None, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFailed, match="there already"), joined_team(ParallelConfig()):
        pass
