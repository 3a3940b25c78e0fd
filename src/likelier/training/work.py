"""How much arithmetic a pass needs, counted from its layout and the model's sizes."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from likelier.batching.layout import Pass


@dataclass(frozen=True)
class Work:
    """Operations of one forward: products in the layers, in the head, and in attention."""

    layers: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.layers + self.head + self.attention


def work_of(batch: Pass, model: PreTrainedModel) -> Work:
    """Operations of a forward over a pass; a backward needs twice as many.

    Two a weight and token in the layers, the head at predicting positions only, attention over
    the pairs that the layout allows (a sliding window counts as none). The embedding and
    everything elementwise count as nothing.
    """
    config = model.config.get_text_config()
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    weights = sum(
        p.numel()
        for p in model.parameters()
        if p.ndim >= 2 and id(p) not in embeddings and id(p) not in head
    )
    allowed = int((batch.depth_BL + 1).sum())  # a token sees its ancestors and itself
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = size * config.num_attention_heads
    return Work(
        layers=2.0 * batch.num_tokens * weights,
        head=2.0 * len(batch.predict_N) * config.hidden_size * config.vocab_size,
        attention=2.0 * 2 * allowed * width * config.num_hidden_layers,
    )
