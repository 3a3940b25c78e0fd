"""What a template is handed: arguments and contents in its form, its template for tools."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.data import encode_pair
from tests.support.tokenizers import CHATML, byte_level

from likelier.base.errors import ConfigError
from likelier.base.findings import Finding, Unfit
from likelier.chat.apply import apply_template
from likelier.chat.messages import read_messages
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.data.encode import encode_pairs
from likelier.data.formats import read_row
from likelier.data.records import Pair, Row
from likelier.data.shapes import Format, recognise, recognised
from likelier.data.sources import read_data, rows_from_memory

CALLS = "{%% for c in m.tool_calls or [] %%}<call>{{ c.function.name }} %s{%% endfor %%}"
ARGUMENTS = "c.function.arguments"
WRITTEN = {  # how templates write arguments
    "encodes": "{{ c.function.arguments | tojson }}",
    "writes as it is": "{{ c.function.arguments }}",
    "adds": "{{ '' + c.function.arguments }}",
    "takes both": "{{ c.function.arguments if c.function.arguments is string"
    " else c.function.arguments | tojson }}",
    "lists": "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}",
}
TEXT = '{"도시": "서울", "n": 3}'
OBJECT = {"도시": "서울", "n": 3}


def with_calls(arguments: str) -> Encoder:
    template = CHATML.replace("{{ m.content }}", "{{ m.content or '' }}" + CALLS % arguments)
    return build_encoder(byte_level(template, eos="<|im_end|>"))


def user(content: Any = "날씨?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def call(arguments: Any, flat: bool = False) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    one = function if flat else {"id": "a", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [one]}


def answer(encoder: Encoder, turn: dict[str, Any]) -> str:
    bot = {"role": "assistant", "content": "몰라."}
    tokens = encode_pair(encoder, Pair((user(),), (turn,), (bot,), "a:1")).chosen.tokens
    return str(encoder.tokenizer.decode(tokens))


@pytest.mark.parametrize("given", [TEXT, OBJECT], ids=["text", "object"])
@pytest.mark.parametrize(
    ("how", "written"),
    [*((how, TEXT) for how in list(WRITTEN)[:4]), ("lists", "<도시>서울<n>3")],
)
def test_arguments_are_written_once_whatever_the_row_has(
    how: str, written: str, given: Any
) -> None:
    assert answer(with_calls(WRITTEN[how]), call(given)) == f"<call>weather {written}<|im_end|>"


def test_a_call_without_a_function_around_it() -> None:
    template = WRITTEN["encodes"].replace("c.function", "(c.function or c)")
    encoder = build_encoder(
        byte_level(
            CHATML.replace(
                "{{ m.content }}",
                "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>"
                "{{ (c.function or c).name }} " + template + "{% endfor %}",
            ),
            eos="<|im_end|>",
        )
    )
    assert answer(encoder, call(TEXT, flat=True)) == f"<call>weather {TEXT}<|im_end|>"


def test_arguments_that_are_no_object() -> None:
    encoder = with_calls(WRITTEN["encodes"])
    assert answer(encoder, call(" ")) == "<call>weather {}<|im_end|>"
    for text in ('{"city": ', '"서울"', "[" * 100_000):
        with pytest.raises(Unfit, match='call "weather" are text that holds none') as caught:
            apply_template(encoder, [user(), call(text)], False)
        assert caught.value.code == "tools"
    cured = apply_template(encoder, [user(), call({"city": "서울"})], False)
    assert '{"city": "서울"}' in cured
    assert answer(with_calls(WRITTEN["takes both"]), call('{"city": ')).startswith("<call>")


NAMED = {
    "default": CHATML,
    "tool_use": "{{ tools | tojson }}{{ today }}{{ strftime_now('%Y') }}\n"
    + CHATML.replace("{{ m.content }}", "{{ m.content or '' }}" + CALLS % WRITTEN["encodes"]),
}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)


def test_the_template_for_tools_is_used_where_a_row_has_them() -> None:
    tokenizer = byte_level(eos="<|im_end|>")
    tokenizer.chat_template = NAMED
    encoder = build_encoder(tokenizer, template={"today": "월요일"}, today="2031-01-01")
    bot = {"role": "assistant", "content": "몰라."}
    with_tools = Pair((user(),), (call(TEXT),), (bot,), "a:1", TOOLS)
    shown, plain = (
        str(tokenizer.decode(encode_pair(encoder, pair).prompt))
        for pair in (
            with_tools,
            Pair((user(),), (bot,), (user() | bot | {"content": "네"},), "a:2"),
        )
    )
    assert shown.startswith('[{"type": "function"') and "월요일2031" in shown
    assert plain == "<|im_start|>user\n날씨?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ConfigError, match="does not read this keyword"):
        build_encoder(tokenizer, template={"tomorrow": "화요일"})


PARTS = [{"type": "text", "text": "날"}, {"type": "text", "text": "씨?", "image_url": None}]


def test_parts_of_text_are_one_text() -> None:
    (turn,) = read_messages([user(PARTS)], "prompt")
    assert turn == user("날씨?")
    (turn,) = read_messages([user([{"type": "input_text", "text": "가"}])], "prompt")
    assert turn == user("가")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "a.png"}}, "image_url"),
        ({"type": "text", "text": 3}, "text"),
        ("가", "str"),
    ],
)
def test_other_parts_are_an_error_with_its_place(part: Any, kind: str) -> None:
    record = {
        "prompt": [user([PARTS[0], part])],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    (finding,) = read_row(Row("a:1", record), recognise([record], Format()))
    assert isinstance(finding, Finding)
    assert (finding.code, finding.field) == ("type", "prompt[0].content[1]")
    assert kind in finding.message
    record["prompt"] = [user([PARTS[0]])]  # the part deleted, as the hint says
    assert isinstance(*read_row(Row("a:1", record), recognise([record], Format())), Pair)


def test_a_template_that_takes_lists_of_parts_only_gets_them() -> None:
    listing = CHATML.replace(
        "{{ m.content }}",
        "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}",
    )
    encoder = build_encoder(byte_level(listing, eos="<|im_end|>"))
    text = apply_template(encoder, [user(), {"role": "assistant", "content": "맑음"}], False)
    assert text == build_encoder(
        byte_level(CHATML, eos="<|im_end|>")
    ).tokenizer.apply_chat_template(
        [user(), {"role": "assistant", "content": "맑음"}], tokenize=False
    )


def test_what_a_sharegpt_turn_has_beside_its_text_stays() -> None:
    record = {
        "conversations": [{"from": "human", "value": "안녕", "id": 7}],
        "chosen": {"from": "gpt", "value": "네", "weight": 1},
        "rejected": {"from": "gpt", "value": "응"},
    }
    (pair,) = read_row(Row("a:1", record), recognise([record], Format()))
    assert isinstance(pair, Pair)
    assert pair.prompt == ({"role": "user", "content": "안녕", "id": 7},)
    assert pair.chosen == ({"role": "assistant", "content": "네", "weight": 1},)
    assert encode_pairs(with_calls(WRITTEN["encodes"]), [pair])[0]


def _tables(folder: Any, records: list[dict[str, Any]]) -> dict[str, Any]:
    table = pa.Table.from_pylist(records)
    pq.write_table(table, folder / "a.parquet")
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as file:
        file.write_table(table)
    return {
        "parquet": read_data(str(folder / "a.parquet")),
        "arrow": read_data(str(folder / "a.arrow")),
        "memory": rows_from_memory(table),
        "pandas": rows_from_memory(table.to_pandas()),
        "list": rows_from_memory(table.to_pylist()),
    }


def test_nulls_that_a_schema_puts_in_are_removed_at_every_depth(tmp_path: Any) -> None:
    def record(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        properties = {key: {"type": "string", f"of {key}": "a"} for key in arguments}
        tool = {"name": name, "parameters": {"type": "object", "properties": properties}}
        function = {"name": name, "arguments": arguments}
        turn = {"role": "assistant", "tool_calls": [{"function": function}]}
        bot = {"role": "assistant", "content": "몰라."}
        tools = [{"type": "function", "function": tool}]
        return {"prompt": [user()], "chosen": [turn], "rejected": [bot], "tools": tools}

    records = [record("weather", {"city": "서울"}), record("time", {"zone": "KST"})]
    for kind, rows in _tables(tmp_path, records).items():
        form, rows = recognised(rows, Format())
        first, second = (pair for row in rows for pair in read_row(row, form))  # type: ignore[arg-type]
        assert isinstance(first, Pair) and isinstance(second, Pair)
        if kind == "list":  # these nulls the user wrote
            assert first.chosen[0]["tool_calls"][0]["function"]["arguments"]["zone"] is None  # type: ignore[index]
            continue
        for pair, written in zip((first, second), records, strict=True):
            assert list(pair.chosen) == written["chosen"], kind
            assert list(pair.tools) == written["tools"], kind
