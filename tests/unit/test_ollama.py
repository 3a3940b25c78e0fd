"""The Modelfile: the template in Go's form says what the model's own template says."""

import pytest
from jinja2 import Environment

from likelier.export.ollama import Dialogue, _parts, modelfile, written

PLAIN = (
    "{{ bos }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "<|assistant|>\n"
)
# The system prompt goes into the first user's turn, and a thinking block is closed.
FOLDED = (
    "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}[INST] {{ s if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}<think></think>"
)
COUNTED = "{{ messages | length }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
CHAT: Dialogue = [("system", "Be kind."), ("user", "안녕?"), ("assistant", "네."), ("user", "왜?")]


def rendering(source: str, bos: str = ""):
    template = Environment().from_string(source)

    def render(turns: Dialogue) -> str:
        return template.render(messages=[{"role": r, "content": c} for r, c in turns], bos=bos)

    return render


@pytest.mark.parametrize("source", [PLAIN, FOLDED])
@pytest.mark.parametrize("turns", [CHAT, CHAT[1:], CHAT[1:2], CHAT[:2]])
def test_the_parts_give_the_chat_again(source: str, turns: Dialogue) -> None:
    render = rendering(source)
    parts = _parts(render)
    assert parts is not None and written(parts, turns) == render(turns)


def test_what_the_file_holds() -> None:
    text = modelfile("x.gguf", rendering(PLAIN, "<s>"), ["</s>", "<|end|>"], "<s>")
    lines = text.splitlines()
    assert lines[:3] == ["FROM ./x.gguf", 'PARAMETER stop "</s>"', 'PARAMETER stop "<|end|>"']
    assert 'TEMPLATE """' in text and "<s><|user|>" not in text  # llama.cpp adds its beginning
    assert '{{- if eq .Role "system" }}<|system|>\n{{ .Content }}' in text
    assert text.endswith('<|end|>\n<|assistant|>"""\n')


def test_a_template_that_is_more_than_parts_is_left_out() -> None:
    assert _parts(rendering(COUNTED)) is None
    text = modelfile("x.gguf", rendering(COUNTED), ["</s>"], "")
    assert "TEMPLATE" not in text and "cannot be written" in text
    assert 'TEMPLATE "{{ .Prompt }}"' in modelfile("x.gguf", None, ["</s>"], "")
