"""Nothing of a message is lost silently: what the template does not read is found, by its name."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.findings import Finding
from likelier.chat.render import stands_in, texts_of
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.examine import Question, examine
from likelier.checks.inspector import PairInspector
from likelier.data.encode import encode_pairs
from likelier.data.formats import read_row
from likelier.data.records import Pair, Row
from likelier.data.shapes import Format, recognise

NAMES = CHATML.replace("{{ m.content }}", "{% if m.name %}{{ m.name }}: {% endif %}{{ m.content }}")
LAST = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.last %}{{ m.mood }}{% endif %}")


def encoder(template: str = CHATML) -> Encoder:
    return build_encoder(byte_level(template, eos="<|im_end|>"))


def user(content: str = "뭐야?", **further: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **further}


def bot(content: str, **further: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **further}


def found(pairs: list[Pair], template: str = CHATML) -> list[tuple[str, str, str | None]]:
    """What is found in the pairs of one chunk: code, source, field."""
    one, inspector = encoder(template), PairInspector()
    _, findings = encode_pairs(one, pairs, inspector.as_tokens)
    findings += inspector.as_rendered(one, pairs)
    return [(finding.code, finding.source, finding.field) for finding in findings]


def pair(prompt: Any, chosen: Any, rejected: Any = None) -> Pair:
    return Pair(tuple(prompt), tuple(chosen), tuple(rejected or [bot("몰라.")]), "a:1")


def test_a_key_that_changes_nothing_is_named_once_a_pair() -> None:
    names = pair(
        [user("가", name="가을"), bot("나", name="나비", id="x"), user("다", name="다람")],
        [bot("라", name="라면")],
        [bot("마", name="마음")],
    )
    assert found([names]) == [
        ("lost", "a:1", "prompt[0].name"),
        ("lost", "a:1", "prompt[1].name"),
        ("lost", "a:1", "prompt[1].id"),
    ]
    assert found([names], NAMES) == [("lost", "a:1", "prompt[1].id")]


def test_a_key_may_be_read_in_the_last_turn_only() -> None:
    moods = [user(), bot("네.", mood="x"), user()]
    last = [bot("언어.", mood="y")]
    assert found([pair(moods, last)], LAST) == [("lost", "a:1", "prompt[1].mood")]
    assert found([pair(moods[:1], last)], LAST) == []
    both = [pair(moods[:1], last), pair(moods, last)]  # what is known of the last is of no other
    assert found(both, LAST) == found(both[::-1], LAST) == found(both[1:], LAST)


def test_a_key_that_the_template_needs_is_read() -> None:
    needing = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ '' + m.mood }}")
    moods = [user(mood="x")], [bot("네.", mood="y")], [bot("아니.", mood="y")]
    assert found([pair(*moods)], needing) == []


def test_an_empty_value_holds_nothing() -> None:
    empty = [user(name="", ids=[], more={}, cached=False)]
    assert found([pair(empty, [bot("네.")])]) == []


def test_what_is_found_does_not_depend_on_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is looked at by itself; and every row that has such a key is counted."""
    byte_level(NAMES, eos="<|im_end|>").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    rng = random.Random(0)
    rows = []
    for number in range(24):
        keys = {key: str(number) for key in ("name", "id", "note") if rng.random() < 0.4}
        answers = {"chosen": [bot(f"네 {number}.")], "rejected": [bot(f"아니 {number}.")]}
        rows.append({"prompt": [user(f"뭐야 {number}?", **keys)], **answers})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = Question(str(path), model=str(tmp_path / "model"))
    alone = examine(asked)
    (kind,) = [kind for kind in alone.kinds if kind.code == "lost"]
    lost = [key for row in rows for key in row["prompt"][0] if key in ("id", "note")]
    assert kind.count == len(lost)
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 5)
    assert examine(asked).kinds == alone.kinds


# ---- what holds content is looked for in every row -----------------------------------------------

CALL = {"name": "search", "arguments": '{"query": "연", "limits": {"most": 3}}'}


