"""Scoring: log-probs of answers under a model, for one text or for a whole file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.batching.layout import Scored, padded_pass, scored
from likelier.batching.pack import layout, pack
from likelier.data.encode import encode_completion
from likelier.data.records import Message
from likelier.data.tokenizer import build_encoder
from likelier.model.attention import (
    UnsupportedAttention,
    attention_backend,
    tree_obstacle,
)
from likelier.model.compiled import compiled_layers
from likelier.model.dropout import without_dropout
from likelier.model.load import Policy
from likelier.model.scorer import Scorer, find_head_rule

DEFAULT_TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Ready:
    """A policy ready to be scored or trained: its scorer and the backend that serves it.

    ``backend_reason`` says why the tree cannot serve this model, None where it does.
    ``compiled`` runs the layers compiled.
    """

    policy: Policy
    scorer: Scorer
    backend: str
    backend_reason: str | None
    compiled: bool = False

    @contextmanager
    def running(self, backend: str | None = None) -> Iterator[Scorer]:
        """The scorer, with dropout silent and attention run by a backend (default: its own).

        The backward belongs inside, too: layers that are checkpointed run again there.

        Raises ConfigError where the layers are to be compiled and cannot be.
        """
        model = self.policy.causal_lm
        with ExitStack() as stack:
            stack.enter_context(without_dropout(self.policy.model))
            stack.enter_context(attention_backend(model, backend or self.backend))
            if self.compiled and backend is None:
                stack.enter_context(compiled_layers(model))
            yield self.scorer


def make_ready(policy: Policy) -> Ready:
    """Choose the backend for a model by its configuration and one tiny pass, and its head."""
    model = policy.causal_lm
    rule = find_head_rule(model)
    scorer = Scorer(model, rule)
    backend, reason = choose_backend(policy, scorer)
    return Ready(policy, scorer, backend, reason)


def choose_backend(policy: Policy, scorer: Scorer) -> tuple[str, str | None]:
    """The tree backend of the device, or ``padded`` with the reason why no tree serves here."""
    backend = _tree_backend(policy)
    reason = tree_obstacle(policy.causal_lm.config) or _failed_probe(policy, scorer, backend)
    return ("padded", reason) if reason else (backend, None)


def _tree_backend(policy: Policy) -> str:
    """``segments`` is made of a CPU's kernels; FlexAttention knows no float64."""
    if policy.device.type == "cpu":
        return "segments"
    is_cuda = policy.device.type == "cuda"
    return "flex" if is_cuda and policy.causal_lm.dtype != torch.float64 else "dense"


# Five branches on one stem. Their first tokens are left out: the stem predicts those, and it is
# right even in a model that takes the row for one long text.
_PROBE = [
    Scored((*range(6), *range(branch, branch + 4)), (False,) * 7 + (True,) * 3)
    for branch in range(6, 26, 4)
]
# Nats a token. Far above rounding and far below what attention to the wrong tokens does.
_PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_PROBE_TOLERANCE_HALF = 0.25


@torch.no_grad()
def _failed_probe(policy: Policy, scorer: Scorer, backend: str) -> str | None:
    """Why a tree pass does not do what the plain path does, tried on a tiny one; None if it does.

    Some architectures never call the attention registry, or ignore the positions they are given,
    and say nothing: only numbers tell. The median forgives experts, whose routing may flip on a
    rounding.
    """
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    probe = [Scored(tuple(t % vocabulary for t in s.tokens), s.scored) for s in _PROBE]
    logps = []
    try:
        for one in (backend, "padded"):
            batch = layout(one)(probe).to(policy.device)
            with without_dropout(policy.model), attention_backend(policy.causal_lm, one):
                logps.append(scorer(batch)[batch.entry_K])
    except UnsupportedAttention as unsupported:
        return str(unsupported)
    except TypeError as error:  # a forward that takes no further keywords
        return f"its forward takes no layout ({error})"
    except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, or too small a head
        return f"its attention cannot be compiled ({str(error).splitlines()[0]})"
    difference = float((logps[0] - logps[1]).abs().median())
    allowed = _PROBE_TOLERANCE.get(policy.causal_lm.dtype, _PROBE_TOLERANCE_HALF)
    if not difference <= allowed:
        return f"a probe's log-probs differ from the plain path's by {difference:.2g} nats a token"
    return None


@torch.no_grad()
def score_sequences(
    ready: Ready,
    sequences: Sequence[Scored],
    budget: int = DEFAULT_TOKENS_PER_BATCH,
    on_pass: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Per-token log-probs of sequences: yields (index, float tensor of its scored tokens, nats).

    Sequences of one prompt should stand together. ``on_pass`` hears how many sequences each
    finished pass held. No gradients.
    """
    plan = pack([(sequence,) for sequence in sequences], budget, ready.backend)
    with ready.running() as scorer:
        for indices in plan:
            batch = layout(ready.backend)([sequences[i] for i in indices])
            on_device = batch.to(ready.policy.device)
            logp_K = scorer(on_device)[on_device.entry_K].cpu()
            yield from zip(indices, logp_K.split(batch.length_R.tolist()), strict=True)
            if on_pass is not None:
                on_pass(len(indices))


Text = str | Sequence[Message]  # plain text, or the messages of a chat


def get_logprob(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: Text | Sequence[Text],
    response: Text | Sequence[Text],
    *,
    stop: bool = True,
    per_token: bool = False,
) -> Any:
    """Log-prob of a response given a prompt, in nats, with gradient: what DPO compares.

    One prompt (text, or a list of messages) and one response give a 0-d tensor; a list of R
    prompts and a list of R responses give shape (R,). The sum runs over the response's tokens
    and its stop token, in float64; ``stop=False`` leaves the stop token out. With ``per_token``
    a second value holds the log-prob of each token: shape (tokens,), or a list of R of them.

    The model is used as it stands: to score without gradient, call it under ``torch.no_grad()``.
    Dropout does not apply. Text is continued as plain text, messages go through the chat
    template.

    Raises ValueError where the lists differ in length, and DataError where a text cannot be
    encoded.
    """
    many = not _is_one(response)
    prompts: Any = prompt if many else [prompt]
    responses: Any = response if many else [response]
    if _is_one(prompt) == many or len(prompts) != len(responses) or not responses:
        raise ValueError("give one prompt and one response, or two lists of one length")
    policy = Policy(model, tokenizer)
    encoder = build_encoder(tokenizer, policy.causal_lm.generation_config)
    sequences = [
        scored(*encode_completion(encoder, p, r, stop=stop))
        for p, r in zip(prompts, responses, strict=True)
    ]
    scorer = Scorer(policy.causal_lm, find_head_rule(policy.causal_lm))
    batch = padded_pass(sequences).to(policy.device)
    with without_dropout(model):
        logp_E = scorer(batch)
    total_R = batch.answer_logps(logp_E)
    total = total_R if many else total_R[0]
    if not per_token:
        return total
    each = logp_E[batch.entry_K].split(batch.length_R.tolist())
    return total, (list(each) if many else each[0])


def _is_one(text: Text | Sequence[Text]) -> bool:
    """One text or chat, rather than a list of them."""
    return isinstance(text, str) or (len(text) > 0 and isinstance(text[0], dict))
