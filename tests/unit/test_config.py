"""A config is read strictly, every mistake is one clear line, and what is written reads back."""

import copy
import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from likelier.base.errors import ConfigError, InputMissing
from likelier.config import (
    IN_MEMORY,
    Config,
    config_from,
    difference,
    dump,
    json_schema,
    learning_rate,
    live,
    load_config,
    resolved,
)
from likelier.config import strict_yaml as yaml_text
from likelier.config.explain import _known_keys
from likelier.config.other_trainers import NEEDLESS, RENAMED
from likelier.config.schema import NoAdapter

LEAST = {"model": {"path": "m"}, "data": {"train": "pairs.jsonl"}, "out": "runs/a"}
FACTS = {"dtype": "float32", "save_dtype": "bfloat16", "tokens_per_batch": 4096,
         "checkpointing": "none"}  # fmt: skip

FULL_TEXT = """
model:     {path: LGAI-EXAONE/EXAONE-4.0-1.2B, revision: null, dtype: auto, save_dtype: auto,
            quantise: none}
data:      {train: pairs.jsonl, eval: 5%, columns: {}, template: {}, max_length: 2048,
            overlong: drop, on_bad_row: error}
adapter:   {kind: lora, r: 16, alpha: 32, targets: all-linear}      # or {kind: none}
reference: {path: null}
loss:      {name: sigmoid, beta: 0.1}
optim:     {kind: adamw, lr: auto, schedule: cosine, warmup: 0.1, betas: [0.9, 0.999], eps: 1.0e-8,
            weight_decay: 0.0, max_grad_norm: 1.0}
train:     {epochs: 1, pairs_per_step: 32, tokens_per_batch: auto, seed: 0, log_every: 1,
            eval_every: 50, save_every: 200, keep: 2}
out: runs/my-run
track: none
"""


def with_keys(**sections):
    """The least config with further keys: ``with_keys(optim={"lr": 1})``."""
    tree = copy.deepcopy(LEAST)
    for name, value in sections.items():
        mapping = isinstance(value, dict) and isinstance(tree.get(name), dict)
        tree[name] = {**tree[name], **value} if mapping else value
    return tree


def refused(tree) -> str:
    with pytest.raises(ConfigError) as raised:
        config_from(tree)
    message = str(raised.value)
    for leak in ("pydantic", "validation error", "Input should", "Extra inputs", "Value error"):
        assert leak not in message
    assert len(message.splitlines()) <= 3
    return message


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# ---- what is read ------------------------------------------------------------------------------


def test_the_published_example_is_the_defaults(file):
    config = load_config(file(FULL_TEXT))
    assert config.model.path == "LGAI-EXAONE/EXAONE-4.0-1.2B"
    spare = {"model": config.model, "data": config.data, "out": config.out}
    assert config == Config(**spare)


def test_defaults_fill_what_is_left_out():
    config = config_from(LEAST)
    assert config.adapter.kind == "lora" and config.loss.beta == 0.1
    assert config.train.epochs == 1 and config.train.steps is None
    assert config.out == Path("runs/a")
    assert config.train.deterministic and config.train.checkpointing == "auto"


def test_words_of_a_command_line_win_over_the_file(file):
    path = file("model: {path: m}\ndata: {train: a.jsonl}\nout: runs/a\nloss: {beta: 0.3}\n")
    config = load_config(
        path, ["loss.beta=5e-1", "optim.lr=1e-6", "data.eval=null", "train.steps=7"]
    )
    assert (config.loss.beta, config.optim.lr, config.data.eval) == (0.5, 1e-6, None)
    assert (config.train.steps, config.train.epochs) == (7, None)


def test_words_alone_make_a_config():
    config = load_config(None, ["model.path=m", "data.train=a b#1: c.jsonl", "out=runs/x=y"])
    assert config.data.train == "a b#1: c.jsonl"
    assert config.out == Path("runs/x=y")


def test_a_word_in_brackets_replaces_a_section(file):
    path = file("model: {path: m}\ndata: {train: a}\nout: o\nadapter: {kind: lora, r: 4}\n")
    assert load_config(path, ["adapter={kind: none}"]).adapter.kind == "none"
    assert load_config(path, ["data.columns.prompt=질문"]).data.columns == {"prompt": "질문"}
    assert load_config(path, ["adapter.targets=[q_proj, v_proj]"]).adapter.targets == (
        "q_proj",
        "v_proj",
    )