def error_of(chosen: dict[str, Any], template: str = CHATML) -> Finding:
    encoded, findings = encode_pairs(encoder(template), [pair([user()], [chosen])])
    assert not encoded
    (finding,) = findings
    assert finding.severity == "error"
    return finding


def test_a_function_call_of_the_old_form_is_not_lost_in_silence() -> None:
    record = {"prompt": [user()], "chosen": [bot("", function_call=CALL)], "rejected": [bot("나")]}
    (read,) = read_row(Row("a:1", record), recognise([record], Format()))
    assert isinstance(read, Pair)
    for turn in (read.chosen[0], bot("찾을게요.", function_call=CALL)):
        assert isinstance(turn, dict)
        finding = error_of(turn)
        assert finding.code == "template" and "'search' of function_call" in finding.message
        hint = "write it as tool_calls, or into the content where the template reads none"
        assert finding.hint == hint
    written = bot("<call>search 연</call>")  # as the hint says, for each kind of template
    assert encode_pairs(encoder(), [pair([user()], [written])])[0]
    calls = "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    reads = encoder(CHATML.replace("{{ m.content }}", calls))
    assert encode_pairs(reads, [pair([user()], [bot("", tool_calls=[{"function": CALL}])])])[0]
    assert found([pair([user(), bot("네.", function_call=CALL), user()], [bot("라")])]) == [
        ("drops", "a:1", "prompt[1]")
    ]


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        ("query {{ c.function.arguments.query }}", "limits"),
        ("query limits {{ c.function.arguments.query }} most", "3"),
        ("query limits most 3", "연"),
    ],
)
def test_every_argument_is_looked_for(arguments: str, lost: str) -> None:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }} " + arguments + "{% endfor %}"
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls)
    given = {**CALL, "arguments": json.loads(CALL["arguments"])}
    finding = error_of(bot("", tool_calls=[{"function": given}]), template)
    assert finding.code == "template" and lost in finding.message


def test_reasoning_and_results_before_the_answer_are_looked_for() -> None:
    no_tools = "{% set messages = messages | rejectattr('role', 'equalto', 'tool') %}" + CHATML
    thought = [user(), bot("네.", reasoning_content="먼저 생각하자."), user("그래서?")]
    result = {"role": "tool", "content": "맑음"}
    turns = [bot("볼게요."), result, bot("맑아요.")]
    assert found([pair(thought, [bot("라")])]) == [("drops", "a:1", "prompt[1]")]
    assert ("drops", "a:1", "chosen[1]") in found([pair([user()], turns)], no_tools)
    assert found([pair([user()], turns)]) == []


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"weight": 0, "train": False}])
def test_turns_that_are_not_learned_are_context_and_not_lost(flag: dict[str, Any]) -> None:
    def turns(first: str, last: str) -> list[dict[str, Any]]:
        return [bot(first, **flag), user("Go on."), bot(last, weight=1)]

    flagged = pair([user()], turns("A wrong remark.", "언어."), turns("Let me think.", "몰라."))
    assert found([flagged]) == []
    one = encoder()
    (tokens,), _ = encode_pairs(one, [flagged])
    for side, answer in ((tokens.chosen, "언어."), (tokens.rejected, "몰라.")):
        scored = [token for token, wanted in zip(side.tokens, side.scored, strict=True) if wanted]
        assert one.tokenizer.decode(scored) == f"{answer}<|im_end|>"
    asked = pair([user(weight=1)], [bot("네.")])
    assert found([asked]) == [("lost", "a:1", "prompt[0].weight")]


def test_words_are_looked_for_in_their_order() -> None:
    long = "No, one need not think. There are many letters in a long text; too many to tell."
    assert not stands_in("no need to think", long)
    assert stands_in("  one\nneed   not ", long)
    assert stands_in('"연"\n\\과\t바람', json.dumps({"a": '"연"\n\\과\t바람'}, ensure_ascii=False))
    assert texts_of(bot("가", tool_calls=[{"function": CALL}])) == [
        *("가", "search", "query", "연", "limits", "most", "3")
    ]
