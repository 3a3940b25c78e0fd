"""Hostile tokenizers: without end, with patterns that explode, and ids that are not there."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from faults.hostile.case import Room, hostile
from faults.hostile.models import ODD, PAYLOAD, edit, with_file

tokenizers = partial(hostile, "tokenizers")


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Room], list[str]]:
    """A run with a changed tokenizer.json."""

    def build(room: Room) -> list[str]:
        path = room.base() / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content), "utf-8")
        return room.train()

    return build


def with_config(**changes: Any) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        edit(room.base() / "tokenizer_config.json", **changes)
        return room.train()

    return build


def nested(kind: str, inner: str, depth: int) -> str:
    """A tokenizer's step within a step within a step …"""
    return f'{{"type": "Sequence", "{kind}": [' * depth + inner + "]}" * depth


def put(text: str, name: str) -> Callable[[Room], list[str]]:
    """A run whose tokenizer.json holds this JSON, which is too deep for Python's writer."""

    def build(room: Room) -> list[str]:
        path = room.base() / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        content[name] = "HERE"
        path.write_text(json.dumps(content).replace('"HERE"', text), "utf-8")
        return room.train()

    return build


def replaces(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def splits(pattern: str) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]}  # fmt: skip


def added(token: int, content: str, **changes: Any) -> dict[str, Any]:
    return {"id": token, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True, **changes}  # fmt: skip


for _name, _text in {
    "broken JSON": "{",
    "a list": "[]",
    "empty": "",
    "nested 100,000 deep": '{"model":' * 100_000,
    "arrays nested 100,000 deep": '{"version": "1.0", "model": ' + "[" * 100_000,
    "not UTF-8": b'{"version": "\xb0"}',
    "without a model": '{"version": "1.0"}',
}.items():
    tokenizers(f"tokenizer.json: {_name}", 65)(with_file("tokenizer.json", _text))

for _name, _text in {
    "broken JSON": "{",
    "a list": "[]",
    "nested 100,000 deep": '{"a":' * 100_000,
}.items():
    tokenizers(f"tokenizer_config.json: {_name}", 65)(with_file("tokenizer_config.json", _text))

for _file in ("tokenizer.json", "tokenizer_config.json"):
    for _what in ("a link to /dev/zero", "a FIFO", "a folder", "a socket"):

        @tokenizers(f"{_file} is {_what}", 66)
        def _(room: Room, file: str = _file, what: str = _what) -> list[str]:
            path = room.base() / file
            path.unlink()
            ODD[what](path)
            return room.train()


@tokenizers("tokenizer.json of 8 GB with nothing in them", 65)
def _(room: Room) -> list[str]:
    os.truncate(room.base() / "tokenizer.json", 2**33)
    return room.train()


DEEP = 100_000
LOWER, BYTES = '{"type": "Lowercase"}', '{"type": "ByteLevel", "add_prefix_space": false}'
for _depth in (100, DEEP):
    tokenizers(f"{_depth} nested normalizers", 65 if _depth == DEEP else (0, 65))(
        put(nested("normalizers", LOWER, _depth), "normalizer")
    )
    tokenizers(f"{_depth} nested pre-tokenizers", 65 if _depth == DEEP else (0, 65))(
        put(nested("pretokenizers", BYTES, _depth), "pre_tokenizer")
    )

