"""Families of chat models with tiny tokenizers of their own, and rows of every kind.

What is right is worked out here from transformers' `apply_chat_template` and the tokenizer alone:
the generation prompt, and each answer as the template writes it, rendered and tokenised apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from tests.support.tokenizers import with_tokens
from transformers import AutoTokenizer

HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class ChatFamily:
    """One entry of chat_families.yaml, whose first lines explain the fields."""

    family: str
    models: tuple[str, ...]
    eos: str
    header: str
    closes: str | None
    thinking: str
    tools: str
    settings: str
    korean: bool = False
    template: str | None = None
    tool_use: str | None = None
    bos: str | None = None
    ends: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    unclosed: str | None = None
    calls_end: str | None = None
    call_header: str | None = None
    result_header: str | None = None
    trailing: str = ""
    arguments: str = "object"
    shut: str = "\n</think>\n\n"
    marks: tuple[str, ...] = ()
    states: tuple[Mapping[str, Any], ...] = ()
    package: str | None = None
    folder: Path | None = None
    own_template: str | None = None

    @property
    def source(self) -> str | dict[str, str]:
        """The template, or both where there is one for tools."""
        if self.own_template is not None:
            return self.own_template
        name = self.template or self.family.lower().replace(" ", "-")
        text = _template(name)
        return {"default": text, "tool_use": _template(self.tool_use)} if self.tool_use else text

    @property
    def stops(self) -> tuple[str, ...]:
        return self.ends or (self.eos,)

    @property
    def mark(self) -> tuple[str, str]:
        """The words that open and close reasoning."""
        opening, closing = self.marks or ("<think>", "</think>")
        return opening, closing

    def stop_of(self, turn: Mapping[str, Any]) -> str:
        """The token that ends a turn of the assistant's."""
        plain = self.closes or self.unclosed or self.eos
        return self.calls_end or plain if turn.get("tool_calls") else plain


def _template(name: str) -> str:
    text = (HERE / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return text.removesuffix("\n")


@cache
def families() -> tuple[ChatFamily, ...]:
    """All families, the Korean ones first."""
    listed = yaml.safe_load((HERE / "chat_families.yaml").read_text("utf-8"))
    for entry in listed:
        for name, value in entry.items():
            if isinstance(value, list):
                entry[name] = tuple(value)
    return tuple(sorted((ChatFamily(**entry) for entry in listed), key=lambda f: not f.korean))


@cache
def tokenizer_of(family: ChatFamily) -> Any:
    """A tiny byte-level tokenizer with the family's tokens and template; or that of a folder."""
    if family.folder is not None:
        real = AutoTokenizer.from_pretrained(family.folder)
        real.chat_template = family.source
        return real
    specials = (family.bos, family.eos, *family.stops, *family.control)
    named = tuple(dict.fromkeys(token for token in specials if token))
    tokenizer = with_tokens(named, family.words, bos_token=family.bos, eos_token=family.eos)
    tokenizer.chat_template = family.source
    return tokenizer


def generation_of(family: ChatFamily, tokenizer: Any) -> Any:
    """What generation_config.json of the family says."""
    ids = tokenizer.convert_tokens_to_ids(list(family.stops))
    return SimpleNamespace(eos_token_id=[one for one in ids if one is not None])


def with_real_vocabulary(family: ChatFamily, folder: Path) -> list[ChatFamily]:
    """The family with the tokenizer of ``folder``: with our template, and with its own."""
    own = AutoTokenizer.from_pretrained(folder).chat_template
    sources = [None, own] if own else [None]
    return [replace(family, folder=folder, own_template=source) for source in sources]
