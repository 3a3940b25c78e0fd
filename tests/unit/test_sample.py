"""Sampling: the right distribution, explicit settings, and nothing left changed."""

from collections import Counter
from operator import ne
from pathlib import Path

import pytest
import torch
from tests.support.data import encode_pair
from tests.support.tiny import save_tiny
from transformers import GenerationConfig

from likelier.base.errors import ConfigError, DataError
from likelier.chat.tokenizer import build_encoder
from likelier.data.encode import encode_prompt
from likelier.data.records import Pair
from likelier.generation.sample import (
    Sample,
    decoding,
    decoding_by,
    generate_batch,
    read_answers,
    sample,
)
from likelier.model.adapters import attach_lora
from likelier.model.load import load
from likelier.model.policy import Policy

PROMPTS = ["서울은", "What is Python? Python is a", "파이썬이 뭐야? 파이썬은 배우기 쉽고,"]


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return load(save_tiny(tmp_path / "model"))


def greedy_by_hand(policy: Policy, prompt: str, length: int) -> str:
    ids = list(policy.tokenizer(prompt)["input_ids"])
    start = len(ids)
    policy.model.eval()
    for _ in range(length):
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == policy.tokenizer.eos_token_id:
            break
    return policy.tokenizer.decode(ids[start:], skip_special_tokens=True)


def always(policy: Policy, token: int) -> None:
    """Make the model say one token, whatever comes before."""
    embedding = policy.causal_lm.get_input_embeddings().weight
    with torch.no_grad():
        embedding.zero_()
        embedding[:, 0] = 1.0
        embedding[token, 0] = 2.0


def test_greedy_is_the_argmax_for_prompts_of_any_length_together(policy: Policy) -> None:
    """Left padding changes nothing: a batch says what each prompt alone says."""
    found = sample(
        policy.causal_lm, policy.tokenizer, PROMPTS, temperature=0, max_new_tokens=12, seed=0
    )
    assert [s.text for s in found] == [greedy_by_hand(policy, p, 12) for p in PROMPTS]
    for size in (1, 2):
        again = sample(
            policy.causal_lm,
            policy.tokenizer,
            PROMPTS,
            temperature=0,
            max_new_tokens=12,
            seed=9,
            batch_size=size,
        )
        assert again == found


