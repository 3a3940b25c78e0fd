"""A model folder from elsewhere is looked at before any library reads it."""

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.hostile.adapters import save_adapter
from faults.hostile.models import edit as edit_json
from safetensors.numpy import load_file, save_file
from tests.support.tiny import save_tiny

from likelier.base.errors import DataError, InputMissing, LikelierError
from likelier.base.model_files import base_of_adapter, describe_files, in_one_line, place_of
from likelier.base.model_folder import numbers_in
from likelier.model.load import load


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy whose files are links, as in the cache of the Hub."""
    folder = tmp_path / "base"
    folder.mkdir()
    for path in good.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def put(folder: Path, name: str, content: bytes | str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def header(described: Any, length: int | None = None) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


def tensor(**changes: Any) -> bytes:
    return header({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **changes}})


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    put(folder, "config.json", json.dumps(content))


def to_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the name of a socket must be short
        listener.bind(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": to_socket,
    "symbolic links": lambda path: path.symlink_to(path.name),
}


def test_a_good_folder_is_sound(folder: Path) -> None:
    assert place_of(folder) == str(folder)
    assert "31.4 k parameters in float32" in describe_files(folder)
    assert numbers_in(folder) == sum(p.numel() for p in load(folder).model.parameters())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_missing(
    folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # and back
    (folder / name).unlink()
    ODD[kind](folder / name)
    with pytest.raises(InputMissing, match=kind) as caught:
        place_of(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(7),
        header({}, 2**60),
        header({}, 2**64 - 1),
        header({}, 10_000),
        header([]),
        header({"a": 1}),
        tensor(shape=[-4, -4]),
        tensor(shape="16"),
        tensor(dtype=None),
        tensor(data_offsets=[64, 0]),
        tensor(data_offsets=[0, 2**40]),
        struct.pack("<Q", 10**6) + b"[" * 10**6,
    ],
)
def test_a_header_that_lies_is_refused(folder: Path, content: bytes) -> None:
    put(folder, "model.safetensors", content)
    with pytest.raises(DataError, match=r"model\.safetensors: damaged weights"):
        place_of(folder)


@pytest.mark.parametrize("content", ["{", "[]", "7", "", b'{"a": "\xb0"}', '{"a":' * 100_000])
def test_what_is_no_object_is_refused(folder: Path, content: str | bytes) -> None:
    put(folder, "config.json", content)
    with pytest.raises(DataError, match=r"config\.json: this (is no JSON|holds no JSON object)"):
        place_of(folder)


def test_a_file_of_gigabytes_is_not_read(folder: Path) -> None:
    put(folder, "tokenizer.json", "{}")
    os.truncate(folder / "tokenizer.json", 2**33)
    with pytest.raises(DataError, match=r"tokenizer\.json: has 8192 MiB"):
        place_of(folder)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/dev/zero", "b/a.safetensors", 7, ".."])
def test_an_index_stays_in_the_folder(folder: Path, shard: Any) -> None:
    index = {"metadata": {}, "weight_map": {"a": shard}}
    put(folder, "model.safetensors.index.json", json.dumps(index))
    with pytest.raises(DataError, match="no file of this folder"):
        place_of(folder)


@pytest.mark.parametrize("layers", [0, -1, 10**9])
def test_layers_without_weights_are_not_built(folder: Path, layers: int) -> None:
    edit(folder, num_hidden_layers=layers, layer_types=None)
    with pytest.raises(DataError, match=f"num_hidden_layers is {layers}"):
        place_of(folder)


def test_sizes_without_weights_are_not_made(folder: Path) -> None:
    """Half the memory of a large machine, at random, before it is known that it is not there."""
    edit(folder, vocab_size=10**8)
    with pytest.raises(DataError, match=r"config\.json describes 3\.2e\+09 numbers"):
        load(folder)


def test_a_layer_too_many_is_no_smaller_model(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder, num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(DataError, match=r"has model\.layers\.1\.\S+, a layer that config\.json"):
        load(folder)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_every_error_of_a_library_has_a_cure(tmp_path: Path) -> None:
    for error in (ValueError("evil"), OSError("evil")):
        with pytest.raises(LikelierError) as caught, in_one_line(str(tmp_path)):
            raise error
        assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"layer_replication": [[0, 10**9]]}, "repeats layers"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": ["base"]}, "names no base model"),
        ({"base_model_name_or_path": "./nowhere"}, r"its base model \./nowhere is not there"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    described = {"base_model_name_or_path": "./base", "r": 2, "lora_alpha": 4} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(LikelierError, match=said) as caught:
        base_of_adapter(place_of(tmp_path), None)
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": "(([a-z_.0-9])+)+$^"}, {"rank_pattern": {"(([a-z_.0-9])+)+$^": 2}}],
)
def test_patterns_of_an_adapter_end(
    folder: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.base.limits.MAX_SECONDS", 0.2)
    save_adapter(tmp_path / "adapter")
    described = {"base_model_name_or_path": str(folder)} | changes
    edit_json(tmp_path / "adapter" / "adapter_config.json", **described)
    with pytest.raises(DataError, match=r"adapter_config\.json: it takes longer than 0\.2 s"):
        load(tmp_path / "adapter")


def test_an_adapter_of_a_deeper_model_is_refused(folder: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    one = next(name for name in tensors if "layers.1." in name)
    save_file(tensors | {one.replace("1", "7"): tensors[one]}, weights, {"format": "pt"})
    with pytest.raises(DataError, match=r"layers\.7\.\S+, of a layer that its base does not have"):
        load(tmp_path / "adapter")
