"""`likelier check`: examine data, print what was found, write the page and the cleaned copy."""

import json
from collections.abc import Sequence
from pathlib import Path

from likelier.base.errors import ConfigError
from likelier.base.files import must_be_apart
from likelier.base.foreign import visible
from likelier.base.terminal import console, say
from likelier.checks.examine import Question, examine
from likelier.checks.fix import fix
from likelier.checks.gates import enforce_gates, read_gate
from likelier.checks.page import write_page
from likelier.checks.summary import (
    SHOWN_LOCATIONS,
    Examination,
    as_data,
    describe,
    describe_example,
    print_kinds,
)
from likelier.config import Config
from likelier.data.sources import describe_folders, names_of
from likelier.pages.texts import choose_language


def check(
    question: Question,
    gates: Sequence[str],
    out: Path | None,
    html: Path | None,
    as_json: bool,
    lang: str | None = None,
    settings: Config | None = None,
) -> int:
    """Examine data and print what was found; the exit code: 0, or 65 where there are errors.

    ``lang`` is the language that is asked for of the page, else that of ``settings``.

    Raises ConfigError where there is no page that it could be of, GateMissed where a gate is missed
    and no row is in error, and what `examine` and `fix` raise.
    """
    for option, file in {"--html": html, "--fix": out}.items():
        if file is not None:
            read = (question.model, question.held_out, *names_of(question.data))
            must_be_apart(file, f"{option} {file}", read)
    if lang is not None and html is None:
        hint = "add --html FILE; lines in the terminal are English"
        raise ConfigError(
            "is the language of the page, and no page is asked for", where="--lang", hint=hint
        )
    lang = choose_language(lang, settings.lang if settings else None)
    limits = [read_gate(gate) for gate in gates]
    for line in describe_folders(question.data):
        say(line)
    found = examine(question)
    if question.score:
        from likelier.checks.model_view import add_model_view  # loads weights

        found = add_model_view(found, question)
    if as_json:
        print(json.dumps(as_data(found), ensure_ascii=False))
    else:
        _print(found, None if question.all_places else SHOWN_LOCATIONS)
    if html is not None:
        write_page(found, question, html, lang)
        say(f"page: {html}")
    if out is not None:
        written, changes_file, changes = fix(question, out)
        counts = ", ".join(f"{count} {code}" for code, count in changes.items()) or "no changes"
        say(f"{written} pairs in {out}; {counts}; list of changes: {changes_file}")
    if found.count("error"):
        return 65
    enforce_gates(limits, found)
    return 0


def _print(found: Examination, most: int | None) -> None:
    terminal = console()
    for line in describe_example(found.example, found.form):
        terminal.print(visible(line), soft_wrap=True, style="dim")
    for line in describe(found):
        terminal.print(visible(line), soft_wrap=True)
    print_kinds(found.kinds, found.rows, found.usable, most)
