"""The policy: a model with its tokenizer, the backend that serves it, and how it is scored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.base.model_files import first_line
from likelier.base.terminal import say
from likelier.batching.batch import Batch, Scored, lay_out, padded_batch, scored
from likelier.batching.pack import pack
from likelier.chat.messages import Message
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.data.encode import encode_completion
from likelier.model.attention.backends import UnsupportedAttention, attention_backend, tree_obstacle
from likelier.model.attention.cuda import ROW_COUNTS
from likelier.model.frozen import dtype_name, dtype_of, widen
from likelier.model.limits import sizes
from likelier.model.running import without_dropout
from likelier.model.scorer import Scorer, find_head_rule, score_once
from likelier.model.team import ALONE, Team


@dataclass(frozen=True)
class Policy:
    """A causal language model and its tokenizer, ready to be scored and trained.

    ``model`` is a transformers model, or a peft model where the folder holds an adapter.
    ``path`` is where it came from, None for objects handed over in memory. ``team`` are the
    processes that train it together; ``in_parts``: each holds a part of the weights, and all run it
    together. ``compute_dtype`` is what it computes in where its weights do not show that.
    """

    model: nn.Module
    tokenizer: Tokenizer
    path: str | None = None
    team: Team = ALONE
    in_parts: bool = False
    compute_dtype: torch.dtype | None = None

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model; adapters, where there are any, are inside its layers."""
        inner = getattr(self.model, "get_base_model", None)
        model = inner() if inner is not None else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; frozen layers may store their weights in fewer bits."""
        return self.compute_dtype or dtype_of(self.causal_lm)

    @property
    def has_adapter(self) -> bool:
        """Whether adapters are attached."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the first layers' inputs belong."""
        weight = self.causal_lm.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.device

    @cached_property
    def scorer(self) -> Scorer:
        """The module that turns batches into log-probs, with the head as this model has it."""
        model = self.causal_lm
        try:
            return Scorer(model, find_head_rule(model))
        except (RuntimeError, TypeError):  # some layers read another's weight, or take its dtype
            if not widen(model):
                raise
            say(
                f"all weights are {dtype_name(self.dtype)}: a layer reads another's as it is stored"
            )
            return Scorer(model, find_head_rule(model))

    @property
    def backend(self) -> str:
        """What runs the attention: a tree backend, or ``padded``."""
        return self._backend_and_reason[0]

    @property
    def backend_reason(self) -> str | None:
        """Why the fast backend of the device cannot serve this model, None where it does."""
        return self._backend_and_reason[1]

    @property
    def backend_in_words(self) -> str | None:
        """What is used instead of the fast backend, and why; None where nothing is."""
        return self.backend_reason and f"using {_SLOW[self.backend]}: {self.backend_reason}"

    @cached_property
    def _backend_and_reason(self) -> tuple[str, str | None]:
        if reason := tree_obstacle(self.causal_lm.config):
            return "padded", reason
        first = None
        for backend in _tree_backends(self):
            if (reason := _failed_probe(self, backend)) is None:
                return backend, first
            first = first or reason
        return "padded", first

    def encoder(
        self, template: Mapping[str, Any] | None = None, today: str | None = None
    ) -> Encoder:
        """The tokenizer made ready for data, with settings of the chat template."""
        generation = self.causal_lm.generation_config
        return build_encoder(
            self.tokenizer, generation, template, today, **sizes(self.causal_lm),
            foreign=self.path is not None,
        )  # fmt: skip

    @contextmanager
    def running(self, backend: str | None = None) -> Iterator[Scorer]:
        """The scorer, with dropout silent and attention run by a backend (default: its own).

        The backward belongs inside, too: layers that are checkpointed run again there.
        """
        scorer, chosen = self.scorer, backend or self.backend
        with without_dropout(self.model), attention_backend(self.causal_lm, chosen):
            yield scorer
        self.forget_gathered()

    def forget_gathered(self) -> None:
        """Of a model in parts, drop what was put together: the parts have other values now."""
        if self.in_parts:
            scorer: Any = self.scorer
            scorer.reshard()


_SLOW = {
    "padded": "padded batches (one sequence per row)",
    "dense": "a mask of all tokens by all tokens of a batch",
}


def _tree_backends(policy: Policy) -> Sequence[str]:
    """The tree backends for a policy's device, the fastest first; FlexAttention has no float64."""
    if policy.device.type == "cpu":
        return ("segments",)
    is_cuda = policy.device.type == "cuda"
    return ("flex", "dense") if is_cuda and policy.dtype != torch.float64 else ("dense",)


