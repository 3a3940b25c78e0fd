"""A model folder before any library reads it: ordinary files, and headers that say what is true.

A folder from elsewhere may hold a pipe that never ends, a link to a device, a header of 2^60 bytes,
or an index that points out of it; libraries would wait, fill the memory, or follow.
"""

import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from likelier.base.errors import DataError, InputMissing

MAX_JSON_BYTES = 128 * 2**20  # the largest tokenizer.json of a published model has 33 MB
MAX_HEADER_BYTES = 16 * 2**20  # one of 70,000 tensors has 9 MB
DAMAGED = "the folder is damaged, or no model that can be trained here; get it again"
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}


def must_be_sound(folder: Path) -> None:
    """Look at every file that a library would read, without reading any weights.

    Raises InputMissing for what is no file, DataError for one that cannot be what its name says.
    """
    for path in sorted(path for path in folder.iterdir() if path.suffix in _READ):
        _must_be_a_file(path)
        if path.suffix != ".safetensors" and path.stat().st_size > MAX_JSON_BYTES:
            what = f"has {path.stat().st_size / 2**20:.0f} MiB, more than any model has"
            raise DataError(what, where=str(path), hint=DAMAGED)
    for path in sorted(folder.glob("*.index.json")):
        _index_must_stay_inside(path)
    tensors = sum(len(header_of(path)) for path in folder.glob("*.safetensors"))
    for name in ("config.json", "adapter_config.json", "generation_config.json"):
        if (folder / name).exists():
            config = json_object(folder / name)
            _layers_must_be_there(folder / name, config, tensors)
            _adapter_must_be_plain(folder / name, config)


def json_object(path: Path) -> dict[str, Any]:
    """The object in a file of JSON. Raises DataError where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # broken, not UTF-8, too deep or too many digits
        what = f"this is no JSON: {str(error).splitlines()[0]}"
        raise DataError(what, where=str(path), hint=DAMAGED) from error
    if not isinstance(content, dict):
        raise DataError("this holds no JSON object", where=str(path), hint=DAMAGED)
    return content


def header_of(path: Path) -> dict[str, Mapping[str, Any]]:
    """What a safetensors file says of its tensors, by name. Raises DataError for a damaged one."""
    try:
        return dict(_tensors(path))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        what = "damaged weights: the header is not one of safetensors"
        raise DataError(what, where=str(path), hint=DAMAGED) from error


def numbers_in(folder: Path) -> int:
    """How many numbers the weights of a folder hold, by their headers."""
    headers = (header_of(path) for path in folder.glob("*.safetensors"))
    return sum(math.prod(tensor["shape"]) for header in headers for tensor in header.values())


def _tensors(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(length)
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in tensor["shape"])
        if not (whole and isinstance(tensor["dtype"], str) and 0 <= begin <= end <= size - length):
            raise ValueError(name)
        yield name, tensor


def _must_be_a_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        hint = "get the file again, or remove the link"
        raise InputMissing(error.strerror or str(error), where=str(path), hint=hint) from error
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS.items() if test(mode)), "a device")
        raise InputMissing(f"this is {kind}, not a file", where=str(path), hint=DAMAGED)


def _index_must_stay_inside(path: Path) -> None:
    shards = json_object(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DataError("it has no weight_map", where=str(path), hint=DAMAGED)
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
            what = f"it names {repr(shard)[:80]}, which is no file of this folder"
            raise DataError(what, where=str(path), hint=DAMAGED)


def _layers_must_be_there(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """A model of 10^9 layers would be built before anybody misses their weights."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in _LAYERS:
            layers = part.get(name, 1)
            if type(layers) is int and (layers < 1 or (tensors and layers > tensors)):
                what = f"{name} is {layers}, and the weights hold {tensors} tensors"
                raise DataError(what, where=str(path), hint=DAMAGED)


def _adapter_must_be_plain(path: Path, config: Mapping[str, Any]) -> None:
    alpha = config.get("lora_alpha", 1)
    if isinstance(alpha, float) and not math.isfinite(alpha):
        raise DataError(f"lora_alpha is {alpha}", where=str(path), hint=DAMAGED)
    if config.get("layer_replication"):
        what = "it repeats layers of its base (layer_replication), which cannot be trained here"
        hint = "save a model with its layers repeated, and name that as the base"
        raise DataError(what, where=str(path), hint=hint)
