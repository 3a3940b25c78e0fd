"""AdamW over float32 masters, the learning-rate schedule, and clipping.

Whatever the compute dtype, every trainable tensor has a float32 master: in bfloat16 an update
smaller than 1/256 of a weight is rounded away.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from likelier.base.errors import NotFinite, RunFailed
from likelier.config.schema import OptimConfig
from likelier.model.frozen import is_half
from likelier.model.team import ALONE, Team, own_part
from likelier.training.adamw8bit import AdamW8bit, packs


def schedule(config: OptimConfig, peak: float, num_steps: int) -> Callable[[int], float]:
    """Learning rate of each step (from 1): linear warm-up, then cosine, linear or constant.

    ``warmup`` is a share of the steps, rounded up, or a whole number of them. The first of w has
    1/w of the peak, and with ``warmup_from_zero`` 0, as in transformers.
    """
    whole = isinstance(config.warmup, int)
    rising = config.warmup if whole else math.ceil(config.warmup * num_steps)

    def rate(step: int) -> float:
        if step <= rising:
            return peak * (step - config.warmup_from_zero) / rising
        done = (step - 1 - rising) / max(1, num_steps - rising)
        if config.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * (1 - done) if config.schedule == "linear" else peak

    return rate


class MasterAdamW:
    """AdamW on the masters of the trainable parameters of a model.

    Gradients of half-precision parameters are moved to their float32 masters after every batch,
    so that sums over batches are float32 sums. Weight decay applies to matrices, not to biases,
    norms and other vectors. `close` takes the hooks off the model. ``exact`` are masters that hold
    more than their parameters, by name.

    Of a ``team`` that holds the model in parts, each process has the masters of its own; otherwise
    all have all of them, and add up their gradients before an update.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        exact: Mapping[str, Tensor] | None = None,
        team: Team = ALONE,
    ):
        self.team = team
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.max_grad_norm = config.max_grad_norm
        self.masters: dict[str, Tensor] = {}
        self.copies: dict[str, nn.Parameter] = {}  # parameters that are not their own masters
        self._hooks: list[RemovableHandle] = []
        for name, parameter in self.parameters.items():
            parameter.grad = None  # a model handed over may bring gradients of its own
            if is_half(parameter.dtype):
                master = (exact or {}).get(name, parameter.detach().float())
                hook = parameter.register_post_accumulate_grad_hook(_hand_over_to(master))
                self._hooks.append(hook)
                self.masters[name], self.copies[name] = master, parameter
            else:
                self.masters[name] = own_part(parameter)
        self.adamw_of = _adamw_of_each(self.masters, config)
        averages = ("exp_avg", "exp_avg_sq")
        scales = [f"{name}_scale" for name in averages] if config.kind == "adamw8bit" else []
        self.parts = ("masters", *averages, *scales, "count")

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clip, update at a learning rate, clear the gradients; returns the norm before clipping.

        Raises NotFinite where a gradient or their norm is not, before anything is changed.
        """
        grads = self._gradients()
        norm = self._norm(grads)
        if not math.isfinite(norm):
            raise NotFinite(
                f"{_not_finite(grads, self.team)} is not finite, so no update was made",
                hint="model.dtype and optim.lr",
            )
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            torch._foreach_mul_(list(grads.values()), self.max_grad_norm / norm)
        for adamw in dict.fromkeys(self.adamw_of.values()):
            for group in adamw.param_groups:
                group["lr"] = lr
            adamw.step()
        for name, parameter in self.copies.items():
            parameter.copy_(self.masters[name])
        self.forget_gradients()
        return norm

    @property
    def replicas(self) -> int:
        """How many processes hold each number of the masters; fewer than the team: in parts."""
        some: Any = next(iter(self.parameters.values()), None)
        mesh = getattr(some, "device_mesh", None)
        if mesh is None:
            return self.team.size
        return int(mesh.size(0)) if mesh.ndim == 2 else 1

    def _gradients(self) -> dict[str, Tensor]:
        """The gradients of the masters by name, those of all processes."""
        if self.replicas < self.team.size:  # added up in the backward
            for name, parameter in self.parameters.items():
                grad = parameter.grad
                self.masters[name].grad = None if grad is None else own_part(grad)
        elif self.team.size > 1:
            there = {name for name, master in self.masters.items() if master.grad is not None}
            for name in set[str]().union(*self.team.gathered(there)) - there:
                self.masters[name].grad = torch.zeros_like(self.masters[name])
            self.team.add_up(m.grad for m in self.masters.values() if m.grad is not None)
        return {name: m.grad for name, m in self.masters.items() if m.grad is not None}

    def _norm(self, grads: Mapping[str, Tensor]) -> float:
        """The norm of all gradients; of parts that several processes hold, each counts once."""
        norm = float(torch.nn.utils.get_total_norm(grads.values()))
        if self.replicas == self.team.size:
            return norm
        return math.sqrt(sum(one**2 for one in self.team.gathered(norm)) / self.replicas)

    def forget_gradients(self) -> None:
        """Drop all gradients: after a step, or where one is begun anew."""
        for name, parameter in self.parameters.items():
            parameter.grad = self.masters[name].grad = None

    def must_be_finite(self) -> None:
        """Called before anything is saved: a damaged weight never reaches the disk.

        Raises NotFinite with its name, or that of AdamW's average of its gradients, on all
        processes where one has it.
        """
        rounded: dict[str, Tensor] = dict(self.copies)
        bad = (
            name if kind == "masters" else f"{kind} of {name}"
            for kind, tensors in (*self.state().items(), ("the model's copy", rounded))
            for name, tensor in tensors.items()
            if not bool(tensor.isfinite().all())
        )
        if named := next(filter(None, self.team.gathered(next(bad, None))), None):
            raise NotFinite(
                f"{named} is not finite after an update, so nothing is saved",
                hint="optim.lr and optim.eps",
            )

    def close(self) -> None:
        """Take the hooks off the model, so that it can be trained again."""
        for hook in self._hooks:
            hook.remove()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything a resumed run needs, by parameter name: masters, AdamW's averages, the scales
        of those in eight bits, and its count of steps.
        """
        moments = {
            name: self.adamw_of[name].state[master]
            for name, master in self.masters.items()
            if master in self.adamw_of[name].state
        }
        found = {"masters": {name: m.detach() for name, m in self.masters.items()}}
        for part in self.parts[1:]:
            key = "step" if part == "count" else part
            found[part] = {name: state[key] for name, state in moments.items() if key in state}
        return found

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put the state of a checkpoint back.

        Raises RunFailed where it belongs to other parameters.
        """
        saved, ours = state["masters"], self.masters
        if saved.keys() != ours.keys() or any(saved[n].shape != ours[n].shape for n in ours):
            raise RunFailed("the checkpoint holds other parameters than this model trains")
        for name, master in ours.items():
            master.copy_(saved[name])
            if name in self.copies:
                self.copies[name].copy_(master)
            if name in state["exp_avg"]:
                adamw, count = self.adamw_of[name], state["count"][name].clone()
                parts = [part for part in self.parts[1:-1] if name in state[part]]
                is_fused = isinstance(adamw, torch.optim.AdamW)  # which counts on the device
                adamw.state[master] = {
                    "step": count.to(master.device) if is_fused else count,
                    **{part: state[part][name].clone().to(master.device) for part in parts},
                }


def _adamw_of_each(
    masters: Mapping[str, Tensor], config: OptimConfig
) -> dict[str, torch.optim.Optimizer]:
    """What updates each master, by its name."""
    is_packed = {name: config.kind == "adamw8bit" and packs(m) for name, m in masters.items()}
    packed, others = ([n for n in masters if is_packed[n] == kind] for kind in (True, False))
    found: dict[str, torch.optim.Optimizer] = {}
    if config.kind == "adamw8bit":
        groups = _with_decay([masters[name] for name in packed], config.weight_decay)
        found |= dict.fromkeys(packed, AdamW8bit(groups, config.betas, config.eps))
    if others:
        groups = _with_decay([masters[name] for name in others], config.weight_decay)
        plain = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
        found |= dict.fromkeys(others, plain)
    return found


def _with_decay(masters: list[Tensor], decay: float) -> list[dict[str, Any]]:
    """Groups of parameters: matrices decay, vectors do not."""
    matrices = {"params": [m for m in masters if m.ndim >= 2], "weight_decay": decay}
    vectors = {"params": [m for m in masters if m.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def _not_finite(grads: Mapping[str, Tensor], team: Team) -> str:
    """The first gradient that is not finite on any process; where all are, the norm and what it
    comes from.
    """
    own = (name for name, grad in grads.items() if not bool(grad.isfinite().all()))
    if bad := next(filter(None, team.gathered(next(own, None))), None):
        return f"the gradient of {bad}"
    sized = {name: grad for name, grad in grads.items() if grad.numel()}  # a part may hold nothing
    largest = max((float(grad.abs().max()), name) for name, grad in sized.items())
    return f"the norm of the gradients, of which {max(team.gathered(largest))[1]} has the largest,"


def _hand_over_to(master: Tensor) -> Callable[[Tensor], None]:
    def hand_over(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return hand_over
