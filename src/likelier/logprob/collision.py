"""How concentrated a prediction is: the log-prob that two draws give the same token.

Axis letters: N predicting positions, D hidden, V vocabulary, C positions of one chunk.
"""

import torch
from torch import Tensor

from likelier.logprob.chunked import default_chunk
from likelier.logprob.head import Head, head_logits


@torch.no_grad()
def collision_logps(hidden_ND: Tensor, head: Head, chunk: int | None = None) -> Tensor:
    """``log sum(p^2)`` over the vocabulary at every position, in nats, shape (N,)."""
    return torch.cat(
        [
            collisions_of(head_logits(hidden_CD, head))
            for hidden_CD in hidden_ND.split(chunk or default_chunk(head))
        ]
    )


def collisions_of(logits_CV: Tensor) -> Tensor:
    """The same of logits."""
    return torch.logsumexp(2 * torch.log_softmax(logits_CV, dim=-1), dim=-1)
