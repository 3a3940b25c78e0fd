"""Hostile adapters: of another base, of absurd sizes, with code or without end."""

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from faults.hostile.case import CANARY, Room, hostile
from faults.hostile.models import ODD, Payload, edit, f32, header, tensors

adapters = partial(hostile, "adapters")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(folder: Path) -> None:
    """A LoRA adapter of rank 2 on the folder ``base``."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2,
        "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
    weights = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        weights[name + "A.weight"] = np.full((2, 32), 0.01, np.float32)
        weights[name + "B.weight"] = np.full((32, 2), 0.01, np.float32)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def train(room: Room) -> list[str]:
    return room.train(model={"path": "adapter"}, adapter={"kind": "lora"})


def with_config(**changes: Any) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        edit(room.adapter() / CONFIG, **changes)
        return train(room)

    return build


def with_file(name: str, content: bytes | str) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        given = content.encode() if isinstance(content, str) else content
        (room.adapter() / name).write_bytes(given)
        return train(room)

    return build


def with_weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        path = room.adapter() / WEIGHTS
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})
        return train(room)

    return build


@adapters("a good one", 0)
def _(room: Room) -> list[str]:
    room.adapter()
    return train(room)


for _name, (_code, _changes) in {
    "another rank": (65, {"r": 3}),
    "r of 0": (65, {"r": 0}),
    "r of -1": (65, {"r": -1}),
    "r of text": (65, {"r": "2"}),
    "r of 10^9": (65, {"r": 10**9}),
    "r of 10^30": (65, {"r": 10**30}),
    "rank by a pattern of 10^9": (65, {"rank_pattern": {"q_proj": 10**9}}),
    "targets that are not there": (65, {"target_modules": ["nowhere"]}),
    "targets of numbers": (65, {"target_modules": [1, 2]}),
    "targets beyond its weights": (65, {"target_modules": ["q_proj", "v_proj"]}),
    "targets by a pattern that explodes": (65, {"target_modules": "(([a-z_.0-9])+)+$^"}),
    "exclusion by a pattern that explodes": (65, {"exclude_modules": "(([a-z_.0-9])+)+$^"}),
    "a rank pattern that explodes": (65, {"rank_pattern": {"(([a-z_.0-9])+)+$^": 2}}),
    "no such kind": (65, {"peft_type": "EVIL"}),
    "a kind with control bytes": (65, {"peft_type": "\x1b[31mEVIL\x07"}),
    "a prompt to tune": (65, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}),
    "no base": (65, {"base_model_name_or_path": None}),
    "a base of a number": (65, {"base_model_name_or_path": 7}),
    "a base of a list": (65, {"base_model_name_or_path": ["base"]}),
    "a base above": (66, {"base_model_name_or_path": "../../../../etc"}),
    "a base that is a file": (66, {"base_model_name_or_path": "/etc/passwd"}),
    "a base that is missing": (66, {"base_model_name_or_path": "./nowhere"}),
    "a base with control bytes": (66, {"base_model_name_or_path": "./\x1b]0;evil\x07"}),
    "a base of an address": (66, {"base_model_name_or_path": f"https://u:{CANARY}@evil.kr/m"}),
    "a base that is itself": (65, {"base_model_name_or_path": "adapter"}),
    "layers repeated 10^9 times": (65, {"layer_replication": [[0, 2]] * 10**6}),
    "layers up to 10^9": (65, {"layer_replication": [[0, 10**9]]}),
    "trained ids beyond the vocabulary": (65, {"trainable_token_indices": [10**12]}),
    "modules saved that its weights lack": (65, {"modules_to_save": ["lm_head"]}),
    "modules saved that are not there": ((0, 65), {"modules_to_save": ["nowhere"]}),
    "an endless alpha": (65, {"lora_alpha": float("inf")}),
    "alpha of text": (65, {"lora_alpha": "evil"}),
    "alpha that is no number": (65, {"lora_alpha": float("nan")}),
    "dropout of 7": (65, {"lora_dropout": 7}),
    "bias of no kind": (65, {"bias": "evil"}),
    "a library to import": ((0, 65), {"auto_mapping": {
        "base_model_class": "evil", "parent_library": "evil"}}),
    "megatron to import": ((0, 65), {"megatron_config": {"a": 1}, "megatron_core": "evil"}),
    "a start that computes": ((0, 65), {"init_lora_weights": "eva", "use_dora": True}),
    "keys that nobody knows": ((0, 65), {"evil": "\x1b[31m", "r2": 1}),
}.items():  # fmt: skip
    adapters(_name, _code)(with_config(**_changes))

for _name, _text in {
    "broken JSON": "{",
    "a list": "[]",
    "nested 100,000 deep": '{"r":' * 100_000,
    "empty": "",
    "not UTF-8": b'{"r": "\xb0"}',
}.items():
    adapters(f"adapter_config.json: {_name}", 65)(with_file(CONFIG, _text))

for _name, _content in {
    "0 bytes": b"",
    "a header of 2^60": header(2**60, b"{}"),
    "a header of a list": header(None, b"[]"),
    "a pickle": pickle.dumps(Payload()),
    "a negative shape": tensors(a=f32([-4, -4], 0, 64)),
    "nothing of its own": tensors(a=f32([16], 0, 64)),
}.items():
    adapters(f"weights: {_name}", 65)(with_file(WEIGHTS, _content))

for _file in (CONFIG, WEIGHTS):
    for _what, _make in ODD.items():

        @adapters(f"{_file} is {_what}", 66)
        def _(room: Room, file: str = _file, make: Callable[[Path], Any] = _make) -> list[str]:
            path = room.adapter() / file
            path.unlink()
            make(path)
            return train(room)


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


@adapters("weights: not a number", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w[KEY].__setitem__((3, 1), np.nan))(room)


@adapters("weights: one missing", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w.pop(KEY))(room)


@adapters("weights: of a larger base", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w.update({KEY: np.zeros((64, 2), np.float32)}))(room)


@adapters("weights: of a layer that is not there", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w.update({KEY.replace("1", "7"): w[KEY]}))(room)


@adapters("weights: the head of another vocabulary", 65)
def _(room: Room) -> list[str]:
    name = "base_model.model.lm_head.weight"
    return with_weights(lambda w: w.update({name: np.zeros((10**5, 32), np.float32)}))(room)


@adapters("only pickled, with a payload", 65)
def _(room: Room) -> list[str]:
    folder = room.adapter()
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    return train(room)


@adapters("a pickle with a payload beside the weights", 0)
def _(room: Room) -> list[str]:
    (room.adapter() / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    return train(room)


@adapters("no weights", 65)
def _(room: Room) -> list[str]:
    (room.adapter() / WEIGHTS).unlink()
    return train(room)


@adapters("a base that is an adapter, too", 65)
def _(room: Room) -> list[str]:
    os.rename(room.adapter(), room.here / "second")
    edit(room.here / "second" / CONFIG, base_model_name_or_path="third")
    save_adapter(room.here / "third")
    return room.train(model={"path": "second"}, adapter={"kind": "lora"})


@adapters("all weights of one to be trained", 2)
def _(room: Room) -> list[str]:
    room.adapter()
    return room.train(model={"path": "adapter"}, adapter={"kind": "none"})


@adapters("a rank for one that has its own", 2)
def _(room: Room) -> list[str]:
    room.adapter()
    return room.train(model={"path": "adapter"}, adapter={"kind": "lora", "r": 8})


@adapters("a fresh one of rank 10^9", (2, 65, 73))
def _(room: Room) -> list[str]:
    return room.train(adapter={"kind": "lora", "r": 10**9})


@adapters("a fresh one by a pattern that explodes", 2)
def _(room: Room) -> list[str]:
    return room.train(adapter={"kind": "lora", "targets": ["(([a-z_.0-9])+)+$^"]})
