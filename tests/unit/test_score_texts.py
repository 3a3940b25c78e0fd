"""`get_logprob`: the log-prob of a response, equal to a loop written by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.support import families
from tests.support.families import EXPERT_FAMILIES, PADDED_FAMILIES, TREE_FAMILIES
from tests.support.numerics import TELLING, distance, gradients
from tests.support.tiny import tiny_model, tiny_tokenizer
from torch import Tensor

import likelier
from likelier.base.errors import DataError
from likelier.batching.batch import padded_batch
from likelier.model.adapters import attach_lora
from likelier.model.policy import Policy, get_logprob
from likelier.model.running import without_dropout
from likelier.model.scorer import score_once

TOKENIZER = tiny_tokenizer()
QUESTION = "파이썬이 뭐야?"
GOOD = " 파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다."
BAD = " 파이썬은 뱀이지~"
ENGLISH = ("What is Seoul?", " Seoul is the capital of Korea.")


@pytest.fixture
def model() -> Any:
    """In train mode, with dropout in its configuration."""
    return tiny_model(TOKENIZER, torch.float64)


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def by_hand(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """One forward without dropout, one token after the other."""
    model.eval()
    logits_TV = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    model.train()
    values = []
    for place, token in enumerate(answer):
        logits_V = logits_TV[len(prompt) + place - 1]
        values.append(logits_V[token] - torch.logsumexp(logits_V, 0))
    return torch.stack(values)


def text_by_hand(model: Any, prompt: str, answer: str, stop: bool = True) -> Tensor:
    end = [TOKENIZER.eos_token_id] if stop else []
    return by_hand(model, ids(prompt), ids(answer) + end)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("pair", [(QUESTION, GOOD), (QUESTION, BAD), ENGLISH])
def test_one_text(model: Any, pair: tuple[str, str], stop: bool) -> None:
    expected = text_by_hand(model, *pair, stop)
    total, each = get_logprob(model, TOKENIZER, *pair, stop=stop, per_token=True)
    assert total.shape == () and total.dtype is torch.float64
    assert each.shape == expected.shape == (len(ids(pair[1])) + stop,)
    assert distance(each, expected) < 1e-7  # the model's norms are float32
    assert total.item() == pytest.approx(expected.sum().item(), rel=1e-7)
    assert get_logprob(model, TOKENIZER, *pair, stop=stop).item() == total.item()


def test_the_stop_token_counts_by_default(model: Any) -> None:
    with_stop, each = get_logprob(model, TOKENIZER, QUESTION, GOOD, per_token=True)
    without = get_logprob(model, TOKENIZER, QUESTION, GOOD, stop=False)
    assert with_stop.item() == pytest.approx(without.item() + each[-1].item(), rel=1e-7)


def test_lists_of_texts(model: Any) -> None:
    prompts = [QUESTION, ENGLISH[0], QUESTION, QUESTION]
    responses = [GOOD, ENGLISH[1], BAD, GOOD]
    total_R, each = get_logprob(model, TOKENIZER, prompts, responses, per_token=True)
    assert total_R.shape == (4,) and [type(e) for e in each] == [Tensor] * 4
    for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = text_by_hand(model, prompt, response)
        assert distance(each[place], expected) < 1e-7
        assert total_R[place].item() == pytest.approx(expected.sum().item(), rel=1e-7)
    assert get_logprob(model, TOKENIZER, [QUESTION], [GOOD]).shape == (1,)
    assert get_logprob(model, TOKENIZER, (QUESTION,), (GOOD,)).shape == (1,)


def test_chats_go_through_the_template(model: Any) -> None:
    chat = [
        {"role": "system", "content": "짧게 답해."},
        {"role": "user", "content": QUESTION},
    ]
    rendered = f"<|system|>\n짧게 답해.<|end|>\n<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n"
    end = TOKENIZER.convert_tokens_to_ids("<|end|>")
    expected = by_hand(model, ids(rendered), [*ids(GOOD), end])
    for response in (GOOD, [{"role": "assistant", "content": GOOD}]):
        total, each = get_logprob(model, TOKENIZER, chat, response, per_token=True)
        assert total.shape == () and distance(each, expected) < 1e-7
    both = get_logprob(model, TOKENIZER, [chat, chat], [GOOD, BAD])
    assert both.shape == (2,) and both[0].item() == pytest.approx(expected.sum().item(), rel=1e-7)
    without = get_logprob(model, TOKENIZER, chat, GOOD, stop=False)
    assert without.item() == pytest.approx(expected[:-1].sum().item(), rel=1e-7)


def test_gradients_are_those_of_the_loop(model: Any) -> None:
    text_by_hand(model, QUESTION, GOOD).sum().sub(
        2 * text_by_hand(model, QUESTION, BAD).sum()
    ).backward()
    expected = gradients(model)
    good, bad = get_logprob(model, TOKENIZER, [QUESTION] * 2, [GOOD, BAD])
    (good - 2 * bad).backward()
    found = gradients(model)
    assert max(distance(found[name], expected[name]) for name in expected) < 1e-6
    _, each = get_logprob(model, TOKENIZER, QUESTION, GOOD, per_token=True)
    each.sum().backward()
    assert any(bool(grad.any()) for grad in gradients(model).values())


@pytest.mark.parametrize("family", [*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES])
def test_the_backbone_runs_once_whatever_the_head(family: str) -> None:
    """Its hidden states are caught in the model's own forward, which shows the head's rule, too."""
    model: Any = families.tiny_model(family, torch.float32)
    batch = padded_batch(TELLING)
    policy = Policy(model, TOKENIZER)
    with policy.running("padded") as scorer:
        expected = scorer(batch)
        expected.sum().backward()
    wanted = gradients(model)
    model.zero_grad()
    runs: list[Any] = []
    model.base_model.register_forward_hook(lambda *called: runs.append(called[0]))
    with without_dropout(model):
        found = score_once(model, batch)
        found.sum().backward()
    assert len(runs) == 1
    assert float((found - expected).detach().abs().max()) < 1e-5
    for name, gradient in gradients(model).items():
        assert distance(gradient, wanted[name]) < 1e-3, name


def test_a_call_runs_the_backbone_once(model: Any) -> None:
    runs: list[Any] = []
    model.base_model.register_forward_hook(lambda *called: runs.append(called[0]))
    get_logprob(model, TOKENIZER, [QUESTION, QUESTION], [GOOD, BAD])
    assert len(runs) == 1


@pytest.mark.parametrize("takes", [True, False])
def test_a_head_of_another_rule_is_the_models_own(
    model: Any, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the forward can leave logits out."""
    forward = type(model).forward

    def doubled(self: Any, logits_to_keep: int = 0, **inputs: Any) -> Any:
        output = forward(self, logits_to_keep=logits_to_keep, **inputs)
        output.logits = output.logits * 2
        return output

    def whole(self: Any, **inputs: Any) -> Any:
        return doubled(self, **inputs)

    monkeypatch.setattr(type(model), "forward", doubled if takes else whole)
    found = get_logprob(model, TOKENIZER, QUESTION, GOOD)
    assert found.item() == pytest.approx(text_by_hand(model, QUESTION, GOOD).sum().item(), rel=1e-7)


