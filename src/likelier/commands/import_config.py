"""`likelier import`: a config of another trainer as ours, and an answer for each of its keys."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from likelier.base.errors import ConfigError, OutputError
from likelier.base.files import write_text
from likelier.base.foreign import harmless
from likelier.base.terminal import console, say
from likelier.config.other_trainers import MARKS
from likelier.config.read import config_from, override, read_keys
from likelier.config.recipes import Translation, translate, without_unread
from likelier.config.strict_yaml import document, flow

_HINT = "give the YAML or JSON config of TRL, Axolotl or LLaMA-Factory"
_SCRIPTS = (".py", ".ipynb", ".sh", ".md")
_PROGRAMS = {name.lower(): name for name in MARKS}
_LONGEST_VALUE = 60  # characters of it that the table shows


def import_config(
    file: Path,
    words: Sequence[str],
    program: str | None,
    processes: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read their config, write ours to stdout or ``out``, and print the answers to stderr.

    Raises:
        InputMissing: the file is not there.
        ConfigError: it is none of these configs, or no config of ours can be made of it.
        OutputError: something stands at ``out``.
    """
    found = translate(_keys_of(file), _PROGRAMS.get(program or ""), file.parent, processes)
    found = _overridden(found, words)
    for key in ("model.path", "data.train"):
        section, _, leaf = key.partition(".")
        if leaf not in found.config.get(section, {}):
            hint = f"add it: likelier import {shlex.quote(str(file))} {key}=..."
            raise ConfigError("the file does not name it", where=key, hint=hint)
    config_from(found.config)
    text = f"# {harmless(file.name)}, a config of {found.program}, by likelier import\n"
    text += document(found.config)
    if out is not None:
        if out.exists():
            raise OutputError("is there already", where=str(out), hint="name a new file")
        write_text(out, text)
    if as_json:
        content = asdict(found) | {"as_meant": found.as_meant}
        print(json.dumps(content, ensure_ascii=False))
    else:
        _print_answers(found)
        if out is None:
            print(text, end="")
        else:
            say(f"train it: likelier train {shlex.quote(str(out))}")


def _keys_of(file: Path) -> dict[str, object]:
    """The keys of their file."""
    if file.suffix in _SCRIPTS and file.is_file():
        what = "is a program, not a config"
        hint = "write the arguments of its DPOConfig and its model into a YAML file, a key a line"
        raise ConfigError(what, where=str(file), hint=hint)
    try:
        keys = read_keys(file.expanduser())
    except ConfigError as error:
        cure = _HINT if "likelier schema" in (error.hint or "") else error.hint
        raise ConfigError(error.what, where=error.where, hint=cure) from None
    if not keys:
        raise ConfigError("is empty", where=str(file), hint=_HINT)
    return keys


def _overridden(found: Translation, words: Sequence[str]) -> Translation:
    """With our keys that the user gives, which do away with what could not be carried over."""
    override(found.config, words)
    given = [word.partition("=")[0] for word in words]
    answers = tuple(
        replace(one, harms=False) if one.ours.partition(": ")[0] in given else one
        for one in found.answers
    )
    return replace(found, answers=answers, config=without_unread(found.config, given))


def _print_answers(found: Translation) -> None:
    """The answers as a table, then what was written out, what differs, and whether it will do."""
    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in (f"key of {found.program}", "", "here"):
        table.add_column(name, overflow="fold")
    for one in found.answers:
        kind = Text(one.kind, style="bold red" if one.harms else "")
        here = "; ".join(filter(None, (_short(one.ours), one.text)))
        table.add_row(_short(f"{one.key}: {one.value}"), kind, here)
    screen = console(stderr=True)
    screen.print(table)
    if found.assumed:
        written = ", ".join(f"{key}: {_at(found.config, key)}" for key in found.assumed)
        screen.print(
            f"\n{found.program} takes where its file is silent, and so does this: {written}"
        )
    screen.print(f"\nWhat {found.program} does otherwise (checked against {found.checked}):")
    for line in found.differences:
        screen.print(f"- {line}")
    lost = [one.key for one in found.answers if one.harms]
    unknown = [one.key for one in found.answers if one.kind == "unknown"]
    if unknown:
        screen.print(f"\nnot known, so left out: {', '.join(unknown)}")
    if lost:
        names = ", ".join(lost)
        screen.print(
            f"\nThis does not train what its author meant: nothing here does what {names} did."
        )
    else:
        screen.print("\nThis trains what the file describes, but for the differences above.")


def _at(tree: Mapping[str, object], key: str) -> str:
    section, _, leaf = key.rpartition(".")
    below = tree.get(section, {}) if section else tree
    return flow(below.get(leaf)) if isinstance(below, Mapping) else ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
