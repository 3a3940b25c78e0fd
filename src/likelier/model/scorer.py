"""One module forward: a batch in, log-probs of its (position, token) entries out.

Backbone and head run inside this one forward, so that checkpointing, adapters and sharding can
wrap it; nothing calls a submodule from outside.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from likelier.batching.batch import Batch
from likelier.batching.tree import Tree
from likelier.model.frozen import StoredLinear, is_half
from likelier.model.limits import check_length, rotary_tables, rows_by_table
from likelier.model.logprob import (
    Head,
    OfLogits,
    at_least_float32,
    logits_of,
    of_every_row,
    token_logps,
)
from likelier.model.running import without_dropout


@dataclass(frozen=True)
class HeadRule:
    """How this model's own forward turns hidden states into logits, as far as we could verify.

    ``use_model_head`` means that it could not be reproduced, ``reason`` why: the model's own
    forward then makes all logits.
    """

    scale: float = 1.0
    softcap: float | None = None
    use_model_head: bool = False
    reason: str | None = None


class Scorer(nn.Module):
    """Scores batches with one causal language model (bare, or with adapters inside).

    ``chunk`` is the number of predicting positions whose logits exist at once (None: by
    vocabulary size).
    """

    def __init__(self, model: PreTrainedModel, rule: HeadRule, chunk: int | None = None):
        super().__init__()
        self.model, self.rule, self.chunk = model, rule, chunk
        self.tables = rotary_tables(model.config.get_text_config())

    def forward(self, batch: Batch, also: OfLogits | None = None) -> Any:
        """Log-probs of the entries of a batch, in nats, shape (E,), at least float32.

        A second tensor is what ``also`` gives of the prediction of each, without gradient,
        shape (E,); where there is none, the log-probs come alone.

        Raises DataError where a sequence is longer than the rotary table allows.
        """
        check_length(self.tables, batch.longest)
        if batch.tree is not None:
            states_BLD = self._states(batch.token_BL, batch.depth_BL, tree=batch.tree)
        elif self.tables.longrope:
            states_BLD = self._states_by_table(batch)
        else:
            states_BLD = self._states(batch.token_BL, batch.depth_BL, attention_mask=batch.keep_BL)
        return self.logps(states_BLD, batch, also)

    def logps(self, states_BLD: Tensor, batch: Batch, also: OfLogits | None = None) -> Any:
        """What `forward` gives, from hidden states or logits that a run of the model gave."""
        states_ND = states_BLD.flatten(0, 1).index_select(0, batch.predict_N)
        if self.rule.use_model_head:
            logits_NV = at_least_float32(states_ND)
            logp_E = torch.log_softmax(logits_NV, dim=-1)[batch.row_E, batch.token_E]
            if also is not None:
                return logp_E, also(logits_NV.detach())[batch.row_E]
            return logp_E
        logp_E = token_logps(
            states_ND, self.head(), batch.row_E, batch.token_E, self.chunk, batch.starts
        )
        if also is not None:
            return logp_E, of_every_row(also, states_ND, self.head(), self.chunk)[batch.row_E]
        return logp_E

    def _states_by_table(self, batch: Batch) -> Tensor:
        """Padded rows through the model, those that share a rotary table together."""
        assert batch.keep_BL is not None
        groups = rows_by_table(self.tables, batch.keep_BL)
        parts = []
        for rows, longest in groups:
            part = [v[rows, :longest] for v in (batch.token_BL, batch.depth_BL, batch.keep_BL)]
            states = self._states(part[0], part[1], attention_mask=part[2])
            parts.append(F.pad(states, (0, 0, 0, batch.keep_BL.shape[1] - longest)))
        order = torch.cat([rows for rows, _ in groups]).argsort()
        return torch.cat(parts).index_select(0, order)

    def _states(self, token_BL: Tensor, depth_BL: Tensor, **layout: Tree | Tensor | None) -> Tensor:
        """Hidden states, or the logits of the model's own head, shape (B, L, D or V)."""
        inputs = {"input_ids": token_BL, "position_ids": depth_BL, "use_cache": False, **layout}
        states: Tensor
        if self.rule.use_model_head:
            states = self.model(**inputs).logits
        else:
            states = self.model.base_model(**inputs).last_hidden_state
        return states

    @contextmanager
    def with_own_head(self) -> Iterator[None]:
        """Inside, the model's own forward makes all logits: the twin of what is verified."""
        before, self.rule = self.rule, HeadRule(use_model_head=True)
        try:
            yield
        finally:
            self.rule = before

    def head(self) -> Head:
        """The head as it is now, with the rule's scale and soft-cap."""
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, getattr(layer, "bias", None), self.rule.scale, self.rule.softcap)


