"""The plain side of every comparison, random sequences to compare on, and how near is equal."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from likelier.batching.batch import Scored

VOCAB = 61  # of every tiny model


def examples(count: int) -> settings:
    """This many examples of a costly property; the search profile takes that many more."""
    return settings(max_examples=count * settings().max_examples // 50)


def sequence(prompt: Sequence[int], answer: Sequence[int]) -> Scored:
    """A prompt and an answer, all of which is scored."""
    return Scored((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


_SYSTEM = (7, 9, 8, 7, 30)
_LONG = (40, 11, 40, 12, 41, 13, 42, 14, 43, 15, 44, 16)
# Everything that makes a tree: a shared system prompt, prompts that fork, one-token answers,
# repeated answers, answers that are prefixes of each other, one without a common beginning,
# turns in between that are not scored. Long enough for the sliding windows (5 and 7) to matter.
TELLING = (
    sequence((*_SYSTEM, 20, 21), _LONG),
    sequence((*_SYSTEM, 20, 21), _LONG[:5]),
    sequence((*_SYSTEM, 20, 21), (*_LONG[:4], 50, 51, 52)),
    sequence((*_SYSTEM, 20, 21), (2,)),
    sequence((*_SYSTEM, 20, 21), _LONG),
    sequence((*_SYSTEM, 22), _LONG[2:9]),
    sequence((*_SYSTEM, 22), (2,)),
    sequence((33,), (20, 21, 22)),
    Scored((*_SYSTEM, 23, 24, 25, 26, 27), (False,) * 6 + (True, False, False, True)),
)


@st.composite
def scored_sets(draw: Any, tokens: Sequence[int] = range(3, VOCAB), most: int = 7) -> list[Scored]:
    """Sequences that share beginnings: each goes on from some cut of an earlier one.

    A cut at 0 shares nothing, one at the end makes the earlier sequence a prefix, and with
    nothing added repeats it. The first is long, of different tokens where there are enough:
    among equal values attention has no gradient but rounding.
    """
    word = st.sampled_from(list(tokens))
    words = st.lists(word, max_size=9).map(tuple)
    texts = [tuple(draw(st.lists(word, min_size=10, max_size=14, unique=len(tokens) >= 14)))]
    for _ in range(draw(st.integers(1, most - 1))):
        earlier = draw(st.sampled_from(texts))
        text = earlier[: draw(st.integers(0, len(earlier)))] + draw(words)
        texts.append(text if len(text) > 1 else (*text, *tokens[:2]))
    return [draw(_scored(text)) for text in texts]


@st.composite
def _scored(draw: Any, text: tuple[int, ...]) -> Scored:
    start = draw(st.integers(1, len(text) - 1))
    wanted = [True] * (len(text) - start)
    for hole in draw(st.sets(st.integers(1, len(text)), max_size=3)):  # the first one stays
        if hole < len(wanted):
            wanted[hole] = False
    return Scored(text, (False,) * start + tuple(wanted))


def plain_logps(model: nn.Module, sequences: Sequence[Scored]) -> list[Tensor]:
    """The log-probs of each sequence's scored tokens: one forward a sequence, all its logits."""
    logps = []
    for one in sequences:
        logits_TV = model(input_ids=torch.tensor([one.tokens]), use_cache=False).logits[0]
        at_least_float32 = torch.promote_types(logits_TV.dtype, torch.float32)
        logp_TV = torch.log_softmax(logits_TV.to(at_least_float32), dim=-1)
        wanted = [place for place, is_scored in enumerate(one.scored) if is_scored]
        logps.append(torch.stack([logp_TV[p - 1, one.tokens[p]] for p in wanted]))
    return logps


def answer_weights(count: int) -> Tensor:
    """A weight for every answer, of both signs, such that no few of them cancel."""
    return torch.tensor([(-1) ** i * (1 + i) ** 0.5 for i in range(count)], dtype=torch.float64)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every trainable parameter (0 where none came), taken off the model."""
    taken = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return taken


def distance(ours: Tensor, theirs: Tensor) -> float:
    """``‖ours - theirs‖ / ‖theirs‖``, and 0 where both are exactly 0."""
    ours, theirs = ours.detach(), theirs.detach()
    if not ours.any() and not theirs.any():
        return 0.0
    return float((ours - theirs).norm() / theirs.norm())


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor of the same name within a relative distance; the worst is named."""
    assert ours.keys() == theirs.keys()
    worst = max(ours, key=lambda name: distance(ours[name], theirs[name]))
    assert distance(ours[worst], theirs[worst]) <= tolerance, worst


class _KeepFloat64(TorchFunctionMode):
    """float64 stays float64 where code asks for float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func is Tensor.float:
                return args[0]
            if func in (Tensor.to, F.softmax, torch.softmax, Tensor.softmax):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                if kwargs.get("dtype") is torch.float32:
                    kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def in_own_dtype(model: nn.Module, kinds: str = "Norm|Router") -> Iterator[None]:
    """Modules whose class is called so compute in the model's dtype for a while.

    transformers' norms, routers, eager softmax and recurrent layers compute in float32 even
    inside a float64 model, which hides errors smaller than that.
    """

    def kept(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with _KeepFloat64():
                return forward(*args, **kwargs)

        return run

    found = [m for m in model.modules() if re.search(kinds, type(m).__name__)]
    for module in found:
        module.forward = kept(module.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in found:
            del module.forward
