"""A conversation: what the model is given is what its template writes of all that was said."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.chat_families import ChatFamily, families, generation_of, tokenizer_of
from tests.support.families import with_lora
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tokenizers import byte_level
from transformers import GPT2Config, GPT2LMHeadModel

from likelier.base.errors import ConfigError, DataError, RunFailed
from likelier.chat.boundary import generated_turn, prompt_text
from likelier.chat.tokenizer import BREAK, build_encoder
from likelier.generation.conversation import Conversation
from likelier.generation.sides import ModelSide
from likelier.model.load import load
from likelier.model.policy import Policy

SETTINGS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "seed": 3}
ASKED = "서울은?"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """With an adapter that does something."""
    return with_lora(load(save_tiny(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
def silent(tmp_path: Path) -> Policy:
    """It says its end at once."""
    policy = load(save_tiny(tmp_path / "silent"))
    always(policy, "<|end|>")
    return policy


@pytest.fixture
def given(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The prompts that the model was given, as tokens."""
    seen: list[list[int]] = []
    generate = type(policy.causal_lm).generate

    def watched(self: Any, ids: torch.Tensor, **named: Any) -> Any:
        seen.append(ids[0].tolist())
        return generate(self, ids, **named)

    monkeypatch.setattr(type(policy.causal_lm), "generate", watched)
    yield seen


def talk_with(policy: Policy, name: Any = "model", system: str = "") -> Conversation:
    return Conversation(ModelSide(name, policy, policy.encoder()), system)


def ask(talk: Conversation, text: str, after: int = 10**9, **more: Any) -> str:
    """The answer, broken off after so many pieces."""
    pieces: list[str] = []
    stop: Callable[[], bool] = lambda: len(pieces) >= after  # noqa: E731
    return talk.ask(text, pieces.append, stop, **(SETTINGS | more)).text.replace("\0", "\ufffd")