def test_home_is_expanded_and_relative_paths_stay(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    tree = with_keys(model={"path": "~/m"}, reference={"path": "../r"}, out="~/runs/a")
    config = config_from(tree)
    assert config.model.path == "/home/someone/m"
    assert config.reference.path == "../r"
    assert config.out == Path("/home/someone/runs/a")


def test_a_callers_mapping_is_left_as_it_was():
    tree = with_keys(data={"columns": {"prompt": "q"}})
    before = copy.deepcopy(tree)
    config_from(tree, in_memory=["data.eval"])
    assert tree == before


@pytest.mark.parametrize(
    ("eval", "share", "path"),
    [("5%", 0.05, None), ("0.5%", 0.005, None), ("held.jsonl", None, "held.jsonl"), (None,) * 3],
)
def test_eval_is_a_share_a_file_or_nothing(eval, share, path):
    data = config_from(with_keys(data={"eval": eval})).data
    assert data.eval_share == (pytest.approx(share) if share else None)
    assert data.eval_path == path


@pytest.mark.parametrize(("warmup", "kind"), [(0.1, float), (0, int), (10, int), (0.0, float)])
def test_warmup_is_a_share_or_a_number_of_steps(warmup, kind):
    found = config_from(with_keys(optim={"warmup": warmup})).optim.warmup
    assert found == warmup and type(found) is kind


def test_auto_learning_rate_depends_on_the_adapter():
    assert learning_rate(config_from(LEAST)) == 1e-5
    assert learning_rate(config_from(with_keys(adapter={"kind": "none"}))) == 5e-7
    assert learning_rate(config_from(with_keys(optim={"lr": 3e-6}))) == 3e-6


def test_a_config_cannot_be_changed():
    config = config_from(LEAST)
    with pytest.raises(Exception, match="frozen"):
        config.optim.lr = 1.0


def test_config_from_takes_a_path_a_mapping_and_a_config(file):
    config = config_from(LEAST)
    assert config_from(config) is config
    assert config_from(str(file(dump(config)))) == config


# ---- what is refused ---------------------------------------------------------------------------


def test_missing_keys_are_named():
    assert refused({}).startswith("model: is needed")
    assert refused({**LEAST, "model": {}}).startswith("model.path: is needed")
    assert refused({"model": {"path": "m"}, "data": {"train": "a"}}).startswith("out: is needed")


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("loss", {"beta": 0}, "loss.beta: 0 is not possible; write a number over 0 and up to 100"),
        ("loss", {"beta": -0.1}, "over 0"),
        ("loss", {"beta": 1e9}, "up to 100"),
        ("loss", {"beta": float("nan")}, "loss.beta: .nan"),
        ("loss", {"beta": float("inf")}, "loss.beta: .inf"),
        ("loss", {"beta": "0.1 "}, "loss.beta: '0.1 '"),
        ("loss", {"beta": True}, "loss.beta: true"),
        ("loss", {"name": "ipo"}, "loss.name: ipo is two losses"),
        (
            "optim",
            {"lr": -1e-6},
            "optim.lr: -1.0e-06 is not possible; write auto, or a number over",
        ),
        ("optim", {"lr": 2}, "up to 1"),
        ("optim", {"lr": "car"}, "optim.lr: car"),
        ("optim", {"betas": [0.9]}, "optim.betas: [0.9] is not possible; write a list of 2"),
        ("optim", {"betas": [0.9, 1]}, "to under 1"),
        ("optim", {"betas": 0.9}, "a list of 2"),
        ("optim", {"warmup": 1.0}, "optim.warmup: 1.0"),
        ("optim", {"warmup": -1}, "optim.warmup: -1"),
        ("optim", {"warmup": True}, "optim.warmup: true"),
        ("optim", {"schedule": "poly"}, "write cosine, linear or constant"),
        ("optim", {"max_grad_norm": 0}, "optim.max_grad_norm: 0"),
        ("optim", "adamw_torch", "optim: adamw_torch"),
        ("model", {"dtype": "float16"}, "model.dtype: float16"),
        ("model", {"revision": ""}, "model.revision"),
        ("data", {"max_length": 1}, "a whole number from 2"),
        ("data", {"max_length": 12.5}, "data.max_length: 12.5"),
        ("data", {"max_length": "1k"}, "data.max_length: 1k"),
        ("data", {"overlong": "cut"}, "write drop, trim or error"),
        ("data", {"eval": 0.05}, "a share like 5%"),
        ("data", {"eval": "0%"}, "data.eval: '0%' is not over 0%"),
        ("data", {"eval": "100%"}, "under 100%"),
        ("data", {"eval": "five%"}, "'five%' is not a share"),
        ("data", {"columns": {"prompt": 3}}, "data.columns.prompt: 3"),
        ("data", {"columns": {"promt": "q"}}, "did you mean data.columns.prompt?"),
        ("data", {"template": {"a": float("inf")}}, "data.template"),
        ("data", {"train": " "}, "data.train: is empty"),
        ("data", {"train": "a\nb"}, "line break"),
        ("data", {"train": "x" * 5000}, "5000 characters"),
        ("data", {"train": "$DATA/a.jsonl"}, "shell variable"),
        ("train", {"pairs_per_step": 0}, "train.pairs_per_step: 0"),
        ("train", {"epochs": float("inf")}, "train.epochs: .inf"),
        ("train", {"seed": -1}, "train.seed: -1"),
        ("train", {"tokens_per_batch": 1}, "write auto, or a whole number from 16"),
        ("train", {"keep": None}, "train.keep: null"),
        (
            "train",
            {"deterministic": "yes"},
            "train.deterministic: 'yes' is not possible; write true or false",
        ),
        ("adapter", {"kind": "dora"}, "adapter.kind: dora is not possible; write lora or none"),
        ("adapter", {"targets": []}, "adapter.targets: []"),
        ("adapter", {"targets": [1]}, "adapter.targets: [1]"),
        ("adapter", {"r": 0}, "adapter.r: 0"),
        ("adapter", "none", "adapter: none is not possible; write a section"),
        (
            "track",
            "comet",
            "track: comet is not possible; write none, tensorboard, wandb or trackio",
        ),
        ("out", 3, "out: 3"),
        ("out", "", "out: is empty"),
        ("model", None, "model: null is not possible; write a section"),
    ],
)
def test_an_impossible_value_is_named_with_its_range(section, value, words):
    message = refused(with_keys(**{section: value}))
    assert words in message
    assert message.startswith(section)


