"""The head's rule: read from the configuration, believed only where it gives the model's logits."""

from dataclasses import replace

import pytest
import torch
from tests.support.families import shared_model, tiny_model
from tests.support.numerics import TELLING, distance, gradients, plain_logps
from torch import Tensor, nn
from transformers import PreTrainedModel

from likelier.batching.batch import tree_batch
from likelier.model.adapters import attach_lora
from likelier.model.logprob import Head, at_least_float32, head_logits
from likelier.model.policy import Policy
from likelier.model.scorer import HeadRule, Scorer, find_head_rule

RULES = {
    "exaone4": HeadRule(),
    "gpt2": HeadRule(),
    "granite": HeadRule(scale=1 / 3),
    "cohere": HeadRule(scale=0.4),
    "gemma2": HeadRule(softcap=3.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", RULES)
def test_scale_and_softcap_are_found(family: str, dtype: torch.dtype) -> None:
    found = find_head_rule(tiny_model(family, dtype))
    assert replace(found, scale=1.0) == replace(RULES[family], scale=1.0)
    assert found.scale == pytest.approx(RULES[family].scale, rel=1e-12)


@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_a_wrong_rule_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration says one thing and the model does another: its own head then."""
    model = tiny_model("granite" if name == "scale" else "gemma2", torch.float32)
    key = {"scale": "logits_scaling", "softcap": "final_logit_softcapping"}[name]
    forward = type(model).forward

    def changed(self: PreTrainedModel, *args: object, **kwargs: object) -> object:
        before = getattr(self.config, key)
        setattr(self.config, key, before * 1.01)
        try:
            return forward(self, *args, **kwargs)
        finally:
            setattr(self.config, key, before)

    monkeypatch.setattr(type(model), "forward", changed)
    rule = find_head_rule(model)
    assert (
        rule.use_model_head
        and rule.reason is not None
        and "differ from head(hidden)" in rule.reason
    )


def backward(scorer: Scorer) -> tuple[Tensor, dict[str, Tensor]]:
    batch = tree_batch(TELLING)
    logp_E = scorer(batch)
    logp_E.backward(torch.linspace(1, 2, len(logp_E), dtype=logp_E.dtype))
    return logp_E.detach(), gradients(scorer.model)


def test_the_models_own_head_gives_the_same_values_and_gradients() -> None:
    policy = Policy(shared_model("granite"), None)  # type: ignore[arg-type]
    own = Scorer(policy.scorer.model, HeadRule(use_model_head=True))
    with policy.running():
        (ours, our_grads), (theirs, their_grads) = backward(policy.scorer), backward(own)
    assert distance(ours, theirs) < 1e-14
    assert max(distance(our_grads[name], their_grads[name]) for name in our_grads) < 1e-12


def test_log_probs_of_the_own_head_are_never_half_precision() -> None:
    model = shared_model("llama", torch.bfloat16)
    policy = Policy(model, None)  # type: ignore[arg-type]
    for rule in (HeadRule(), HeadRule(use_model_head=True)):
        with policy.running():
            assert Scorer(model, rule)(tree_batch(TELLING)).dtype is torch.float32


def test_a_head_that_is_no_plain_linear_layer_is_the_models_own() -> None:
    policy = Policy(tiny_model("llama"), None)  # type: ignore[arg-type]
    adapted = attach_lora(policy, r=2, alpha=4, targets=["q_proj", "lm_head"], seed=0)
    rule = find_head_rule(adapted.causal_lm)
    assert rule.use_model_head and rule.reason == "its output layer is a Linear"
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        policy = adapted
        with policy.running() as scorer:
            batch = tree_batch(TELLING)
            ours = scorer(batch)[batch.entry_K]
        theirs = torch.cat(plain_logps(adapted.model, TELLING))
    assert distance(ours, theirs) < 1e-6


def test_a_model_that_is_its_own_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "base_model_prefix", "nothing")
    rule = find_head_rule(model)
    assert rule.use_model_head and rule.reason == "its backbone is not a module of its own"


def test_a_head_with_a_bias() -> None:
    model = tiny_model("llama")
    model.lm_head = nn.Linear(32, 61, dtype=torch.float64)
    policy = Policy(model, None)  # type: ignore[arg-type]
    assert policy.scorer.rule == HeadRule()
    batch = tree_batch(TELLING)
    with torch.no_grad(), policy.running() as scorer:
        ours = scorer(batch)[batch.entry_K]
        assert float(model.lm_head.bias.abs().min()) > 0
    theirs = torch.cat(plain_logps(model, TELLING))
    assert distance(ours, theirs) < 1e-6


def test_looking_for_the_rule_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2")
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_head_rule(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_half_precision_is_widened_and_nothing_narrowed() -> None:
    for given, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.ones(1, dtype=given)).dtype is wanted


def test_logits_in_the_order_of_operations_that_models_use() -> None:
    head = Head(torch.tensor([[2.0], [-1.0]]), torch.tensor([1.0, 0.0]), scale=0.5, softcap=3.0)
    expected = [[3 * torch.tanh(torch.tensor(x / 3)).item() for x in (3.5, -1.5)]]
    found = head_logits(torch.tensor([[3.0]]), head)
    torch.testing.assert_close(found, torch.tensor(expected))