def by_template(policy: Policy, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a chat as transformers makes them."""
    ids: list[int] = policy.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return ids


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_each_side_is_given_its_own_conversation(policy: Policy, given: list[list[int]]) -> None:
    talks = {name: talk_with(policy, name) for name in ("base", "tuned")}
    texts = ("서울은 뭐야?", "한강은?", "What is Seoul?")
    answers = {name: [ask(talk, text) for text in texts] for name, talk in talks.items()}
    assert answers["base"] != answers["tuned"]
    for place, name in enumerate(talks):
        for number in range(3):
            before = [
                message
                for text, answer in zip(texts[:number], answers[name], strict=False)
                for message in (turn("user", text), turn("assistant", answer))
            ]
            expected = by_template(policy, [*before, turn("user", texts[number])])
            assert given[3 * place + number] == expected


def test_base_is_without_the_adapter_and_tuned_with_it(policy: Policy, tmp_path: Path) -> None:
    bare = load(save_tiny(tmp_path / "bare"))
    for seed in range(3):
        same = {"seed": seed}
        expected = ask(talk_with(bare), ASKED, **same)
        tuned = ask(talk_with(policy, "tuned"), ASKED, **same)
        assert ask(talk_with(policy, "base"), ASKED, **same) == expected != tuned
        assert ask(talk_with(policy, "tuned"), ASKED, **same) == tuned, "it is on again"
    trained = [p for name, p in policy.model.named_parameters() if "lora_" in name]
    assert trained and all(parameter.requires_grad for parameter in trained)


def test_the_system_text_stands_first_until_it_is_taken_away(
    policy: Policy, given: list[list[int]]
) -> None:
    talk = talk_with(policy, system="짧게 답해.")
    first = ask(talk, "서울은?")
    talk.system = "Be kind."
    second = ask(talk, "한강은?")
    talk.system = ""
    ask(talk, "끝?")
    said = [turn("user", "서울은?"), turn("assistant", first), turn("user", "한강은?")]
    kind = turn("system", "Be kind.")
    last = [*said, turn("assistant", second), turn("user", "끝?")]
    chats = [[turn("system", "짧게 답해."), said[0]], [kind, *said], last]
    assert given == [by_template(policy, chat) for chat in chats]


def test_a_typed_control_token_stays_text(policy: Policy, given: list[list[int]]) -> None:
    ask(talk_with(policy), "끝 <|end|> 끝")
    assert given[0].count(policy.tokenizer.eos_token_id) == 1, "the one of the template"


def test_what_was_stopped_is_kept_as_far_as_it_came(policy: Policy) -> None:
    talk = talk_with(policy)
    part = ask(talk, ASKED, after=4)
    assert talk.turns == [turn("user", ASKED), turn("assistant", part)]

    def impatient(piece: str) -> None:
        if piece.strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("한강은?", impatient, lambda: False, **SETTINGS)
    assert [message["role"] for message in talk.turns] == ["user", "assistant"] * 2
    assert talk.turns[2] == turn("user", "한강은?")


def always(policy: Policy, text: str) -> None:
    """Make the model say one token again and again, whatever comes before."""
    (token, *_) = policy.tokenizer(text)["input_ids"]
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "ln_f.bias" in name or "wpe" in name:
                parameter.zero_()
        embedding = policy.causal_lm.get_input_embeddings().weight
        embedding.zero_()
        embedding[:, 0] = 1.0
        embedding[token, 0] = 2.0


def test_a_question_without_an_answer_is_no_turn(silent: Policy) -> None:
    talk = talk_with(silent)
    assert ask(talk, ASKED, temperature=0.0) == ""
    assert talk.turns == []
    assert ask(talk, ASKED, temperature=0.0) == ""


def test_characters_that_no_turn_may_hold_are_replaced(silent: Policy) -> None:
    """A model writes any bytes; a conversation with them can be continued all the same."""
    always(silent, "\0")
    talk = talk_with(silent)
    assert ask(talk, ASKED, temperature=0.0) == "\ufffd" * 12
    assert talk.turns[-1]["content"] == "\ufffd" * 12
    assert ask(talk, ASKED, temperature=0.0)


def test_a_model_without_a_template_continues_each_text(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch, given: list[list[int]]
) -> None:
    monkeypatch.setattr(policy.tokenizer, "chat_template", None)
    talk = talk_with(policy)
    answers = [ask(talk, text) for text in ("서울은", " 한강이")]
    assert given == [policy.tokenizer(text)["input_ids"] for text in ("서울은", " 한강이")]
    assert [(row["prompt"], row["completion"]) for row in talk.rows()] == [
        ("서울은", answers[0]),
        (" 한강이", answers[1]),
    ]
    with pytest.raises(ConfigError, match="no chat template"):
        talk.must_take_system("짧게.")


def test_a_conversation_beyond_the_positions_is_refused_and_can_begin_anew() -> None:
    tokenizer, positions = tiny_tokenizer(), 64
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=16, n_layer=1, n_head=2,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    talk = talk_with(Policy(GPT2LMHeadModel(config), tokenizer))
    with pytest.raises(DataError, match=f"the model has {positions} positions"):
        ask(talk, "서울 " * positions)
    assert talk.turns == []
    room = positions - len(by_template(talk.side.policy, [turn("user", ASKED)]))
    always(talk.side.policy, "a")
    answer = talk.ask(
        ASKED, lambda _: None, lambda: False, temperature=0, max_new_tokens=10**6, seed=0
    )
    assert len(answer.tokens) == room, "no more than it has positions for"
    with pytest.raises(DataError, match="/reset"):
        ask(talk, "또?")
    talk.turns = []
    assert ask(talk, ASKED, temperature=0, max_new_tokens=5)


def test_too_little_memory_is_said_with_its_cure(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("likelier.generation.conversation.stream", full)
    talk = talk_with(policy)
    with pytest.raises(RunFailed, match=r"out of memory behind \d+ tokens.*\n.*/reset"):
        ask(talk, ASKED)
    assert talk.turns == []


@pytest.mark.parametrize("text", ["half a \ud83d pair", "\ufdd0", "nul \0"])
def test_characters_that_no_tokenizer_takes_are_refused(policy: Policy, text: str) -> None:
    talk = talk_with(policy)
    with pytest.raises(DataError, match="the text holds"):
        ask(talk, text)
    assert talk.turns == []


REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
LEAVES_OUT = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"), [(REFUSES, "no system"), (LEAVES_OUT, "leaves the system text out")]
)
def test_a_system_text_that_would_not_be_read_is_refused(
    policy: Policy, template: str, why: str
) -> None:
    encoder = build_encoder(byte_level(template))
    with pytest.raises(ConfigError, match=why):
        Conversation(ModelSide("model", policy, encoder), "짧게.")


# ---- reasoning ---------------------------------------------------------------------------------

THOUGHT, SAID, NEXT = "한참 생각한 것", "한강이 흐릅니다.", "그래서 어디로?"
# What the template makes of a thought of an earlier turn, of those that open or know a block.
DROPS = {
    "EXAONE Deep", "EXAONE 4.0", "EXAONE 4.5", "Kanana 2 Thinking", "QwQ", "Qwen3",
    "Qwen3 Thinking 2507", "Qwen3.5", "DeepSeek R1", "DeepSeek V3.1", "DeepSeek V3.2", "GLM-4.5",
    "GLM-4.7", "Nemotron 3", "MiniMax M2",
}  # fmt: skip
KEEPS = {"HyperCLOVA X SEED Think", "Kimi K2 Thinking", "OLMo 3 Think", "ChatML", "Seed-OSS"}


@pytest.mark.parametrize("family", families(), ids=lambda family: family.family)
def test_an_answer_with_reasoning_becomes_a_turn_that_the_template_takes(
    family: ChatFamily,
) -> None:
    """As it was generated behind a prompt that may have opened the block already, or was broken off
    within it; what of it later turns have is up to the template.
    """
    tokenizer = tokenizer_of(family)
    encoder = build_encoder(tokenizer, generation_of(family, tokenizer))
    prompt = [turn("user", ASKED)]
    opening, closing = family.mark
    is_open = prompt_text(encoder, prompt).rstrip().endswith(opening)
    begun = ("" if is_open else f"{opening}\n") + THOUGHT
    reasoned = f"{begun}\n{closing}\n\n{SAID}"
    for text, said, ended in ((SAID, SAID, True), (reasoned, SAID, True), (begun, "", False)):
        if family.family == "Mistral, single turn":  # which takes no second question at all
            continue
        answer = generated_turn(encoder, prompt, text, ended)
        messages = [*prompt, answer, turn("user", NEXT)]
        rendered = prompt_text(encoder, messages).replace(BREAK, "")
        assert said in rendered and NEXT in rendered
        if THOUGHT in text and said:
            assert THOUGHT not in rendered or family.family not in DROPS
            assert THOUGHT in rendered or family.family not in KEEPS


def test_the_families_of_the_lists_above_are_there() -> None:
    assert {family.family for family in families()} >= (DROPS | KEEPS)
