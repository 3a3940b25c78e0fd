"""The parts of another trainer's config but its data: loss, model, adapter, optimizer, steps."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from likelier.base.errors import ConfigError
from likelier.config.other_trainers import (
    LEAVE_OUT,
    NO_EQUAL,
    RENAMED,
    combined,
    in_our_words,
)
from likelier.config.strict_yaml import flow
from likelier.losses.declare import ALIASES, LOSSES

if TYPE_CHECKING:
    from likelier.config.recipes import Draft

NO_EFFECT = "without effect, there as here"
_NO_LIMIT = 2**31 - 1  # of data.max_length
_OF_ADAPTER = ("lora_r", "lora_rank", "lora_alpha", "lora_target", "lora_target_modules",
               "lora_target_linear", "lora_dropout", "use_rslora", "peft_use_rslora")  # fmt: skip
_STARTS = ("lora_model_dir", "adapter_name_or_path")  # adapters that are trained further
# Sections whose keys are taken one by one, each by the rule of its own key.
_ONE_BY_ONE = ("adapter.", "optim.", "train.", "data.max_length", "data.template", "out",
               "reference.update", "track")  # fmt: skip


# ---- the loss ----------------------------------------------------------------------------------


def put_loss(draft: "Draft") -> None:
    """Write the loss with every number that it reads: ours and theirs have other defaults.

    Raises ConfigError where the file trains no preferences, or by a loss that is not here.
    """
    theirs, program = draft.theirs, draft.program
    named, keys = _losses_of(draft)
    smoothing = draft.first("label_smoothing", "dpo_label_smoothing") or 0.0
    parts: list[tuple[dict[str, Any], float]] = []
    nll = sum(weight for name, weight in named if name == "sft")
    for name, weight in named:
        if name != "sft":
            ours = _ours(draft, name, smoothing)
            if ours not in LOSSES:
                what = f"{name} has no counterpart, so that no config can be written"
                raise ConfigError(what, where=keys[0], hint=f"there are: {', '.join(LOSSES)}")
            parts.append((_hypers(draft, ours, smoothing), weight))
    if not parts:
        raise ConfigError("sft alone trains on answers, not on preferences", where=keys[0])
    bco = draft.first("pref_bco_weight") or 0.0
    if bco > 0 and program == "LLaMA-Factory" and LOSSES[parts[0][0]["name"]].reads("reference"):
        shift = {"name": "bco", "beta": float(theirs["pref_beta"]), "delta": "running"}
        parts = [(parts[0][0], 1 / (1 + bco)), (shift, bco / (1 + bco))]
    section = combined(parts)
    if "alphapo" not in dict(named):
        cpo = program != "LLaMA-Factory" and "simpo" in dict(named)  # TRL's CPOTrainer
        nll += theirs.get("cpo_alpha", 1.0 if cpo else 0.0)
    nll += draft.first("rpo_alpha", "pref_ftx") or 0.0
    if nll:
        section["nll"] = float(nll)
        section |= {"nll_per": "answer"} if program == "LLaMA-Factory" else {}
    if draft.first("use_weighting", "dpo_use_weighting"):
        section["wpo"] = True
    if theirs.get("ld_alpha") is not None:
        section["tokens"] = {"kind": "ld", "alpha": float(theirs["ld_alpha"])}
    draft.tree["loss"] = section
    _answer_loss(draft, section, keys)


def _losses_of(draft: "Draft") -> tuple[list[tuple[str, float]], list[str]]:
    """The losses in their words, each with its weight, and the keys that say so."""
    theirs, weights = draft.theirs, draft.first("loss_weights", "dpo_loss_weights")
    if draft.program == "TRL":
        keys, names = ["loss_type", "loss_weights"], theirs["loss_type"]
        if "desirable_weight" in theirs and "loss_type" not in draft.file:
            names = "kto"
    else:
        keys = ["rl", "dpo_loss_type", "dpo_loss_weights"]
        if draft.program == "LLaMA-Factory":
            keys = ["stage", "pref_loss"]
        stage = theirs.get(keys[0])
        taken = {"rl": ("dpo", "ipo", "orpo", "simpo", "kto"), "stage": ("dpo", "kto")}[keys[0]]
        if stage not in taken:
            what = f"{keys[0]}: {flow(stage)} trains on no pairs or labels of a file"
            raise ConfigError(what, where=keys[0], hint=f"what can be taken: {', '.join(taken)}")
        names = theirs.get(keys[1], "sigmoid") if stage == "dpo" else stage
    names = [str(name) for name in (names if isinstance(names, list) else [names])]
    weights = weights or [1.0] * len(names)
    numbers = weights if isinstance(weights, list) else []
    numbers = [float(one) for one in numbers if isinstance(one, int | float)]
    if len(numbers) != len(names):
        hint = f"write {len(names)} of them, one a loss"
        raise ConfigError("are not as many numbers as losses", where=keys[-1], hint=hint)
    return list(zip(names, numbers, strict=True)), keys


def _ours(draft: "Draft", name: str, smoothing: float) -> str:
    if name == "sigmoid" and draft.theirs.get("reference_free"):
        return "cpo"
    if name == "sigmoid" and smoothing and draft.program == "LLaMA-Factory":
        return "cdpo"
    return {"ipo": "ipo_mean"}.get(name) or ALIASES.get(name, name)


def _hypers(draft: "Draft", name: str, smoothing: float) -> dict[str, Any]:
    """A loss with every hyper-parameter that it reads."""
    theirs, trl = draft.theirs, draft.theirs.get("trl")
    beta = trl.get("beta") if isinstance(trl, dict) else None
    beta = beta or draft.given(
        "orpo_alpha" if name == "orpo" else "", "beta", "pref_beta", "rl_beta"
    )
    divergence = in_our_words("f_divergence_type", {"f_divergence_type": "reverse_kl"} | theirs)
    values = {
        "beta": beta,
        "tau": theirs.get("discopop_tau") if name == "discopop" else beta,
        "smoothing": 0.0 if draft.program == "Axolotl" else smoothing,
        "gamma": theirs.get("simpo_gamma", 0.5),
        "delta": 0.0,
        "desirable": draft.given("desirable_weight", "kto_desirable_weight", "kto_chosen_weight"),
        "undesirable": draft.given(
            "undesirable_weight", "kto_undesirable_weight", "kto_rejected_weight"
        ),
        "divergence": divergence if isinstance(divergence, str) and name == "sigmoid" else None,
        "alpha": {"cpo": 0.0, "alphapo": theirs.get("alpha", 0.0)}.get(name),
    }  # fmt: skip
    if values["divergence"] == "alpha":
        values["alpha"] = in_our_words("f_alpha_divergence_coef", theirs)
        if values["alpha"] is NO_EQUAL:
            raise ConfigError("is taken between 0 and 1", where="f_alpha_divergence_coef")
    read = {hyper.name for hyper in LOSSES[name].hypers}
    given = {key: value for key, value in values.items() if key in read and value is not None}
    given |= {key: 1.0 for key in ("desirable", "undesirable") if key in read - given.keys()}
    return {"name": name} | {k: float(v) if isinstance(v, int) else v for k, v in given.items()}


def _answer_loss(draft: "Draft", section: Mapping[str, Any], keys: list[str]) -> None:
    """What is said of the keys that make the loss, of which a loss reads some."""
    parts = section.get("parts", [section])
    read = {key for part in (section, *parts) for key in part}
    read |= {"beta"} if "tau" in read else set()
    leaves = {name: key[5:] for name, key in RENAMED.items() if key.startswith("loss.")}
    leaves |= {"beta": "beta", "trl": "beta", "pref_bco_weight": "parts"}
    leaves |= {"label_smoothing": "smoothing", "dpo_label_smoothing": "smoothing"}
    for name, leaf in leaves.items():
        if leaf in read or name in keys:
            draft.of[name] = [f"loss.{'tau' if leaf == 'beta' and leaf not in section else leaf}"]
        elif draft.first(name) and leaf != "smoothing":
            draft.say(name, "taken", NO_EFFECT)
    if draft.theirs.get("reference_free"):
        draft.of["reference_free"] = ["loss.name"]
    divergence = draft.theirs.get("f_divergence_type", "reverse_kl")
    if divergence == "reverse_kl":
        draft.say("f_divergence_type", "taken", "what every loss here has")
    elif not all("divergence" in part for part in parts):
        draft.say("f_divergence_type", "not there", "sigmoid alone has others here", True)
    if draft.program == "Axolotl" or "smoothing" in read:
        return  # which has a word of its own
    text = "read by none of these losses there: sigmoid stays sigmoid. loss.name: cdpo smooths"
    cpo = section["name"] in ("simpo", "alphapo") and draft.program == "TRL"
    for name in ("label_smoothing", "dpo_label_smoothing"):
        if draft.first(name):
            cannot = f"smooths there; {section['name']} does not here"
            draft.say(name, "not there" if cpo else "different", cannot if cpo else text, cpo)


# ---- all but loss and data ---------------------------------------------------------------------


def put_run(draft: "Draft", facts: Mapping[str, Any]) -> None:
    """Write model, adapter, reference, optimizer, and how long and how often."""
    ours = RENAMED | facts["called_alike"]
    for name, value in draft.theirs.items():
        key = "" if name.endswith("_per_epoch") else ours.get(name, "")
        if key.startswith(_ONE_BY_ONE) and key not in ("adapter.kind", "optim.warmup"):
            value = value if name in facts["called_alike"] else in_our_words(name, draft.theirs)
            if value is NO_EQUAL:
                draft.say(name, "not there", f"{key} takes no such value, and has its default")
            elif value is LEAVE_OUT:
                draft.say(name, "taken", NO_EFFECT)
            else:
                draft.put(key, value, name)
    for name in ("max_length", "max_grad_norm"):
        if name in draft.file and draft.file[name] is None:
            draft.put(ours[name], _NO_LIMIT if name == "max_length" else None, name)
    _model(draft)
    _precision(draft)
    _adapter(draft)
    _optimizer(draft, facts)
    _batch_and_rhythm(draft)


def _model(draft: "Draft") -> None:
    """What training begins with, and what it is compared with."""
    base, start = draft.first("model_name_or_path", "base_model"), draft.first(*_STARTS)
    parts = draft.tree["loss"].get("parts", [draft.tree["loss"]])
    compared = any(LOSSES[part["name"]].reads("reference") for part in parts)
    if base or start:
        draft.put("model.path", start or base, *(_STARTS if start else ()),
                  *(() if start else ("model_name_or_path", "base_model")))  # fmt: skip
    revision = draft.first("model_revision", "revision_of_model")
    if revision and revision != "main":
        draft.put("model.revision", revision, "model_revision", "revision_of_model")
        draft.say("model_revision", "taken", "")
    if start and (isinstance(start, list) or "," in str(start)):
        for name in _STARTS:
            draft.say(name, "not there", "one adapter is trained further; merge them first", True)
    apart = draft.program == "LLaMA-Factory" and not draft.first("create_new_adapter")
    if start and base and compared and apart:
        draft.put("reference.path", base, "model_name_or_path")
        text = "the reference there, as the adapter is switched off for it; to compare with what "
        draft.say("model_name_or_path", "different",
                  f"{text}training starts from, write reference.path: null")  # fmt: skip
    elif start:
        draft.say("base_model", "taken", "the adapter's files name it")
    names = ("ref_model_adapters", "ref_model", "ref_model_name_or_path")
    reference = draft.first(*names)
    if reference and compared and reference != (start or base):
        draft.put("reference.path", reference, *names)
    elif reference:
        text = "what training starts from, here too" if compared else "no reference is read"
        draft.say("ref_model", "taken", text)


def _precision(draft: "Draft") -> None:
    """What computes: the weights that are trained are float32, whatever it is."""
    theirs, half = draft.theirs, bool(draft.first("bf16", "bfloat16", "pure_bf16"))
    stored = str(draft.first("dtype", "torch_dtype")).removeprefix("torch.")
    floats = bool(draft.first("fp16", "float16")) or stored == "float16"
    if draft.program == "TRL" and "bf16" not in draft.theirs:
        half = not floats
    dtype = "bfloat16" if half or floats else "float32"
    if dtype == "float32" and draft.program == "TRL":
        dtype = stored if stored in ("bfloat16", "auto") else "float32"
    elif dtype == "float32" and draft.program == "LLaMA-Factory":
        dtype = "auto"
    draft.put("model.dtype", dtype, "bf16", "bfloat16", "dtype", "torch_dtype", "fp16", "float16",
              "float32")  # fmt: skip
    if stored == dtype == "float32" or (stored == "auto" == theirs.get("dtype")):
        draft.say("dtype", "taken", "")


def _adapter(draft: "Draft") -> None:
    """LoRA or full tuning, and a base in four bits."""
    theirs, tree = draft.theirs, draft.tree
    name = {"TRL": "use_peft", "Axolotl": "adapter"}.get(draft.program, "finetuning_type")
    asked = theirs.get(name) or "full"
    lora = asked in (True, "lora", "qlora")
    draft.put("adapter.kind", "lora" if lora else "none", name)
    if not lora and asked != "full":
        draft.say(name, "not there", f"there is LoRA and full tuning here, and no {asked}", True)
    if lora and draft.first("lora_target_linear"):
        draft.put("adapter.targets", "all-linear", "lora_target_linear")
    if lora and draft.program == "LLaMA-Factory" and "lora_alpha" not in theirs:
        draft.put("adapter.alpha", 2 * theirs["lora_rank"])
    if lora and draft.first("use_rslora", "peft_use_rslora"):
        scaled = tree.get("adapter.alpha", 32) * math.sqrt(tree.get("adapter.r", 16))
        draft.put("adapter.alpha", round(scaled), "use_rslora", "peft_use_rslora")
    if not lora or draft.first(*_STARTS):
        for key in ("adapter.r", "adapter.alpha", "adapter.targets"):
            tree.pop(key, None)
        for flag in _OF_ADAPTER:
            draft.say(flag, "taken", NO_EFFECT)
    elif "lora_target_modules" in draft.file:
        draft.say(name, "converted", "")
    if lora and theirs.get("disable_dropout") is False:
        draft.say(
            "lora_dropout", "not there", "dropout is off here, so that log-probs compare", True
        )
    bits = 4 if draft.first("load_in_4bit") else theirs.get("quantization_bit")
    if lora and bits == 4:
        draft.put("model.quantise", "nf4", "load_in_4bit", "quantization_bit")
        draft.say("quantization_bit", "converted", "")
        for flag in ("bnb_4bit_quant_type", "quantization_type"):
            if theirs.get(flag) == "nf4":
                draft.put("model.quantise", "nf4", flag)
                draft.say(flag, "taken", "")


def _optimizer(draft: "Draft", facts: Mapping[str, Any]) -> None:
    """The optimizer, and the learning rate over the run."""
    axolotl = draft.program == "Axolotl"
    name = "optimizer" if axolotl else "optim"
    asked = str(draft.theirs[name])
    found = [ours for ours, names in facts["optimizers"].items() if asked in names.split()]
    draft.put("optim.kind", found[0] if found else "adamw", name)
    if not found:
        draft.say(name, "not there", f"AdamW trains here, and no {asked}", True)
    name = "lr_scheduler" if axolotl else "lr_scheduler_type"
    asked = str(draft.theirs[name])
    draft.put("optim.schedule", facts["schedules"].get(asked, "cosine"), name)
    if asked not in facts["schedules"]:
        draft.say(name, "not there", f"cosine in its place, as there is no {asked}", True)
    given = "warmup_steps" if draft.first("warmup_steps") else "warmup_ratio"
    warmup = draft.first(given) or 0
    if asked == "constant" and warmup:  # constant_with_warmup has one
        draft.say(given, "taken", "a constant rate has no warm-up there, nor here")
        warmup = 0
    draft.put("optim.warmup", int(warmup) if warmup >= 1 or not warmup else float(warmup), given)
    if warmup:
        draft.put("optim.warmup_from_zero", True, given)


def _batch_and_rhythm(draft: "Draft") -> None:
    """Pairs of a step, and when the run evaluates and saves."""
    theirs = draft.theirs
    if draft.first("batch_size"):
        for name in ("micro_batch_size", "gradient_accumulation_steps"):
            draft.say(name, "taken", "how a step is cut; here tokens decide that")
    if (saved := theirs.get("save_strategy", "steps")) is False:
        draft.put("train.save_every", None, "save_strategy", "save_steps")
    elif saved != "steps" or (draft.program == "Axolotl" and not draft.first("save_steps")):
        draft.tree.pop("train.save_every", None)
        draft.say("save_strategy", "not there", "checkpoints come every train.save_every steps")
    if draft.first("use_wandb", "wandb_project") and draft.program == "Axolotl":
        draft.put("track", "wandb", "use_wandb", "wandb_project")
    evaluated = theirs.get("eval_strategy", theirs.get("evaluation_strategy"))
    for name in ("eval_strategy", "evaluation_strategy"):
        if evaluated == "epoch":
            draft.tree.pop("train.eval_every", None)
            draft.say(name, "not there", "counted in steps here, as train.eval_every")
        elif evaluated:
            draft.of[name] = ["data.eval"]
