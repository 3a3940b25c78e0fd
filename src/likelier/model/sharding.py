"""A model in parts: each process holds a share of every weight, and all of one layer at a time.

PyTorch's FSDP2 does it (`fully_shard`). Its root is the scorer, whose forward runs backbone and
head, so that the head's weight, also where it is the embedding's, is put together once a batch.
What is trained is held in float32 at least and computed in the policy's dtype; gradients are summed
over the processes in the dtype that is held, not in that of FSDP's choice, which is the computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from likelier.base.errors import ConfigError
from likelier.model.frozen import dtype_name, is_half
from likelier.model.policy import Policy
from likelier.model.stream import layers_of
from likelier.model.team import Team, own_part


def in_parts_of(policy: Policy, mode: str) -> Policy:
    """The policy with its weights cut into parts, one for each process; ``hybrid``: of a machine.

    The model is changed in place. Called on every process of the policy's team.

    Raises ConfigError for a model that cannot be cut so.
    """
    compute, model = policy.dtype, policy.causal_lm
    layers = layers_of(model)
    _must_be_cut(policy, layers)
    cast, trained = (compute, torch.float32) if is_half(compute) else (None, compute)
    precision = MixedPrecisionPolicy(
        param_dtype=cast, reduce_dtype=cast and trained, cast_forward_inputs=False
    )
    mesh = _mesh(policy.team, mode)
    scorer: Any = policy.scorer
    for module in (*layers, scorer):
        # One after the other: a process never holds all of a model in the wider dtype.
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.dtype != trained:
                parameter.data = parameter.data.to(trained)
        fully_shard(module, mesh=mesh, mp_policy=precision)
        module.set_gradient_divide_factor(1.0)  # the loss is divided already, by all pairs
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    scorer.set_reduce_scatter_unused_params(True)  # of experts that no token of a process took
    parts = replace(policy, in_parts=True, compute_dtype=compute)
    vars(parts)["scorer"] = scorer  # the root, in the place of one that would be made anew
    return parts


def _must_be_cut(policy: Policy, layers: list[nn.Module]) -> None:
    what, named = "", policy.model.named_parameters()
    dtypes = {parameter.dtype for name, parameter in named if ".lora_" not in name}
    owners: dict[int, int] = {}
    shared = any(
        owners.setdefault(id(p), at) != at
        for at, layer in enumerate(layers)
        for p in layer.parameters()
    )
    if policy.scorer.rule.use_model_head:
        what = f"the scores need the model's own head ({policy.scorer.rule.reason})"
    elif policy.scorer.tables.longrope:  # each process would run the layers another number of times
        what = "its rotary table depends on the length (longrope)"
    elif shared or not layers:
        what = "its layers share weights" if shared else "it has no stack of layers"
    elif is_half(policy.dtype) and len(dtypes) > 1:
        kept = ", ".join(sorted(dtype_name(d) for d in dtypes - {policy.dtype}))
        what = f"some of its weights are {kept}"
    if what:
        raise ConfigError(
            f"this model cannot be cut into parts: {what}",
            where="parallel.mode",
            hint="write parallel.mode: replicate",
        )


def _mesh(team: Team, mode: str) -> DeviceMesh:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if mode == "hybrid":
        shape = team.size // team.local_size, team.local_size
        return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device, (team.size,), mesh_dim_names=("shard",))


def like(part: Tensor, of: Tensor) -> Tensor:
    """Parts of a tensor's shape, such as its averages, as one tensor that is cut as that is."""
    if not isinstance(of, DTensor) or part.ndim == 0:
        return part
    return DTensor.from_local(
        part, of.device_mesh, of.placements, shape=of.shape, stride=of.stride()
    )


def part_of(whole: Tensor, of: Tensor) -> Tensor:
    """What this process holds of a whole tensor that is cut as another is; nothing is sent."""
    if not isinstance(of, DTensor):
        return whole
    cut: Any = torch.distributed.tensor.distribute_tensor(
        whole.to(of.device), of.device_mesh, of.placements, src_data_rank=None
    )
    return own_part(cut)


def whole(tensors: Mapping[str, Tensor], policy: Policy) -> dict[str, Tensor]:
    """Tensors of a policy in parts, put together on the CPU of the first process; on the others
    there are none.

    One at a time: no process holds all of a model but the one that is to save it.
    """
    root: Any = policy.scorer
    found, team = {}, policy.team
    # An evaluation leaves it put together, and saving takes it apart on the first process alone:
    # the next forward would put it together there, and on no other.
    root.reshard()
    for name, tensor in tensors.items():
        full = tensor.detach()
        full = full.full_tensor() if isinstance(full, DTensor) else full
        if team.leads:
            found[name] = full.cpu()
    return found


@contextmanager
def put_together(policy: Policy) -> Iterator[None]:
    """Inside, the model itself may be run, by every process alike: what belongs to no layer, which
    the scorer's forward would put together, is there.
    """
    if not policy.in_parts:
        yield
        return
    root: Any = policy.scorer
    root.unshard()
    try:
        yield
    finally:
        root.reshard()