def test_the_first_prompts_of_a_batch_can_be_answered_greedily(policy: Policy) -> None:
    encoder = policy.encoder()
    ids = [tuple(policy.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    ends = sorted(encoder.end_ids.values())
    with decoding_by(policy, encoder, decoding(1, 12, ends), seed=0):
        both = generate_batch(policy, ids + ids, likeliest=len(ids))
    found = [one.text for one in read_answers(encoder, both)]
    greedy = [greedy_by_hand(policy, prompt, 12) for prompt in PROMPTS]
    assert found[: len(ids)] == greedy
    assert all(map(ne, found[len(ids) :], greedy))


def test_an_adapter_is_asked_with_its_base(policy: Policy) -> None:
    model, tokenizer = policy.causal_lm, policy.tokenizer
    bare = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=8, seed=0)
    adapted = attach_lora(policy, r=4, alpha=64, targets="all-linear", seed=0)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    found = sample(adapted.model, tokenizer, PROMPTS, temperature=0, max_new_tokens=8, seed=0)
    assert found != bare
    assert [s.text for s in found] == [greedy_by_hand(adapted, p, 8) for p in PROMPTS]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_whole_distribution(policy: Policy, temperature: float) -> None:
    """Nothing is cut off: not by transformers' defaults, not by the model's own settings."""
    policy.causal_lm.generation_config = GenerationConfig(
        eos_token_id=1, pad_token_id=0, do_sample=True, top_k=2, top_p=0.1, temperature=9.0,
        repetition_penalty=5.0, min_p=0.5, typical_p=0.5, suppress_tokens=list(range(300)),
    )  # fmt: skip
    model, tokenizer = policy.causal_lm, policy.tokenizer
    with torch.no_grad():  # far from uniform, and far from one token
        model.get_input_embeddings().weight.mul_(10)
        ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
        model.eval()
        probability = torch.softmax(model(ids).logits[0, -1].double() / temperature, dim=-1)
    draws = 4000
    found = sample(
        model, tokenizer, [PROMPTS[0]] * draws, temperature=temperature, max_new_tokens=1, seed=3,
        batch_size=1000,
    )  # fmt: skip
    expected: Counter[str] = Counter()
    for token, p in enumerate(probability.tolist()):
        text = "" if token == 1 else tokenizer.decode([token], skip_special_tokens=True)
        expected[text] += p
    seen = Counter(s.text for s in found)
    distance = sum(abs(seen[text] / draws - p) for text, p in expected.items()) / 2
    assert len(expected) > 200  # some single bytes have one text together
    assert distance < 0.15  # about 0.1 by chance alone; a cut to 50 tokens or to a nucleus shows


def test_the_seed_decides_and_nothing_else_is_touched(policy: Policy) -> None:
    model = policy.causal_lm.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    config = model.generation_config
    kept = config.to_dict()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample(model, policy.tokenizer, PROMPTS, max_new_tokens=8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(model, policy.tokenizer, PROMPTS, max_new_tokens=8, seed=1) == first
    assert sample(model, policy.tokenizer, PROMPTS, max_new_tokens=8, seed=2) != first
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config and config.to_dict() == kept


def test_a_failure_puts_everything_back(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy.causal_lm.train()
    config = model.generation_config

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fails)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        sample(model, policy.tokenizer, PROMPTS, max_new_tokens=8, seed=1)
    assert model.training and model.generation_config is config
    assert torch.equal(torch.get_rng_state(), state)


def test_it_samples_in_eval_mode(policy: Policy) -> None:
    """The tiny model's configuration asks for dropout, which would make greedy answers random."""
    model = policy.causal_lm.train()
    assert model.config.attention_dropout > 0
    once = sample(model, policy.tokenizer, PROMPTS, temperature=0, max_new_tokens=12, seed=1)
    again = sample(model, policy.tokenizer, PROMPTS, temperature=0, max_new_tokens=12, seed=2)
    assert once == again


@pytest.mark.parametrize("ends", [1, [1], [7, 3]])
def test_any_end_id_stops(policy: Policy, ends: int | list[int]) -> None:
    policy.causal_lm.generation_config.eos_token_id = ends
    last = ends if isinstance(ends, int) else ends[-1]
    always(policy, last)
    model, tokenizer = policy.causal_lm, policy.tokenizer
    found = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=4, seed=0)
    assert found == [Sample(text="", stopped=True, end=last)] * 3
    always(policy, tokenizer("a")["input_ids"][0])
    found = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=4, seed=0)
    letter = tokenizer("a")["input_ids"][0]
    assert found == [Sample("aaaa", stopped=False, tokens=(letter,) * 4)] * 3


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0),
        ((5, 5, 5), 0),
        ((1, 2, 3, 4, 5), 0),
        ((7,) * 7, 3 / 4),  # four runs of four, all alike
        ((1, 2, 3, 4, 1, 2, 3, 4), 1 / 5),  # the fifth is the first
    ],
)
def test_repetition_is_the_share_of_runs_of_four_said_before(tokens: tuple, share: float) -> None:
    assert Sample("", False, tokens).repetition == pytest.approx(share, abs=1e-15)


def test_a_prompt_has_the_tokens_that_training_sees(policy: Policy) -> None:
    encoder = build_encoder(policy.tokenizer, policy.causal_lm.generation_config)
    chat = ({"role": "user", "content": "파이썬이 <|end|> 뭐야?"},)
    answers = tuple(({"role": "assistant", "content": text},) for text in ("네.", "아니~"))
    assert encode_prompt(encoder, chat) == encode_pair(encoder, Pair(chat, *answers, "x:1")).prompt
    text = "파이썬은 <|end|> 뭐"
    assert encode_prompt(encoder, text) == encode_pair(encoder, Pair(text, "a", "b", "x:1")).prompt


def test_chats_are_answered(policy: Policy) -> None:
    chats = [[{"role": "user", "content": "서울이 뭐야?"}], "서울은"]
    found = sample(policy.causal_lm, policy.tokenizer, chats, max_new_tokens=5, seed=0)
    assert len(found) == 2


def test_no_prompts_no_samples(policy: Policy) -> None:
    assert sample(policy.causal_lm, policy.tokenizer, [], max_new_tokens=5, seed=0) == []


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user"}], [{"content": "a"}]])
def test_a_prompt_that_cannot_be_asked_is_refused(policy: Policy, prompt: object) -> None:
    with pytest.raises(DataError):
        sample(policy.causal_lm, policy.tokenizer, [prompt], max_new_tokens=5, seed=0)


@pytest.mark.parametrize(
    ("temperature", "length"), [(-0.1, 5), (float("nan"), 5), (float("inf"), 5), (1.0, 0)]
)
def test_impossible_settings_are_refused(temperature: float, length: int) -> None:
    with pytest.raises(ConfigError):
        decoding(temperature, length, [1])


def test_a_batch_holds_a_prompt_at_least(policy: Policy) -> None:
    with pytest.raises(ConfigError):
        sample(policy.model, policy.tokenizer, ["a"], max_new_tokens=1, seed=0, batch_size=0)


def test_settings_can_be_written_down() -> None:
    assert decoding(1.0, 64, [1, 2]) == {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_beams": 1,
        "max_new_tokens": 64,
        "eos_token_id": [1, 2],
    }
    assert decoding(0, 64, [1])["do_sample"] is False
