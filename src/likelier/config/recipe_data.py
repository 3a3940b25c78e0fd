"""The data of another trainer's config: which rows it reads, under which names, and as what."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likelier.base.errors import ConfigError
from likelier.config.strict_yaml import flow

if TYPE_CHECKING:
    from likelier.config.recipes import Draft

_LOADERS = ("json", "csv", "parquet", "arrow", "")  # of `datasets`: their files stand beside
_LISTS = ("datasets", "test_datasets")  # of sections, each a source
# Keys that name a column of a source, and which of ours that is.
_COLUMNS = {
    "field_prompt": "prompt", "field_messages": "prompt", "field_system": "system",
    "field_chosen": "chosen", "field_rejected": "rejected", "field_completion": "completion",
    "field_label": "label", "field_tools": "tools", "prompt": "prompt", "query": "input",
    "response": "completion", "history": "history", "messages": "prompt", "system": "system",
    "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label",
}  # fmt: skip
SOURCE_KEYS = frozenset({"path", "split", "type", "data_files", "data_dir", "ds_type", *_COLUMNS})
_FORMATS = {"prompt_format": "{prompt}", "chosen_format": "{chosen}",
            "rejected_format": "{rejected}", "completion_format": "{completion}"}  # fmt: skip


def flat(file: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys, those of every source apart: ``datasets[0].path``.

    Raises ConfigError where such a list is none.
    """
    found: dict[str, Any] = {}
    for key, value in file.items():
        if key not in _LISTS or not value:
            found[key] = value
            continue
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            what = f"{flow(value)} is not a list of sections, each with a path"
            raise ConfigError(what[:200], where=key, hint="write - path: pairs.jsonl")
        for number, section in enumerate(value):
            found |= {f"{key}[{number}].{name}": below for name, below in section.items()}
    return found


def put_data(draft: "Draft", row_types: Mapping[str, str]) -> None:
    """Write ``data.train``, ``data.eval``, ``data.columns`` and ``data.chat``."""
    theirs = draft.theirs
    if draft.program == "LLaMA-Factory":
        sources = _registered(draft, "dataset", "data.train")
        if theirs.get("template") != "empty":
            draft.put("data.chat", True, "template")
    else:
        sources = _sources(draft, "datasets", "data.train", row_types)
        if not sources and theirs.get("dataset_name"):
            split = str(theirs["dataset_train_split"]) if draft.program == "TRL" else "train"
            name = str(theirs["dataset_name"])
            sources = [_with_split(draft, "dataset_train_split", "data.train", name, split)]
            draft.of["dataset_name"] = ["data.train"]
    if sources:
        draft.put("data.train", sources[0] if len(sources) == 1 else dict.fromkeys(sources, 1.0))
    columns = dict(draft.tree.pop("data.columns", {}))  # those of what is held out rule nothing
    draft.put("data.eval", _held_out(draft, row_types))
    draft.tree.pop("data.columns", None)
    draft.tree |= {"data.columns": columns} if columns else {}


def _names(value: Any) -> list[str]:
    """Names with commas between them, or a list of names."""
    listed = value if isinstance(value, list) else str(value or "").split(",")
    return [str(name).strip() for name in listed if str(name).strip()]


def _with_split(draft: "Draft", key: str, ours: str, path: str, split: str) -> str:
    """A source and its split; ``train`` is what is read without one."""
    name, bracket, _ = split.partition("[")
    draft.of.setdefault(key, []).append(ours)
    if bracket:
        text = "a slice: a weight such as 0.1 takes a tenth of the rows, chosen by their content"
        draft.say(key, "not there", text, True)
    return path if name in ("train", "") else f"{path}:{name}"


def _sources(draft: "Draft", key: str, ours: str, row_types: Mapping[str, str]) -> list[str]:
    """The files, folders and Hub ids of a list of sources, and what its keys say of their rows."""
    found: list[str] = []
    for number, section in enumerate(draft.theirs.get(key) or []):
        at = f"{key}[{number}]"
        path, files = str(section.get("path") or ""), section.get("data_files")
        files = _names(files.get("train") if isinstance(files, dict) else files)
        for name in ("path", "data_files", "ds_type", "data_dir"):
            draft.of[f"{at}.{name}"] = [ours]
        if path in _LOADERS or (files and (path[:1] in "./~" or os.path.isdir(path))):
            found += [os.path.join("" if path in _LOADERS else path, name) for name in files]
        else:
            if files:
                text = "of a Hub id a folder can be named, and no file: owner/name/folder"
                draft.say(f"{at}.data_files", "not there", text, True)
            path = "/".join(filter(None, (path, str(section.get("data_dir") or ""))))
            split = str(section.get("split") or "train")
            found.append(_with_split(draft, f"{at}.split", ours, path, split))
        _columns(draft, at, section)
        if section.get("type"):
            _type_of_rows(draft, at, section["type"], row_types)
    return found


