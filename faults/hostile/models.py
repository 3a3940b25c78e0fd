"""Hostile model folders: configs that lie, weights that are damaged, code that wants to be run."""

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from faults.hostile.case import Room, hostile
from likelier.model.load import load

models = partial(hostile, "models")
PAYLOAD = "import os, pathlib\npathlib.Path(os.environ['MARKER']).touch()\n"


class Payload:
    """What touches the marker where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch "$MARKER"',)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a file of JSON; None takes one away."""
    content = json.loads(path.read_text("utf-8")) | changes
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    path.write_text(text, encoding="utf-8")


def header(length: int | None, text: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensors(**described: Any) -> bytes:
    """A safetensors file of 64 bytes of data with these tensors."""
    return header(None, json.dumps(described).encode(), bytes(64))


def f32(shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def with_config(**changes: Any) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        edit(room.base() / "config.json", **changes)
        return room.train()

    return build


def with_file(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Room], list[str]]:
    """A model with this file; what is large is made where it is met: forks copy what is held."""

    def build(room: Room) -> list[str]:
        given = content() if callable(content) else content
        (room.base() / name).write_bytes(given.encode() if isinstance(given, str) else given)
        return room.train()

    return build


def with_weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        path = room.base() / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})
        return room.train()

    return build


LAYER = "model.layers.0.mlp.up_proj.weight"
STATE = f"{LAYER}.quant_state.bitsandbytes__nf4"


def save_packed(folder: Path) -> None:
    """A good model whose linear layers are in four bits."""
    policy = load(folder.parent / "base", quantise="nf4")
    policy.causal_lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def with_packed(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        path = room.base(kind="packed") / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})
        return room.train(adapter={"kind": "lora", "r": 2})

    return build


