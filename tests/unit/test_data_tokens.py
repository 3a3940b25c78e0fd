"""Text pairs as tokens: the prompt with its own specials, the answer on its own, one stop id."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.data import encode_pair
from tests.support.tokenizers import CHATML, CONTROL, LLAMA3, bos_and_eos, byte_level, metaspace

from likelier.base.errors import ConfigError, DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.inspector import PairInspector
from likelier.data import encode
from likelier.data.encode import encode_completion
from likelier.data.records import Pair, TokenPair

TOKENIZERS = {
    "byte-level": byte_level(),
    "byte-level, prefix space": byte_level(add_prefix_space=True),
    "bos and eos": bos_and_eos(),
    "metaspace": metaspace(),
    "metaspace, first": metaspace("first"),
    "metaspace, legacy": metaspace("legacy"),
}
ENCODERS = {name: build_encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
every = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def encode_pairs(encoder: Encoder, pairs: list[Pair]) -> tuple[list[TokenPair], list[Finding]]:
    return encode.encode_pairs(encoder, pairs, PairInspector().as_tokens)


def pair(
    prompt: Any = "파이썬이 뭐야?", chosen: Any = " 언어입니다.", rejected: Any = " 뱀이지~"
) -> Pair:
    return Pair(prompt, chosen, rejected, "a.jsonl:1")


def decode(encoder: Encoder, ids: tuple[int, ...]) -> str:
    return encoder.tokenizer.decode(ids, skip_special_tokens=False)


@every
def test_an_answer_is_its_text_and_one_stop(encoder: Encoder) -> None:
    tokens = encode_pair(encoder, pair())
    assert tokens.source == "a.jsonl:1"
    for answer, text in ((tokens.chosen, " 언어입니다."), (tokens.rejected, " 뱀이지~")):
        assert decode(encoder, answer.tokens[:-1]) == text
        assert answer.tokens[-1] == encoder.stop == encoder.tokenizer.eos_token_id
        assert answer.tokens.count(encoder.stop) == 1
        assert answer.scored == (True,) * len(answer.tokens)


@every
def test_the_prompt_is_what_inference_sees(encoder: Encoder) -> None:
    """The tokenizer's own call, but for specials behind the text."""
    ids = tuple(encoder.tokenizer("파이썬이 뭐야?")["input_ids"])
    tokens = encode_pair(encoder, pair()).prompt
    assert ids[: len(tokens)] == tokens
    assert set(ids[len(tokens) :]) <= {encoder.tokenizer.eos_token_id}
    assert encoder.tokenizer.eos_token_id not in tokens


def test_leading_specials_stay_and_trailing_ones_go() -> None:
    encoder = ENCODERS["bos and eos"]
    assert encoder.leading == (encoder.tokenizer.bos_token_id,)
    prompt = encode_pair(encoder, pair()).prompt
    assert prompt[0] == encoder.tokenizer.bos_token_id
    assert prompt.count(encoder.tokenizer.bos_token_id) == 1
    assert encoder.tokenizer.eos_token_id not in prompt
    assert ENCODERS["byte-level"].leading == ()
    assert ENCODERS["metaspace"].leading == (ENCODERS["metaspace"].tokenizer.bos_token_id,)


@pytest.mark.parametrize("name", [name for name in ENCODERS if "meta" in name or "prefix" in name])
def test_a_continuation_has_no_dummy_space(name: str) -> None:
    encoder = ENCODERS[name]
    _, answer = encode_completion(encoder, "질문:", "서울입니다.")
    assert decode(encoder, answer.tokens[:-1]) == "서울입니다."
    spaced = encoder.tokenizer("서울입니다.", add_special_tokens=False)["input_ids"]
    assert decode(encoder, spaced) == " 서울입니다."  # what it would be without care
    _, own = encode_completion(encoder, "질문:", " 서울입니다.")
    assert decode(encoder, own.tokens[:-1]) == " 서울입니다."  # a space of the answer's own


@every
def test_control_tokens_in_text_stay_text(encoder: Encoder) -> None:
    """Users write what they like; no prompt and no answer may end a turn or open one."""
    special = [t for t in encoder.tokenizer.get_added_vocab() if t in encoder.end_ids or "|" in t]
    text = "앞 " + "".join(special) + " 뒤<s></s>" + special[0] * 2
    plain = encode_pair(encoder, pair(text, text, "다른 " + text))
    for ids in (plain.prompt[len(encoder.leading) :], plain.chosen.tokens[:-1]):
        assert encoder.control.isdisjoint(ids)
    assert decode(encoder, plain.chosen.tokens[:-1]) == text


def test_control_tokens_that_overlap_stay_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<<a>>", "<a>", ">x<", "a>>>"], special_tokens=True)
    encoder = build_encoder(tokenizer)
    for text in ("<<a>>", "<<<a>>>x<a>", "<a>x<a>x<", "<a><<a>>>x<"):
        _, answer = encode_completion(encoder, "b", f"{text} b")
        assert encoder.control.isdisjoint(answer.tokens[:-1])
        assert decode(encoder, answer.tokens[:-1]) == f"{text} b"


