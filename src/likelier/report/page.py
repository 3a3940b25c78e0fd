"""The page: everything read, put into one HTML file that runs nothing but its own scripts."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from likelier.base.files import write_text
from likelier.report.charts import draw_charts
from likelier.report.facts import run_facts
from likelier.report.health import health
from likelier.report.read import RunFolder, read_run
from likelier.report.verdict import give_verdict, key_figures
from likelier.report.words import language, signed, visible

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_SAMPLES = 8  # the others are folded away
LONGEST_SAMPLE = 4000  # characters; a model that never stops should not fill the page
# plotly adds a style element for maps when it starts, unless one with this id is there. The
# page forbids added styles, so it brings an empty element of that id (it changes by version).
PLOTLY_STYLE_GUARD = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


@dataclass(frozen=True)
class Text:
    """A text made by people or a model, with its language and what was cut off its end."""

    text: str
    lang: str
    cut: int


@dataclass(frozen=True)
class Reply:
    """One answer and what was judged of it: None where it was not judged."""

    answer: Text
    preferred: bool | None
    named: bool | None


@dataclass(frozen=True)
class Sample:
    """A prompt with the answers before and after training."""

    prompt: Text
    topic: str
    before: Reply
    after: Reply


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from the files of a run folder, and return its path.

    The page is one file that needs no network, and is replaced whole or not at all.

    Raises:
        InputMissing: ``run`` is no folder, or holds no complete run.json.
        OutputError: the page cannot be written.
    """
    folder = read_run(Path(run))
    path = folder.path / "report.html"
    write_text(path, render(folder))
    return path


def render(run: RunFolder) -> str:
    """The page as text: a function of the folder's files alone, the same at any time."""
    charts = draw_charts(run)
    plotly = _newlines(get_plotlyjs()) if charts else ""
    style, script = _template_text("report.css"), _template_text("report.js")
    samples = [_sample(row) for row in run.samples]
    page = _environment().get_template("report.html")
    return page.render(
        policy=_policy(scripts=[plotly, script] if charts else [], style=style),
        name=run.path.resolve().name,
        style=Markup(style),
        script=Markup(script),
        plotly=Markup(plotly),
        guards=PLOTLY_STYLE_GUARD.findall(plotly),
        figures=embedded_json({chart.id: chart.figure for chart in charts}),
        charts=charts,
        verdict=give_verdict(run),
        cards=key_figures(run),
        samples=samples[:SHOWN_SAMPLES],
        more_samples=samples[SHOWN_SAMPLES:],
        checks=health(run),
        ledger=run.ledger,
        facts=run_facts(run),
        config_text=run.config_text,
        gaps=run.gaps,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    return environment


def _policy(scripts: list[str], style: str) -> str:
    """The content security policy: these very scripts and this style, nothing from anywhere."""
    allowed = " ".join(_digest(script) for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _newlines(text: str) -> str:
    """Line ends as a browser reads them, so that the digest is of what it sees."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _template_text(name: str) -> str:
    return _newlines((TEMPLATES / name).read_text(encoding="utf-8"))


def embedded_json(value: Any) -> Markup:
    """JSON that can stand in a script element: ASCII, and no ``<`` that could end it."""
    text = json.dumps(value, allow_nan=False)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    return Markup("".join(escapes.get(letter, letter) for letter in text))


def _sample(row: dict[str, Any]) -> Sample:
    replies = {
        when: Reply(
            _text(row.get(when)), _judged(row, f"preferred_{when}"), _judged(row, f"named_{when}")
        )
        for when in ("before", "after")
    }
    return Sample(_text(row.get("prompt")), str(row.get("topic") or ""), **replies)


def _judged(row: dict[str, Any], key: str) -> bool | None:
    return bool(row[key]) if isinstance(row.get(key), (bool, int, float)) else None


def _text(value: Any) -> Text:
    """A text for the page; chat prompts (lists of messages) are shown a message a line."""
    if isinstance(value, list):
        value = "\n".join(
            f"{turn.get('role', '')}: {turn.get('content', '')}"
            if isinstance(turn, dict)
            else str(turn)
            for turn in value
        )
    text = "" if value is None else str(value)
    shown = text[:LONGEST_SAMPLE]
    return Text(shown, language(shown), len(text) - len(shown))
