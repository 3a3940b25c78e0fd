"""Every key of a config, its type, its range and its default: one strict tree."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    model_validator,
)

from likelier.base.errors import ConfigError
from likelier.config.losses import (
    TUPLE_FROM_LIST,
    BelowOne,
    LossConfig,
    Section,
    Share,
    SigmoidLoss,
    Weight,
    check_options,
    needs,
)

IN_MEMORY = "(in memory)"  # stands where a key's value was given as a Python object

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST_PATH = 4096


def _path(text: str) -> str:
    """A path or Hub id with ``~`` expanded.

    Raises:
        ValueError: it is blank, too long, or something that is not a path. The message never
            repeats a URL: it may hold a password.
    """
    if not text.strip():
        raise ValueError("is empty; write a path, or null where the key allows it")
    if len(text) > _LONGEST_PATH:
        raise ValueError(f"is {len(text)} characters long; a path has at most {_LONGEST_PATH}")
    if _CONTROL.search(text):
        raise ValueError("holds a line break or another control character")
    if "://" in text:
        raise ValueError("is a URL; download it first and write the path")
    if _VARIABLE.search(text):
        raise ValueError(f"{text!r} holds a shell variable, which is not expanded; write it out")
    return os.path.expanduser(text)


def _eval_source(text: str) -> str:
    """``5%`` as it is, once its range is checked; anything else is a path."""
    share = _SHARE.fullmatch(text)
    if share is None and text.rstrip().endswith("%"):
        raise ValueError(f"{text!r} is not a share; write it like 5%")
    if share is None:
        return _path(text)
    if not 0 < float(share[1]) < 100:
        raise ValueError(f"{text!r} is not over 0% and under 100%; null means no evaluation")
    return text


PathText = Annotated[str, AfterValidator(_path)]
OutPath = Annotated[
    Path,
    BeforeValidator(lambda value: Path(_path(value)) if isinstance(value, str) else value),
    PlainSerializer(str, return_type=str),
    Field(json_schema_extra={"type": "string"}),
]
NonEmpty = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[NonEmpty, ...], Field(min_length=1), TUPLE_FROM_LIST]
Dtype = Literal["auto", "float32", "bfloat16", "float64"]
Count = Annotated[int, Field(ge=1, le=10**9)]


class ModelConfig(Section):
    """The initial policy: the model that training begins with."""

    path: PathText = Field(description="model folder or Hub id")
    revision: NonEmpty | None = Field(None, description="branch, tag or commit of a Hub id")
    dtype: Dtype = Field(
        "auto", description="compute dtype; auto = the checkpoint's, float32 where that is slow"
    )
    save_dtype: Dtype = Field(
        "auto", description="dtype of the saved weights; auto = the initial policy's"
    )
    quantise: Literal["none", "nf4"] = Field(
        "none", description="hold the frozen weights of linear layers in four bits (QLoRA)"
    )
    stream: Literal["auto", "never"] = Field(
        "auto",
        description="frozen weights stay in their files: on a CPU those that keep their dtype, on "
        "a GPU where they do not fit; never = copy all of them first",
    )


ColumnName = Literal[
    "prompt", "input", "history", "chosen", "rejected", "system", "tools", "origin",
    "completions", "scores", "completion", "label", "score", "first", "second", "preference",
    "chosen_score", "rejected_score", "margin", "weight",
]  # fmt: skip


class RankedConfig(Section):
    """Which pairs are made of a list of scored answers."""

    pairs: Literal["best-worst", "best-rest", "all"] = Field(
        "best-worst", description="which answers of a list are compared"
    )
    min_gap: float = Field(0.0, ge=0, description="least difference of two scores")


class DataConfig(Section):
    """The pairs, and what to do with those that do not fit."""

    train: PathText | Annotated[dict[PathText, Weight], Field(min_length=1)] = Field(
        description="file, folder or Hub id (id:split); or several, each with its weight"
    )
    eval: Annotated[str, AfterValidator(_eval_source)] | None = Field(
        "5%", description="held out: a share like 5% (split by prompt), a file, or null"
    )
    columns: dict[ColumnName, NonEmpty | None] = Field(
        {}, description="our column: the file's, where it is not recognised; null: none"
    )
    chat: bool = Field(False, description="make a user's and an assistant's turn of plain texts")
    ranked: RankedConfig = Field(
        RankedConfig(), description="which pairs are made of lists of scored answers"
    )
    template: dict[str, JsonValue] = Field({}, description="further arguments of the chat template")
    today: NonEmpty | None = Field(
        None, description="the date that the chat template is given as today's; null = 2024-07-26"
    )
    boundary: Literal["auto", "history", "generation"] = Field(
        "auto",
        description="an answer is what the template writes behind the prompt in a finished chat "
        "(history), or behind its turn's header there (generation); auto = the first that fits",
    )
    turns: Literal["all", "last"] = Field(
        "all",
        description="which assistant turns of an answer are scored; last = the others are read",
    )
    max_length: int = Field(
        2048, ge=2, le=2**31 - 1, description="tokens of prompt and answer together"
    )
    overlong: Literal["drop", "trim", "error"] = Field(
        "drop", description="what to do with pairs over max_length"
    )
    on_bad_row: Literal["error", "drop"] = Field(
        "error", description="what to do with rows that cannot be used"
    )

    @property
    def eval_share(self) -> float | None:
        """The share of prompts to hold out, in (0, 1), or None where eval is a file or null."""
        share = _SHARE.fullmatch(self.eval or "")
        return float(share[1]) / 100 if share else None

    @property
    def eval_path(self) -> str | None:
        """The evaluation file, or None where eval is a share or null."""
        return None if self.eval_share is not None else self.eval


class LoraConfig(Section):
    """Low-rank adapters on a frozen base. No dropout: it would blur the log-probs compared."""

    kind: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=65536, description="rank")
    alpha: int = Field(32, ge=1, le=10**6, description="the update is scaled by alpha / r")
    targets: Literal["all-linear"] | Names = Field(
        "all-linear", description="names of the modules to adapt"
    )


class NoAdapter(Section):
    """Full fine-tuning."""

    kind: Literal["none"] = "none"


class ReferenceConfig(Section):
    """What the policy is compared with."""

    path: PathText | None = Field(
        None, description="another model folder or Hub id; null = the initial policy"
    )
    update_every: Count | None = Field(
        None, description="TR-DPO: steps between moves of the reference; null = it stays"
    )
    update_mix: Share = Field(
        0.6, description="TR-DPO: how far it moves to the policy; 1 is all the way"
    )


class OptimConfig(Section):
    """AdamW and its learning rate over the run."""

    kind: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit holds its two averages in eight bits"
    )
    lr: Literal["auto"] | Share = Field(
        "auto", description="peak; auto = 5e-7 for full tuning, 1e-5 for LoRA"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="after the warm-up: down to 0, or flat"
    )
    warmup: BelowOne | Annotated[int, Field(ge=0, le=10**9)] = Field(
        0.1, description="a share of the steps, or a whole number of steps"
    )
    warmup_from_zero: bool = Field(
        False, description="its first step has rate 0 and trains nothing, as in transformers"
    )
    betas: Annotated[tuple[BelowOne, BelowOne], TUPLE_FROM_LIST] = Field(
        (0.9, 0.999), description="decay of AdamW's two averages"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's weight decay")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="clip the gradient's norm to this; null = never"
    )


class TrainConfig(Section):
    """How long to train, how many pairs a step takes, and what is written during the run."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        1.0, description="passes over the data"
    )
    steps: Count | None = Field(None, description="optimizer steps, instead of epochs")
    pairs_per_step: Annotated[int, Field(ge=1, le=2**20)] = Field(
        32, description="pairs of one optimizer step, over all devices"
    )
    tokens_per_batch: Literal["auto"] | Annotated[int, Field(ge=16, le=2**31 - 1)] = Field(
        "auto", description="tokens of one batch at most; auto = what memory allows"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="decides everything random")
    log_every: Count = Field(1, description="steps between rows of the log")
    eval_every: Count | None = Field(50, description="steps between evaluations; null = never")
    save_every: Count | None = Field(200, description="steps between checkpoints; null = never")
    keep: Count = Field(2, description="checkpoints kept")
    best: Literal["eval_loss", "eval_accuracy"] | None = Field(
        None, description="keep the model of the best evaluation beside the last; null = do not"
    )
    patience: Count | None = Field(
        None, description="end after so many evaluations without a better one; null = never"
    )
    checkpointing: Literal["auto", "none", "layers"] = Field(
        "auto",
        description="layers = the backward runs every layer once more: less memory, more time; "
        "auto = none where the longest pair fits without it",
    )
    deterministic: bool = Field(
        True, description="same bytes from the same run; false may be faster on CUDA"
    )

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        epochs, steps = given.get("epochs", 1), given.get("steps")
        if epochs is None and steps is None:
            what, hint = "no length is given", "give one of them a number"
        elif steps is not None and given.get("epochs") is not None:
            what = f"both are given: {epochs} and {steps}"
            hint = "keep one; train.epochs=null removes the epochs"
        else:
            return given if steps is None else {**given, "epochs": None}
        raise ConfigError(what, where="train.epochs and train.steps", hint=hint)