def with_state(**changes: Any) -> Callable[[Room], list[str]]:
    def change(weights: dict[str, np.ndarray]) -> None:
        state = json.loads(bytes(weights[STATE])) | changes
        weights[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return with_packed(change)


def part(name: str, changed: Callable[[np.ndarray], np.ndarray]) -> Callable[[Room], list[str]]:
    """One part of a packed weight changed: `absmax`, `quant_map`; the numbers have no name."""

    def change(weights: dict[str, np.ndarray]) -> None:
        weights[LAYER + name] = np.ascontiguousarray(changed(weights[LAYER + name]))

    return with_packed(change)


def instead_of(name: str, make: Callable[[Path], Any]) -> Callable[[Room], list[str]]:
    def build(room: Room) -> list[str]:
        path = room.base() / name
        path.unlink()
        make(path)
        return room.train()

    return build


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        listener.bind(path.name)
        os.chdir(here)


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


ODD: Mapping[str, Callable[[Path], Any]] = {
    "a link to /dev/zero": to_device,
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": to_socket,
    "a link to itself": to_itself,
}

for _file in ("config.json", "model.safetensors", "generation_config.json"):
    for _what, _make in ODD.items():
        models(f"{_file} is {_what}", 66)(instead_of(_file, _make))

# ---- configs -------------------------------------------------------------------------------------

for _name, _text in {
    "broken JSON": "{",
    "a list": "[]",
    "a number": "1",
    "not UTF-8": b'{"model_type": "\xb0\xa1"}',
    "nested 100,000 deep": '{"model_type":' * 100_000,
    "arrays nested 100,000 deep": "[" * 100_000,
    "empty": "",
    "a number of 100,000 digits": '{"vocab_size": ' + "9" * 100_000 + "}",
}.items():
    models(f"config.json: {_name}", 65)(with_file("config.json", _text))

for _name, _changes in {
    "no such model type": {"model_type": "exaone99"},
    "a model type with control bytes": {"model_type": "\x1b[31mred\x07"},
    "no language model": {"model_type": "vit", "architectures": ["ViTModel"]},
    "an encoder": {"model_type": "bert", "architectures": ["BertModel"]},
    "more layers than weights": {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
    "fewer layers than weights": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
    "10^9 layers": {"num_hidden_layers": 10**9, "layer_types": None},
    "10^9 layers of a kind": {"num_hidden_layers": 10**9},
    "no layers": {"num_hidden_layers": 0, "layer_types": []},
    "-1 layers": {"num_hidden_layers": -1, "layer_types": None},
    "2^40 hidden": {"hidden_size": 2**40},
    "2^70 hidden": {"hidden_size": 2**70},
    "hidden size of text": {"hidden_size": "32"},
    "half a hidden unit": {"hidden_size": 32.5},
    "endless hidden size": {"hidden_size": float("inf")},
    "vocabulary of -1": {"vocab_size": -1},
    "vocabulary of 10^8": {"vocab_size": 10**8},
    "vocabulary of 10^12": {"vocab_size": 10**12},
    "no vocabulary": {"vocab_size": 0},
    "no heads": {"num_attention_heads": 0},
    "10^9 heads": {"num_attention_heads": 10**9},
    "heads of 10^12": {"head_dim": 10**12},
    "another hidden size": {"hidden_size": 64},
    "no such activation": {"hidden_act": "__import__('os').system('touch $MARKER')"},
    "rotary tables of no kind": {"rope_parameters": {"rope_type": "evil", "rope_theta": 1.0}},
    "no such dtype": {"dtype": "evil", "torch_dtype": "evil"},
    "a dtype of integers": {"dtype": "int64", "torch_dtype": "int64"},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "a head that is not there": {"tie_word_embeddings": False},
    "layers of no kind": {"layer_types": ["evil", "evil"]},
}.items():
    models(f"config.json: {_name}", 65)(with_config(**_changes))

# Read by nothing that runs, so the run may as well go on.
models("config.json: a kernel of the Hub for its attention", (0, 65))(
    with_config(attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
)
models("config.json: quantised in no known way", (0, 65))(
    with_config(quantization_config={"quant_method": "\x1b[31mevil"})
)
models("config.json: positions of -1", (0, 65))(with_config(max_position_embeddings=-1))

# ---- weights -------------------------------------------------------------------------------------

WEIGHTS: dict[str, bytes | Callable[[], bytes]] = {
    "0 bytes": b"",
    "7 bytes": bytes(7),
    "a header of 2^60": header(2**60, b"{}"),
    "a header of 2^64 - 1": header(2**64 - 1, b"{}"),
    "a header of 0": header(0, b""),
    "a header that ends late": header(10_000, b"{}"),
    "a header that is no JSON": header(None, b"evil"),
    "a header of a list": header(None, b"[]"),
    "a header of 100 MB": lambda: header(
        None, b'{"__metadata__": {"a": "' + b"x" * 100_000_000 + b'"}}'
    ),
    "a header nested 100,000 deep": header(None, b'{"a":' * 100_000),
    "a tensor that is a number": header(None, b'{"a": 1}'),
    "overlapping tensors": tensors(a=f32([16], 0, 64), b=f32([8], 32, 64)),
    "a hole": tensors(a=f32([4], 0, 16), b=f32([8], 32, 64)),
    "a negative shape": tensors(a=f32([-4, -4], 0, 64)),
    "a shape of 2^62": tensors(a=f32([2**62, 4], 0, 64)),
    "offsets in reverse": tensors(a=f32([16], 64, 0)),
    "offsets behind the end": tensors(a=f32([2**20], 0, 2**22)),
    "a dtype of no kind": tensors(a={"dtype": "EVIL", "shape": [16], "data_offsets": [0, 64]}),
    "a shape of text": tensors(a={"dtype": "F32", "shape": "16", "data_offsets": [0, 64]}),
    "a name twice": header(
        None, b'{"a":%s,"a":%s}' % ((json.dumps(f32([16], 0, 64)).encode(),) * 2), bytes(64)
    ),
    "a pickle": pickle.dumps(Payload()),
    "control bytes in a name": tensors(**{"\x1b[31mred\x07": f32([16], 0, 64)}),
    "a million tensors": lambda: tensors(**{f"t{n}": f32([0], 0, 0) for n in range(300_000)}),
}
for _name, _content in WEIGHTS.items():
    models(f"weights: {_name}", 65)(with_file("model.safetensors", _content))


for _name, _build in {
    "blocks of no numbers": with_state(blocksize=0),
    "blocks of -64 numbers": with_state(blocksize=-64),
    "blocks of 2^40 numbers": with_state(blocksize=2**40),
    "blocks of text": with_state(blocksize="64"),
    "scales in blocks of 4": with_state(nested_blocksize=4),
    "a shape of 2^60": with_state(shape=[2**30, 2**30]),
    "another shape": with_state(shape=[32, 64]),
    "no shape": with_state(shape=[]),
    "numbers of no kind": with_state(quant_type="evil"),
    "a dtype of no kind": with_state(dtype="evil"),
    "an endless offset": with_state(nested_offset=1e39),
    "a state that is no JSON": part(
        STATE[len(LAYER) :], lambda _: np.frombuffer(b"\x80evil", "u1")
    ),
    "half of its numbers": part("", lambda numbers: numbers[: len(numbers) // 2]),
    "its numbers as float32": part("", lambda numbers: numbers.astype(np.float32)),
    "no numbers": part("", lambda numbers: numbers[:0]),
    "half of its scales": part(".absmax", lambda scales: scales[: len(scales) // 2]),
    "no scales": part(".absmax", lambda scales: scales[:0]),
    "no scales of scales": part(".nested_absmax", lambda scales: scales[:0]),
    "endless scales of scales": part(".nested_absmax", lambda scales: scales * np.float32(np.inf)),
    "three levels": part(".quant_map", lambda levels: levels[:3]),
    "five levels of scales": part(".nested_quant_map", lambda levels: levels[:5]),
}.items():
    models(f"weights in four bits: {_name}", 65)(_build)


@models("weights in four bits, all of them good", 0)
def _(room: Room) -> list[str]:
    return with_packed(lambda weights: None)(room)


@models("weights: not a number", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w["model.norm.weight"].__setitem__(3, np.nan))(room)


@models("weights: endless", 65)
def _(room: Room) -> list[str]:
    name = "model.layers.1.mlp.up_proj.weight"
    return with_weights(lambda w: w[name].__setitem__((0, 0), -np.inf))(room)


@models("weights: a missing tensor", 65)
def _(room: Room) -> list[str]:
    return with_weights(lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))(room)


@models("weights: a layer too many", 65)
def _(room: Room) -> list[str]:
    name = "model.layers.{}.mlp.up_proj.weight"
    return with_weights(lambda w: w.update({name.format(7): w[name.format(1)]}))(room)


@models("weights: another shape", 65)
def _(room: Room) -> list[str]:
    name = "model.norm.weight"
    return with_weights(lambda w: w.update({name: np.ones(33, np.float32)}))(room)


@models("weights: integers", (0, 65))
def _(room: Room) -> list[str]:
    name = "model.layers.1.mlp.up_proj.weight"
    return with_weights(lambda w: w.update({name: w[name].astype(np.int64)}))(room)


@models("weights: cut short", 65)
def _(room: Room) -> list[str]:
    path = room.base() / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    return room.train()


@models("weights: 64 GB with nothing in them", 65)
def _(room: Room) -> list[str]:
    path = room.base() / "model.safetensors"
    size = 2**36
    path.write_bytes(header(None, json.dumps({"a": f32([size // 4], 0, size)}).encode()))
    os.truncate(path, path.stat().st_size + size)
    return room.train()


# ---- shards --------------------------------------------------------------------------------------


def with_index(room: Room, index: Any, shard: str = "model-1.safetensors") -> list[str]:
    """The weights as one shard with this index."""
    base = room.base()
    (base / "model.safetensors").rename(base / shard)
    text = index if isinstance(index, str) else json.dumps(index)
    (base / "model.safetensors.index.json").write_text(text)
    return room.train()


def names(room: Room, file: Any) -> dict[str, Any]:
    weights = load_file(room._common / "base" / "model.safetensors")
    return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, file)}


for _name, _index in {
    "broken": "{",
    "a list": [],
    "without a map": {"metadata": {}},
    "whose map is a list": {"metadata": {}, "weight_map": ["a"]},
    "whose map is empty": {"metadata": {}, "weight_map": {}},
    "nested 100,000 deep": "[" * 100_000,
}.items():
    models(f"an index {_name}", 65)(partial(lambda index, room: with_index(room, index), _index))


@models("an index that points out of the folder", 65)
def _(room: Room) -> list[str]:
    index = names(room, "../outside.safetensors")
    return with_index(room, index, "../outside.safetensors")


@models("an index that points to /dev/zero", 65)
def _(room: Room) -> list[str]:
    return with_index(room, names(room, "/dev/zero"))


@models("an index of a shard that is missing", 65)
def _(room: Room) -> list[str]:
    return with_index(room, names(room, "model-00002-of-00002.safetensors"))


@models("an index of numbers", 65)
def _(room: Room) -> list[str]:
    return with_index(room, names(room, 7))


@models("an index of pickled shards", 65)
def _(room: Room) -> list[str]:
    base = room.base()
    (base / "model.safetensors").unlink()
    (base / "shard.bin").write_bytes(pickle.dumps(Payload()))
    (base / "model.safetensors.index.json").write_text(json.dumps(names(room, "shard.bin")))
    return room.train()


# ---- code ----------------------------------------------------------------------------------------


def pickled(name: str, room: Room) -> list[str]:
    base = room.base()
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(pickle.dumps(Payload()))
    return room.train()


for _name in ("pytorch_model.bin", "model.pt", "model.pth", "tf_model.h5", "model.ckpt"):
    models(f"only {_name}, with a payload", 65)(partial(pickled, _name))


@models("a pickle with a payload beside the weights", 0)
def _(room: Room) -> list[str]:
    base = room.base()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scaler.pt"):
        (base / name).write_bytes(pickle.dumps(Payload()))
    return room.train()


def custom(room: Room, **changes: Any) -> list[str]:
    """Code that asks to be imported by the config."""
    base = room.base()
    (base / "evil.py").write_text(PAYLOAD)
    edit(base / "config.json", **changes)
    return room.train()


@models("code for a model of its own", 65)
def _(room: Room) -> list[str]:
    its = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    return custom(room, model_type="evil", auto_map=its)


@models("code for a model that is known", (0, 65))
def _(room: Room) -> list[str]:
    return custom(room, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"})


@models("code of another repository", (0, 65))
def _(room: Room) -> list[str]:
    return custom(room, auto_map={"AutoModelForCausalLM": "evil/repository--evil.Model"})


@models("code for its sampling", (0, 65))
def _(room: Room) -> list[str]:
    base = room.base()
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(PAYLOAD)
    edit(base / "generation_config.json", custom_generate="base")
    return room.train()


@models("a package named like the folder", 0)
def _(room: Room) -> list[str]:
    base = room.base()
    for name in ("__init__", "modeling_exaone4", "tokenization_exaone4", "configuration_exaone4"):
        (base / f"{name}.py").write_text(PAYLOAD)
    return room.train()


# ---- the folder ----------------------------------------------------------------------------------


@models("no config", 66)
def _(room: Room) -> list[str]:
    (room.base() / "config.json").unlink()
    return room.train()


@models("no folder", 66)
def _(room: Room) -> list[str]:
    return room.train(model={"path": "./nowhere"})


@models("a file", 66)
def _(room: Room) -> list[str]:
    return room.train(model={"path": "pairs.jsonl"})


@models("a name with control bytes", 2)
def _(room: Room) -> list[str]:
    return room.train(model={"path": "./\x1b]0;evil\x07\r\x9b31m\u202e"})


@models("a folder with control bytes that holds nothing", 2)
def _(room: Room) -> list[str]:
    (room.here / "\x1b[31mred").mkdir()
    return room.train(model={"path": "./\x1b[31mred"})


@models("a folder with control bytes and broken weights", 2)
def _(room: Room) -> list[str]:
    base = room.base("\x1b[31mred")
    (base / "model.safetensors").write_bytes(b"")
    return room.train(model={"path": "./\x1b[31mred"})


@models("a name of 10,000 letters", 2)
def _(room: Room) -> list[str]:
    return room.train(model={"path": "./" + "a" * 10_000})


@models("a name with a byte of 0", (2, 66))
def _(room: Room) -> list[str]:
    return room.train(model={"path": "./a\0b"})


@models("folders that link in a circle", 66)
def _(room: Room) -> list[str]:
    (room.here / "base").symlink_to("base")
    return room.train()


@models("the run folder inside it", 73)
def _(room: Room) -> list[str]:
    return room.train(out="base/out")


@models("it is the run folder", 73)
def _(room: Room) -> list[str]:
    return room.train(out="base")


@models("the reference has another vocabulary", 65)
def _(room: Room) -> list[str]:
    other = room.base("other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["added_tokens"].append(
        {"id": 399, "content": "<|new|>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    )  # fmt: skip
    path.write_text(json.dumps(content), "utf-8")
    return room.train(reference={"path": "other"})


@models("stops at an id beyond its vocabulary", 65)
def _(room: Room) -> list[str]:
    edit(room.base() / "generation_config.json", eos_token_id=10**6)
    edit(room.here / "base" / "config.json", eos_token_id=10**6)
    edit(room.here / "base" / "tokenizer_config.json", eos_token=None)
    return room.train()


for _name, _ids in {"text": "evil", "a list of lists": [[1]], "-1": -1, "10^30": 10**30}.items():
    models(f"stops at {_name}", (0, 65))(
        partial(
            lambda ids, room: (
                edit(room.base() / "generation_config.json", eos_token_id=ids) or room.train()
            ),
            _ids,
        )
    )
