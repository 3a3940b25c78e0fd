"""What to write instead of a key of another trainer: our key, with its value in our words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likelier.config.strict_yaml import flow, parse
from likelier.losses.declare import ALIASES, LOSSES

_TABLE = Path(__file__).with_suffix(".yaml")  # every key of theirs
_KEYS = parse(_TABLE.read_text("utf-8"), _TABLE.name)
RENAMED, NEEDLESS = (
    {name: given for given, names in _KEYS[kind].items() for name in names.split()}
    for kind in ("renamed", "needless")
)
MARKS = {trainer: {*names.split()} for trainer, names in _KEYS["marks"].items()}

# By our key: their value as text, and ours. Values of keys that are not here stay as they are.
LEAVE_OUT, NO_EQUAL = object(), object()
_VALUES: dict[str, dict[str, Any]] = {
    "adapter.kind": {"True": "lora", "False": "none", "lora": "lora", "full": "none"}
    | {"none": "none"},
    "data.eval": {"no": None, "False": None, "0": None, "0.0": None},
    "data.overlong": {},
    "loss.divergence": {
        "reverse_kl": LEAVE_OUT,
        "forward_kl": "forward_kl",
        "js_divergence": "js",
        "alpha_divergence": "alpha",
    },
    "loss.name": {name: name for name in LOSSES} | ALIASES | {"kto_pair": "kto"},
    "loss.wpo": {"True": True, "False": LEAVE_OUT},
    "model.dtype": {
        **{name: name for name in ("auto", "float32", "bfloat16", "float64")},
        "True": "bfloat16",
        "False": LEAVE_OUT,
    },
    "model.quantise": {"True": "nf4", "4": "nf4", "False": LEAVE_OUT},
    "optim.max_grad_norm": {"0": None, "0.0": None, "None": None},
    "optim.schedule": {
        **{name: name for name in ("cosine", "linear", "constant")},
        "constant_with_warmup": "constant",
    },
    "track": {
        **{name: name for name in ("none", "tensorboard", "wandb", "trackio")},
        "None": "none",
        "[]": "none",
    },
    "train.checkpointing": {"True": "layers", "False": "none"},
    "train.save_every": {"no": None, "False": None},
    "train.steps": {"0": LEAVE_OUT, "-1": LEAVE_OUT},
}
_NUMBERS = ("optim.max_grad_norm", "train.eval_every", "train.keep", "train.log_every",
            "train.save_every", "train.steps")  # fmt: skip
_BATCH_SIZES = ("per_device_train_batch_size", "micro_batch_size", "train_batch_size")


def trainer_of(keys: set[str]) -> str | None:
    """Whose config has these keys, where two of them tell; else None.

    TRL comes last: its marks are keys of transformers, which others have as well.
    """
    return next((who for who, names in MARKS.items() if len(keys & names) >= 2), None)


def hint_for_key(name: str, beside: Mapping[str, Any]) -> str | None:
    """What to do about a key of another trainer, or None where it is none.

    ``beside`` is the mapping in which it stands: some of ours take two keys of theirs.
    """
    if name in NEEDLESS and not (name == "template" and isinstance(beside[name], Mapping)):
        return NEEDLESS[name]
    if name not in RENAMED:
        return None
    key, value = RENAMED[name], in_our_words(name, beside)
    if value is LEAVE_OUT:
        return "leave it out"
    if key == "model.dtype" and str(beside[name]).removeprefix("torch.") in ("float16", "half"):
        return NEEDLESS["fp16"]
    if value is NO_EQUAL:
        return f"our key is {key}"
    if isinstance(value, Mapping) and "name" in value:  # a whole loss
        key = "loss"
    return f"write {key}: {flow(value)}"


def in_our_words(name: str, beside: Mapping[str, Any]) -> Any:
    """Our value for a key of theirs; LEAVE_OUT where none need be written, NO_EQUAL where there is
    none.
    """
    key, value = RENAMED[name], beside[name]
    other, wanted = _KEYS["read_with"].get(name, (name, value))
    given = beside.get(other)
    if given != wanted and given != [wanted]:
        return LEAVE_OUT
    if key == "train.pairs_per_step":
        return _pairs_per_step(beside)
    if key == "optim.betas":
        return [beside.get("adam_beta1", 0.9), beside.get("adam_beta2", 0.999)]
    if key == "reference.update_every":
        return beside.get("ref_model_sync_steps", 512) if value else LEAVE_OUT
    if name == "stage" and value in ("dpo", "rm"):
        return LEAVE_OUT  # every run here is one
    losses = beside.get("loss_type")
    if key in ("loss.name", "loss.parts") and isinstance(losses, list) and len(losses) > 1:
        return _mixture(losses, beside.get("loss_weights") or [1.0] * len(losses))
    return LEAVE_OUT if key == "loss.parts" else _converted(key, name, value)


def _converted(key: str, name: str, value: Any) -> Any:
    """Our value for theirs. A share of the steps, below 1, has no equal here."""
    if isinstance(value, list) and len(value) == 1 and key != "adapter.targets":
        value = value[0]  # of losses, of trackers, of datasets
    known = _VALUES.get(key, {})
    text = str(value).removeprefix("torch.")
    if text in known:
        return known[text]
    if value is None:
        return LEAVE_OUT
    if key == "adapter.targets":
        names = value if isinstance(value, list) else [one.strip() for one in str(value).split(",")]
        return "all-linear" if names in (["all"], ["all-linear"]) else names
    if key == "loss.alpha":  # their exponent is alpha - 1, ours -alpha
        return 1 - value if isinstance(value, float) and 0 < value < 1 else NO_EQUAL
    if key == "data.train":
        return _sources(value if isinstance(value, list) else [value])
    if key == "data.eval" and isinstance(value, float) and 0 < value < 1:
        return f"{100 * value:g}%"
    if key == "data.template":
        return {name: value}
    if key == "loss.tokens":
        return {"kind": "ld", "alpha": value}
    if key in _NUMBERS and not name.endswith("_per_epoch"):
        whole = isinstance(value, int) and value > 0
        return value if whole or key == "optim.max_grad_norm" else NO_EQUAL
    return NO_EQUAL if key in _VALUES or key in _NUMBERS else value


def _sources(entries: list[Any]) -> Any:
    """Our ``data.train`` for paths, or for sections that hold a ``path`` and perhaps a ``split``.

    A bare word is the name of an entry in another file, so it has no equal.
    """
    names = []
    for entry in entries:
        section = entry if isinstance(entry, Mapping) else {"path": entry}
        path, split = section.get("path"), section.get("split")
        if not isinstance(path, str) or not {"/", "."} & set(path) or "://" in path:
            return NO_EQUAL
        names.append(f"{path}:{split}" if split else path)
    return names[0] if len(names) == 1 else dict.fromkeys(names, 1.0)


def _mixture(losses: list[Any], weights: Any) -> Any:
    """Our loss for several of theirs with weights; ``sft`` is a likelihood term here."""
    names = [_VALUES["loss.name"].get(str(name)) for name in losses if name != "sft"]
    if not isinstance(weights, list) or len(weights) != len(losses) or None in names:
        return NO_EQUAL
    weight = dict(zip(losses, map(float, weights), strict=True))
    nll = {"nll": weight["sft"]} if "sft" in weight else {}
    others = [name for name in losses if name != "sft"]
    parts = [({"name": ours}, weight[other]) for ours, other in zip(names, others, strict=True)]
    return combined(parts) | nll


def combined(parts: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """Our loss section for losses with weights. A loss alone has no weight here, so that one of
    another weight than 1 becomes two halves of itself.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    if len(parts) == 1:
        parts = [(parts[0][0], parts[0][1] / 2)] * 2
    return {"name": "mixture", "parts": [section | {"weight": w} for section, w in parts]}


def _pairs_per_step(beside: Mapping[str, Any]) -> Any:
    """The product of two keys of theirs, each with its default; ``batch_size`` is that product."""
    given = [beside[name] for name in _BATCH_SIZES if name in beside]
    if beside.get("batch_size") is not None:
        return beside["batch_size"]
    counts = [given[0] if given else 8, beside.get("gradient_accumulation_steps", 1)]
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    return counts[0] * counts[1] if whole else NO_EQUAL
