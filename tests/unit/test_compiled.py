"""Compiled layers: the same numbers, and the model as before afterwards."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.base.errors import ConfigError
from likelier.batching.layout import Scored, tree_pass
from likelier.model.compiled import compiled_layers, decoder_layers
from likelier.model.load import Policy, checkpoint_activations
from likelier.model.score import Ready, make_ready

# Torch's compiler warns of torch's own parts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


def scored(*tokens: int) -> Scored:
    return Scored(tokens, (False,) * 3 + (True,) * (len(tokens) - 3))


TREES = [
    [scored(7, 8, 9, 10, 11, 12), scored(7, 8, 9, 13, 14)],
    [scored(20, 21, 22, 23), scored(20, 21, 22, 24, 25, 26, 27), scored(30, 31, 32, 33)],
]


@pytest.fixture(scope="module")
def ready() -> Ready:
    tokenizer = tiny_tokenizer()
    return make_ready(Policy(tiny_model(tokenizer).train(), tokenizer))


def values_and_gradients(ready: Ready, sequences: list[Scored]) -> list[torch.Tensor]:
    ready.policy.model.zero_grad()
    with ready.running() as scorer:
        logp_E = scorer(tree_pass(sequences))
        logp_E.sum().backward()
    return [
        logp_E.detach(),
        *(p.grad for p in ready.policy.model.parameters() if p.grad is not None),
    ]


@pytest.mark.parametrize("sequences", TREES, ids=["two", "three"])
def test_values_and_gradients_are_those_of_the_layers_themselves(
    ready: Ready, sequences: list[Scored]
) -> None:
    plain = values_and_gradients(ready, sequences)
    torch._dynamo.utils.counters.clear()
    compiled = values_and_gradients(replace(ready, compiled=True), sequences)
    for ours, twin in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"] or sequences is TREES[1]  # found again


def test_activations_may_be_recomputed(ready: Ready) -> None:
    plain = values_and_gradients(ready, TREES[0])
    checkpoint_activations(ready.policy.causal_lm)
    compiled = values_and_gradients(replace(ready, compiled=True), TREES[0])
    for ours, twin in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)


def test_the_layers_are_as_before(ready: Ready) -> None:
    model = ready.policy.causal_lm
    layers = decoder_layers(model)
    assert len(layers) == 2
    own: Callable[..., Any] = layers[0].forward
    layers[0].forward = own  # type: ignore[method-assign]
    with compiled_layers(model):
        assert all("forward" in vars(layer) for layer in layers)
        assert layers[0].forward is not own
    assert vars(layers[0]).pop("forward") is own
    assert "forward" not in vars(layers[1])


def test_what_cannot_be_compiled_is_said(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready.policy.causal_lm

    def broken(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

    with (
        pytest.raises(ConfigError, match=r"train\.compile: .*cannot be compiled: no compiler\n"),
        compiled_layers(model),
    ):
        broken()
    assert all("forward" not in vars(layer) for layer in decoder_layers(model))
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ConfigError, match="does not name its layers"), compiled_layers(model):
        pass