def score_once(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probs of a padded batch as `Scorer` gives them, where nothing is known of the model yet.

    The model's own forward runs once: the backbone's hidden states are caught on their way to the
    head, and its logits of the last column say whether the head's rule holds.
    """
    tables, rule = rotary_tables(model.config.get_text_config()), described_rule(model)
    if tables.longrope or rule.use_model_head:  # rows in several runs, or all logits in one
        rule = rule if rule.use_model_head else find_head_rule(model)
        return Scorer(model, rule)(batch)
    check_length(tables, batch.longest)
    seen: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda *called: seen.append(called[-1]))
    inputs: dict[str, Any] = {"position_ids": batch.depth_BL, "attention_mask": batch.keep_BL}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = 1
    try:
        logits_BLV = model(input_ids=batch.token_BL, use_cache=False, **inputs).logits
    finally:
        hook.remove()
    hidden_BLD = getattr(seen[-1], "last_hidden_state", None)
    rule = checked_rule(model, rule, hidden_BLD, logits_BLV)
    scorer = Scorer(model, rule)
    return scorer(batch) if rule.use_model_head else scorer.logps(hidden_BLD, batch)  # type: ignore


def find_head_rule(model: PreTrainedModel) -> HeadRule:
    """Read the head's scale and soft-cap from the configuration and check them on one row.

    Where head(hidden) is not the model's own logits, the rule says ``use_model_head``.
    """
    rule = described_rule(model)
    if rule.use_model_head:
        return rule
    vocabulary = model.config.get_text_config().vocab_size
    tokens_BL = torch.arange(8, device=model.get_output_embeddings().weight.device)[None]
    tokens_BL = tokens_BL % vocabulary
    with torch.no_grad(), without_dropout(model):
        inputs = {"input_ids": tokens_BL, "attention_mask": torch.ones_like(tokens_BL)}
        backbone = model.base_model(**inputs, use_cache=False)
        logits_BLV = model(**inputs, use_cache=False).logits
    return checked_rule(model, rule, getattr(backbone, "last_hidden_state", None), logits_BLV)


def described_rule(model: PreTrainedModel) -> HeadRule:
    """The rule that a configuration describes, not checked yet."""
    layer = model.get_output_embeddings()
    if type(layer) not in (nn.Linear, StoredLinear):
        return HeadRule(use_model_head=True, reason=f"its output layer is a {type(layer).__name__}")
    text = model.config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    if divisor := getattr(text, "logits_scaling", None):
        scale /= float(divisor)
    return HeadRule(scale=scale, softcap=getattr(text, "final_logit_softcapping", None))


def checked_rule(
    model: PreTrainedModel, rule: HeadRule, hidden_BLD: Tensor | None, logits_BLV: Tensor
) -> HeadRule:
    """The rule, or ``use_model_head`` where it does not give the model's own logits.

    ``logits_BLV`` may be those of the last columns only.
    """
    if hidden_BLD is None:
        return HeadRule(use_model_head=True, reason="its backbone is not a module of its own")
    head = Scorer(model, rule).head()
    last_ND = hidden_BLD.detach()[:, -logits_BLV.shape[1] :].flatten(0, 1)
    found, expected = logits_of(last_ND, head).double(), logits_BLV.detach().flatten(0, 1).double()
    tolerance = 1e-2 if is_half(hidden_BLD.dtype) else 1e-5
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        worst = float((found - expected).abs().max())
        reason = f"its logits differ from head(hidden) by {worst:.2g}"
        return HeadRule(use_model_head=True, reason=reason)
    return rule
