"""Decoder layers compiled by torch.compile, for a while: their elementwise parts become few loops.

Norms, rotary positions, gates and residuals cost a CPU a quarter of a step, most of it reading and
writing memory. The attention over the tree stays as it is (`likelier.model.attention`), and so
does everything outside of the layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from likelier.base.errors import ConfigError


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that repeat: what transformers never splits over devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """Run the layers of a model compiled; on leaving they are as before.

    Layers of one kind share one compilation, which a later call finds again.

    Raises ConfigError where the model names no layers, or they cannot be compiled here.
    """
    layers = decoder_layers(model)
    if not layers:
        raise _impossible("this model does not name its layers")
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        raise _impossible(str(error).strip().splitlines()[0]) from error
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _impossible(reason: str) -> ConfigError:
    return ConfigError(
        f"the layers cannot be compiled: {reason}",
        where="train.compile",
        hint="set train.compile: false",
    )
