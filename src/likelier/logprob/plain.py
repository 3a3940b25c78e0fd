"""Log-probs from all logits at once: the obvious twin of `chunked`, for tests and small inputs.

Axis letters: N predicting positions, E (position, token) entries, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from likelier.logprob.head import Head, head_logits


def token_logps(
    hidden_ND: Tensor, head: Head, row_E: Tensor, token_E: Tensor, chunk: int | None = None
) -> Tensor:
    """``log softmax(head(hidden[row]))[token]`` for every entry, in nats, shape (E,).

    ``row_E`` indexes rows of ``hidden_ND`` in ascending order; ``chunk`` is accepted and not
    needed. Computed in at least float32.
    """
    logits_NV = head_logits(hidden_ND, head)
    return torch.log_softmax(logits_NV, dim=-1)[row_E, token_E]
