"""What is wrong with a config, in one line: the key, the value, and what to write instead."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from likelier.base.errors import ConfigError
from likelier.base.foreign import without_secrets
from likelier.config.other_trainers import NEEDLESS, RENAMED, hint_for_key, trainer_of
from likelier.config.schema import json_schema
from likelier.config.strict_yaml import flow

Schema = Mapping[str, Any]

# Sections that others give as one word, and a key of theirs that holds such a word.
_SAME_AS = {"model": "base_model", "data": "dataset_path", "adapter": "finetuning_type",
            "loss": "pref_loss", "reference": "ref_model"}  # fmt: skip


def explain(error: ValidationError, given: Mapping[str, Any]) -> ConfigError:
    """The error a user sees for what pydantic found in ``given``.

    Unknown keys come first and all at once: a config from another trainer is then one message.
    """
    problems = error.errors(include_url=False)
    unknown = [_keys(p["loc"], given) for p in problems if _is_unknown(p)]
    unknown += [[name] for name in (*_SAME_AS, "optim") if isinstance(given.get(name), str)]
    if unknown:
        return _unknown(unknown, given)
    problem = problems[0]
    keys = _keys(problem["loc"], given)
    dotted, schema = ".".join(keys), _schema_at(keys)
    about = schema.get("description") or NEEDLESS.get(dotted)
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
        return ConfigError("is needed", where=dotted, hint=f"add {dotted}: {about or 'a section'}")
    if problem["type"] == "value_error":
        return ConfigError(str(problem["ctx"]["error"]), where=dotted, hint=about)
    if problem["type"] == "union_tag_invalid":
        tag, tags = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        name = problem["ctx"]["discriminator"].strip("'")
        offered = tags.replace("'", "").replace(", ", " or ")
        what = f"{_short(tag)} is not possible; write {offered}"
        return ConfigError(what, where=f"{dotted}.{name}")
    what = f"{_short(_value_at(keys, given))} is not possible; write {_in_words(schema)}"
    return ConfigError(what, where=dotted, hint=about)


def _short(value: Any) -> str:
    """A value as it would stand in the config, cut to fit a line."""
    try:
        shown = flow(value)
    except Exception:  # what YAML cannot write: only Python callers can get here
        shown = f"this {type(value).__name__}"
    shown = without_secrets(shown)  # before it is cut: half a secret has no form
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _is_unknown(problem: Mapping[str, Any]) -> bool:
    return problem["type"] == "extra_forbidden" or problem["loc"][-1:] == ("[key]",)


def _keys(loc: Sequence[str | int], given: Any) -> list[str]:
    """The keys of ``loc`` that a user wrote: pydantic adds union members and positions in lists."""
    keys: list[str] = []
    for depth, name in enumerate(loc):
        if isinstance(given, Mapping) and name in given:
            keys.append(str(name))
            given = given[name]
        elif isinstance(given, Mapping) and depth == len(loc) - 1 and str(name).isidentifier():
            keys.append(str(name))
    return keys


def _value_at(keys: Sequence[str], given: Any) -> Any:
    for key in keys:
        given = given[key]
    return given


def _unknown(unknown: Sequence[Sequence[str]], given: Mapping[str, Any]) -> ConfigError:
    hints = {".".join(keys): _instead(keys, given) for keys in unknown}
    if len(unknown) == 1:
        name, hint = next(iter(hints.items()))
        what = "unknown key"
        if name in given and name in _known_keys():
            what = f"{_short(given[name])} is not possible; write a section"
        return ConfigError(what, where=name, hint=hint)
    trainer = trainer_of(set(given))
    what = f"unknown keys: {', '.join(hints)}"
    if trainer is not None:
        what = (
            f"this is a config of {trainer}, for `likelier import`: {len(hints)} keys are not ours"
        )
    return ConfigError(what, hint=_together(hints))


def hint_for_word(name: str, value: Any) -> str:
    """What to write on a command line instead of an option ``--name value``."""
    hint = _instead([name], {name: value})
    key, colon, shown = hint.removeprefix("write ").partition(": ")
    return f"write {shlex.quote(f'{key}={shown}')}" if hint[:6] == "write " and colon else hint


def _together(hints: Mapping[str, str]) -> str:
    """The hints of several keys, in two lines: what to write, and what to leave out."""
    to_write = [hint.removeprefix("write ") for hint in hints.values() if hint[:6] == "write "]
    reasons: dict[str, list[str]] = {}
    others = []
    for name, hint in hints.items():
        if hint.startswith("leave it out"):
            reason = hint.removeprefix("leave it out").removeprefix(": ")
            reasons.setdefault(reason, []).append(name)
        elif not hint.startswith("write "):
            others.append(f"{name}: {hint}")
    written = [f"write {' · '.join(dict.fromkeys(to_write))}"] if to_write else []
    left_out = [
        ", ".join(names) + (f" ({reason})" if reason else "") for reason, names in reasons.items()
    ]
    lines = [" · ".join([*written, *others])]
    lines += [f"leave out {' · '.join(left_out)}"] if left_out else []
    return "\n  ".join(filter(None, lines))


def _instead(keys: Sequence[str], given: Mapping[str, Any]) -> str:
    """What to do about an unknown key: the nearest right one, or why there is none."""
    *above, name = keys
    value, dotted, known = _value_at(keys, given), ".".join(keys), list(_known_keys())
    if isinstance(value, str) and not above and name in _SAME_AS:
        return hint_for_key(_SAME_AS[name], {_SAME_AS[name]: value}) or ""
    if "." in name:
        return f"nest it: {name.replace('.', ': {')}: {_short(value)}{'}' * name.count('.')}"
    if dotted in known and above:
        section = above[0]
        kind = "{kind: none}" if section == "adapter" else "{name: ...}"
        return f"another kind of {section} has this key; {section}={kind} replaces the section"
    if hint := hint_for_key(name, _value_at(above, given)):
        return hint
    elsewhere = [key for key in known if _leaf(key) == name]
    if len(elsewhere) == 1 and not isinstance(value, Mapping):
        kinds = [member.get("type") for member in _members(_schema_at(elsewhere[0].split(".")))]
        if value is None and "null" not in kinds:
            return "leave it out"
        return f"write {elsewhere[0]}: {_short(value)}"
    siblings = [key for key in known if key.split(".")[:-1] == above]
    for keys_to_try in (siblings, known):
        leaves = {_leaf(key): key for key in keys_to_try}
        if near := get_close_matches(name, leaves, n=1):
            return f"did you mean {leaves[near[0]]}?"
    if near := get_close_matches(name, RENAMED, n=1):
        return f"{near[0]} is called {RENAMED[near[0]]} here"
    words = ", ".join(map(_leaf, siblings))
    return f"{'.'.join(above)} has the keys: {words}" if above else f"the keys: {words}"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


# ---- the schema, walked and put into words --------------------------------------------------


@cache
def _known_keys() -> tuple[str, ...]:
    """Every dotted key, those of sections included, of every member of a union."""

    def walk(schema: Schema, above: str) -> Iterator[str]:
        for member in _members(schema):
            for name, below in member.get("properties", {}).items():
                yield above + name
                yield from walk(below, f"{above}{name}.")
            for name in member.get("propertyNames", {}).get("enum", []):
                yield above + name

    return tuple(dict.fromkeys(walk(json_schema(), "")))


def _members(schema: Schema) -> list[Schema]:
    """The alternatives of a schema, references followed."""
    if "$ref" in schema:
        return _members(json_schema()["$defs"][schema["$ref"].rpartition("/")[2]])
    alternatives = schema.get("oneOf") or schema.get("anyOf")
    if alternatives is None:
        return [schema]
    return [member for one in alternatives for member in _members(one)]


def _schema_at(keys: Sequence[str]) -> Schema:
    schema: Schema = json_schema()
    for key in keys:
        for member in _members(schema):
            if key in member.get("properties", {}):
                schema = member["properties"][key]
                break
            if isinstance(member.get("additionalProperties"), Mapping):
                schema = member["additionalProperties"]
                break
    return schema


def _in_words(schema: Schema) -> str:
    """A schema in words: ``auto, or a number over 0 and up to 1``."""
    return ", or ".join(dict.fromkeys(_one_in_words(member) for member in _members(schema)))


def _one_in_words(schema: Schema) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *most, last = map(str, schema["enum"])
        return f"{', '.join(most)} or {last}"
    if "prefixItems" in schema:
        items = schema["prefixItems"]
        return f"a list of {len(items)}, each {_one_in_words(items[0])}"
    kind = str(schema.get("type"))
    if kind == "array":
        return f"a list of {_one_in_words(schema['items'])}, not empty"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    words = {"string": "text", "boolean": "true or false", "null": "null", "object": "a section"}
    return words.get(kind, "a value that JSON can hold")


def _range(schema: Schema) -> str:
    up_to = "to" if "minimum" in schema else "and up to"
    words = {"minimum": "from", "exclusiveMinimum": "over"}
    words |= {"maximum": up_to, "exclusiveMaximum": "to under"}
    return "".join(f" {word} {schema[key]}" for key, word in words.items() if key in schema)
