"""The names other trainers use, answered with ours and the converted value."""

from collections.abc import Callable, Mapping
from typing import Any

from likelier.cards import ALIASES, CARDS
from likelier.config import text

Beside = Mapping[str, Any]  # the keys that stand beside the foreign one: some mean one of ours
_LEAVE_OUT = object()
_KEY_ONLY = object()  # the key is known, the value has no equal


def _same(value: Any, beside: Beside) -> Any:
    return value


def _whole(value: Any, beside: Beside) -> Any:
    """A count of steps; a share of them (below 1) has no equal here."""
    return value if isinstance(value, int) and value > 0 else _KEY_ONLY


def _steps(value: Any, beside: Beside) -> Any:
    return _LEAVE_OUT if isinstance(value, int) and value <= 0 else _whole(value, beside)


def _pairs(value: Any, beside: Beside) -> Any:
    pairs = 1
    for name, default in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)):
        count = beside.get(name, default)
        if isinstance(count, bool) or not isinstance(count, int):
            return _KEY_ONLY
        pairs *= count
    return pairs


def _betas(value: Any, beside: Beside) -> Any:
    return [beside.get("adam_beta1", 0.9), beside.get("adam_beta2", 0.999)]


def _clip(value: Any, beside: Beside) -> Any:
    return None if value == 0 else value


def _schedule(value: Any, beside: Beside) -> Any:
    known = {"constant_with_warmup": "constant"}.get(value, value)
    return known if known in ("cosine", "linear", "constant") else _KEY_ONLY


def _dtype(value: Any, beside: Beside) -> Any:
    known = str(value).removeprefix("torch.")
    return known if known in ("auto", "float32", "bfloat16", "float64") else _KEY_ONLY


def _bfloat16(value: Any, beside: Beside) -> Any:
    return "bfloat16" if value is True else _LEAVE_OUT


def _never(value: Any, beside: Beside) -> Any:
    return None if value in ("no", False) else _KEY_ONLY


def _lora(value: Any, beside: Beside) -> Any:
    return "lora" if value else "none"


def _names(value: Any, beside: Beside) -> Any:
    return [value] if isinstance(value, str) and value != "all-linear" else value


def _loss(value: Any, beside: Beside) -> Any:
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    name = ALIASES.get(str(name), str(name))
    return name if name in CARDS else _KEY_ONLY


def _no_tracker(value: Any, beside: Beside) -> Any:
    return "none" if value in (None, "none", [], ["none"]) else _KEY_ONLY


RENAMED: dict[str, tuple[str, Callable[[Any, Beside], Any]]] = {
    "adam_beta1": ("optim.betas", _betas),
    "adam_beta2": ("optim.betas", _betas),
    "adam_epsilon": ("optim.eps", _same),
    "bf16": ("model.dtype", _bfloat16),
    "dataset_name": ("data.train", _same),
    "dataset_path": ("data.train", _same),
    "eval_steps": ("train.eval_every", _whole),
    "eval_strategy": ("data.eval", _never),
    "evaluation_strategy": ("data.eval", _never),
    "full_determinism": ("train.deterministic", _same),
    "gradient_accumulation_steps": ("train.pairs_per_step", _pairs),
    "learning_rate": ("optim.lr", _same),
    "logging_steps": ("train.log_every", _whole),
    "lora_alpha": ("adapter.alpha", _same),
    "lora_r": ("adapter.r", _same),
    "lora_target_modules": ("adapter.targets", _names),
    "loss_type": ("loss.name", _loss),
    "lr_scheduler_type": ("optim.schedule", _schedule),
    "max_grad_norm": ("optim.max_grad_norm", _clip),
    "max_steps": ("train.steps", _steps),
    "model_name_or_path": ("model.path", _same),
    "model_revision": ("model.revision", _same),
    "num_train_epochs": ("train.epochs", _same),
    "output_dir": ("out", _same),
    "per_device_train_batch_size": ("train.pairs_per_step", _pairs),
    "ref_model": ("reference.path", _same),
    "ref_model_name_or_path": ("reference.path", _same),
    "report_to": ("track", _no_tracker),
    "save_steps": ("train.save_every", _whole),
    "save_strategy": ("train.save_every", _never),
    "save_total_limit": ("train.keep", _whole),
    "target_modules": ("adapter.targets", _names),
    "torch_compile": ("train.compile", _same),
    "torch_dtype": ("model.dtype", _dtype),
    "truncation_mode": ("data.overlong", lambda value, beside: _KEY_ONLY),
    "use_peft": ("adapter.kind", _lora),
    "warmup_ratio": ("optim.warmup", _same),
    "warmup_steps": ("optim.warmup", _same),
}

_AUTOMATIC = "leave it out: this is decided by the run itself"
NEEDLESS: dict[str, str] = {
    "attn_implementation": _AUTOMATIC,
    "dataloader_num_workers": _AUTOMATIC,
    "disable_dropout": "leave it out: dropout is always off, so that log-probs compare",
    "dropout": "leave it out: dropout is always off, so that log-probs compare",
    "fp16": "leave it out: float16 overflows; model.dtype: bfloat16 is the half-size dtype",
    "hub_token": "leave it out: no secret belongs in a config; use the environment's HF_TOKEN",
    "label_smoothing": "write loss.smoothing with loss.name: cdpo (or robust): sigmoid has none",
    "load_in_4bit": "leave it out: quantised bases are not offered",
    "load_in_8bit": "leave it out: quantised bases are not offered",
    "logging_dir": "leave it out: everything is written under out",
    "lora_dropout": "leave it out: dropout is always off, so that log-probs compare",
    "max_completion_length": "leave it out: data.max_length bounds prompt and answer together",
    "max_prompt_length": "leave it out: data.max_length bounds prompt and answer together",
    "optim": "leave it out: the optimizer is AdamW; its section is optim",
    "overwrite_output_dir": "leave it out: a finished run is never overwritten; change out",
    "packing": _AUTOMATIC,
    "padding_free": _AUTOMATIC,
    "per_device_eval_batch_size": _AUTOMATIC,
    "precompute_ref_batch_size": _AUTOMATIC,
    "precompute_ref_log_probs": "leave it out: reference log-probs are always computed once",
    "push_to_hub": "leave it out: nothing is uploaded",
    "remove_unused_columns": "leave it out: further columns are never touched",
    "resume_from_checkpoint": "leave it out: the same command goes on where it stopped",
    "run_name": "leave it out: the run is named by its folder, out",
    "token": "leave it out: no secret belongs in a config; use the environment's HF_TOKEN",
}


def answer(name: str, value: Any, beside: Beside) -> str | None:
    """What to write for another trainer's key, or None where the name means nothing to us.

    Args:
        name: the foreign key, without its section.
        value: what it was set to.
        beside: the mapping that it stands in.
    """
    if name in NEEDLESS:
        return NEEDLESS[name]
    if name not in RENAMED:
        return None
    key, convert = RENAMED[name]
    converted = convert(value, beside)
    if converted is _LEAVE_OUT:
        return "leave it out"
    if converted is _KEY_ONLY:
        return f"our key is {key}"
    return f"write {key}: {text.flow(converted)}"
