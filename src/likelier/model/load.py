"""Loading a model: a local folder or a Hub id, a full model or an adapter on its base.

Whatever is wrong with its files is raised as an error of ours, with one line that says what.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import cached_file, has_file, logging

from likelier.base.environment import multiplies_bfloat16, without_bitsandbytes
from likelier.base.errors import ConfigError, DataError, InputMissing
from likelier.base.limits import ADAPTER, bounded
from likelier.base.model_files import (
    base_of_adapter,
    in_one_line,
    load_tokenizer,
    own_tokenizer,
    place_of,
)
from likelier.base.model_folder import json_object, numbers_in
from likelier.base.terminal import say
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.config import Config
from likelier.model.frozen import StoredLinear, dtype_name, dtype_of, is_half, keep_stored, made_in
from likelier.model.limits import must_be_floats, resize_for, shapes_in_adapter, sizes_of_folder
from likelier.model.policy import Policy
from likelier.model.quantise import (
    describe_packed,
    in_four_bits,
    method_of,
    must_be_readable,
    settle,
)
from likelier.model.stream import (
    keep_out_of_files,
    move_adapters,
    overfills,
    read_ahead,
    stream_to,
    streamed_weights,
)

FREE_NUMBERS = 10**8  # that a config may ask for beyond what the weights hold
UNFIT = "the weights do not fit config.json; get the folder again"
_NUMBER = re.compile(r"\.\d+\.")
_MISMATCH = re.compile(
    r"size mismatch for (\S+): .*?shape torch\.Size\((\[[\d, ]*\])\).*?torch\.Size\((\[[\d, ]*\])\)"
)


def load(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    frozen: bool = False,
    quantise: Literal["none", "nf4"] = "none",
    stream: Literal["auto", "never"] = "auto",
    in_parts: bool = False,
) -> Policy:
    """Load a model and its tokenizer from a folder or by Hub id, ready to be trained.

    ``dtype`` is what is computed in; ``auto`` is the checkpoint's own where that is fast, else
    float32, and then says so (see `compute_dtype`). Without ``device_map`` the model goes to the
    first GPU where there is one, else to the CPU. Code from the Hub is never run and pickled
    weights are never read.

    ``frozen`` is for a model that is only scored, or trained by an adapter: where it computes in
    more bits than its weights are stored in, those of linear layers and embeddings stay as they
    are in memory, and none has a gradient. ``quantise="nf4"`` freezes it, too, and holds every
    linear layer but the head in four bits. They are packed tensor by tensor as they are read.

    ``stream`` is for a frozen model, too: weights that keep their dtype stay in their files, from
    which a CPU reads them, and a GPU where they do not fit (see `likelier.model.stream`). With
    ``never`` all of them are copied to the device.

    ``in_parts`` leaves all weights in files, from which each process then takes its own.

    Raises InputMissing where the folder or model is not there, DataError where its files cannot
    be used, ConfigError where the library of quantised weights is missing.
    """
    where = place_of(path, revision)
    placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    packs = quantise == "nf4"
    with in_one_line(where), quietly():
        base = base_of_adapter(where, revision)
        home = base or (where, revision)
        wanted = parse_dtype(dtype) if isinstance(dtype, str) else dtype
        on_gpu = torch.cuda.is_available() and device_map != "cpu"
        model: Any  # a transformers model, from `_with_adapter` on a peft model
        try:
            stored, method = _stored_dtype(*home)
            compute, reason = compute_dtype(wanted, stored, "cuda" if on_gpu else "cpu")
            if packs:
                placed["quantization_config"] = in_four_bits(compute, method)
            widens = is_half(stored) and not is_half(compute) and method in (None, "bitsandbytes")
            may_stay = (frozen or packs) and not (base and _brings_layers(where, revision))
            keeps = may_stay and widens
            model = _load_weights(*home, stored if keeps else compute, placed)
            if keeps and made_in(model, stored):
                model = _load_weights(*home, compute, placed)
        except InputMissing as error:
            if base is None:
                raise
            what = f"its base model {base[0]} cannot be had: {error.what}"
            raise InputMissing(what, where=where, hint=error.hint) from error
        settle(model, compute, where)
        news = [] if reason is None else [f"computing in {dtype_name(compute)}: {reason}"]
        if packs:
            news.append(describe_packed(model))
        if keeps:
            others = ", ".join(keep_stored(model, stored, compute)) or "none"
            news.append(f"weights stay {dtype_name(stored)} in memory, except in {others}")
        if in_parts:
            pass
        elif on_gpu and device_map is None:
            may_stream = may_stay and stream == "auto" and method is None and not packs
            news += _to_gpu(model, torch.device("cuda"), may_stream)
        else:
            _stay_on_cpu(model, frozen, copied=stream == "never" or packs)
        if base is not None:
            device = model.get_input_embeddings().weight.device
            model = _with_adapter(model, where, revision)
            move_adapters(model, device)
        must_be_on_one_device(model, f"device_map of {where}")
        tokenizer = own_tokenizer(where, revision, base)
    if news:
        say("; ".join(news))
    return Policy(model.train(), tokenizer, where)


def _stay_on_cpu(model: nn.Module, frozen: bool, copied: bool) -> None:
    """Weights are read from their files where they are used, or all are ``copied`` into memory: of
    what was packed, one weight left there would keep all of the file in memory.
    """
    if copied:
        keep_out_of_files(model)
    elif frozen:
        read_ahead(model)


def _to_gpu(model: nn.Module, device: torch.device, may_stream: bool) -> list[str]:
    """Move a model to a GPU; what is worth saying. Weights that it does not hold are streamed."""
    if not (may_stream and overfills(model, device)):
        model.to(device)
        return []
    if not any(isinstance(module, StoredLinear) for module in model.modules()):
        keep_stored(model, dtype_of(model), dtype_of(model))
    size = stream_to(model, device) / 2**30
    return [f"{size:.1f} GiB of weights are brought to the GPU layer by layer, which is slow"]


def must_be_on_one_device(model: torch.nn.Module, where: str) -> None:
    """Refuse a model in parts: log-probs and the states of the optimizer would lie apart.

    Raises ConfigError that names the devices.
    """
    brought = streamed_weights(model)
    devices = sorted({str(p.device) for p in model.parameters() if id(p) not in brought})
    if len(devices) > 1:
        raise ConfigError(
            f"the model lies on {' and '.join(devices)}, and one device is used",
            where=where,
            hint='load it on one, such as device_map={"": 0}, or take a smaller model',
        )


def compute_dtype(
    wanted: str | torch.dtype, stored: torch.dtype, device: str
) -> tuple[torch.dtype, str | None]:
    """The dtype that a model computes in on a kind of device, and the reason where it is news.

    ``wanted`` is a dtype, or ``auto``: the ``stored`` one of the checkpoint, but bfloat16 for
    float16, which overflows, and float32 where there are no bfloat16 products: a backward without
    them was measured 300 times slower than in float32.
    """
    slow = f"this {'GPU' if device == 'cuda' else 'processor'} has no bfloat16 products"
    if isinstance(wanted, torch.dtype):
        is_slow = wanted == torch.bfloat16 and not multiplies_bfloat16(device)
        return wanted, f"{slow}, so that float32 is many times faster" if is_slow else None
    if not is_half(stored):
        return stored, None
    if not multiplies_bfloat16(device):
        return torch.float32, f"the weights are {dtype_name(stored)}, and {slow}"
    if stored == torch.float16:
        return torch.bfloat16, "the weights are float16, which overflows in training"
    return stored, None


def initial_policy(
    config: Config, handed_over: Policy | None = None, in_parts: bool = False
) -> Policy:
    """The policy as it is before training: loaded, or the one that was handed over.

    Raises DataError where a weight is not finite, and what `load` raises.
    """
    policy = handed_over or load(
        config.model.path,
        dtype=config.model.dtype,
        revision=config.model.revision,
        frozen=config.adapter.kind != "none",
        quantise=config.model.quantise,
        stream=config.model.stream,
        in_parts=in_parts,
    )
    for name, parameter in policy.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{name} holds values that are not finite",
                where=f"model.path: {config.model.path}",
                hint="the weights are damaged; get them again",
            )
    if handed_over is not None and is_half(policy.dtype):
        given = policy.dtype
        better, reason = compute_dtype("auto", given, policy.device.type)
        if reason is not None:
            say(f"computing in {dtype_name(given)}: {reason}; hand over model.to({better})")
    return policy


def reference_policy(config: Config, initial: Policy, in_parts: bool = False) -> Policy | None:
    """Another model as the reference; None where the initial policy is the reference.

    Raises DataError where its tokenizer is not the policy's: ids would mean other text.
    """
    if config.reference.path is None:
        return None
    wanted = config.model
    reference = load(
        config.reference.path, dtype=wanted.dtype, frozen=True, stream=wanted.stream,
        in_parts=in_parts,
    )  # fmt: skip
    if reference.tokenizer.get_vocab() != initial.tokenizer.get_vocab():
        raise DataError(
            "the reference has another vocabulary than the policy",
            where="reference.path",
            hint="give a model with the same tokenizer",
        )
    reference.model.requires_grad_(False)
    return replace(reference, team=initial.team)


def load_encoder(
    path: str, revision: str | None, template: Mapping[str, Any], today: str | None
) -> Encoder:
    """What turns pairs into tokens for a model folder or Hub id, without reading its weights."""
    where = place_of(path, revision)
    with in_one_line(where):
        base = base_of_adapter(where, revision)
        home = base or (where, revision)
        limits = sizes_of_folder(*home, adapter=(where, revision) if base else None)
    tokenizer, generation = load_tokenizer(path, revision)
    return build_encoder(tokenizer, generation, template, today, **limits, foreign=True)


def load_classifier(folder: str) -> tuple[PreTrainedModel, Encoder]:
    """A reward model, which is a sequence classifier with one output, in eval mode, and what makes
    tokens for it.

    Raises DataError where it has other outputs or lacks weights, and what `load` raises.
    """
    where = place_of(folder)
    stored, _ = _stored_dtype(where, None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compute, _ = compute_dtype("auto", stored, device)
    model = _load_weights(where, None, compute, {}, AutoModelForSequenceClassification)
    if (outputs := model.config.num_labels) != 1:
        what, hint = f"it has {outputs} outputs, a reward model has one", "give a reward model"
        raise DataError(what, where=where, hint=hint)
    moved: Any = model.eval().to(device)
    return moved, load_encoder(where, None, {}, None)


def _load_weights(
    where: str,
    revision: str | None,
    dtype: str | torch.dtype,
    placed: dict[str, Any],
    kind: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """A full model. Raises DataError where a tensor that its config.json describes is not there."""
    with in_one_line(where), quietly():
        _sizes_must_fit(where, revision)
        loaded: Any = kind.from_pretrained(
            where,
            dtype=dtype,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_all_weights_came` says which, and stops
            **placed,
        )
    model: PreTrainedModel
    model, report = loaded
    _all_weights_came(where, report, model.state_dict())
    must_be_floats(model, where)
    return model


def _sizes_must_fit(where: str, revision: str | None) -> None:
    """Raise DataError where a folder's config.json asks for far more numbers than its weights hold:
    they would all be made, at random, before it is known that they are not there.
    """
    if not Path(where).is_dir():
        return
    config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    packed = 16 if getattr(config, "quantization_config", None) else 2
    stored = numbers_in(Path(where))
    if described > packed * stored + FREE_NUMBERS:
        what = f"config.json describes {described:.3g} numbers, the weights hold {stored:.3g}"
        raise DataError(what, where=where, hint=UNFIT)


def _stored_dtype(where: str, revision: str | None) -> tuple[torch.dtype, str | None]:
    """The dtype of a checkpoint, as its configuration names it, or else as its weights show it; and
    how it is quantised.

    Raises ConfigError where the library that reads its quantised weights is missing.
    """
    with in_one_line(where):
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        must_be_readable(config, where)
        named = config.dtype or config.get_text_config().dtype
    if not isinstance(named, torch.dtype):  # not said, or one for each part
        named = _load_weights(where, revision, "auto", {}).dtype
    assert isinstance(named, torch.dtype)
    return named, method_of(config)


def _with_adapter(model: PreTrainedModel, where: str, revision: str | None) -> nn.Module:
    with without_bitsandbytes():
        import peft  # slow to import, and only adapters need it

    if not has_file(where, "adapter_model.safetensors", revision):
        raise DataError(
            "the adapter has no adapter_model.safetensors; pickled weights are never read",
            where=where,
            hint="convert it: load with peft and save_pretrained(…)",
        )
    _patterns_must_end(model, where, revision)
    resize_for(model, where, revision)
    with warnings.catch_warnings(), without_bitsandbytes():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            adapted: nn.Module = peft.PeftModel.from_pretrained(
                model, where, revision=revision, is_trainable=True
            )
        except RuntimeError as error:
            found = _MISMATCH.search(str(error))
            if found is None:
                raise
            what = "size mismatch: {} is {} in its weights, {} by its base and adapter_config.json"
            hint = "put back its adapter_config.json, or name its own base there"
            raise DataError(what.format(*found.groups()), where=where, hint=hint) from error
    own = [name.replace(".default", "") for name in adapted.state_dict()]
    if name := _layer_too_many(shapes_in_adapter(where, revision), own):
        what = f"the adapter has {name}, of a layer that its base does not have"
        raise DataError(what, where=where, hint="name its own base in adapter_config.json")
    return adapted


def _patterns_must_end(model: nn.Module, where: str, revision: str | None) -> None:
    """Match an adapter's patterns with the names of all modules, as peft does without a limit.

    Raises DataError where that takes seconds: some patterns take longer than the world is old.
    """
    config = json_object(Path(str(cached_file(where, "adapter_config.json", revision=revision))))
    patterns = [config.get(key) for key in ("target_modules", "exclude_modules")]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns += config.get(key) or {}
    with bounded(ADAPTER):
        for pattern in patterns:
            if isinstance(pattern, str):
                for name, _ in model.named_modules():
                    re.match(rf"(.*\.)?({pattern})$", name)


def _brings_layers(where: str, revision: str | None) -> bool:
    """Whether an adapter holds weights of the base's own layers, beside those that it adds."""
    return any("lora_" not in key for key in shapes_in_adapter(where, revision))


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


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars, and without warnings that call for no action."""
    was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its table of tensors that did not come: `_all_weights_came`
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            # GPT-2 stores its weights transposed; peft handles that and warns each time.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            # An adapter may bring both halves of a tied embedding: each is kept as it was trained.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()


def _all_weights_came(where: str, report: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks tensors, which transformers would fill with random numbers, or
    that has more layers than are built. ``known`` are the names of the model's own tensors.
    """
    for name, found, wanted in sorted(report.get("mismatched_keys") or []):
        sizes = f"{tuple(found)} where config.json asks for {tuple(wanted)}"
        raise DataError(f"{name} has the shape {sizes}", where=where, hint=UNFIT)
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        what = f"{len(missing)} tensors are not in the checkpoint, the first {missing[0]}"
        raise DataError(what, where=where, hint=UNFIT)
    if name := _layer_too_many(report.get("unexpected_keys") or (), known):
        what = f"the checkpoint has {name}, a layer that config.json does not know"
        raise DataError(what, where=where, hint=UNFIT)


def _layer_too_many(brought: Iterable[str], known: Iterable[str]) -> str | None:
    """The first tensor that a model does not know, but in another layer."""
    own = set(known)
    layers = {_NUMBER.sub(".N.", name) for name in own}
    wrong = (name for name in sorted(brought) if name not in own)
    return next((name for name in wrong if _NUMBER.sub(".N.", name) in layers), None)