def test_no_graph_under_no_grad(model: Any) -> None:
    with torch.no_grad():
        assert not get_logprob(model, TOKENIZER, QUESTION, GOOD).requires_grad


def test_it_feeds_the_loss(model: Any) -> None:
    good, bad = get_logprob(model, TOKENIZER, [QUESTION] * 2, [GOOD, BAD])
    loss = likelier.dpo_loss(good, bad, good.detach(), bad.detach(), beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-15)
    assert all(p.grad is not None for p in model.parameters())


def test_the_model_is_left_as_it_was(model: Any) -> None:
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    config = model.config.to_dict()
    first = get_logprob(model, TOKENIZER, QUESTION, GOOD).item()
    assert get_logprob(model, TOKENIZER, QUESTION, GOOD).item() == first  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config


def test_adapters_count(model: Any) -> None:
    bare = get_logprob(model, TOKENIZER, QUESTION, GOOD).item()
    policy = attach_lora(Policy(model, TOKENIZER), r=2, alpha=4, targets="all-linear", seed=0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    assert get_logprob(policy.model, TOKENIZER, QUESTION, GOOD).item() != bare


def test_an_answer_of_its_stop_alone(model: Any) -> None:
    total = get_logprob(model, TOKENIZER, QUESTION, "")
    expected = by_hand(model, ids(QUESTION), [TOKENIZER.eos_token_id])
    assert total.item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ([QUESTION, QUESTION], [GOOD]),
        (QUESTION, [GOOD]),
        ([QUESTION], GOOD),
        ([], []),
        ([], GOOD),
        (QUESTION, []),
    ],
)
def test_lists_of_different_length_are_refused(model: Any, prompt: Any, response: Any) -> None:
    with pytest.raises(ValueError, match="one prompt and one response, or two lists"):
        get_logprob(model, TOKENIZER, prompt, response)


@pytest.mark.parametrize(
    ("prompt", "response", "field"),
    [
        ("", GOOD, "prompt"),
        (QUESTION, "", "response"),
        (QUESTION, [{"role": "assistant", "content": GOOD}], "response"),
    ],
)
def test_what_cannot_be_scored_is_said(model: Any, prompt: Any, response: Any, field: str) -> None:
    with pytest.raises(DataError) as caught:
        get_logprob(model, TOKENIZER, prompt, response, stop=False)
    assert caught.value.where == field


def test_the_public_name() -> None:
    assert likelier.get_logprob is get_logprob