class EvalConfig(Section):
    """What is looked at beside the losses: answers that the model writes itself."""

    samples: Annotated[int, Field(ge=0, le=10_000)] = Field(
        8, description="held-out prompts that the initial and the trained model answer; 0 = none"
    )
    max_new_tokens: Literal["auto"] | Count = Field(
        "auto",
        description="tokens of such an answer at most; auto = 128, or fewer where a large model "
        "has a short run on a CPU",
    )


class ParallelConfig(Section):
    """How a run is spread over processes, which changes nothing of what it computes."""

    processes: Literal["auto"] | Annotated[int, Field(ge=1, le=2**16)] = Field(
        "auto", description="processes that train together; auto = one for each visible GPU"
    )
    mode: Literal["auto", "replicate", "shard", "hybrid"] = Field(
        "auto",
        description="replicate = each holds the whole model; shard = each holds a part; hybrid = "
        "each machine holds it once, in parts; auto = replicate where a step fits so",
    )
    timeout: Annotated[float, Field(gt=0, le=10**6)] = Field(
        600.0, description="seconds that a process waits for the others before it gives them up"
    )


def _lora_by_default(value: Any) -> Any:
    """``adapter: {r: 8}`` means LoRA, as leaving the section out does."""
    return {"kind": "lora", **value} if isinstance(value, Mapping) else value


