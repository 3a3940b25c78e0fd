"""What is wrong with a config, in one line: the key, the value, and what to write instead."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from likelier.base.errors import ConfigError
from likelier.config.schema import json_schema
from likelier.config.strict_yaml import flow
from likelier.losses.declare import ALIASES, LOSSES

Schema = Mapping[str, Any]

# Our key, and what other trainers and earlier versions of likelier call it.
_OTHER_NAMES = {
    "adapter.alpha": "lora_alpha",
    "adapter.kind": "use_peft",
    "adapter.r": "lora_r",
    "adapter.targets": "lora_target_modules target_modules",
    "data.eval": "eval_strategy evaluation_strategy",
    "data.overlong": "truncation_mode",
    "data.train": "dataset_name dataset_path",
    "loss.name": "loss_type",
    "model.dtype": "bf16 torch_dtype",
    "model.path": "model_name_or_path",
    "model.revision": "model_revision",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.lr": "learning_rate",
    "optim.max_grad_norm": "max_grad_norm",
    "optim.schedule": "lr_scheduler_type",
    "optim.warmup": "warmup_ratio warmup_steps",
    "out": "output_dir",
    "reference.path": "ref_model ref_model_name_or_path",
    "track": "report_to",
    "train.deterministic": "full_determinism",
    "train.epochs": "num_train_epochs",
    "train.eval_every": "eval_steps",
    "train.keep": "save_total_limit",
    "train.log_every": "logging_steps",
    "train.pairs_per_step": "per_device_train_batch_size gradient_accumulation_steps",
    "train.save_every": "save_steps save_strategy",
    "train.steps": "max_steps",
    "train.tokens_per_batch": "tokens_per_pass",
}
RENAMED = {name: key for key, names in _OTHER_NAMES.items() for name in names.split()}

# What to do about keys that have no equal here, and the keys.
_WITHOUT_EQUAL = {
    "leave it out: this is decided by the run itself": "attn_implementation packing padding_free "
    "dataloader_num_workers per_device_eval_batch_size precompute_ref_batch_size",
    "leave it out: compiling the layers is no longer offered, because it saved 1 to 4 % of the "
    "time in float32 and made some steps take twice as long": "compile torch_compile",
    "leave it out: dropout is always off, so that log-probs compare":
    "disable_dropout dropout lora_dropout",
    "leave it out: float16 overflows; model.dtype: bfloat16 is the half-size dtype": "fp16",
    "leave it out: no secret belongs in a config; use the environment's HF_TOKEN":
    "hub_token token",
    "write loss.smoothing with loss.name: cdpo (or robust): sigmoid has none": "label_smoothing",
    "leave it out: quantised bases are not offered": "load_in_4bit load_in_8bit",
    "leave it out: everything is written under out": "logging_dir",
    "leave it out: data.max_length bounds prompt and answer together":
    "max_completion_length max_prompt_length",
    "leave it out: the optimizer is AdamW; its section is optim": "optim",
    "leave it out: a finished run is never overwritten; change out": "overwrite_output_dir",
    "leave it out: reference log-probs are always computed once": "precompute_ref_log_probs",
    "leave it out: nothing is uploaded": "push_to_hub",
    "leave it out: further columns are never touched": "remove_unused_columns",
    "leave it out: the same command resumes where the run stopped": "resume_from_checkpoint",
    "leave it out: the run is named by its folder, out": "run_name",
}  # fmt: skip
NEEDLESS = {name: hint for hint, names in _WITHOUT_EQUAL.items() for name in names.split()}

# Their values, as text, and ours. Values of other keys stay as they are.
_LEAVE_OUT, _NO_EQUAL = object(), object()
_VALUES: dict[str, dict[str, Any]] = {
    "adapter.kind": {"True": "lora", "False": "none"},
    "data.eval": {"no": None, "False": None},
    "data.overlong": {},
    "loss.name": {name: name for name in LOSSES} | ALIASES,
    "model.dtype": {
        **{name: name for name in ("auto", "float32", "bfloat16", "float64")},
        "True": "bfloat16",
        "False": _LEAVE_OUT,
    },
    "optim.max_grad_norm": {"0": None, "0.0": None},
    "optim.schedule": {
        **{name: name for name in ("cosine", "linear", "constant")},
        "constant_with_warmup": "constant",
    },
    "track": {"none": "none", "None": "none", "[]": "none"},
    "train.save_every": {"no": None, "False": None},
    "train.steps": {"0": _LEAVE_OUT, "-1": _LEAVE_OUT},
}
_NUMBERS = ("optim.max_grad_norm", "train.eval_every", "train.keep", "train.log_every",
            "train.save_every", "train.steps")  # fmt: skip


def _converted(key: str, value: Any) -> Any:
    """Their value as ours; a share (below 1) of a number of steps has no equal here."""
    if key == "adapter.targets":
        return [value] if isinstance(value, str) and value != "all-linear" else value
    if isinstance(value, list) and len(value) == 1:  # of losses, of trackers
        value = value[0]
    known = _VALUES.get(key, {})
    text = str(value).removeprefix("torch.")
    if text in known:
        return known[text]
    if key in _NUMBERS:
        whole = isinstance(value, int) and value > 0
        return value if whole or key == "optim.max_grad_norm" else _NO_EQUAL
    return _NO_EQUAL if key in _VALUES else value


def explain(error: ValidationError, given: Mapping[str, Any]) -> ConfigError:
    """The error a user sees for what pydantic found in ``given``.

    Unknown keys come first and all at once: a config from another trainer is then one message.
    """
    problems = error.errors(include_url=False)
    unknown = [_keys(p["loc"], given) for p in problems if _is_unknown(p)]
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
    """A value as the config would have it, cut to fit a line."""
    try:
        shown = flow(value)
    except Exception:  # an object that YAML cannot write: only Python callers can get here
        shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _is_unknown(problem: Mapping[str, Any]) -> bool:
    return problem["type"] == "extra_forbidden" or problem["loc"][-1:] == ("[key]",)


def _keys(loc: Sequence[str | int], given: Any) -> list[str]:
    """The keys of ``loc`` that a user wrote: pydantic also names union members and list places."""
    keys: list[str] = []
    for depth, name in enumerate(loc):
        if isinstance(given, Mapping) and name in given:
            keys.append(str(name))
            given = given[name]
        elif isinstance(given, Mapping) and depth == len(loc) - 1 and name != "[key]":
            keys.append(str(name))
    return keys


def _value_at(keys: Sequence[str], given: Any) -> Any:
    for key in keys:
        given = given[key]
    return given


def _unknown(unknown: Sequence[Sequence[str]], given: Mapping[str, Any]) -> ConfigError:
    hints = [_instead(keys, given) for keys in unknown]
    if len(unknown) == 1:
        return ConfigError("unknown key", where=".".join(unknown[0]), hint=hints[0])
    names = [".".join(keys) for keys in unknown]
    each = " · ".join(f"{name}: {hint}" for name, hint in zip(names, hints, strict=True))
    return ConfigError(f"unknown keys: {', '.join(names)}", hint=each)


def _instead(keys: Sequence[str], given: Mapping[str, Any]) -> str:
    """What to do about an unknown key: the nearest right one, or why there is none."""
    *above, name = keys
    value, dotted, known = _value_at(keys, given), ".".join(keys), list(_known_keys())
    if "." in name:
        return f"nest it: {name.replace('.', ': {')}: {_short(value)}{'}' * name.count('.')}"
    if dotted in known:
        section = above[0]
        kind = "{kind: none}" if section == "adapter" else "{name: ...}"
        return f"another kind of {section} has it; {section}={kind} replaces the whole section"
    if name in NEEDLESS:
        return NEEDLESS[name]
    if name in RENAMED:
        return _renamed(name, value, _value_at(above, given))
    elsewhere = [key for key in known if _leaf(key) == name]
    if len(elsewhere) == 1 and not isinstance(value, Mapping):
        return f"write {elsewhere[0]}: {_short(value)}"
    siblings = [key for key in known if key.split(".")[:-1] == above]
    for keys_to_try in (siblings, known):
        leaves = {_leaf(key): key for key in keys_to_try}
        if near := get_close_matches(name, leaves, n=1):
            return f"did you mean {leaves[near[0]]}?"
    if near := get_close_matches(name, RENAMED, n=1):
        return f"{near[0]} is called {RENAMED[near[0]]} here"
    words = ", ".join(map(_leaf, siblings))
    return f"{'.'.join(above)} has: {words}" if above else f"keys: {words}"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _renamed(name: str, value: Any, beside: Mapping[str, Any]) -> str:
    """What to write for a key of RENAMED; ``beside`` is the mapping that it stands in."""
    key = RENAMED[name]
    if key == "train.pairs_per_step":
        value = _pairs_per_step(beside)
    elif key == "optim.betas":
        value = [beside.get("adam_beta1", 0.9), beside.get("adam_beta2", 0.999)]
    else:
        value = _converted(key, value)
    if value is _LEAVE_OUT:
        return "leave it out"
    return f"our key is {key}" if value is _NO_EQUAL else f"write {key}: {flow(value)}"


def _pairs_per_step(beside: Mapping[str, Any]) -> Any:
    """Theirs are two keys, each with a default, whose product is ours."""
    counts = [
        beside.get("per_device_train_batch_size", 8),
        beside.get("gradient_accumulation_steps", 1),
    ]
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    return counts[0] * counts[1] if whole else _NO_EQUAL


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