# Five branches on one stem. Their first tokens are left out: the stem predicts those, and it is
# right even in a model that takes the row for one long text.
_PROBE = [
    Scored((*range(6), *range(branch, branch + 4)), (False,) * 7 + (True,) * 3)
    for branch in range(6, 26, 4)
]
# Nats a token. Far above rounding and far below what attention to the wrong tokens does.
_PROBE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_PROBE_TOLERANCE_HALF = 0.25


def _failed_probe(policy: Policy, backend: str) -> str | None:
    """Try a tree backend on a tiny batch: why it cannot serve this model, None where it can.

    Some architectures never call the attention registry, or ignore the positions they are given,
    without any error: only a comparison with the plain path shows it. The median is compared,
    because the routing of experts may flip on a rounding.
    """
    logps = []
    try:
        for one in (backend, "padded"):
            batch = _probe_of(policy, one)
            with policy.running(one) as scorer, torch.no_grad():
                logps.append(scorer(batch)[batch.entry_K])
        if backend == "flex":
            _try_backward(policy)
    except UnsupportedAttention as unsupported:
        return str(unsupported)
    except TypeError as error:  # a forward that takes no further keywords
        return f"its forward takes no layout ({error})"
    except RuntimeError as error:  # no compiler, too small a head, no kernel, no memory
        if backend not in ("flex", "dense"):
            raise
        return f"{backend} attention fails ({type(error).__name__}: {first_line(error)})"
    difference = float((logps[0] - logps[1]).abs().median())
    allowed = _PROBE_TOLERANCE.get(policy.dtype, _PROBE_TOLERANCE_HALF)
    if not difference <= allowed:
        return f"in a tree, its log-probs of a test batch are off by {difference:.2g} nats a token"
    return None


def _probe_of(policy: Policy, backend: str, length: int = 0) -> Batch:
    """The probe as a batch of a backend, its stem so many tokens longer."""
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    longer = [((0,) * length + s.tokens, (False,) * length + s.scored) for s in _PROBE]
    probe = [Scored(tuple(t % vocabulary for t in tokens), scored) for tokens, scored in longer]
    return lay_out(probe, backend).to(policy.device)


def _try_backward(policy: Policy) -> None:
    """Gradients at both counts of rows that kernels are first made for; none is kept."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    positions = sizes(policy.causal_lm)["positions"] or ROW_COUNTS[-1]
    for rows in ROW_COUNTS[:2] if trained else ():
        batch = _probe_of(policy, "flex", min(rows, positions) // 2)
        with policy.running("flex") as scorer, torch.enable_grad():
            torch.autograd.grad(scorer(batch).sum(), trained, allow_unused=True)


def idle_batches(policy: Policy, count: int) -> list[Batch]:
    """Batches of one token for a process that has ``count`` of its own, of which nothing is used.

    Where the processes hold a model in parts they run it as often as each other; else none is
    needed. To be asked for before any batch is run: the processes tell each other their counts.
    """
    if not policy.in_parts:
        return []
    idle = lay_out([Scored((0, 0), (False, True))], policy.backend).to(policy.device)
    return [idle] * (policy.team.most(count) - count)


def with_idle(policy: Policy, batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The batches of this process, then its idle ones, each with whether it is one."""
    idle = idle_batches(policy, len(batches))
    yield from ((batch, False) for batch in batches)
    yield from ((batch, True) for batch in idle)


@torch.no_grad()
def score_sequences(
    policy: Policy, sequences: Sequence[Scored], budget: int = 8192
) -> Iterator[tuple[int, Tensor]]:
    """Per-token log-probs of sequences: yields (index, log-probs of its scored tokens in nats).

    ``budget`` is the most tokens of a batch. Sequences of one prompt should stand together. No
    gradients.
    """
    batches = pack([(sequence,) for sequence in sequences], budget, policy.backend)
    with policy.running() as scorer:
        for indices in batches:
            batch = lay_out([sequences[i] for i in indices], policy.backend)
            logp_E = scorer(batch.to(policy.device)).cpu()
            yield from zip(indices, batch.token_logps(logp_E), strict=True)


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
    encoder = policy.encoder()
    sequences = [
        scored(*encode_completion(encoder, p, r, stop=stop))
        for p, r in zip(prompts, responses, strict=True)
    ]
    batch = padded_batch(sequences).to(policy.device)
    with without_dropout(policy.model):
        logp_E = score_once(policy.causal_lm, batch)
    total_R = batch.completion_logps(logp_E)
    total = total_R if many else total_R[0]
    if not per_token:
        return total
    each = list(batch.token_logps(logp_E))
    return total, (each if many else each[0])


def _is_one(text: Text | Sequence[Text]) -> bool:
    """One text or chat, rather than a list of them."""
    return isinstance(text, str) or (len(text) > 0 and isinstance(text[0], dict))
