"""The keys of other trainers and of earlier versions, and what to write instead of each."""

from collections.abc import Mapping
from typing import Any

from likelier.config.strict_yaml import flow
from likelier.losses.declare import ALIASES, LOSSES

# Our key, and what other trainers and earlier versions of likelier call it.
_OTHER_NAMES = {
    "adapter.alpha": "lora_alpha",
    "adapter.kind": "use_peft",
    "adapter.r": "lora_r",
    "adapter.targets": "lora_target_modules target_modules",
    "data.eval": "eval_strategy evaluation_strategy",
    "data.overlong": "truncation_mode",
    "data.train": "dataset_name dataset_path",
    "loss.name": "loss_type",
    "model.dtype": "bf16 torch_dtype",
    "model.path": "model_name_or_path",
    "model.revision": "model_revision",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.lr": "learning_rate",
    "optim.max_grad_norm": "max_grad_norm",
    "optim.schedule": "lr_scheduler_type",
    "optim.warmup": "warmup_ratio warmup_steps",
    "out": "output_dir",
    "reference.path": "ref_model ref_model_name_or_path",
    "track": "report_to",
    "train.deterministic": "full_determinism",
    "train.epochs": "num_train_epochs",
    "train.eval_every": "eval_steps",
    "train.keep": "save_total_limit",
    "train.log_every": "logging_steps",
    "train.pairs_per_step": "per_device_train_batch_size gradient_accumulation_steps",
    "train.save_every": "save_steps save_strategy",
    "train.steps": "max_steps",
    "train.tokens_per_batch": "tokens_per_pass",
}
RENAMED = {name: key for key, names in _OTHER_NAMES.items() for name in names.split()}

# What to do about keys that have no equal here, and the keys.
_WITHOUT_EQUAL = {
    "leave it out: the run decides this itself": "attn_implementation packing padding_free "
    "dataloader_num_workers per_device_eval_batch_size precompute_ref_batch_size",
    "leave it out: compiling the layers is no longer offered, because it saved 1 to 4 % of the "
    "time in float32 and made some steps take twice as long": "compile torch_compile",
    "leave it out: dropout is always off, so that log-probs compare":
    "disable_dropout dropout lora_dropout",
    "leave it out: float16 overflows; model.dtype: bfloat16 is the half-size dtype": "fp16",
    "leave it out: no secret belongs in a config; use the environment's HF_TOKEN":
    "hub_token token",
    "write loss.smoothing with loss.name: cdpo (or robust): sigmoid has none": "label_smoothing",
    "leave it out: quantised bases are not offered": "load_in_4bit load_in_8bit",
    "leave it out: everything is written under out": "logging_dir",
    "leave it out: data.max_length bounds prompt and answer together":
    "max_completion_length max_prompt_length",
    "leave it out: the optimizer is AdamW; its section is optim": "optim",
    "leave it out: a finished run is never overwritten; change out": "overwrite_output_dir",
    "leave it out: reference log-probs are always computed once": "precompute_ref_log_probs",
    "leave it out: nothing is uploaded": "push_to_hub",
    "leave it out: further columns are never touched": "remove_unused_columns",
    "leave it out: the same command resumes where the run stopped": "resume_from_checkpoint",
    "leave it out: the run is named by its folder, out": "run_name",
}  # fmt: skip
NEEDLESS = {name: hint for hint, names in _WITHOUT_EQUAL.items() for name in names.split()}

# By our key: their value as text, and ours. Values of keys that are not here stay as they are.
_LEAVE_OUT, _NO_EQUAL = object(), object()
_VALUES: dict[str, dict[str, Any]] = {
    "adapter.kind": {"True": "lora", "False": "none"},
    "data.eval": {"no": None, "False": None},
    "data.overlong": {},
    "loss.name": {name: name for name in LOSSES} | ALIASES,
    "model.dtype": {
        **{name: name for name in ("auto", "float32", "bfloat16", "float64")},
        "True": "bfloat16",
        "False": _LEAVE_OUT,
    },
    "optim.max_grad_norm": {"0": None, "0.0": None},
    "optim.schedule": {
        **{name: name for name in ("cosine", "linear", "constant")},
        "constant_with_warmup": "constant",
    },
    "track": {"none": "none", "None": "none", "[]": "none"},
    "train.save_every": {"no": None, "False": None},
    "train.steps": {"0": _LEAVE_OUT, "-1": _LEAVE_OUT},
}
_NUMBERS = ("optim.max_grad_norm", "train.eval_every", "train.keep", "train.log_every",
            "train.save_every", "train.steps")  # fmt: skip


def _converted(key: str, value: Any) -> Any:
    """Our value for theirs. A share of the steps, below 1, has no equal here."""
    if key == "adapter.targets":
        return [value] if isinstance(value, str) and value != "all-linear" else value
    if isinstance(value, list) and len(value) == 1:  # of losses, of trackers
        value = value[0]
    known = _VALUES.get(key, {})
    text = str(value).removeprefix("torch.")
    if text in known:
        return known[text]
    if key in _NUMBERS:
        whole = isinstance(value, int) and value > 0
        return value if whole or key == "optim.max_grad_norm" else _NO_EQUAL
    return _NO_EQUAL if key in _VALUES else value


def hint_for_key(name: str, beside: Mapping[str, Any]) -> str | None:
    """What to do about a key of another trainer, or None where it is none.

    ``beside`` is the mapping in which it stands: some of ours take two keys of theirs.
    """
    if name in NEEDLESS:
        return NEEDLESS[name]
    if name not in RENAMED:
        return None
    key = RENAMED[name]
    if key == "train.pairs_per_step":
        value = _pairs_per_step(beside)
    elif key == "optim.betas":
        value = [beside.get("adam_beta1", 0.9), beside.get("adam_beta2", 0.999)]
    else:
        value = _converted(key, beside[name])
    if value is _LEAVE_OUT:
        return "leave it out"
    return f"our key is {key}" if value is _NO_EQUAL else f"write {key}: {flow(value)}"


def _pairs_per_step(beside: Mapping[str, Any]) -> Any:
    """The product of two keys of theirs, each with its default."""
    counts = [
        beside.get("per_device_train_batch_size", 8),
        beside.get("gradient_accumulation_steps", 1),
    ]
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    return counts[0] * counts[1] if whole else _NO_EQUAL