def test_a_long_value_is_cut_to_a_line():
    assert len(refused(with_keys(optim={"lr": "x" * 9999})).splitlines()[0]) < 200


def test_a_url_is_not_repeated_since_it_may_hold_a_password():
    message = refused(with_keys(data={"train": "https://user:canary@host/a.jsonl"}))
    assert "URL" in message and "canary" not in message


def test_steps_and_epochs_exclude_each_other():
    assert "both are given: 2 and 5" in refused(with_keys(train={"steps": 5, "epochs": 2}))
    assert "no length" in refused(with_keys(train={"epochs": None}))
    assert "no length" in refused(with_keys(train={"epochs": None, "steps": None}))
    assert config_from(with_keys(train={"steps": 5, "epochs": None})).train.steps == 5


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"data": {"eval": None}, "train": {"eval_every": 5}}, "train.eval_every"),
        ({"train": {"save_every": None, "keep": 2}}, "train.keep"),
        ({"optim": {"warmup": 20}, "train": {"steps": 10}}, "optim.warmup"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(sections, key):
    assert refused(with_keys(**sections)).startswith(key)


def test_a_key_of_the_other_kind_says_how_to_change_kind():
    message = refused(with_keys(adapter={"kind": "none", "r": 8}))
    assert message.startswith("adapter.r: unknown key")
    assert "adapter={kind: none}" in message


@pytest.mark.parametrize(
    ("tree", "answer"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr: unknown key\n  did you mean optim.lr?"),
        ({"train": {"stepz": 1}}, "did you mean train.steps?"),
        ({"train": {"lr": 1e-6}}, "write optim.lr: 1.0e-06"),
        ({"lr": 1e-6}, "write optim.lr: 1.0e-06"),
        ({"optim.lr": 1e-6}, "nest it: optim: {lr: 1.0e-06}"),
        ({"modle": {"path": "m"}}, "did you mean model?"),
        ({"xyzzy": 1}, "keys: model, data, adapter"),
        ({"loss": {"xyzzy": 1}}, "loss has the keys: name, beta"),
        ({"adapter": {"dropout": 0.1}}, "dropout is always off"),
        ({"learnin_rate": 1}, "learning_rate is called optim.lr here"),
        ({"adapter": {"xyzzy": 1}}, "adapter has the keys: kind, r, alpha, targets"),
        ({"train": {"dtype": "float32"}}, "write model.dtype: float32"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(tree, answer):
    assert answer in refused(with_keys(**tree))


@pytest.mark.parametrize(
    ("foreign", "answer"),
    [
        ({"learning_rate": 5e-7}, "write optim.lr: 5.0e-07"),
        ({"per_device_train_batch_size": 4}, "write train.pairs_per_step: 4"),
        ({"gradient_accumulation_steps": 4}, "write train.pairs_per_step: 32"),
        ({"num_train_epochs": 3}, "write train.epochs: 3"),
        ({"max_steps": 100}, "write train.steps: 100"),
        ({"max_steps": -1}, "leave it out"),
        ({"beta": 0.2}, "write loss.beta: 0.2"),
        ({"max_length": 512}, "write data.max_length: 512"),
        ({"model_name_or_path": "a/b"}, "write model.path: a/b"),
        ({"output_dir": "o2"}, "write out: o2"),
        ({"warmup_ratio": 0.03}, "write optim.warmup: 0.03"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "write optim.schedule: constant"),
        ({"lr_scheduler_type": "polynomial"}, "our key is optim.schedule"),
        ({"max_grad_norm": 0}, "write optim.max_grad_norm: null"),
        ({"logging_steps": 10}, "write train.log_every: 10"),
        ({"save_steps": 500}, "write train.save_every: 500"),
        ({"save_steps": 0.1}, "our key is train.save_every"),
        ({"eval_steps": 5}, "write train.eval_every: 5"),
        ({"save_total_limit": 3}, "write train.keep: 3"),
        ({"loss_type": ["sigmoid"]}, "write loss.name: sigmoid"),
        ({"loss_type": "sigmoid_norm"}, "write loss.name: sigmoid_mean"),
        ({"loss_type": "ipo"}, "our key is loss.name"),
        ({"label_smoothing": 0.1}, "sigmoid has none"),
        ({"precompute_ref_log_probs": True}, "always computed once"),
        ({"ref_model": "r"}, "write reference.path: r"),
        ({"report_to": "none"}, "write track: none"),
        ({"report_to": ["wandb"]}, "write track: wandb"),
        ({"report_to": "all"}, "our key is track"),
        ({"bf16": True}, "write model.dtype: bfloat16"),
        ({"fp16": True}, "float16 overflows"),
        ({"torch_dtype": "torch.float32"}, "write model.dtype: float32"),
        ({"use_peft": False}, "write adapter.kind: none"),
        ({"load_in_4bit": True}, "write model.quantise: nf4"),
        ({"quantization_bit": 8}, "our key is model.quantise"),
        ({"load_in_4bit": False}, "leave it out"),
        ({"lora_r": 8}, "write adapter.r: 8"),
        ({"lora_alpha": 16}, "write adapter.alpha: 16"),
        ({"lora_dropout": 0.05}, "dropout is always off"),
        ({"lora_target_modules": ["q"]}, "write adapter.targets: [q]"),
        ({"adam_beta2": 0.95}, "write optim.betas: [0.9, 0.95]"),
        ({"save_strategy": "no"}, "write train.save_every: null"),
        ({"hub_token": "hf_canary"}, "HF_TOKEN"),
        ({"train": {"learning_rate": 1e-6}}, "write optim.lr: 1.0e-06"),
        ({"train": {"tokens_per_pass": 4096}}, "write train.tokens_per_batch: 4096"),
        ({"train": {"tokens_per_pass": "auto"}}, "write train.tokens_per_batch: auto"),
        ({"train": {"gradient_checkpointing": True}}, "write train.checkpointing: layers"),
        ({"train": {"gradient_checkpointing": False}}, "write train.checkpointing: none"),
        ({"gradient_checkpointing": True}, "write train.checkpointing: layers"),
        ({"activation_checkpointing": "offload"}, "our key is train.checkpointing"),
        ({"activation_offloading": True}, "train.checkpointing=layers saves memory"),
        ({"train": {"compile": True}}, "compiling the layers is no longer offered"),
        ({"torch_compile": True}, "compiling the layers is no longer offered"),
    ],
)
def test_other_trainers_names_are_answered_with_ours(foreign, answer):
    message = refused({**LEAST, **foreign})
    assert answer in message
    assert "canary" not in message


def test_a_config_from_another_trainer_is_answered_in_one_go():
    foreign = {
        "learning_rate": 5e-7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "bf16": True,
    }
    message = refused({**LEAST, **foreign})
    write = "write optim.lr: 5.0e-07 · train.pairs_per_step: 32 · model.dtype: bfloat16"
    assert write in message and len(message.splitlines()) == 2


def test_every_answer_names_a_key_that_exists():
    keys = set(_known_keys())
    assert set(RENAMED.values()) <= keys
    assert not (RENAMED.keys() | NEEDLESS.keys()) & (keys - {"optim"})


def test_every_converted_value_is_one_we_take():
    """What an answer tells people to write must not be refused in its turn."""
    samples = {
        "learning_rate": 5e-7,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "max_steps": 100,
        "warmup_steps": 10,
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_peft": True,
        "lora_target_modules": "q_proj",
        "adam_beta1": 0.8,
        "torch_dtype": "bfloat16",
        "report_to": "none",
        "full_determinism": False,
    }
    for name, value in samples.items():
        _, _, written = refused({**LEAST, name: value}).partition("write ")
        key, _, shown = written.partition(": ")
        tree = copy.deepcopy(LEAST)
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = yaml.load(
            shown, yaml_text._Loader
        )
        config_from(tree)


# What TRL 1.16's DPOConfig adds to transformers' TrainingArguments, with its defaults.
OF_DPO_CONFIG = {
    "activation_offloading": False, "beta": 0.1, "dataset_num_proc": None, "disable_dropout": True,
    "discopop_tau": 0.05, "f_alpha_divergence_coef": 0.5, "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0, "ld_alpha": None, "loss_type": ["sigmoid"], "loss_weights": None,
    "max_length": 1024, "model_init_kwargs": None, "pad_to_multiple_of": "auto", "pad_token": None,
    "padding_free": False, "precompute_ref_batch_size": None, "precompute_ref_log_probs": False,
    "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512, "router_aux_loss_coef": None,
    "sync_ref_model": False, "truncation_mode": "keep_start", "trust_remote_code": False,
    "use_weighting": False,
}  # fmt: skip
OF_TRAINING_ARGUMENTS = {
    field.name: None if field.default is dataclasses.MISSING else field.default
    for field in dataclasses.fields(TrainingArguments)
}


@pytest.mark.parametrize("name", sorted(OF_DPO_CONFIG | OF_TRAINING_ARGUMENTS))
def test_every_key_of_dpo_config_has_its_answer(name):
    """At its default: our key with a value that we take, or why it is not needed."""
    value = (OF_TRAINING_ARGUMENTS | OF_DPO_CONFIG)[name]
    plain_value = getattr(value, "value", value)  # of an enum
    message = refused({**LEAST, name: plain_value})
    assert message.startswith(f"{name}: "), message
    hint = message.split("\n  ")[1]
    assert hint.startswith(("write ", "leave it out", "our key is ")), message
    if hint.startswith("write ") and name != "label_smoothing":
        follow(hint)


def follow(hint: str) -> Config:
    """The least config with what a hint tells people to write."""
    tree = copy.deepcopy(LEAST)
    for written in hint.removeprefix("write ").split(" · "):
        key, colon, shown = written.partition(": ")
        assert colon, written
        section, _, leaf = key.rpartition(".")
        value = yaml.load(shown, yaml_text._Loader)
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return config_from(tree)


AXOLOTL = """
base_model: meta-llama/Llama-3.1-8B-Instruct
model_type: LlamaForCausalLM
load_in_8bit: true
rl: dpo
datasets:
  - {path: a/pairs, type: chat_template.default, split: train}
  - {path: more.jsonl, type: chat_template.default}
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/dpo-out
sequence_len: 4096
sample_packing: false
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
flash_attention: true
warmup_steps: 10
weight_decay: 0.0
"""
LLAMA_FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.2
pref_loss: orpo
dataset: data/pairs.json
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
output_dir: saves/dpo
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
"""


@pytest.mark.parametrize(
    ("text", "trainer", "ours"),
    [
        (AXOLOTL, "Axolotl", {
            "model.path": "meta-llama/Llama-3.1-8B-Instruct", "loss.name": "sigmoid",
            "data.train": {"a/pairs:train": 1.0, "more.jsonl": 1.0}, "data.eval": "5%",
            "data.max_length": 4096, "adapter.kind": "lora", "adapter.r": 32, "adapter.alpha": 16,
            "train.pairs_per_step": 8, "train.epochs": 4.0, "optim.lr": 0.0002, "optim.warmup": 10,
            "model.dtype": "auto",
        }),
        (LLAMA_FACTORY, "LLaMA-Factory", {
            "model.path": "meta-llama/Meta-Llama-3-8B-Instruct", "loss.name": "orpo",
            "loss.beta": 0.2, "data.train": "data/pairs.json", "data.eval": "10%",
            "adapter.targets": "all-linear", "adapter.r": 8, "train.pairs_per_step": 8,
            "train.save_every": 500, "optim.lr": 5e-6, "model.dtype": "bfloat16",
        }),
    ],
)  # fmt: skip
def test_a_whole_config_of_another_trainer_is_answered_and_followed(text, trainer, ours, file):
    with pytest.raises(ConfigError) as raised:
        load_config(file(text))
    what, write, leave_out = str(raised.value).split("\n  ")
    assert what.startswith(f"this is a config of {trainer}, for `likelier import`: ")
    assert leave_out.startswith("leave out ") and write.startswith("write ")
    config = follow(write)
    for key, value in ours.items():
        section, _, leaf = key.rpartition(".")
        assert getattr(getattr(config, section), leaf) == value, key
    keys = yaml.safe_load(text).keys() - ours.keys()
    left_out = [name for name in keys if NEEDLESS.get(name)]
    assert left_out and all(name in leave_out for name in left_out)


@pytest.mark.parametrize(
    ("losses", "weights", "answer"),
    [
        (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0], {"nll": 1.0}),
        (["sigmoid", "sft"], None, {"name": "sigmoid", "nll": 1.0}),
        (["apo_zero", "nca_pair"], None, {"name": "mixture"}),
    ],
)
def test_several_losses_of_trl_become_a_mixture(losses, weights, answer):
    message = refused({**LEAST, "loss_type": losses, "loss_weights": weights})
    loss = follow(message.split("\n  ")[1]).loss
    assert {key: getattr(loss, key) for key in answer} == answer
    if loss.name == "mixture" and weights:
        assert [(part.name, part.weight) for part in loss.parts] == [("sigmoid", 0.8), ("bco", 0.2)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'),
        ("pairs.json", '[{"prompt": "a", "chosen": "b", "rejected": "c"}]'),
        ("pairs.json", '{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}'),
        ("pairs.csv", "prompt,chosen,rejected\na,b,c\n"),
        ("pairs.parquet", "PAR1"),
        ("my pairs.jsonl.gz", ""),
    ],
)
def test_data_where_a_config_is_expected(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    message = str(raised.value)
    assert "these are data, and a config is needed here" in message
    words = shlex.split(message.splitlines()[-1])
    assert words[:2] == ["likelier", "train"]
    assert load_config(None, words[2:]).data.train == str(path)  # the cure can be followed


@pytest.mark.parametrize(
    ("inside", "answer"),
    [("run.json", "config.yaml"), ("config.json", "write model.path="), ("x", "a YAML config")],
)
def test_a_folder_where_a_config_is_expected(tmp_path, inside, answer):
    (tmp_path / inside).write_text("{}")
    with pytest.raises(InputMissing, match=answer):
        load_config(tmp_path)


@pytest.mark.parametrize("bad", [{3: 4}, {"data": {None: 1}}])
def test_keys_that_are_not_text_are_refused(bad):
    assert "is not text" in refused(with_keys(**bad) if "data" in bad else {**LEAST, **bad})


# ---- words of a command line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.beta"], "'loss.beta' is not key=value"),
        (["=1"], "is not key=value"),
        (["loss..beta=1"], "is not key=value"),
        (["loss.beta=1", "loss.beta=2"], "loss.beta: is given twice"),
        (["model.path.x=1"], "model.path: holds 'm', not keys of its own"),
        (["adapter={kind: none"], "adapter:1: "),
        (["loss.beta="], "loss.beta: null"),
    ],
)
def test_bad_words_are_refused(words, message, file):
    path = file(dump(config_from(LEAST)))
    with pytest.raises(ConfigError) as raised:
        load_config(path, words)
    assert message in str(raised.value)


# ---- YAML --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands twice"),
        ("model:\n\tpath: m\n", 2, "a tab"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "tag"),
        ("a: !!int 3\n", 1, "tag"),
        ("a: &x [1]\nb: *x\n", 1, "anchors"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: [1, 2\nb: 3\n", None, ""),
        ("? [1, 2]\n: 3\n", 1, "a key must be a word"),
        ("a: " + "[" * 5000, 1, "nested"),
    ],
)
def test_yaml_outside_the_strict_part_is_refused_with_its_line(file, text, line, problem):
    path = file(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    message = str(raised.value)
    assert problem in message
    assert message.startswith(f"{path}:{line}: " if line else f"{path}:")


def test_a_bomb_of_anchors_is_refused_at_once(file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="anchors"):
        load_config(file("\n".join(lines)))


def test_files_that_are_no_config(tmp_path, file):
    with pytest.raises(InputMissing, match="no such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(InputMissing, match="not a file"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="holds no keys"):
        load_config(file("- a\n- b\n"))
    with pytest.raises(ConfigError, match="model: is needed"):
        load_config(file("# nothing\n"))
    with pytest.raises(ConfigError, match="characters long"):
        load_config(file("#" * 2_000_000))
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")
    (tmp_path / "nul.yaml").write_bytes(b"a: \x00")
    with pytest.raises(ConfigError, match="does not allow"):
        load_config(tmp_path / "nul.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + dump(config_from(LEAST)).encode())
    assert load_config(path) == config_from(LEAST)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("5e-7", 5e-7),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1e5", 1e5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("off", "off"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        (".inf", ".inf"),
        ("2026-01-01", "2026-01-01"),
        ("'5e-7'", "5e-7"),
        ('""', ""),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(word, value):
    found = yaml_text.parse(f"a: {word}\n", "here")["a"]
    assert found == value and type(found) is type(value)
    assert yaml_text.argument(word, "a") == value


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["1e5", "yes", "010", "~", "", "5%", "no", "null", "1:30", "[", "a: b", "#"]),
)
JSON = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text("ab_1.", min_size=1), below, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), JSON, min_size=1, max_size=4))
def test_every_tree_reads_back_as_it_was_written(tree):
    written = yaml_text.document(tree)
    found = yaml_text.parse(written, "here")
    assert all(len(yaml_text.flow(value).splitlines()) == 1 for value in tree.values())
    assert found == tree
    assert json.dumps(found) == json.dumps(tree), "types too: 1 is not 1.0"


# ---- resolved, and compared --------------------------------------------------------------------

TREES = [
    LEAST,
    with_keys(adapter={"kind": "none"}, train={"steps": 3}),
    with_keys(data={"eval": None, "columns": {"prompt": "질문"}, "template": {"think": False}}),
    with_keys(train={"save_every": None}, optim={"warmup": 5, "max_grad_norm": None}),
    with_keys(adapter={"targets": ["q"]}, data={"eval": "1e5", "train": "010"}),
]


@pytest.mark.parametrize("tree", TREES)
def test_a_resolved_config_runs_again_as_it_is(tree, file):
    config = config_from(tree)
    decided = resolved(config, **FACTS)
    boundary = decided["data"].pop("boundary")  # decided for every pair
    stream = decided["model"].pop("stream")  # decided by each machine
    length = decided["eval"].pop("max_new_tokens")  # decided when answers are asked for
    parallel = decided.pop("parallel")  # decided by each start
    assert decided.pop("lang") == "auto"  # decided when a report is written
    assert "auto" not in [value for section in decided.values() for value in _values(section)]
    decided["data"]["boundary"], decided["model"]["stream"] = boundary, stream
    decided["eval"]["max_new_tokens"], decided["parallel"] = length, parallel
    decided["lang"] = "auto"
    again = load_config(file(dump(decided)))
    assert resolved(again, **FACTS) == decided
    assert difference(decided, again) == []


@pytest.mark.parametrize("tree", TREES)
def test_a_dumped_config_reads_back(tree, file):
    config = config_from(tree)
    assert load_config(file(dump(config))) == config
    assert yaml.safe_load(dump(config)) == live(config), "to other readers too"


def _values(section):
    return section.values() if isinstance(section, dict) else [section]


def test_only_live_keys_are_kept():
    train = live(config_from(with_keys(train={"steps": 3})))["train"]
    assert "epochs" not in train and train["steps"] == 3
    assert "steps" not in live(config_from(LEAST))["train"]
    assert "eval_every" not in live(config_from(with_keys(data={"eval": None})))["train"]
    assert "keep" not in live(config_from(with_keys(train={"save_every": None})))["train"]
    assert live(config_from(with_keys(adapter={"kind": "none"})))["adapter"] == {"kind": "none"}


def test_resolved_keeps_what_was_given_and_decides_the_rest():
    config = config_from(with_keys(model={"dtype": "float64"}, adapter={"kind": "none"}))
    decided = resolved(config, **FACTS)
    assert decided["model"]["dtype"] == "float64", "a given value stays"
    assert decided["model"]["save_dtype"] == "bfloat16"
    assert decided["optim"]["lr"] == 5e-7
    assert decided["train"]["tokens_per_batch"] == 4096
    assert resolved(config_from(LEAST), **FACTS)["optim"]["lr"] == 1e-5


def test_resolved_refuses_what_is_our_own_mistake():
    config = config_from(LEAST)
    others = {name: fact for name, fact in FACTS.items() if name != "tokens_per_batch"}
    with pytest.raises(ValueError, match="nothing was decided for tokens_per_batch"):
        resolved(config, **others)
    with pytest.raises(TypeError, match="colour"):
        resolved(config, **FACTS, colour="red")
    with pytest.raises(ValueError, match="float16"):
        resolved(config, **{**FACTS, "dtype": "float16"})


def test_difference_names_every_key_with_both_values():
    before = config_from(LEAST)
    after = config_from(
        with_keys(optim={"lr": 2e-6}, train={"steps": 3}, adapter={"kind": "none"}, out="runs/b")
    )
    assert difference(before, before) == []
    found = difference(before, after)
    assert "optim.lr: auto before, 2.0e-06 now" in found
    assert "train.epochs: 1.0 before, nothing now" in found
    assert "train.steps: nothing before, 3 now" in found
    assert "adapter.kind: lora before, none now" in found
    assert "out: runs/a before, runs/b now" in found
    assert len(found) == 9, found  # weights in four bits are for adapters alone
    assert difference({"a": {"b": None}}, {}) == ["a.b: null before, nothing now"]


# ---- values given as Python objects ------------------------------------------------------------


def test_objects_replace_their_keys():
    given = ["model.path", "data.train"]
    config = config_from({"out": "runs/a"}, in_memory=given)
    assert config.model.path == config.data.train == IN_MEMORY
    assert config_from(config_from(LEAST), in_memory=given) == config
    assert config_from(config, in_memory=given) == config


def test_objects_keep_dead_keys_dead():
    config = config_from(with_keys(data={"eval": None}, adapter={"kind": "none"}))
    again = config_from(config, in_memory=["model.path"])
    assert again.data.eval is None and again.adapter.kind == "none"


def test_objects_keep_what_was_built_in_python():
    least = config_from(LEAST)
    config = Config(model=least.model, data=least.data, out=least.out, adapter=NoAdapter())
    assert config_from(config, in_memory=["model.path"]).adapter == NoAdapter()


def test_a_run_with_objects_cannot_be_run_from_its_file(file):
    path = file(dump(config_from(LEAST, in_memory=["data.train"])))
    with pytest.raises(ConfigError, match=r"data\.train: this run was given a Python object"):
        load_config(path)


# ---- the schema --------------------------------------------------------------------------------


def test_the_schema_is_json_and_describes_every_key():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    for name, section in schema["$defs"].items():
        if name == "JsonValue":
            continue
        assert section["additionalProperties"] is False, name
        for key, below in section["properties"].items():
            needs_words = key not in ("kind", "name", "seed")
            assert not needs_words or "description" in below, f"{name}.{key}"
