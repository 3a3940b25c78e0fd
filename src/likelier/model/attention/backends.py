"""Attention over a prefix tree, entered through transformers' own attention registry.

`segments` is the fast path on a CPU and `flex` on a CUDA GPU, `dense` their obvious twin: one
boolean mask of T x T. The layout travels as the keyword ``tree`` of the model's forward, so there
is no hidden state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from likelier.batching.tree import Tree, ancestor_mask_TT
from likelier.model.attention.cpu import segments
from likelier.model.attention.cuda import flex
from likelier.model.limits import rotary_tables


class UnsupportedAttention(Exception):
    """A model's attention asks for something that the tree backends do not implement."""


# What transformers passes along that changes nothing here: positions were applied to query and
# key before, there is no cache, and the tree is the mask.
_READ_ELSEWHERE = frozenset(
    {
        *("position_ids", "position_embeddings", "cache_position", "use_cache", "is_causal"),
        *("output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch"),
        *("layer_idx", "output_router_logits", "logits_to_keep", "block_sequence_ids"),
    }
)


def _attend(
    attention: Callable[[Tensor, Tensor, Tensor, Tree, float | None, int | None], Tensor],
) -> Callable[..., tuple[Tensor, None]]:
    """Give a tree attention the signature that transformers calls."""

    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        tree: Tree | None = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        others |= {"attention_mask": attention_mask, "dropout": dropout or None}
        others["no tree"] = tree is None
        unknown = [
            name
            for name, given in others.items()
            if name not in _READ_ELSEWHERE and given is not None and given is not False
        ]
        if unknown:
            raise UnsupportedAttention(
                f"{type(module).__name__} asks for {', '.join(sorted(unknown))}"
            )
        assert tree is not None
        output = attention(query, key, value, tree, scaling, sliding_window)
        return output.transpose(1, 2).contiguous(), None

    return forward


def dense(
    query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None, window: int | None
) -> Tensor:
    """The predicate as one boolean mask of T x T: the twin of both, and for other devices."""
    mask_TT = ancestor_mask_TT(tree, window)
    repeats = query.shape[1] // key.shape[1]  # grouped-query attention
    key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_TT, scale=scaling)


TREE_BACKENDS = {"segments": segments, "flex": flex, "dense": dense}

for _name, _attention in TREE_BACKENDS.items():
    AttentionInterface.register(f"likelier_{_name}", _attend(_attention))


@contextmanager
def attention_backend(model: PreTrainedModel, backend: str) -> Iterator[None]:
    """Run a model's attention by one backend, and by its own again afterwards.

    ``padded`` is the model's own attention and changes nothing.
    """
    if backend == "padded":
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(f"likelier_{backend}")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def tree_obstacle(config: object) -> str | None:
    """Why a model of this configuration cannot use a tree backend, or None where it can.

    Read from the configuration; what only the attention call reveals (soft-caps, sinks, position
    bias) raises `UnsupportedAttention` on the first batch instead.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        return f"it has layers of kind {', '.join(sorted(strange))}"
    if getattr(text, "alibi", False):
        return "it uses ALiBi position biases"
    for name in ("mamba_d_state", "ssm_cfg", "attn_layer_period", "attention_chunk_size"):
        if getattr(text, name, None):
            return f"its layers are not all softmax attention ({name})"
    if rotary_tables(text).longrope:
        return "its rotary table depends on the length (longrope)"
    return None
