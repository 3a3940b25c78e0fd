"""A page from a template of this folder and its content, everything in it escaped."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


def render_page(template: str, **content: Any) -> str:
    """The page as text. No script may run on it, and no style but its own is applied."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    policy = f"default-src 'none'; style-src 'sha256-{digest}'"
    page = environment.get_template(template)
    return page.render(style=Markup(style), policy=policy, **content)
