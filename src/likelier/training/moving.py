"""TR-DPO: a reference that moves after the policy, kept as weights and scored live.

Gorbatovski et al. 2024 (arXiv 2404.09656): every so many steps the reference becomes
``mix * policy + (1 - mix) * reference``. Only trainable tensors are kept twice: what is frozen is
the same for both. With LoRA it is the adapter that moves, from the one that the run began with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from likelier.model.scorer import Scorer
from likelier.training.optimizer import MasterAdamW
from likelier.training.passes import PairPass


class MovingReference:
    """The reference's own copy of the masters, in their precision.

    Until it moves for the first time, the reference column still holds what it would give.
    """

    def __init__(self, optimizer: MasterAdamW, every: int, mix: float):
        self.optimizer, self.every, self.mix = optimizer, every, mix
        self.masters = {name: m.detach().clone() for name, m in optimizer.masters.items()}
        self.moved = False

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Move, if a step is one after which it does."""
        if step % self.every == 0:
            for name, master in self.optimizer.masters.items():
                self.masters[name].lerp_(master, self.mix)
            self.moved = True

    @torch.no_grad()
    def rescored(self, scorer: Scorer, passes: Sequence[PairPass]) -> list[PairPass]:
        """The passes with the log-probs of the reference as it is now."""
        if not self.moved:
            return list(passes)
        with self._in_place():
            return [
                replace(item, reference_R=item.answer_logps(scorer(item.batch))) for item in passes
            ]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The model with the reference's weights for a while."""
        parameters = self.optimizer.parameters
        policy = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.copy_(self.masters[name])
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(policy[name])

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put the reference of a checkpoint back."""
        for name, master in self.masters.items():
            master.copy_(saved[name])
        self.moved = True