Adapter = Annotated[
    Annotated[LoraConfig | NoAdapter, Field(discriminator="kind")],
    BeforeValidator(_lora_by_default),
]


class Config(Section):
    """A whole run in one place. Sections that are left out take their defaults."""

    model: ModelConfig
    data: DataConfig
    adapter: Adapter = LoraConfig()
    reference: ReferenceConfig = ReferenceConfig()
    loss: LossConfig = SigmoidLoss()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    parallel: ParallelConfig = ParallelConfig()
    out: OutPath = Field(description="run folder, which the run makes")
    track: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="a tracker that shows the metrics, too; no part of what a run is"
    )
    lang: Literal["auto", "en", "ko"] = Field(
        "auto", description="language of the report; auto = the system's; no part of what a run is"
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        """A key that this run would not read is an error, not a silence."""
        check_options(self.loss)
        loss: Any = self.loss
        train, reference = self.train.model_fields_set, self.reference.model_fields_set
        if self.data.eval is None and "eval_every" in train and self.train.eval_every is not None:
            raise _not_read("train.eval_every", "data.eval is null")
        if self.train.best is not None and self.data.eval is None:
            raise _not_read("train.best", "data.eval is null")
        if self.train.patience is not None:
            if self.train.best is None:
                raise _not_read("train.patience", "train.best is null")
            if self.train.eval_every is None:
                raise _not_read("train.patience", "train.eval_every is null")
        if self.train.save_every is None and "keep" in train:
            raise _not_read("train.keep", "train.save_every is null")
        if self.optim.warmup_from_zero and not self.optim.warmup:
            raise _not_read("optim.warmup_from_zero", "optim.warmup is 0")
        if self.eval.samples == 0 and "max_new_tokens" in self.eval.model_fields_set:
            raise _not_read("eval.max_new_tokens", "eval.samples is 0")
        if self.reference.update_every is None and "update_mix" in reference:
            raise _not_read("reference.update_mix", "reference.update_every is null")
        if not needs(loss, "reference"):
            for key in ("path", "update_every"):
                if getattr(self.reference, key) is not None:
                    raise _not_read(f"reference.{key}", f"the loss {loss.name} reads no reference")
        if self.reference.update_every is not None and self.reference.path is not None:
            raise ConfigError(
                "a reference that moves begins as the initial policy, so it has no path",
                where="reference.path and reference.update_every",
                hint="keep one of the two",
            )
        if self.model.quantise != "none" and self.adapter.kind == "none":
            raise ConfigError(
                "weights in four bits cannot be trained",
                where="model.quantise",
                hint="use adapter.kind: lora, or remove model.quantise",
            )
        if self.model.quantise != "none" and self.model.dtype == "float64":
            what = "weights of float64 are not packed in four bits"
            raise ConfigError(what, where="model.quantise", hint="use model.dtype: float32")
        if self.parallel.mode in ("shard", "hybrid"):
            for key, is_set in (
                ("model.quantise", self.model.quantise != "none"),
                ("optim.kind", self.optim.kind != "adamw"),
            ):
                if is_set:
                    raise ConfigError(
                        "blocks of eight and four bits are not cut into parts",
                        where=f"{key} and parallel.mode",
                        hint="write parallel.mode: replicate",
                    )
        warmup, steps = self.optim.warmup, self.train.steps
        if isinstance(warmup, int) and steps is not None and warmup > steps:
            raise ConfigError(
                f"{warmup} steps of warm-up do not fit in train.steps, {steps}",
                where="optim.warmup",
                hint="write fewer steps, or a share such as 0.1",
            )
        return self


def _not_read(key: str, because: str) -> ConfigError:
    return ConfigError(f"has no effect: {because}", where=key, hint=f"remove {key}, or change that")


@cache
def json_schema() -> dict[str, Any]:
    """The tree as JSON Schema, for editors and error messages; callers must not change it."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **Config.model_json_schema()}
