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

from likelier.batching.batch import Batch, Scored
from likelier.config.schema import ReferenceConfig
from likelier.model.policy import Policy, with_idle
from likelier.model.team import own_part
from likelier.reference.cache import NoReference, StoredReference


class MovingReference:
    """The reference's own copy of the float32 ``masters`` of what the policy trains.

    Until it moves for the first time, the ``stored`` log-probs still are what it would give.
    """

    def __init__(
        self,
        stored: "Reference",
        policy: Policy,
        masters: Mapping[str, Tensor],
        config: ReferenceConfig,
    ):
        assert config.update_every is not None  # the caller asked
        self.stored, self.policy, self.policy_masters = stored, policy, masters
        self.every, self.mix = config.update_every, config.update_mix
        self.identity: str = stored.identity
        self.values: Mapping[bytes, Tensor] = stored.values
        self.masters = {name: master.detach().clone() for name, master in masters.items()}
        self.moved = False

    def completion_logp(self, sequence: Scored, weights: Sequence[float] | None = None) -> float:
        """The stored log-prob; `rescored` replaces it once the reference has moved."""
        return self.stored.completion_logp(sequence, weights)

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Move the reference if ``step`` is a multiple of ``update_every``."""
        if step % self.every == 0:
            for name, master in self.policy_masters.items():
                self.masters[name].lerp_(master, self.mix)
            self.moved = True

    @torch.no_grad()
    def rescored(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches with the log-probs of the reference as it is now, the same until it moves."""
        if not self.moved:
            return list(batches)
        return [
            replace(batch, reference_R=batch.completion_logps(logp_E))
            for batch, logp_E in zip(batches, self.scored(batches), strict=True)
        ]

    @torch.no_grad()
    def scored(self, batches: Sequence[Batch]) -> list[Tensor]:
        """The log-probs of the entries of batches under the reference as it is now."""
        with self._in_place():
            logps = [self.policy.scorer(batch) for batch, _ in with_idle(self.policy, batches)]
        return logps[: len(batches)]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the reference's weights into the model, and the policy's back on leaving."""
        self.policy.forget_gathered()  # what is put together has no part to write into
        parameters = self.policy.model.named_parameters()
        named = {name: own_part(p) for name, p in parameters if name in self.masters}
        before = {name: named[name].detach().clone() for name in self.masters}
        try:
            for name, master in self.masters.items():
                named[name].copy_(master)
            self.policy.forget_gathered()
            yield
        finally:
            for name, value in before.items():
                named[name].copy_(value)
            self.policy.forget_gathered()

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put the reference of a checkpoint back."""
        for name, master in self.masters.items():
            master.copy_(saved[name])
        self.moved = True


Reference = StoredReference | NoReference | MovingReference
