"""Where a prompt ends and its answer begins: templates that write a finished turn otherwise than
the one that they generate, thinking, several turns, begun turns, and stops that are not written.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.chat_families import families, generation_of, tokenizer_of
from tests.support.data import encode_pair
from tests.support.tokenizers import CHATML, EXAONE4, byte_level

from likelier.base.errors import DataError
from likelier.base.findings import Finding
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.examine import Question, examine
from likelier.config.schema import DataConfig
from likelier.data.encode import encode_completion, encode_pairs, encode_prompt
from likelier.data.load import load
from likelier.data.records import Completion, Pair

ASKED = {"role": "user", "content": "파이썬이 뭐야?"}
SYSTEM = {"role": "system", "content": "공손하게 답하세요."}


def bot(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@cache
def _family(name: str, template: str) -> Encoder:
    family = next(one for one in families() if one.family == name)
    tokenizer = tokenizer_of(family)
    return build_encoder(tokenizer, generation_of(family, tokenizer), json.loads(template))


def family(name: str, **template: Any) -> Encoder:
    return _family(name, json.dumps(template))


def pair(chosen: Any, rejected: Any = "뱀이지~", prompt: Sequence[Any] = (ASKED,)) -> Pair:
    sides = [bot(one) if isinstance(one, str) else one for one in (chosen, rejected)]
    listed = [tuple(one) if isinstance(one, list) else (one,) for one in sides]
    return Pair(tuple(prompt), *listed, "a.jsonl:1")


def prompt_ids(encoder: Encoder, messages: Sequence[Any]) -> tuple[int, ...]:
    """What the tokenizer itself makes of a prompt."""
    text = encoder.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **encoder.template
    )
    return tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def said(encoder: Encoder, answer: Completion, scored: bool = True) -> str:
    """The text of the tokens that are scored, or of those that are only read."""
    flagged = zip(answer.tokens, answer.scored, strict=True)
    ids = [token for token, wanted in flagged if wanted is scored]
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=False))


def error_of(encoder: Encoder, one: Pair) -> Finding:
    encoded, findings = encode_pairs(encoder, [one])
    assert not encoded
    return next(finding for finding in findings if finding.severity == "error")


def codes(encoder: Encoder, one: Pair) -> list[str]:
    return [finding.code for finding in encode_pairs(encoder, [one])[1]]


# ---- the rules ----------------------------------------------------------------------------------


def test_the_generation_rule_where_the_system_turn_moves() -> None:
    """The last question carries the system turn; in a finished chat it is another one."""
    moving = (
        "{% set sys = messages[0].content if messages[0].role == 'system' %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST]"
        "{% if loop.last and sys %}{{ sys }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
    )
    encoder = build_encoder(byte_level(moving))
    chat = (SYSTEM, {"role": "user", "content": "안녕?"}, bot("안녕하세요!"), ASKED)
    one = pair("언어입니다.", prompt=chat)
    tokens = encode_pair(encoder, one)
    assert tokens.prompt == prompt_ids(encoder, chat)
    assert said(encoder, tokens.chosen) == " 언어입니다.<|endoftext|>"
    assert all(tokens.chosen.scored)
    assert codes(encoder, one) == ["generation"]
    assert codes(encoder, pair("언어입니다.")) == []
    refused = error_of(replace(encoder, boundary="history"), one)
    assert refused.code == "prefix" and "data.boundary: auto" in refused.hint


def test_both_rules_agree_where_both_fit() -> None:
    for name in ("ChatML", "Llama 3", "Qwen3", "Gemma 3", "GLM-4.5"):
        encoder, one = family(name), pair("언어입니다.")
        tokens = encode_pair(encoder, one)
        assert encode_pair(replace(encoder, boundary="generation"), one) == tokens
        assert encode_pair(replace(encoder, boundary="history"), one) == tokens


def test_no_marker_is_cut_in_two() -> None:
    """Both headers go on with a bracket; what they share ends before it."""
    template = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<said>{% endif %}"
                              "{{ m.content }}")  # fmt: skip
    template = template.replace("assistant\n{% endif", "assistant\n<say>{% endif")
    encoder = build_encoder(byte_level(template, eos="<|im_end|>"))
    refused = error_of(encoder, pair("언어입니다."))
    assert refused.code == "prefix"  # two headers that have nothing to do with each other


def test_counts_reach_the_log_and_the_run() -> None:
    encoder = build_encoder(
        byte_level(
            CHATML.replace("assistant\n{% endif", "assistant\n<say>{% endif"), eos="<|im_end|>"
        )
    )
    rows = [
        {"prompt": [ASKED], "chosen": [bot(f"답 {n}")], "rejected": [bot("뱀")]} for n in (1, 2)
    ]
    dataset = load(DataConfig(train="(in memory)", eval=None), encoder, train=rows)
    assert dataset.counts["findings"]["generation"] == 2
    assert "2 generation" in dataset.describe()
    history = DataConfig(train="(in memory)", eval=None, boundary="history")
    with pytest.raises(DataError, match="renders as"):
        load(history, encoder, train=rows)


# ---- thinking -----------------------------------------------------------------------------------

THOUGHT, SAID = "코드 이야기다.", "언어입니다."
OPENING = ["Qwen3.5", "Nemotron 3", "Qwen3 Thinking 2507", "EXAONE 4.5", "GLM-4.7"]


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "thinking", "inline"])
def test_reasoning_continues_inside_the_block_that_the_prompt_opened(name: str, form: str) -> None:
    encoder = family(name)
    inline = bot(f"<think>\n{THOUGHT}\n</think>\n\n{SAID}")
    turn = inline if form == "inline" else bot(SAID, **{form: THOUGHT})
    tokens = encode_pair(encoder, pair(turn, {**turn, "content": turn["content"] + "!"}))
    assert tokens.prompt == prompt_ids(encoder, [ASKED])
    assert encoder.tokenizer.decode(tokens.prompt).rstrip().endswith("<think>")
    text = said(encoder, tokens.chosen)
    assert text.startswith(THOUGHT) and "<think>" not in text
    assert text.count("</think>") == 1 and SAID in text and all(tokens.chosen.scored)


@pytest.mark.parametrize("name", OPENING)
def test_an_answer_without_reasoning_closes_the_block_at_once(name: str) -> None:
    encoder = family(name)
    plain = encode_pair(encoder, pair(SAID))
    assert said(encoder, plain.chosen, scored=False).strip() == "</think>"
    assert "</think>" not in said(encoder, plain.chosen)
    assert codes(encoder, pair(SAID)).count("closed") == 1
    mixed = encode_pair(encoder, pair(SAID, bot("뱀", reasoning_content=THOUGHT)))
    assert all(mixed.chosen.scored) and mixed.chosen.tokens == plain.chosen.tokens
    _, alone = encode_completion(encoder, [ASKED], SAID)
    assert alone == plain.chosen


def test_the_bytes_that_close_are_the_template_s_own() -> None:
    for name, closing in (("Qwen3.5", "\n</think>\n\n"), ("Nemotron 3", "</think>")):
        assert said(family(name), encode_pair(family(name), pair(SAID)).chosen, False) == closing
    call = {"type": "function", "id": "abc123def", "function": {"name": "f", "arguments": {"a": 1}}}
    calling = encode_pair(family("Nemotron 3"), pair(bot("", tool_calls=[call])))
    assert said(family("Nemotron 3"), calling.chosen, False) == "</think>"
    spaced = encode_pair(family("Nemotron 3"), pair("\n\n언어입니다."))
    assert said(family("Nemotron 3"), spaced.chosen, False) == "</think>"


OFF = "{% if not (enable_thinking | default(true)) %}{{ '\n</think>\n\n' }}{% endif %}"
BEHIND = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"


@pytest.mark.parametrize("off, behind", [(OFF, ""), ("", BEHIND)])
def test_a_block_is_closed_as_the_template_does_it_elsewhere(off: str, behind: str) -> None:
    """In the prompt with thinking off; or behind a thought. Its plain answers have no block."""
    template = CHATML.replace("assistant\n{% endif", f"assistant\n<think>\n{off}{{% endif")
    template = template.replace("{{ m.content }}", behind + "{{ m.content }}")
    encoder = build_encoder(byte_level(template, eos="<|im_end|>"))
    tokens = encode_pair(encoder, pair(SAID))
    assert said(encoder, tokens.chosen, False) == "\n</think>\n\n"
    assert said(encoder, tokens.chosen) == f"{SAID}<|im_end|>"


@pytest.mark.parametrize("name", ["QwQ", "DeepSeek R1", "DeepSeek R1 distilled"])
def test_a_block_that_nothing_closes_is_refused_with_a_cure_that_works(name: str) -> None:
    encoder = family(name)
    refused = error_of(encoder, pair(SAID))
    assert refused.code == "reasoning" and "'<think>\\n\\n</think>\\n\\n'" in refused.hint
    empty = "<think>\n\n</think>\n\n"
    tokens = encode_pair(encoder, pair(empty + SAID, empty + "뱀"))
    assert said(encoder, tokens.chosen, False) == "\n</think>\n\n"
    assert said(encoder, tokens.chosen).startswith(SAID)
    reasoned = f"<think>\n{THOUGHT}\n</think>\n\n"
    tokens = encode_pair(encoder, pair(reasoned + SAID, reasoned + "뱀"))
    assert said(encoder, tokens.chosen).startswith(f"{THOUGHT}\n</think>\n\n{SAID}")
    begun = encode_pair(encoder, pair(f"{THOUGHT}\n</think>\n\n{SAID}", reasoned + "뱀"))
    assert begun.chosen == tokens.chosen  # as the model itself goes on


def test_reasoning_that_the_template_drops_is_never_called_merged() -> None:
    encoder = family("Llama 3")
    one = pair(bot(SAID, reasoning_content=THOUGHT), bot(SAID, reasoning_content="뱀이다."))
    refused = error_of(encoder, one)
    assert refused.code == "reasoning" and "into the content" in refused.hint
    cured = pair(*(f"<think>\n{thought}\n</think>\n\n{SAID}" for thought in (THOUGHT, "뱀이다.")))
    assert THOUGHT in said(encoder, encode_pair(encoder, cured).chosen)


def test_a_thought_may_be_a_part_of_its_marker() -> None:
    for name in ("QwQ", "DeepSeek V3.1", "Command-R7B"):
        encoder = replace(family(name), boundary="generation")
        opens, closes = ("<|START_THINKING|>", "<|END_THINKING|>") if "R7" in name else (
            "<think>", "</think>")  # fmt: skip
        if name == "DeepSeek V3.1":
            encoder = family(name, thinking=True)
        texts = [f"{opens}\n{thought}\n{closes}\n\n{SAID}" for thought in ("T", "think")]
        tokens = encode_pair(encoder, pair(*texts))
        assert f"think\n{closes}\n\n{SAID}" in said(encoder, tokens.rejected)


def test_a_short_thought_does_not_pass_for_a_word_of_the_answer() -> None:
    assert (
        error_of(family("Llama 3"), pair(bot("banana", reasoning_content="a"))).code == "reasoning"
    )


def test_reasoning_behind_a_block_that_the_prompt_closed_is_refused() -> None:
    encoder = family("Qwen3", enable_thinking=False)
    one = pair(bot(SAID, reasoning_content=THOUGHT))
    refused = error_of(encoder, one)
    assert refused.code == "reasoning"
    assert refused.hint == "set data.template.enable_thinking: true"
    tokens = encode_pair(family("Qwen3", enable_thinking=True), one)
    assert said(encoder, tokens.chosen).startswith(f"<think>\n{THOUGHT}\n</think>\n\n{SAID}")


def test_a_prompt_that_closes_its_block_takes_no_reasoning_that_would_follow_it() -> None:
    """The template writes the content as it is, behind an empty block: it would think twice."""
    encoder = build_encoder(byte_level(EXAONE4, eos="[|endofturn|]"))
    refused = error_of(encoder, pair(f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"))
    assert refused.code == "reasoning" and "closes the thinking block" in refused.message


def test_markers_of_reasoning_are_control_tokens_where_they_begin_an_answer() -> None:
    encoder = family("Command-R7B")
    opens, closes = "<|START_THINKING|>", "<|END_THINKING|>"
    ids = [encoder.tokenizer.convert_tokens_to_ids(one) for one in (opens, closes)]
    tokens = encode_pair(encoder, pair(f"{opens}{THOUGHT}{closes}{SAID} {opens}"))
    assert [tokens.chosen.tokens.count(one) for one in ids] == [1, 1]
    assert said(encoder, tokens.chosen).count(opens) == 2


def test_an_empty_block_that_is_scored_is_said_once_with_its_switch(tmp_path: Path) -> None:
    encoder = family("Qwen3")
    encoder.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(encoder.end_ids.values())})
    )
    rows = [
        {"prompt": [ASKED], "chosen": [bot(f"답 {n}")], "rejected": [bot("뱀")]} for n in (1, 2)
    ]
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = Question(str(data), model=str(tmp_path / "model"))
    (kind,) = (one for one in examine(asked).kinds if one.code == "block")
    assert kind.count == 1 and kind.first[0].hint == "set data.template.enable_thinking: false"
    silent = replace(asked, template={"enable_thinking": False})
    assert "block" not in {one.code for one in examine(silent).kinds}


# ---- several turns ------------------------------------------------------------------------------


def test_turns_are_learned_or_read_as_their_weights_say() -> None:
    encoder = family("ChatML")
    more = {"role": "user", "content": "더"}

    def answer(first: Any, last: Any) -> list[dict[str, Any]]:
        return [{**bot("언어"), **first}, more, {**bot("쉬워요"), **last}]

    both = encode_pair(encoder, pair(answer({}, {"weight": 1})))
    assert said(encoder, both.chosen) == "언어<|im_end|>쉬워요<|im_end|>"
    for off in ({"weight": 0}, {"train": False}, {"weight": 0.0}):
        first = encode_pair(encoder, pair(answer({}, off))).chosen
        assert said(encoder, first) == "언어<|im_end|>" and all(first.scored)  # the rest is cut off
        last = encode_pair(encoder, pair(answer(off, {})))
        assert said(encoder, last.chosen) == "쉬워요<|im_end|>"
        assert said(encoder, last.chosen, False).startswith("언어<|im_end|>\n<|im_start|>user\n더")
        assert last.prompt + last.chosen.tokens == both.prompt + both.chosen.tokens
    for weights in ([0.5, 1], [0, 0], ["1", 1]):
        wrong = answer(*({"weight": weight} for weight in weights))
        assert error_of(encoder, pair(wrong)).code == "turn"


def test_the_last_turn_alone_where_the_template_rewrites_the_others() -> None:
    encoder = family("Qwen3")
    more = {"role": "user", "content": "더"}
    one = pair([bot("언어"), more, bot("쉬워요")], [bot("뱀"), more, bot("물어요")])
    refused = error_of(encoder, one)
    assert refused.code == "prefix" and "data.turns: last" in refused.hint
    config = DataConfig(train="(in memory)", eval=None, turns="last")
    row = {"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
    (tokens,) = load(config, encoder, train=[json.loads(json.dumps(row))]).train
    for side, answer in ((one.chosen, tokens.chosen), (one.rejected, tokens.rejected)):
        read = answer.scored.index(True)
        before = [*one.prompt, *side[:-1]]
        assert tokens.prompt + answer.tokens[:read] == prompt_ids(encoder, before)
        assert said(encoder, answer).endswith(f"{side[-1]['content']}<|im_end|>")


# ---- a turn that the prompt begins --------------------------------------------------------------


@pytest.mark.parametrize("name", ["ChatML", "Llama 3", "Qwen3.5", "Nemotron 3", "Mistral 7B v0.1"])
def test_an_answer_continues_the_turn_that_the_prompt_begins(name: str) -> None:
    encoder = family(name)
    chat = (ASKED, bot("파이썬은"))
    tokens = encode_pair(encoder, pair(" 언어입니다.", " 뱀이지~", prompt=chat))
    whole = encode_pair(encoder, pair("파이썬은 언어입니다."))
    decode = encoder.tokenizer.decode
    assert decode(tokens.prompt).endswith("파이썬은")
    assert decode(tokens.prompt + tokens.chosen.tokens) == decode(
        whole.prompt + whole.chosen.tokens
    )
    assert all(tokens.chosen.scored) and said(encoder, tokens.chosen).strip().startswith("언어")
    assert encode_prompt(encoder, list(chat)) == tokens.prompt
    assert encode_completion(encoder, list(chat), " 언어입니다.") == (tokens.prompt, tokens.chosen)
    assert "continued" in codes(encoder, pair(" 언어입니다.", prompt=chat))


def test_a_thought_that_the_prompt_begins_is_continued() -> None:
    for name in ("Qwen3.5", "QwQ"):
        encoder = family(name)
        chat = (ASKED, bot("<think>\n코드"))
        tokens = encode_pair(encoder, pair(f" 이야기다.\n</think>\n\n{SAID}", prompt=chat,
                                           rejected=" 아니다.\n</think>\n\n뱀"))  # fmt: skip
        assert encoder.tokenizer.decode(tokens.prompt).endswith("<think>\n코드")
        assert said(encoder, tokens.chosen).startswith(f" 이야기다.\n</think>\n\n{SAID}")


# ---- stops --------------------------------------------------------------------------------------

GLM = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>\n{{ m.content }}"
    "{% elif m.role == 'tool' %}<|im_end|>\n{{ m.content }}"
    "{% else %}[|assistant|]\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]\n{% endif %}"
)


def test_the_stop_of_a_turn_that_is_left_open_depends_on_what_follows() -> None:
    """A user's turn behind a text, a tool's result behind a call."""
    tokenizer = byte_level(GLM)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    encoder = build_encoder(tokenizer, type("", (), {"eos_token_id": ends}))
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    one = pair(SAID, bot("", tool_calls=[call]))
    tokens = encode_pair(encoder, one)
    assert said(encoder, tokens.chosen) == f"{SAID}<|im_start|>"
    assert said(encoder, tokens.rejected) == '<call>f{"a": 1}</call><|im_end|>'
    assert codes(encoder, one) == []
    several = encode_pair(encoder, pair([bot("가"), ASKED, bot("나")], SAID))
    assert said(encoder, several.chosen) == "가<|im_start|>나<|im_start|>"


def test_the_tokenizer_s_end_is_said_where_no_end_is_written() -> None:
    encoder = build_encoder(byte_level(GLM))
    tokens = encode_pair(encoder, pair(SAID))
    assert said(encoder, tokens.chosen) == f"{SAID}<|endoftext|>"
    assert codes(encoder, pair(SAID)) == ["ended"]


def test_an_answer_of_very_many_turns_is_refused_before_it_is_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its turns is rendered with all before it: the turns rendered are counted."""
    encoder = build_encoder(byte_level(CHATML, eos="<|im_end|>"))
    rendered: list[int] = []
    original = encoder.tokenizer.apply_chat_template

    def counted(messages: list[Any], **words: Any) -> Any:
        rendered.append(len(messages))
        return original(messages, **words)

    monkeypatch.setattr(encoder.tokenizer, "apply_chat_template", counted)
    turns = [bot("그렇습니다."), ASKED] * 30 + [bot("그렇습니다.")]
    monkeypatch.setattr("likelier.chat.boundary.MAX_TURNS_RENDERED", 31 * 31)
    assert len(encode_pairs(encoder, [pair(turns)])[0]) == 1
    assert 2 * 31 * 30 < sum(rendered) < 3 * 31 * 31
    rendered.clear()
    monkeypatch.setattr("likelier.chat.boundary.MAX_TURNS_RENDERED", 31 * 31 - 1)
    error = error_of(encoder, pair(turns))
    assert error.code == "turn" and "31 turns to be learned" in error.message
    assert sum(rendered) < 10
    last = replace(encoder, turns="last")
    assert len(encode_pairs(last, [pair(turns)])[0]) == 1
