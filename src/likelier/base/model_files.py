"""A model's files: where they are, its tokenizer, and what is said of files that cannot be read.

Nothing here imports torch, but transformers does where it can: so it is imported inside functions.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from likelier.base.child import survive
from likelier.base.errors import ConfigError, DataError, InputMissing, LikelierError
from likelier.base.limits import TOKENIZER, bounded
from likelier.base.model_folder import DAMAGED, header_of, json_object, must_be_sound

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers import PreTrainedTokenizerBase as Tokenizer

Home = tuple[str, str | None]  # a folder or Hub id, and its revision
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LOAD_SECONDS, MAKE_SECONDS = 10.0, 120.0  # of processor time; 262,000 tokens took 3
LOAD_MEGABYTES = 1024
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_tokenizer(
    path: str, revision: str | None = None
) -> tuple["Tokenizer", "GenerationConfig | None"]:
    """The tokenizer of a model folder or Hub id and its generation config, without its weights.

    What an adapter lacks comes from its base. Raises as `load`.
    """
    from transformers import GenerationConfig

    where = place_of(path, revision)
    with in_one_line(where):
        base = base_of_adapter(where, revision)
        tokenizer = own_tokenizer(where, revision, base)
    for home, its_revision in ((where, revision), *([base] if base else [])):
        with suppress(OSError):  # an optional file
            return tokenizer, GenerationConfig.from_pretrained(
                home, revision=its_revision or "main"
            )
    return tokenizer, None


def place_of(path: str | Path, revision: str | None = None) -> str:
    """A folder, ``~`` written out, or a Hub id.

    Raises InputMissing or DataError, without asking the network, where a local folder is not
    there or holds no model that can be read, and ConfigError for a revision of a folder.
    """
    folder = Path(path).expanduser()
    where = str(folder) if folder.exists() else str(path)
    if folder.is_dir():
        if revision is not None:
            what = f"has no effect: {where} is a folder, and only models of the Hub have revisions"
            raise ConfigError(what, where="model.revision", hint="remove model.revision")
        must_be_sound(folder)
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputMissing(
                "this folder holds no model: neither config.json nor adapter_config.json",
                where=where,
                hint="give the folder that save_pretrained wrote, or a Hub id",
            )
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        if pickled and not any(folder.glob("*.safetensors")):
            raise DataError(
                f"only pickled weights here ({pickled[0]}), which can run code when read",
                where=where,
                hint="convert them: load with transformers and save_pretrained(…)",
            )
    elif folder.is_file():
        hint = "give the folder that save_pretrained wrote, or a Hub id"
        raise InputMissing("this is a file, not a model folder", where=where, hint=hint)
    elif not _HUB_ID.fullmatch(where) or where.startswith("."):
        raise InputMissing(
            "no such folder", where=where, hint="give a model folder or a Hub id such as org/name"
        )
    return where


def describe_files(path: str | Path, revision: str | None = None) -> str:
    """Which model is loaded from there, its size and its dtype as the files say it, in one line.

    Raises as `place_of`.
    """
    where = place_of(path, revision)
    folder = Path(where)
    if not folder.is_dir():
        return f"{where}, from the Hub or its cache"
    described = folder / "adapter_config.json"
    if described.is_file():
        base = json_object(described).get("base_model_name_or_path")
        return f"{where}, an adapter on {base}"
    numbers, dtypes, size = 0, set(), 0
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        tensors = header_of(file).values()
        numbers += sum(math.prod(tensor["shape"]) for tensor in tensors)
        dtypes |= {_DTYPES.get(tensor["dtype"], tensor["dtype"]) for tensor in tensors}
    return f"{where}, {_short(numbers)} parameters in {', '.join(sorted(dtypes))}, {_short(size)}B"


def _short(number: int) -> str:
    """``1.3 G``: a number to two digits."""
    for unit, of in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= of:
            return f"{number / of:.3g} {unit}"
    return f"{number} "


def own_tokenizer(where: str, revision: str | None, base: Home | None) -> "Tokenizer":
    """A model's own tokenizer, or that of its base where an adapter brings none.

    Raises DataError where it takes too much time or memory.
    """
    from transformers import AutoTokenizer
    from transformers.utils import has_file

    if base is not None and not has_file(where, "tokenizer_config.json", revision):
        where, revision = base

    def read() -> "Tokenizer":
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=False
        )
        return tokenizer

    def read_bounded() -> None:
        ready = has_file(where, TOKENIZER, revision)  # else it is made first of other files
        with bounded(TOKENIZER, None, LOAD_SECONDS if ready else MAKE_SECONDS, LOAD_MEGABYTES):
            read()

    survive(read_bounded)
    return read()


def base_of_adapter(where: str, revision: str | None) -> Home | None:
    """The base model that an adapter names and its revision, or None where it is no adapter."""
    from transformers.utils import find_adapter_config_file

    described = find_adapter_config_file(where, revision=revision)
    if described is None:
        return None
    config = json_object(Path(described))
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        hint = "name the folder or Hub id of its base as base_model_name_or_path"
        raise DataError("the adapter names no base model", where=described, hint=hint)
    try:
        return place_of(base), config.get("revision")
    except InputMissing as error:
        what = f"its base model {base} is not there: {error.what}"
        raise InputMissing(what, where=described, hint="put it back, or edit the file") from error


@contextmanager
def in_one_line(where: str) -> Iterator[None]:
    """Turn every error of the libraries that read model files into one of ours, of one line."""
    try:
        yield
    except LikelierError:
        raise
    except OSError as error:
        if Path(where).is_dir():
            raise DataError(first_line(error), where=where, hint=DAMAGED) from error
        raise InputMissing(
            "no such folder here, and no such model could be had from the Hub",
            where=where,
            hint="check the spelling, the network and, for gated models, HF_TOKEN",
        ) from error
    except Exception as error:  # each format and library has its own kind
        damaged = "safetensor" in type(error).__name__.lower()
        what = "damaged weights" if damaged else "this model cannot be loaded"
        raise DataError(f"{what}: {first_line(error)}", where=where, hint=DAMAGED) from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if isinstance(error, KeyError):
        return f"unknown or missing: {error}"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
