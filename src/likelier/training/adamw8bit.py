"""AdamW whose averages are held in eight bits, with a scale for each block of 256 numbers.

They take 2 1/32 bytes a number instead of 8; what is updated stays float32. A number is held as the
nearest of 256 codes times the largest of its block: to 1 % where it is near that, and as 0 where it
is less than a millionth of it. Dettmers et al. 2021, arXiv 2110.02861.

On CUDA the update is the kernel of bitsandbytes, one pass over everything. On a CPU it is written
out here, because theirs (0.50) rounds all under 1/50,000 of the largest, 0 too, to one code that is
not 0: weights without a gradient drifted. Each is the other's twin.

An average of squares that rounds to 0 under an average that does not would divide by epsilon alone:
it is held as the smallest code instead, on both.

Axis letters: N numbers, B blocks of them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from likelier.base.environment import import_bitsandbytes, needs_bitsandbytes
from likelier.base.errors import ConfigError

NUMBERS_A_BLOCK = 256
LEAST_NUMBERS = 4096  # smaller tensors, such as norms, keep averages of float32, as in the paper
AT_ONCE = 1 << 22  # numbers that are unpacked together


def packs(master: Tensor) -> bool:
    """Whether the averages of a master are held in eight bits; the kernel counts in 32."""
    large = LEAST_NUMBERS <= master.numel() < 2**31
    return large and master.dtype == torch.float32 and master.is_contiguous()


def bytes_of_averages(numbers: int, kind: str) -> int:
    """What AdamW's averages of a trained tensor take, by ``optim.kind``."""
    packed = kind == "adamw8bit" and numbers >= LEAST_NUMBERS
    return 2 * (numbers + 4 * -(-numbers // NUMBERS_A_BLOCK)) if packed else 8 * numbers


class AdamW8bit(torch.optim.Optimizer):
    """AdamW of tensors that `packs` takes; ``lr`` of its groups is set before every step.

    Raises ConfigError where bitsandbytes is missing, or where there is no such tensor.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float):
        needs_bitsandbytes("optim.kind")
        if not groups:
            what = f"has no effect: no trained tensor of float32 has {LEAST_NUMBERS} numbers"
            raise ConfigError(what, where="optim.kind", hint="remove optim.kind")
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._functional = import_bitsandbytes().functional
        device = groups[0]["params"][0].device
        self._codes = {
            "exp_avg": self._functional.create_dynamic_map(signed=True).to(device),
            "exp_avg_sq": self._functional.create_dynamic_map(signed=False).to(device),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        for group in self.param_groups:
            for master in group["params"]:
                if master.grad is None:
                    continue
                state = self.state[master] or self._begin(master)
                state["step"] += 1
                if group["weight_decay"]:
                    master.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._by_kernel if master.is_cuda else self._by_blocks
                update(master, state, group)
                self._keep_roots(state)

    def _begin(self, master: Tensor) -> dict[str, Tensor]:
        state = self.state[master]
        state["step"] = torch.tensor(0.0)
        for name in self._codes:
            state[name] = torch.zeros_like(master, dtype=torch.uint8)
            state[f"{name}_scale"] = master.new_zeros(-(-master.numel() // NUMBERS_A_BLOCK))
        return state

    def _by_kernel(self, master: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        assert master.grad is not None
        self._functional.optimizer_update_8bit_blockwise(
            "adam",
            master.grad.contiguous(),
            master,
            *(state[name] for name in self._codes),
            *(*group["betas"], 0.0, 0.0),
            group["eps"],
            int(state["step"]),
            group["lr"],
            *self._codes.values(),
            *(state[f"{name}_scale"] for name in self._codes),
        )

    def _by_blocks(self, master: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """The same, a few blocks after another, so that little is unpacked at once."""
        assert master.grad is not None
        (first, second), count = group["betas"], int(state["step"])
        root = math.sqrt(1 - second**count)
        rate = group["lr"] / (1 - first**count)
        flat_N, grad_N = master.view(-1), master.grad.reshape(-1)
        for start in range(0, master.numel(), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            grad, averages = grad_N[some], []
            for (name, code), decay in zip(self._codes.items(), group["betas"], strict=True):
                blocks = slice(start // NUMBERS_A_BLOCK, (start + AT_ONCE) // NUMBERS_A_BLOCK)
                packed_N, scale_B = state[name].view(-1)[some], state[f"{name}_scale"][blocks]
                average = unpacked(packed_N, scale_B, code).mul_(decay)
                average.add_(grad if name == "exp_avg" else grad.square(), alpha=1 - decay)
                pack_into(average, packed_N, scale_B, code)
                averages.append(average)
            flat_N[some].addcdiv_(
                averages[0], (averages[1].sqrt_() / root).add_(group["eps"]), value=-rate
            )

    def _keep_roots(self, state: dict[str, Tensor]) -> None:
        """No average of squares is 0 where that of gradients is not."""
        none = int((self._codes["exp_avg"] == 0).nonzero())
        for average_N, square_N in zip(
            *(state[name].view(-1).split(AT_ONCE) for name in self._codes), strict=True
        ):
            square_N.masked_fill_((square_N == 0) & (average_N != none), 1)


def unpacked(packed_N: Tensor, scale_B: Tensor, code: Tensor) -> Tensor:
    """Numbers that were packed, shape (N,)."""
    return code[packed_N.int()] * scale_B.repeat_interleave(NUMBERS_A_BLOCK)[: len(packed_N)]


def pack_into(values_N: Tensor, packed_N: Tensor, scale_B: Tensor, code: Tensor) -> None:
    """Write numbers as the nearest codes, and the scales of their blocks, into given memory."""
    blocks_BN = F.pad(values_N, (0, -len(values_N) % NUMBERS_A_BLOCK)).view(-1, NUMBERS_A_BLOCK)
    scale_B.copy_(blocks_BN.abs().amax(1))
    shares_BN = blocks_BN / scale_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    nearest = torch.bucketize(shares_BN, (code[1:] + code[:-1]) / 2, out_int32=True)
    packed_N.copy_(nearest.view(-1)[: len(packed_N)])
