"""Loading a model: a local folder or a Hub id, a full model or an adapter on its base."""

import json
import warnings
from contextlib import suppress
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
from transformers.utils import find_adapter_config_file, has_file

from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.model.quiet import quietly
from likelier.model.trouble import all_weights_came, must_exist, told_plainly


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
    where = _place(path)
    placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    with told_plainly(where), quietly():
        base, base_revision = _base_of_adapter(where, revision) or (where, revision)
        wanted = parse_dtype(dtype) if isinstance(dtype, str) else dtype
        try:
            model = _load_base(base, base_revision, wanted, placed)
        except InputMissing as error:
            if base == where:
                raise
            what = f"its base model {base} cannot be had: {error.what}"
            raise InputMissing(what, where=where, hint=error.hint) from error
        if device_map is None and torch.cuda.is_available():
            model.to("cuda")
        if base == where:
            tokenizer = _tokenizer(where, revision)
        else:
            model = _with_adapter(model, where, revision)
            own = has_file(where, "tokenizer_config.json", revision)
            tokenizer = _tokenizer(where, revision) if own else _tokenizer(base, base_revision)
    return Policy(model.train(), tokenizer, where)


def load_tokenizer(
    path: str, revision: str | None = None
) -> tuple[Tokenizer, GenerationConfig | None]:
    """The tokenizer of a model folder or Hub id and its generation config, without its weights.

    What an adapter lacks comes from its base. Raises as `load`.
    """
    where = _place(path)
    with told_plainly(where):
        base = _base_of_adapter(where, revision)
        homes = [(where, revision), *([base] if base else [])]
        own = len(homes) == 1 or has_file(where, "tokenizer_config.json", revision)
        tokenizer = _tokenizer(*homes[0 if own else 1])
    for home, of in homes:
        with suppress(OSError):  # an optional file
            generation = GenerationConfig.from_pretrained(home, revision=of or "main")
            return tokenizer, generation
    return tokenizer, None


def _place(path: str | Path) -> str:
    """A folder, ``~`` written out, or a Hub id."""
    folder = Path(path).expanduser()
    where = str(folder) if folder.exists() else str(path)
    must_exist(where)
    return where


def _load_base(
    base: str, revision: str | None, dtype: str | torch.dtype, placed: dict[str, Any]
) -> nn.Module:
    with told_plainly(base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `all_weights_came` says which, and stops
            **placed,
        )
    model: nn.Module
    model, report = loaded
    all_weights_came(base, report)
    return model


def _with_adapter(model: nn.Module, where: str, revision: str | None) -> nn.Module:
    import peft  # slow to import, and only adapters need it

    if not has_file(where, "adapter_model.safetensors", revision):
        raise DataError(
            "the adapter has no adapter_model.safetensors; pickled weights are never read",
            where=where,
            hint="convert it: load with peft and save_pretrained(…)",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted: nn.Module = peft.PeftModel.from_pretrained(
            model, where, revision=revision, is_trainable=True
        )
    return adapted


def _tokenizer(where: str, revision: str | None) -> Tokenizer:
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        where, revision=revision, trust_remote_code=False
    )
    return tokenizer


def _base_of_adapter(where: str, revision: str | None) -> tuple[str, str | None] | None:
    """The base model that an adapter names and its revision, or None where it is no adapter."""
    described = find_adapter_config_file(where, revision=revision)
    if described is None:
        return None
    config = json.loads(Path(described).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise DataError("the adapter names no base model", where=described)
    try:
        return _place(base), config.get("revision")
    except InputMissing as error:
        what = f"its base model {base} is not there: {error.what}"
        raise InputMissing(what, where=described, hint="put it back, or edit the file") from error


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


def checkpoint_activations(model: Any) -> None:
    """Let a transformers model recompute activations in the backward.

    The method got a new name in transformers 5.2x; the old one warns there.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
