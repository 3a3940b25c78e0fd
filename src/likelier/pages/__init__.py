"""A page: a template and its content in one HTML file, all of it escaped, nothing loaded."""

import base64
import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from likelier.base.foreign import starring, without_secrets
from likelier.pages.texts import language, reworded, signed, text

TEMPLATES = Path(__file__).parent / "templates"
# Marks that reorder the text around them: shown as numbers, so that no name can pose as another.
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
# One reading of the environment for a whole page.
_starred: ContextVar[Callable[[str], str]] = ContextVar("_starred", default=without_secrets)


def render_page(
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str] = (),
    *,
    live: str | None = None,
    **content: Any,
) -> str:
    """The page as text.

    Only the style sheets named and these very ``scripts`` apply on it: its policy names their
    digests, and forbids all else that a browser could load or run. ``live`` is the version of a
    page that asks the server it came from for newer ones.
    """
    asks = template_text("live.js") if live else ""
    scripts = [*scripts, asks] if live else scripts
    style = "".join(template_text(name) for name in ("colours.css", *styles))
    allowed = " ".join(_digest(script) for script in scripts) or "'none'"
    connect = "connect-src 'self'; " if live else ""
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; "
        f"{connect}base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    ours = {"policy": policy, "style": Markup(style), "live": live, "asks": Markup(asks)}
    before = _starred.set(starring())
    try:
        return page.render(language=language(), **ours, **content)
    finally:
        _starred.reset(before)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=written_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["text"] = text
    environment.filters |= {"signed": signed, "reworded": reworded}
    return environment


def template_text(name: str) -> str:
    """A file of the templates with its line ends as a browser reads them, for its digest."""
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def written_out(value: Any) -> Any:
    """Text without secrets, every control and reordering mark written out: nothing hides in it.

    Also what makes any text fit for a UTF-8 page: lone surrogates are written out too.
    """
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    value = _starred.get()(value)
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in value)


def _hidden(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return ord(letter) in _REORDERING or unicodedata.category(letter) in ("Cc", "Cs")


def script_language(content: str) -> str:
    """The ``lang`` of a text by its script, so that a browser picks the right glyphs."""
    names = {unicodedata.name(letter, "").split(" ")[0] for letter in content}
    if "HANGUL" in names:
        return "ko"
    if names & {"HIRAGANA", "KATAKANA"}:
        return "ja"
    return "zh" if "CJK" in names else ""
