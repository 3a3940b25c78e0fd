"""An answer while it is generated: whole characters, that of `sample`, nothing left changed."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tiny import save_tiny
from tests.support.tokenizers import byte_level, metaspace, with_tokens

from likelier.chat.tokenizer import build_encoder
from likelier.data.encode import encode_prompt
from likelier.generation.sample import sample, seed_at
from likelier.generation.stream import TextOfTokens, stream
from likelier.model.load import load
from likelier.model.policy import Policy

TOKENIZERS: dict[str, Any] = {
    "bytes": byte_level(),
    "bytes, space before": byte_level(add_prefix_space=True),
    **{kind: metaspace(kind) for kind in ("always", "first", "legacy")},
}
SAID = "서울은 대한민국의 수도입니다. 한강이 🌊 흐릅니다!\n값: 뷁 쀍, naïve café 👩‍👩‍👧"


def said_by(tokenizer: Any, text: str) -> list[int]:
    """The tokens that a model writes to say a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_character_comes_in_halves(kind: str) -> None:
    """Wherever the answer ends, also within a character, what came is a beginning of its text."""
    encoder = build_encoder(TOKENIZERS[kind])
    ids = said_by(TOKENIZERS[kind], SAID)
    whole = encoder.whole.decode(ids)
    heard = TextOfTokens(encoder)
    pieces = [heard.add(token) for token in ids]
    assert "".join(pieces) == whole
    assert "".join(pieces[: len(ids) // 2]) != whole  # it comes bit by bit
    assert pieces.count("") > 5, "some characters here are several tokens"
    for came in itertools.accumulate(pieces):
        assert "\ufffd" not in came and whole.startswith(came)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(st.characters(exclude_characters="\ufffd\0", exclude_categories=["Cs"])))
def test_any_text_comes_whole(kind: str, text: str) -> None:
    encoder = build_encoder(TOKENIZERS[kind])
    heard = TextOfTokens(encoder)
    ids = [one for one in said_by(TOKENIZERS[kind], text) if one not in encoder.control]
    assert "".join(map(heard.add, ids)) == encoder.whole.decode(ids)


def test_of_control_tokens_only_those_of_thinking_are_text() -> None:
    tokenizer = with_tokens(["<|eos|>", "<|call|>", "[THINK]", "[/THINK]"], [], eos_token="<|eos|>")
    encoder = build_encoder(tokenizer)
    heard = TextOfTokens(encoder)
    ids = said_by(tokenizer, "[THINK]생각[/THINK]<|call|>답<|eos|>")
    assert "".join(map(heard.add, ids)) == "[THINK]생각[/THINK]답"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


def streamed(policy: Policy, text: str, stop_after: int = 10**9, **settings: Any) -> Any:
    """The pieces of an answer, and the answer."""
    encoder, pieces = policy.encoder(), list[str]()
    answer = stream(
        policy, encoder, encode_prompt(encoder, text), pieces.append,
        lambda: len(pieces) >= stop_after,
        **{"temperature": 1.0, "max_new_tokens": 24, "seed": 5, **settings},
    )  # fmt: skip
    return pieces, answer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_answer_is_the_one_that_is_sampled(policy: Policy, temperature: float) -> None:
    for seed in range(8):
        settings: dict[str, Any] = {"temperature": temperature, "max_new_tokens": 24, "seed": seed}
        pieces, answer = streamed(policy, "서울은", **settings)
        (one,) = sample(policy.model, policy.tokenizer, ["서울은"], **settings)
        assert (answer.tokens, answer.stopped) == (one.tokens, one.stopped)
        assert len(pieces) == len(answer.tokens) and "".join(pieces) == answer.text
        assert one.text.startswith(answer.text)
        assert set(one.text[len(answer.text) :]) <= {"\ufffd"}  # of a character cut by the limit


def test_it_stops_where_it_is_asked_to(policy: Policy) -> None:
    pieces, answer = streamed(policy, "서울은", temperature=0.0)
    assert len(answer.tokens) == 24
    fewer, broken_off = streamed(policy, "서울은", stop_after=7, temperature=0.0)
    assert broken_off.tokens == answer.tokens[:7] and not broken_off.stopped
    assert fewer == pieces[:7]


def test_nothing_of_the_model_or_of_torch_is_changed(policy: Policy) -> None:
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    modes = [module.training for module in policy.model.modules()]
    config = policy.causal_lm.generation_config.to_dict()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    streamed(policy, "서울은")
    with pytest.raises(KeyboardInterrupt):  # a second Ctrl-C, wherever it comes
        stream(
            policy, policy.encoder(), (5, 6), interrupted, lambda: False,
            temperature=1.0, max_new_tokens=9, seed=0,
        )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in policy.model.modules()] == modes and all(modes)
    assert policy.causal_lm.generation_config.to_dict() == config
    now = policy.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in weights.items())


def interrupted(_: str) -> None:
    raise KeyboardInterrupt


def test_places_have_seeds_of_their_own() -> None:
    seeds = [seed_at(seed, place) for seed in range(30) for place in range(30)]
    assert len(set(seeds)) == 900 and max(seeds) < 2**32
    assert seed_at(3, 64) == seed_at(3, 64)