def test_a_control_token_of_one_character_is_refused_in_text() -> None:
    """Nothing can be put inside it to keep it text."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["a"], special_tokens=True)
    encoder = build_encoder(tokenizer)
    encode_completion(encoder, "b", "b")
    with pytest.raises(DataError, match="control token"):
        encode_completion(encoder, "b", "ba")


def test_control_tokens_in_text_are_warned_of() -> None:
    encoded, findings = encode_pairs(ENCODERS["byte-level"], [pair(chosen="가<|im_end|>"), pair()])
    assert len(encoded) == 2
    assert [(f.code, f.severity) for f in findings] == [("control", "warning")]


def test_thinking_tokens_are_no_control_tokens() -> None:
    """Added tokens that are not special are what a model writes itself."""
    encoder = ENCODERS["byte-level"]
    _, answer = encode_completion(encoder, "질문", "<think>생각</think>답")
    assert encoder.tokenizer.convert_tokens_to_ids("<think>") == answer.tokens[0]


def test_a_tokenizer_that_makes_control_ids_of_text_is_refused() -> None:
    """A Unigram model finds ``</s>`` in its own vocabulary."""
    encoder = build_encoder(metaspace("unigram"))
    encoded, findings = encode_pairs(encoder, [pair(chosen="서울 </s> 입니다"), pair()])
    assert len(encoded) == 1
    assert [(f.code, f.severity) for f in findings] == [("control", "error")]


@every
def test_both_sides_have_one_prompt_and_batches_change_nothing(encoder: Encoder) -> None:
    pairs = [pair(f"질문 {n % 3}: ", f"답 {n}", "나쁜 답") for n in range(7)]
    encoded, findings = encode_pairs(encoder, pairs)
    assert findings == []
    assert encoded == [encode_pair(encoder, one) for one in pairs]
    for one, tokens in zip(pairs, encoded, strict=True):
        for text, answer in ((one.chosen, tokens.chosen), (one.rejected, tokens.rejected)):
            assert encode_completion(encoder, one.prompt, text) == (tokens.prompt, answer)


TEXTS = st.text(
    st.one_of(st.sampled_from("가나다한글 \n\t.?<|>/se"), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=12,
).filter(lambda text: "\ufdd0" not in text and "\0" not in text)


@pytest.mark.parametrize("name", ["byte-level", "bos and eos", "metaspace", "metaspace, legacy"])
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, answer=TEXTS, other=TEXTS)
def test_the_round_trip(name: str, prompt: str, answer: str, other: str) -> None:
    encoder = ENCODERS[name]
    ids, tokens = encode_completion(encoder, prompt, answer)
    # Metaspace writes a space as ▁ and cannot tell the two apart afterwards
    expected = answer.replace("▁", " ") if "meta" in name else answer
    assert decode(encoder, tokens.tokens[:-1]) == expected
    assert encoder.control.isdisjoint(tokens.tokens[:-1])
    assert encode_completion(encoder, prompt, other)[0] == ids
    assert encode_completion(encoder, other, answer)[1] == tokens  # an answer knows no prompt


@every
def test_the_stop_can_be_left_out(encoder: Encoder) -> None:
    prompt, with_stop = encode_completion(encoder, "질문:", "답")
    same, without = encode_completion(encoder, "질문:", "답", stop=False)
    assert prompt == same
    assert with_stop.tokens == (*without.tokens, encoder.stop)
    assert len(without.scored) == len(without.tokens)


def test_an_empty_response_is_only_its_stop() -> None:
    encoder = ENCODERS["byte-level"]
    assert encode_completion(encoder, "질문:", "")[1].tokens == (encoder.stop,)
    with pytest.raises(DataError, match="response: it has no token"):
        encode_completion(encoder, "질문:", "", stop=False)
    with pytest.raises(DataError, match="prompt: it has no token"):
        encode_completion(encoder, "", "답")
    assert (
        encode_completion(ENCODERS["bos and eos"], "", "답")[0] == ENCODERS["bos and eos"].leading
    )


@pytest.mark.parametrize(
    ("prompt", "response", "says"),
    [
        ("질문", [{"role": "assistant", "content": "답"}], "the response is not"),
        ("질문", 3, "the response is not"),
        ("질\0문", "답", "prompt: the text holds a NUL"),
        ("질문", "\ud800", "response: the text holds half a surrogate"),
        ("질문", "\ufdd0", "U\\+FDD0"),
        (None, "답", "list of messages expected, found null"),
        ([{"role": "user", "content": "질문"}], "답", "no chat template"),
    ],
)
def test_what_cannot_be_encoded(prompt: Any, response: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode_completion(ENCODERS["byte-level"], prompt, response)


def test_answers_of_no_token_and_equal_answers_are_located() -> None:
    """A tokenizer that deletes characters can empty or equate what differed as text."""
    tokenizer = byte_level()
    from tokenizers.normalizers import Replace

    tokenizer.backend_tokenizer.normalizer = Replace("-", "")
    encoder = build_encoder(tokenizer)
    pairs = [pair(chosen="---"), pair(chosen="뱀-", rejected="뱀"), pair(prompt="--"), pair()]
    encoded, findings = encode_pairs(encoder, pairs)
    assert len(encoded) == 1
    assert [(f.code, f.field, f.severity) for f in findings] == [
        ("empty", "chosen", "error"),
        ("merged", None, "error"),
        ("empty", "prompt", "error"),
    ]
    with pytest.raises(DataError, match=r"a\.jsonl:1 chosen"):
        encode_pair(encoder, pairs[0])


def test_unknown_text_is_warned_of() -> None:
    _, findings = encode_pairs(build_encoder(metaspace("unigram")), [pair(chosen="漢字")])
    assert [f.code for f in findings] == ["unknown"]
    assert "漢" not in TOKENIZERS["metaspace"].get_vocab()
    assert encode_pairs(ENCODERS["metaspace"], [pair(chosen="漢字")])[1] == []  # as bytes


def test_a_stop_token_that_is_also_the_unknown_one() -> None:
    tokenizer = byte_level()
    tokenizer.unk_token = tokenizer.eos_token
    encoder = build_encoder(tokenizer)
    assert encode_pairs(encoder, [pair()])[1] == []
    assert encoder.stop in encoder.control


def config(*ends: int) -> SimpleNamespace:
    return SimpleNamespace(eos_token_id=list(ends))


def test_the_stop_token() -> None:
    tokenizer = byte_level()
    own, other, third = map(tokenizer.convert_tokens_to_ids, CONTROL[:3])
    assert build_encoder(tokenizer).stop == own
    assert build_encoder(tokenizer, config(other, own)).stop == own
    assert build_encoder(tokenizer, config(other, third)).stop == other
    assert build_encoder(tokenizer, SimpleNamespace(eos_token_id=third)).stop == third
    assert build_encoder(tokenizer, SimpleNamespace(eos_token_id=None)).stop == own
    assert build_encoder(byte_level(eos=None), config(third)).stop == third
    ends = build_encoder(tokenizer, config(other)).end_ids
    assert ends == {CONTROL[0]: own, CONTROL[1]: other}


def test_a_tokenizer_without_a_stop_token_is_refused() -> None:
    with pytest.raises(DataError, match="no stop token") as caught:
        build_encoder(byte_level(eos=None))
    assert caught.value.exit_code == 65 and caught.value.hint
    with pytest.raises(DataError, match="99999 is not in the vocabulary"):
        build_encoder(byte_level(), config(99999))


def test_a_tokenizer_without_a_fast_backend_is_refused() -> None:
    with pytest.raises(DataError, match="fast backend"):
        build_encoder(SimpleNamespace(eos_token_id=1))


def test_a_tokenizer_that_works_in_python_is_refused() -> None:
    class Shouting(type(byte_level())):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.upper(), **options)

    tokenizer = Shouting(tokenizer_object=byte_level().backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(DataError, match="does not tokenise as its"):
        build_encoder(tokenizer)


def test_padding_and_truncation_set_elsewhere_do_not_matter() -> None:
    tokenizer = byte_level()
    expected = encode_pair(build_encoder(tokenizer), pair())
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    assert encode_pair(build_encoder(tokenizer), pair()) == expected


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = metaspace("legacy", CHATML)
    before = tokenizer.backend_tokenizer.to_str()
    encode_pair(build_encoder(tokenizer), pair("</s>"))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_template_keywords() -> None:
    thinking = byte_level("{% if enable_thinking %}a{% endif %}{{ messages[0].content }}")
    assert build_encoder(thinking, template={"enable_thinking": False}).template == {
        "enable_thinking": False
    }
    with pytest.raises(ConfigError, match="enable_thinking") as caught:
        build_encoder(thinking, template={"enable_thinkin": True})
    assert caught.value.where == "data.template.enable_thinkin"
    with pytest.raises(ConfigError, match="set by likelier"):
        build_encoder(thinking, template={"messages": []})
    with pytest.raises(ConfigError, match="does not read"):
        build_encoder(byte_level(LLAMA3), template={"padding": True})
    with pytest.raises(ConfigError, match="no chat template"):
        build_encoder(byte_level(), template={"enable_thinking": True})


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(DataError, match="chat template:2"):
        build_encoder(byte_level("{% if a %}\n{% endfor %}"))


def test_generation_marks_in_a_template_are_known() -> None:
    marked = (
        "{% for m in messages %}{%- generation -%}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    build_encoder(byte_level(marked))