def _columns(draft: "Draft", at: str, section: Mapping[str, Any]) -> None:
    """Names of columns."""
    for key, value in section.items():
        if key in _COLUMNS and isinstance(value, str) and value:
            columns = draft.tree.setdefault("data.columns", {})
            draft.of[f"{at}.{key}"] = ["data.columns"]
            if columns.setdefault(_COLUMNS[key], value) != value:
                text = f"all sources have one name for it: {columns[_COLUMNS[key]]}"
                draft.say(f"{at}.{key}", "not there", text, True)


def _type_of_rows(draft: "Draft", at: str, kind: Any, row_types: Mapping[str, str]) -> None:
    """Axolotl's ``type``: what it makes of a row."""
    name = f"{at}.type"
    if isinstance(kind, dict):
        _columns(draft, at, kind)
        draft.of[name] = ["data.columns"]
        if written := {
            key: kind[key] for key, plain in _FORMATS.items() if kind.get(key, plain) != plain
        }:
            draft.put("data.chat", True, name)
            text = f"writes {flow(written)}; here the model's own chat template writes the texts"
            draft.say(name, "different", text)
        return
    template, _, form = str(kind).partition(".")
    form = form or ("default" if template == "chatml" else "")
    if template in ("chat_template", "passthrough", "user_defined"):
        draft.say(name, "taken", "recognised by the names of the columns")
    elif form == "nectar":
        text = "takes the answer of the last rank for the better one; here rank 1 is the best"
        draft.say(name, "different", text)
    elif form in row_types["texts"].split() or form in row_types["chats"].split():
        if form in row_types["texts"].split():
            draft.put("data.chat", True, name)
        text = f"writes rows as {template}, whatever the model; here its own chat template does"
        draft.say(name, "different", text)
    else:
        text = (
            "a way to read rows that is not known here; `likelier check` says what it makes of them"
        )
        draft.say(name, "not there", text, True)


# ---- LLaMA-Factory's register of data ----------------------------------------------------------


def _registered(draft: "Draft", key: str, ours: str) -> list[str]:
    """The sources that entries of dataset_info.json stand for; a path stands for itself."""
    return [one for name in _names(draft.theirs.get(key)) for one in _entry(draft, key, ours, name)]


def _entry(draft: "Draft", key: str, ours: str, name: str) -> Iterator[str]:
    draft.of[key] = [ours]
    if {"/", "."} & set(name):
        yield name
        return
    given = str(draft.theirs["dataset_dir"])
    folders = [folder for folder in (Path(given), draft.folder / given) if _register(folder)]
    entry = _register(folders[0]).get(name) if folders else None
    if not isinstance(entry, dict):
        text = f"an entry of {Path(given) / 'dataset_info.json'}, which " + (
            "has none of this name" if folders else "is not here"
        )
        draft.say(key, "not there", f"{text}; write its file, as in {ours}=pairs.jsonl", True)
        yield name
        return
    draft.of[key].append("data.columns")
    draft.say(key, "converted", f"as {folders[0] / 'dataset_info.json'} has it")
    draft.say("dataset_dir", "converted", "where the entries of dataset were looked up")
    columns = entry.get("columns")
    _columns(draft, key, columns if isinstance(columns, dict) else {})
    lost = {name: entry[name] for name in ("subset", "tags") if entry.get(name)}
    if lost:
        text = f"but for {flow(lost)}: messages of role and content, or from and value, are known"
        draft.say(key, "not there", text, "subset" in lost)
    source = str(entry.get("hf_hub_url") or folders[0] / str(entry.get("file_name") or name))
    yield _with_split(draft, key, ours, source, str(entry.get("split") or "train"))


def _register(folder: Path) -> dict[str, Any]:
    """What dataset_info.json of a folder says, or nothing."""
    try:
        found = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- what is held out --------------------------------------------------------------------------


def _held_out(draft: "Draft", row_types: Mapping[str, str]) -> str | None:
    """Our ``data.eval``."""
    theirs = draft.theirs
    listed = {"Axolotl": "test_datasets", "LLaMA-Factory": "eval_dataset"}.get(draft.program, "")
    if theirs.get(listed):
        if draft.program == "Axolotl":
            sources = _sources(draft, listed, "data.eval", row_types)
        else:
            sources = _registered(draft, listed, "data.eval")
        if len(sources) == 1:
            return sources[0]
        for name in draft.file:
            if name.startswith(listed):
                draft.say(
                    name, "not there", "data.eval is one source, so nothing is held out", True
                )
        return None
    share = {"TRL": "test_split_size", "Axolotl": "val_set_size"}.get(draft.program, "val_size")
    if theirs.get(share):
        if 0 < theirs[share] < 1:
            draft.of[share] = ["data.eval"]
            return f"{100 * theirs[share]:g}%"
        text = (
            "a number of rows; data.eval is a share of the prompts or a file: nothing is held out"
        )
        draft.say(share, "not there", text, True)
        return None
    evaluates = theirs.get("eval_strategy", theirs.get("evaluation_strategy"))
    if draft.program == "TRL" and evaluates and theirs.get("dataset_name"):
        draft.of["dataset_test_split"] = ["data.eval"]
        return f"{theirs['dataset_name']}:{theirs['dataset_test_split']}"
    return None
