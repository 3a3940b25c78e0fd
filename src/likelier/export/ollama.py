"""A Modelfile of Ollama beside a GGUF file, with the chat template in the form of Go.

Ollama runs no Jinja. What the model's template writes around the texts of a chat is found by
rendering one; where that gives again what the template writes of other chats, it is written down.
"""

import json
from collections.abc import Callable, Mapping, Sequence

Dialogue = Sequence[tuple[str, str]]  # role and text
_TEXTS = {
    "system": "\x01S\x01",
    "user": "\x01U\x01",
    "assistant": "\x01A\x01",
    "again": "\x01V\x01",
}
# Chats that the parts must give again: with a system prompt and without, short and long.
_TRIED: Sequence[Dialogue] = (
    [("user", "a")],
    [("system", "s"), ("user", "b c")],
    [("user", "one"), ("assistant", "two"), ("user", "three")],
    [("system", "x"), ("user", "y"), ("assistant", "z"), ("user", "1"), ("assistant", "2"),
     ("user", "3")],
)  # fmt: skip


def modelfile(
    file: str, render: Callable[[Dialogue], str] | None, stops: Sequence[str], begin: str
) -> str:
    """The Modelfile for ``file``, which lies beside it.

    ``render`` writes a chat with the header of the answer that is to follow, None for a model
    without a chat template. ``begin`` is what the tokenizer adds by itself: it is left out.
    """
    lines = [f"FROM ./{file}", *(f"PARAMETER stop {json.dumps(stop)}" for stop in stops)]
    if render is None:
        return "\n".join([*lines, 'TEMPLATE "{{ .Prompt }}"', ""])
    parts = _parts(render)
    if parts is None or any("{{" in text or '"""' in text for text in parts.values()):
        lines.append("# The chat template cannot be written in Go's form: see the GGUF file.")
        return "\n".join([*lines, ""])
    for first in ("system", "user"):
        parts[first] = parts[first].removeprefix(begin)
    return "\n".join([*lines, f'TEMPLATE """{_in_go(parts)}"""', ""])


def _parts(render: Callable[[Dialogue], str]) -> dict[str, str] | None:
    """What stands before each text: by its role, and behind which role; None where it is more."""
    try:
        long = render([("system", _TEXTS["system"]), ("user", _TEXTS["user"]),
                       ("assistant", _TEXTS["assistant"]), ("user", _TEXTS["again"])])  # fmt: skip
        short = render([("user", _TEXTS["user"])])
        system, rest = long.split(_TEXTS["system"])
        user_behind_system, rest = rest.split(_TEXTS["user"])
        assistant, rest = rest.split(_TEXTS["assistant"])
        user_behind_assistant, answer = rest.split(_TEXTS["again"])
        user, _ = short.split(_TEXTS["user"])
        parts = {"system": system, "user": user, "user behind system": user_behind_system,
                 "assistant": assistant, "user behind assistant": user_behind_assistant,
                 "answer": answer}  # fmt: skip
        right = all(render(turns) == written(parts, turns) for turns in _TRIED)
    except Exception:  # a template may refuse a system prompt, or hold whatever it likes
        return None
    return parts if right else None


def written(parts: Mapping[str, str], turns: Dialogue) -> str:
    """A chat as the template in Go's form writes it."""
    text, before = "", ""
    for role, content in turns:
        behind = f"{role} behind {before}"
        text += parts[behind if behind in parts else role] + content
        before = role
    return text + parts["answer"]


def _in_go(parts: Mapping[str, str]) -> str:
    return (
        '{{- $before := "" }}{{- range .Messages }}'
        '{{- if eq .Role "system" }}' + parts["system"] + "{{ .Content }}"
        '{{- else if eq .Role "assistant" }}' + parts["assistant"] + "{{ .Content }}"
        '{{- else if eq $before "system" }}' + parts["user behind system"] + "{{ .Content }}"
        '{{- else if eq $before "assistant" }}' + parts["user behind assistant"] + "{{ .Content }}"
        "{{- else }}" + parts["user"] + "{{ .Content }}{{- end }}"
        "{{- $before = .Role }}{{- end }}" + parts["answer"]
    )
