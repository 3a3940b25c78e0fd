"""Loading a model: a local folder or a Hub id, a full model or an adapter on its base."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from likelier.errors import ConfigError, DataError, InputMissing
from likelier.model.quiet import quietly

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Policy:
    """A causal language model and its tokenizer.

    ``model`` is a transformers model, or a peft model where the folder holds an adapter.
    ``path`` is where it came from, None for objects handed over in memory.
    """

    model: nn.Module
    tokenizer: Tokenizer
    path: str | None = None

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model; adapters, where there are any, are inside its layers."""
        inner = getattr(self.model, "get_base_model", None)
        model = inner() if inner is not None else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def has_adapter(self) -> bool:
        """Whether adapters are attached."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the first layers' inputs belong."""
        weight = self.causal_lm.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.device


def load(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
) -> Policy:
    """Load a model and tokenizer from a folder or by Hub id, in train-ready form.

    ``dtype`` ``auto`` is the checkpoint's own. Without ``device_map`` the model goes to the
    first GPU where there is one, else to the CPU. Code from the Hub is never run and pickled
    weights are never read.

    Raises InputMissing where the folder or model is not there, DataError where its files cannot
    be used.
    """
    where = str(Path(path).expanduser()) if Path(path).expanduser().exists() else str(path)
    _must_exist(where)
    with _told_plainly(where):
        base_path, base_revision = _base_of_adapter(Path(where)) or (where, revision)
        placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        with quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base_path,
                dtype=parse_dtype(dtype) if isinstance(dtype, str) else dtype,
                revision=base_revision,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **placed,
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(
                where, revision=revision, trust_remote_code=False
            )
            _all_weights_came(where, report)
            if device_map is None and torch.cuda.is_available():
                model.to("cuda")
            if base_path != where:
                import peft  # slow to import, and only adapters need it

                model = peft.PeftModel.from_pretrained(model, where, is_trainable=True)
    return Policy(model.train(), tokenizer, where)


def load_tokenizer(path: str) -> tuple[Tokenizer, GenerationConfig | None]:
    """The tokenizer of a model folder or Hub id and its generation config, without its weights.

    Raises as `load`.
    """
    where = str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    _must_exist(where)
    with _told_plainly(where):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    try:
        generation = GenerationConfig.from_pretrained(where)
    except OSError:  # an optional file
        generation = None
    return tokenizer, generation


def _must_exist(where: str) -> None:
    """Say early, and without a network, that a local folder is not there or not a model."""
    folder = Path(where)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputMissing(
                "this folder holds no model: neither config.json nor adapter_config.json",
                where=where,
                mend="give the folder that save_pretrained wrote, or a Hub id",
            )
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        if pickled and not any(folder.glob("*.safetensors")):
            raise DataError(
                f"only pickled weights here ({pickled[0]}), which can run code when read",
                where=where,
                mend="convert them: load with transformers and save_pretrained(…)",
            )
    elif folder.is_file():
        raise InputMissing("this is a file, not a model folder", where=where)
    elif not _HUB_ID.fullmatch(where) or where.startswith("."):
        raise InputMissing(
            "no such folder", where=where, mend="give a model folder or a Hub id such as org/name"
        )


def _base_of_adapter(folder: Path) -> tuple[str, str | None] | None:
    """The base model that an adapter folder names, or None where it is no adapter."""
    described = folder / "adapter_config.json"
    if not described.is_file():
        return None
    config = json.loads(described.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise DataError("the adapter names no base model", where=str(described))
    _must_exist(base)
    return base, config.get("revision")


@contextmanager
def _told_plainly(where: str) -> Iterator[None]:
    """Turn the many ways in which loading fails into one line each."""
    try:
        yield
    except OSError as error:
        if Path(where).is_dir():
            raise DataError(_first_line(error), where=where) from error
        raise InputMissing(
            "no such folder here, and no such model could be had from the Hub",
            where=where,
            mend="check the spelling, the network and, for gated models, HF_TOKEN",
        ) from error
    except (ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise DataError(
            f"this model cannot be loaded: {_first_line(error)}", where=where
        ) from error
    except Exception as error:
        if "safetensor" in type(error).__name__.lower():
            raise DataError(f"damaged weights: {_first_line(error)}", where=where) from error
        raise


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _all_weights_came(where: str, report: dict[str, Any]) -> None:
    """transformers fills missing tensors with random numbers; that must not pass silently."""
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        raise DataError(
            f"{len(missing)} tensors are not in the checkpoint, the first {missing[0]}",
            where=where,
            mend="the weights do not fit config.json; get the folder again",
        )


def parse_dtype(name: str) -> str | torch.dtype:
    """``auto`` or the torch dtype of a name.

    Raises ConfigError for a name that is no dtype.
    """
    if name == "auto":
        return name
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"no dtype is called {name}", where="model.dtype")
    return found