for _name, (_code, _change) in {
    "a normalizer that doubles 40 times": (65, lambda t: t.update(normalizer={
        "type": "Sequence", "normalizers": [replaces({"Regex": "."}, "aa")] * 40})),
    "a normalizer that writes 100 MB": (65, lambda t: t.update(
        normalizer=replaces({"Regex": "."}, "a" * 10**7))),
    "a pattern that explodes": ((0, 65), lambda t: t.update(
        pre_tokenizer=splits(r"(?:(?:\S+)+)+~~$"))),
    "a pattern that does not parse": (65, lambda t: t.update(pre_tokenizer=splits("((("))),
    "a pattern of 10^9 repeats": ((0, 65), lambda t: t.update(
        pre_tokenizer=splits(r"((a{1,1000}){1,1000}){1,1000}"))),
    "a model of no kind": (65, lambda t: t["model"].update(type="Evil")),
    "merges of nothing": (65, lambda t: t["model"].update(merges=[["evil", "worse"]])),
    "ids of text": (65, lambda t: t["model"]["vocab"].update(evil="1")),
    "ids below 0": (65, lambda t: t["model"]["vocab"].update(evil=-1)),
    "ids of 2^31": (65, lambda t: t["model"]["vocab"].update(evil=2**31)),
    "ids of 2^40": (65, lambda t: t["model"]["vocab"].update(evil=2**40)),
    "one id for two tokens": ((0, 65), lambda t: t["model"]["vocab"].update(evil=7)),
    "no vocabulary": (65, lambda t: t["model"].update(vocab={}, merges=[])),
    "an added token of nothing": ((0, 65), lambda t: t["added_tokens"].append(added(399, ""))),
    "an added token of control bytes": ((0, 65), lambda t: t["added_tokens"].append(
        added(399, "\x1b]0;evil\x07"))),
    "a space as a special token": ((0, 65), lambda t: t["added_tokens"].append(added(399, " "))),
    "texts cut to one token": ((0, 65), lambda t: t.update(truncation={
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0})),
    "texts padded to 10^9 tokens": ((0, 65), lambda t: t.update(padding={
        "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"})),
    "a special before every text that is not there": (65, lambda t: t.update(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<evil>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}})),
    "10,000 specials before every text": ((0, 65), lambda t: t.update(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {
            "<|pad|>": {"id": "<|pad|>", "ids": [0] * 10_000, "tokens": ["<|pad|>"] * 10_000}}})),
}.items():  # fmt: skip
    tokenizers(_name, _code)(changed(_change))


@tokenizers("ids beyond what the model embeds", 65)
def _(room: Room) -> list[str]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"].append(added(10**5, "뭐야", special=False))

    return changed(change)(room)


for _name, (_code, _changes) in {
    "no stop": (65, {"eos_token": None}),
    "a stop that is not in the vocabulary": (65, {"eos_token": "<nowhere>"}),
    "a stop of control bytes": (65, {"eos_token": "\x1b[31m"}),
    "a stop of a number": (65, {"eos_token": 7}),
    "no padding": (0, {"pad_token": None}),
    "padding with the stop": (0, {"pad_token": "<|end|>"}),
    "an endless length": ((0, 65), {"model_max_length": float("inf")}),
    "a length of text": ((0, 65), {"model_max_length": "evil"}),
    "a class of no kind": ((0, 65), {"tokenizer_class": "os.system"}),
    "a slow class": ((0, 65), {"tokenizer_class": "CanineTokenizer"}),
    "added tokens of 10^12": ((0, 65), {"added_tokens_decoder": {
        str(10**12): {"content": "evil", "special": True}}}),
    "added tokens of text": ((0, 65), {"added_tokens_decoder": {"evil": 7}}),
    "extra specials of a list of numbers": ((0, 65), {"additional_special_tokens": [1, 2]}),
}.items():  # fmt: skip

    @tokenizers(_name, _code)
    def _(room: Room, changes: dict[str, Any] = _changes) -> list[str]:
        for name in ("generation_config.json", "config.json") if "eos_token" in changes else ():
            if not (room.here / "base").exists():
                room.base()
            edit(room.here / "base" / name, eos_token_id=None)
        base = room.here / "base"
        edit((base if base.exists() else room.base()) / "tokenizer_config.json", **changes)
        return room.train()


def with_code(room: Room, **changes: Any) -> Path:
    base = room.base()
    (base / "evil.py").write_text(PAYLOAD)
    edit(base / "tokenizer_config.json", **changes)
    return base


for _command in ("train", "check", "show"):

    @tokenizers(f"code of its own, for {_command}", (0, 65))
    def _(room: Room, command: str = _command) -> list[str]:
        its = ["evil.Tokenizer", "evil.Tokenizer"]
        with_code(room, tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": its})
        words = room.train()
        return words if command == "train" else [command, "pairs.jsonl", "--model", "base"]


@tokenizers("code of its own and no tokenizer.json", 65)
def _(room: Room) -> list[str]:
    its = ["evil.Tokenizer", "evil.Tokenizer"]
    base = with_code(room, tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": its})
    (base / "tokenizer.json").unlink()
    return room.train()


@tokenizers("no tokenizer at all", 65)
def _(room: Room) -> list[str]:
    for path in room.base().glob("tokenizer*"):
        path.unlink()
    return room.train()


@tokenizers("only a pickled vocabulary", 65)
def _(room: Room) -> list[str]:
    base = room.base()
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.model").write_bytes(b"\x80\x04\x95evil")
    return room.train()
