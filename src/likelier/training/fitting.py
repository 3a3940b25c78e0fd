"""A step that does not fit into the GPU's memory is begun anew, once, with passes of half size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from likelier.base.errors import RunFailed
from likelier.base.terminal import say
from likelier.losses.registry import BoundLoss
from likelier.model.scorer import Scorer
from likelier.training.optimizer import MasterAdamW
from likelier.training.step import PairPass, PairValues, step_gradients


@dataclass
class PassSize:
    """How many tokens a pass may hold from here on, and whether that was halved already."""

    tokens: int
    halved: bool = False


def gradients_that_fit(
    scorer: Scorer,
    cut: Callable[[int], Sequence[PairPass]],
    size: PassSize,
    loss: BoundLoss,
    optimizer: MasterAdamW,
) -> tuple[Sequence[PairPass], PairValues]:
    """The gradient of a step whose passes ``cut(tokens)`` makes; it is the same for any size.

    Raises RunFailed where half the size does not fit either.
    """
    before = dict(loss.state)
    try:
        passes = cut(size.tokens)
        return passes, step_gradients(scorer, passes, loss)
    except torch.OutOfMemoryError as error:
        if size.halved:
            raise RunFailed(
                f"passes of {size.tokens} tokens do not fit into the memory of the device",
                hint="set train.gradient_checkpointing: true, or a smaller data.max_length; "
                "`likelier plan` says what a run needs",
            ) from error
    # Outside of the handler: the error holds the frames, and they hold the tensors.
    size.tokens, size.halved = size.tokens // 2, True
    say(f"out of memory: from here on passes of at most {size.tokens} tokens")
    loss.state.clear()
    loss.state.update(before)
    optimizer.forget_gradients()
    torch.cuda.empty_cache()  # nothing where there is no GPU
    return gradients_that_fit(scorer, cut, size, loss, optimizer)
