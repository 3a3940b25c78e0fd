"""Configs of other trainers imported: every key is answered, and what is written trains.

The files of tests/support/recipes have the shapes of published ones. bench/recipes.py trains those
of TRL by TRL too; its losses are compared with ours here.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests.support.runs import Place, make_place, training_rows
from tests.support.tiny import pair_rows, write_rows

from likelier.base.errors import ConfigError, LikelierError
from likelier.cli import main
from likelier.commands.import_config import _overridden
from likelier.config import Config, config_from, load_config
from likelier.config.recipes import _KNOWN, Translation, translate
from likelier.config.strict_yaml import parse
from likelier.run import train

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "support" / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))
MEASURED = json.loads((ROOT / "bench" / "results" / "recipes.json").read_text("utf-8"))
PAIRS = 24  # of bench/recipes.py
PROGRAM_OF = {"trl": "TRL", "axolotl": "Axolotl", "llama": "LLaMA-Factory"}


def imported(file: Path | dict[str, Any], program: str | None = None, **more: Any) -> Translation:
    tree = file if isinstance(file, dict) else parse(file.read_text("utf-8"), file.name)
    folder = RECIPES if isinstance(file, dict) else file.parent
    return translate(tree, program, folder, **more)


def answers(found: Translation) -> dict[str, Any]:
    return {one.key: one for one in found.answers}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny base, and an adapter on it that a run has left in ``sft``."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=6)
    lora = {"kind": "lora", "r": 4, "targets": ["q_proj"]}
    train(place.config("sft", adapter=lora, data__eval=None, train={"steps": 1}))
    return place


def rows_for(config: Config) -> list[dict[str, Any]]:
    """Rows whose columns have the names that an imported config gives them."""
    chats = not config.data.chat and "prompt" not in config.data.columns
    if config.data.columns.get("prompt") in ("conversation", "talk"):
        chats = True
    rows = pair_rows(12, chat=chats)
    if config.loss.name == "kto":
        rows = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in rows
            for side in ("chosen", "rejected")
        ]
    if config.data.columns.get("prompt") == "talk":  # as ShareGPT writes messages
        roles = {"user": "human", "assistant": "gpt"}
        rows = [
            {name: [{"from": roles[m["role"]], "value": m["content"]} for m in turns]
             for name, turns in row.items()}
            for row in rows
        ]  # fmt: skip
    named = {name: theirs for name, theirs in config.data.columns.items() if theirs}
    extra = {named["input"]: ""} if "input" in named else {}
    return [{named.get(key, key): value for key, value in row.items()} | extra for row in rows]


# ---- whole files -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_is_imported_loaded_and_trained(
    file: Path, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "config.yaml"
    assert main(["import", str(file), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and f"likelier train {out}" in captured.err
    found = load_config(out)
    data = write_rows(tmp_path / "pairs.jsonl", rows_for(found))
    words = [f"data.train={data}", f"out={tmp_path / 'run'}", "train.steps=2", "optim.warmup=1",
             "train.epochs=null", "train.pairs_per_step=4", "data.max_length=256",
             "optim.kind=adamw", "track=none", "eval.samples=0"]  # fmt: skip
    starts_with_adapter = found.adapter.kind == "lora" and "adapter" in file.stem
    words.append(f"model.path={place.folder / ('sft/adapter' if starts_with_adapter else 'base')}")
    words += [f"reference.path={place.base}"] if found.reference.path else []
    words += ["data.eval=null", "train.eval_every=null"] if found.data.eval_path else []
    run = train(load_config(out, words))
    losses = [row["loss"] for row in training_rows(run.folder)]
    assert len(losses) >= 1 and all(loss == loss for loss in losses)
    assert (run.folder / ("adapter" if found.adapter.kind == "lora" else "model")).is_dir()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_of_a_file_is_answered(file: Path) -> None:
    found = imported(file)
    assert found.program == PROGRAM_OF[file.stem.partition("-")[0]]
    tree = yaml.safe_load(file.read_text("utf-8"))
    answered = [one.key.partition("[")[0] for one in found.answers]
    assert set(answered) == set(tree)
    assert all(one.kind != "unknown" for one in found.answers)
    for one in found.answers:
        assert one.ours or one.text, one  # nothing is left without a word
        assert one.kind != "not there" or one.text, one


EXPECTED = {
    "trl-full": {
        "model.dtype": "float32", "optim.lr": 1e-3, "optim.schedule": "linear", "optim.warmup": 0,
        "train.epochs": 2, "train.pairs_per_step": 4, "data.max_length": 1024, "train.keep": 1,
        "data.eval": "owner/preferences:validation", "train.eval_every": 50,
    },
    "trl-lora-robust": {
        "loss.name": "robust", "loss.smoothing": 0.1, "loss.beta": 0.05, "adapter.r": 4,
        "data.train": "owner/noisy-preferences:train_prefs", "optim.warmup": 0.1, "train.seed": 7,
    },
    "trl-qlora-norm": {
        "model.quantise": "nf4", "adapter.alpha": 32, "adapter.targets": "all-linear",
        "loss.name": "sigmoid_mean", "train.steps": 8, "train.epochs": None, "data.eval": "10%",
        "data.train": {"pairs.jsonl": 1.0, "owner/more-preferences": 1.0},
    },
    "trl-ipo": {
        "loss.name": "ipo_mean", "loss.tau": 0.2, "optim.betas": (0.9, 0.95), "optim.eps": 1e-6,
        "optim.weight_decay": 0.1, "optim.max_grad_norm": 0.5, "data.eval": None,
    },
    "trl-js-moving": {
        "loss.divergence": "js", "reference.update_every": 2, "reference.update_mix": 0.5,
    },
    "trl-ld-weighted": {"loss.divergence": "alpha", "loss.alpha": 0.7},
    "trl-simpo": {"loss.name": "simpo", "loss.gamma": 1.4, "loss.beta": 2.5, "loss.nll": 0.0},
    "axolotl-lora-dpo": {
        "loss.name": "sigmoid", "data.columns": {"prompt": "conversation", "chosen": "better",
        "rejected": "worse"}, "adapter.targets": "all-linear", "optim.kind": "adamw8bit",
        "model.dtype": "bfloat16", "model.quantise": "none", "optim.lr": 2e-4, "data.eval": "5%",
    },
    "axolotl-qlora-orpo": {
        "loss.name": "orpo", "loss.beta": 0.2, "data.chat": True, "model.quantise": "nf4",
        "train.save_every": 100, "train.keep": 3,
    },
    "axolotl-full-ipo": {
        "loss.name": "ipo_mean", "loss.tau": 0.3, "loss.nll": 0.5,
        "data.train": "./data/pairs.jsonl",
        "data.columns": {"prompt": "question", "chosen": "good", "rejected": "bad"},
        "train.save_every": None, "train.steps": 200, "adapter.kind": "none",
    },
    "axolotl-kto": {
        "loss.name": "kto", "loss.desirable": 0.2, "loss.undesirable": 1.0, "optim.warmup": 0.03,
        "data.columns": {"prompt": "asked", "completion": "said", "label": "liked"},
    },
    "llama-factory-lora-dpo": {
        "loss.name": "cdpo", "loss.smoothing": 0.1, "loss.nll": 0.2, "loss.nll_per": "answer",
        "adapter.alpha": 16, "adapter.targets": ("q_proj", "v_proj"), "data.chat": True,
        "data.columns": {"prompt": "talk", "chosen": "better", "rejected": "worse"},
    },
    "llama-factory-qlora-simpo": {
        "loss.name": "simpo", "loss.gamma": 1.0, "loss.nll": 0.0, "model.quantise": "nf4",
        "data.columns": {"prompt": "task", "input": "text", "chosen": "good", "rejected": "bad"},
    },
    "llama-factory-full-kto": {"loss.name": "kto", "loss.desirable": 1.2, "adapter.kind": "none"},
    "llama-factory-adapter": {
        "model.path": "saves/sft", "reference.path": "Qwen/Qwen2.5-0.5B-Instruct",
        "loss.name": "ipo_mean", "loss.tau": 0.5, "model.dtype": "auto",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_written_is_what_the_file_says(name: str, tmp_path: Path) -> None:
    out = tmp_path / "config.yaml"
    assert main(["import", str(RECIPES / f"{name}.yaml"), "--out", str(out)]) == 0
    config = load_config(out)
    for key, value in EXPECTED[name].items():
        section, _, leaf = key.partition(".")
        assert getattr(getattr(config, section), leaf) == value, key


def test_ten_of_the_three_programs_are_there() -> None:
    counts = [sum(file.stem.startswith(start) for file in FILES) for start in PROGRAM_OF]
    assert counts[0] >= 4 and counts[1] >= 3 and counts[2] >= 3


# ---- beside TRL itself -------------------------------------------------------------------------


def _bench(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ON_THE_BASE = [row for row in MEASURED["rows"] if "lora" not in row["config"]]


@pytest.mark.parametrize("row", ON_THE_BASE, ids=lambda row: row["config"])
def test_the_losses_are_those_that_trl_had(row: dict[str, Any], tmp_path: Path) -> None:
    """From the same file, model and pairs; adapters begin at random, so these are full tuning."""
    workloads = _bench("workloads")
    workloads.save_model(tmp_path / "model", workloads.SHAPES["smoke"])
    rows = workloads.draw(workloads.WORKLOADS["chat"], PAIRS, 512, shrink=16)
    workloads.write_rows(tmp_path / "pairs.jsonl", rows)
    words = [f"model.path={tmp_path / 'model'}", f"data.train={tmp_path / 'pairs.jsonl'}",
             f"out={tmp_path / 'run'}", "data.eval=null", "train.log_every=1"]  # fmt: skip
    out = tmp_path / "config.yaml"
    assert main(["import", str(RECIPES / row["config"]), *words, "--out", str(out)]) == 0
    run = train(out)
    losses = [step["loss"] for step in training_rows(run.folder)]
    assert losses == pytest.approx(row["losses"]["trl"], abs=1e-4)
    assert max(losses) - min(losses) > 1e-2


def test_no_curve_is_far_from_that_of_trl() -> None:
    assert len(MEASURED["rows"]) >= 7
    for row in MEASURED["rows"]:
        assert not row["void"] and row["apart"] <= 1e-4 and row["range"] >= 1e-2, row["config"]


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for row in MEASURED["rows"]:
        figures = f"{row['steps']} | {row['apart']:.0e} | {row['range']:.3f} |"
        assert f"| `{row['config']}` | {row['loss']['name']} | {figures}" in page


def test_no_key_of_trl_is_unknown() -> None:
    assert len(MEASURED["keys_of_trl"]) > 150
    for name in set(MEASURED["keys_of_trl"]) - {"config"}:
        for value in (2, "some value"):
            try:
                found = imported({**TRL, name: value}, "TRL")
            except ConfigError as error:  # names the key, so it is known
                assert error.where == name, error
            else:
                kinds = {one.kind for one in found.answers if one.key == name}
                assert kinds and "unknown" not in kinds, name


# ---- single keys -------------------------------------------------------------------------------

TRL = {"model_name_or_path": "m", "dataset_name": "owner/pairs"}
AXOLOTL = {"base_model": "m", "rl": "dpo", "datasets": [{"path": "pairs.jsonl"}]}
FACTORY = {"model_name_or_path": "m", "stage": "dpo", "dataset": "pairs.json"}


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("TRL", {}, {"loss.beta": 0.1, "optim.lr": 1e-6, "train.epochs": 3.0, "train.seed": 42}),
        ("TRL", {"learning_rate": "5e-7"}, {"optim.lr": 5e-7}),
        ("TRL", {"max_length": None}, {"data.max_length": 2**31 - 1}),
        ("TRL", {"max_grad_norm": 0}, {"optim.max_grad_norm": None}),
        ("TRL", {"loss_type": "hinge"}, {"loss.name": "hinge", "loss.beta": 0.1}),
        ("TRL", {"loss_type": "robust"}, {"loss.smoothing": 0.0}),
        ("TRL", {"label_smoothing": 0.3}, {"loss.name": "sigmoid", "loss.smoothing": None}),
        ("TRL", {"loss_type": "bco_pair"}, {"loss.name": "bco", "loss.delta": 0.0}),
        ("TRL", {"loss_type": "discopop", "discopop_tau": 0.1}, {"loss.tau": 0.1}),
        ("TRL", {"loss_type": "simpo"}, {"loss.gamma": 0.5, "loss.nll": 1.0}),
        ("TRL", {"loss_type": "alphapo"}, {"loss.name": "alphapo", "loss.nll": None}),
        ("TRL", {"reference_free": True}, {"loss.name": "cpo", "loss.alpha": 0.0}),
        ("TRL", {"desirable_weight": 1.3}, {"loss.name": "kto", "loss.desirable": 1.3}),
        ("TRL", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25},
         {"loss.divergence": "alpha", "loss.alpha": 0.75}),
        ("TRL", {"lr_scheduler_type": "constant", "warmup_steps": 5},
         {"optim.warmup": 0, "optim.warmup_from_zero": None}),
        ("TRL", {"max_steps": -1, "eval_steps": 7},
         {"train.steps": None, "train.eval_every": None}),
        ("LLaMA-Factory", {"pref_loss": "orpo", "pref_bco_weight": 1.0}, {"loss.name": "orpo"}),
        ("LLaMA-Factory", {"adapter_name_or_path": "a", "create_new_adapter": True},
         {"model.path": "a"}),
        ("LLaMA-Factory", {"pure_bf16": True}, {"model.dtype": "bfloat16"}),
        ("TRL", {"warmup_ratio": 0.2}, {"optim.warmup": 0.2, "optim.warmup_from_zero": True}),
        ("TRL", {"warmup_steps": 7.0}, {"optim.warmup": 7}),
        ("TRL", {"fp16": True}, {"model.dtype": "bfloat16"}),
        ("TRL", {"bf16": "False", "dtype": "auto"}, {"model.dtype": "auto"}),
        ("TRL", {"save_strategy": False}, {"train.save_every": None}),
        ("TRL", {"use_peft": True}, {"adapter.targets": ["q_proj", "v_proj"], "adapter.r": 16}),
        ("TRL", {"lora_r": 8}, {"adapter.kind": "none", "adapter.r": None}),
        ("TRL", {"gradient_accumulation_steps": 4}, {"train.pairs_per_step": 32}),
        ("Axolotl", {"adapter": None}, {"adapter.kind": "none"}),
        ("Axolotl", {"trl": {"beta": 0.7}, "rl_beta": 0.2}, {"loss.beta": 0.7}),
        ("Axolotl", {"dpo_label_smoothing": 0.2}, {"loss.name": "sigmoid", "loss.smoothing": None}),
        ("Axolotl", {"rl": "simpo"}, {"loss.name": "simpo", "loss.nll": 1.0}),
        ("Axolotl", {"batch_size": 64, "micro_batch_size": 2}, {"train.pairs_per_step": 64}),
        ("Axolotl", {"learning_rate": None}, {"optim.lr": None}),
        ("Axolotl", {"test_datasets": [{"path": "held.jsonl", "type": {"field_prompt": "q"}}]},
         {"data.eval": "held.jsonl", "data.columns": None}),
        ("LLaMA-Factory", {"pref_bco_weight": 1.0}, {"loss.name": "mixture"}),
        ("LLaMA-Factory", {"dataset": "a.js, b.js"}, {"data.train": {"a.js": 1, "b.js": 1}}),
        ("LLaMA-Factory", {"template": "empty"}, {"data.chat": None}),
        ("LLaMA-Factory", {"lora_rank": 4}, {"adapter.alpha": 8, "adapter.targets": "all-linear"}),
        ("LLaMA-Factory", {"ref_model": "other"}, {"reference.path": "other"}),
        ("LLaMA-Factory", {"eval_dataset": "our_alpaca"}, {"data.eval": "data/alpaca.json"}),
    ],
)  # fmt: skip
def test_a_key_becomes_ours(program: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    least = {"TRL": TRL, "Axolotl": AXOLOTL, "LLaMA-Factory": FACTORY}[program]
    found = imported(least | given, program)
    config_from(found.config)
    for key, value in expected.items():
        section, _, leaf = key.partition(".")
        written = found.config[section].get(leaf)
        if isinstance(written, str) and key == "data.eval":
            written = written.removeprefix(f"{RECIPES}/")
        assert written == value, key


@pytest.mark.parametrize(
    ("program", "given", "key"),
    [
        ("TRL", {"beta": 0}, "loss.beta"),
        ("LLaMA-Factory", {"pref_beta": 0.0}, "loss.beta"),
        ("LLaMA-Factory", {"stage": "kto", "kto_chosen_weight": 0.0}, "loss.desirable"),
        ("TRL", {"learning_rate": 3.0}, "optim.lr"),
    ],
)
def test_a_number_that_is_none_of_ours_is_refused_not_replaced(
    program: str, given: dict[str, Any], key: str
) -> None:
    least = {"TRL": TRL, "LLaMA-Factory": FACTORY}[program]
    with pytest.raises(ConfigError, match=key):
        config_from(imported(least | given, program).config)


def test_a_loss_alone_of_another_weight_keeps_its_weight() -> None:
    given = {"loss_type": ["ipo", "sft"], "loss_weights": [0.5, 1.0]}
    loss = config_from(imported(TRL | given, "TRL").config).loss
    assert sum(part.weight for part in loss.parts) == 0.5 and loss.nll == 1.0
    assert {part.name for part in loss.parts} == {"ipo_mean"}


@pytest.mark.parametrize(
    ("program", "given", "kind", "words"),
    [
        ("TRL", {"use_dora": True}, "not there", "plain LoRA"),
        ("TRL", {"neftune_noise_alpha": 5}, "not there", "no noise is added"),
        ("TRL", {"lr_scheduler_type": "cosine_with_restarts"}, "not there", "cosine in its place"),
        ("TRL", {"optim": "lion_32bit"}, "not there", "AdamW trains here"),
        ("TRL", {"dataset_train_split": "train[:10%]"}, "not there", "a slice"),
        ("TRL", {"dataset_config": "english"}, "not there", "a file, a folder or a Hub id"),
        ("TRL", {"loss_type": "ipo", "f_divergence_type": "forward_kl"}, "not there", "sigmoid"),
        ("Axolotl", {"adapter": "llama-adapter"}, "not there", "no llama-adapter"),
        ("Axolotl", {"lora_modules_to_save": ["embed_tokens"]}, "not there", "plain LoRA"),
        ("Axolotl", {"early_stopping_patience": 2}, "not there", "weights of the last step"),
        ("LLaMA-Factory", {"finetuning_type": "freeze"}, "not there", "no freeze"),
        ("LLaMA-Factory", {"dataset": "elsewhere"}, "not there", "dataset_info.json"),
        ("LLaMA-Factory", {"val_size": 100}, "not there", "nothing is held out"),
        ("LLaMA-Factory", {"moe_aux_loss_coef": 0.01}, "not there", "preference loss alone"),
    ],
)  # fmt: skip
def test_what_is_lost_is_named(
    program: str, given: dict[str, Any], kind: str, words: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    least = {"TRL": TRL, "Axolotl": AXOLOTL, "LLaMA-Factory": FACTORY}[program]
    name = list(given)[-1]
    one = answers(imported(least | given, program))[name]
    assert (one.kind, one.harms) == (kind, True) and words in one.text, one
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(least | given), encoding="utf-8")
    flag = program.lower()
    assert main(["import", str(file), "--from", flag]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "does not train what its author meant" in said and f"what {name} did" in said
    off = {name: None if name not in ("dataset", "optim", "lr_scheduler_type") else least.get(name)}
    assert imported({**least, **off}, program).as_meant


def test_unknown_keys_are_named_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dpo.yaml"
    given = {"learning_rat": 1e-6, "pref_beta": 0.2, "datasets": [{"path": "a/b", "splitt": "x"}]}
    file.write_text(yaml.safe_dump(TRL | given), encoding="utf-8")
    assert main(["import", str(file), "--from", "trl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    texts = {one["key"]: one["text"] for one in found["answers"] if one["kind"] == "unknown"}
    assert texts.keys() == {"learning_rat", "pref_beta", "datasets[0].splitt"}
    assert "did it mean learning_rate?" in texts["learning_rat"]
    assert "a key of LLaMA-Factory" in texts["pref_beta"]
    assert "did it mean split?" in texts["datasets[0].splitt"]
    assert found["config"]["loss"]["beta"] == 0.1 and found["as_meant"]


def test_whose_config_it_is_is_told_by_its_keys() -> None:
    factory = {**FACTORY, "pref_loss": "sigmoid", "learning_rate": 1e-6, "output_dir": "o",
               "num_train_epochs": 1, "per_device_train_batch_size": 1}  # fmt: skip
    assert imported(factory).program == "LLaMA-Factory"
    assert imported(TRL).program == "TRL" and imported(AXOLOTL).program == "Axolotl"
    with pytest.raises(ConfigError, match="--from trl"):
        imported({"learning_rate": 1e-6})


def test_no_value_of_any_key_makes_it_fail_otherwise_than_in_words() -> None:
    """Every key with values of other kinds: a config, or an error that names a key."""
    for program, least in (("TRL", TRL), ("Axolotl", AXOLOTL), ("LLaMA-Factory", FACTORY)):
        more = {"use_peft": True, "adapter": "qlora", "load_in_4bit": True}
        for key in sorted(_KNOWN):
            for value in ("some value", -1, 0.5, True, ["a"], {"a": 1}, [{"path": "x"}], [None]):
                try:
                    found = imported(least | more | {key: value}, program)
                except LikelierError as error:
                    assert error.where, (key, value)
                else:
                    assert len(found.answers) >= len(least | more), (key, value)


# ---- the command -------------------------------------------------------------------------------


def test_keys_of_ours_win_and_processes_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.path=./mine", "data.train=mine.jsonl", "train.steps=3", "train.epochs=null"]
    file = str(RECIPES / "llama-factory-lora-dpo.yaml")
    assert main(["import", file, *words, "--processes", "4"]) == 0
    captured = capsys.readouterr()
    written = yaml.safe_load(captured.out)
    assert written["model"]["path"] == "./mine" and written["data"]["train"] == "mine.jsonl"
    assert written["train"]["pairs_per_step"] == 32 and written["train"]["steps"] == 3
    assert captured.out.startswith("# llama-factory-lora-dpo.yaml, a config of LLaMA-Factory")
    (tmp_path / "config.yaml").write_text(captured.out, encoding="utf-8")
    load_config(tmp_path / "config.yaml")


def test_a_key_that_is_given_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(RECIPES / "llama-factory-adapter.yaml")
    assert main(["import", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["as_meant"]
    found = imported(FACTORY | {"dataset": "elsewhere"}, "LLaMA-Factory")
    assert not found.as_meant and _overridden(found, ["data.train=here.jsonl"]).as_meant


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "config.yaml"
    out.write_text("mine", encoding="utf-8")
    assert main(["import", str(RECIPES / "trl-full.yaml"), "--out", str(out)]) == 73
    assert out.read_text("utf-8") == "mine"
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("train.py", "from trl import DPOConfig\n", 2, "is a program, not a config"),
        ("list.yaml", "- 1\n- 2\n", 2, "holds no keys"),
        ("empty.yaml", "", 2, "is empty"),
        ("text.yaml", "just words\n", 2, "holds no keys"),
        ("broken.yaml", "a: [1\n", 2, "broken.yaml:2"),
        ("pairs.json", '[{"chosen": "a"}]', 2, "these are data"),
        ("few.yaml", "learning_rate: 1.0e-6\n", 2, "it cannot be told whose config"),
        ("ours.yaml", "model: {path: m}\nout: o\n", 2, "it cannot be told whose config"),
        ("grpo.yaml", "base_model: m\nrl: grpo\n", 2, "rl: grpo trains on no pairs"),
        ("sft.yaml", "cutoff_len: 8\nstage: sft\nfinetuning_type: full\n", 2, "stage: sft"),
        ("new.yaml", "dataset_name: a/b\nloss_type: [fancy]\n", 2, "fancy has no counterpart"),
        ("no-model.yaml", "dataset_name: a/b\nloss_type: ipo\n", 2, "model.path=..."),
        ("no-data.yaml", "model_name_or_path: m\nloss_type: ipo\n", 2, "data.train=..."),
        ("nan.yaml", "dataset_name: a/b\nloss_type: ipo\nbeta: small\n", 2, "beta: small is not"),
        ("missing.yaml", None, 66, "there is no such file"),
    ],
)
def test_a_file_that_is_none_gets_one_clear_line(
    name: str, content: str | None, code: int, words: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / name
    if content is not None:
        file.write_text(content, encoding="utf-8")
    out = tmp_path / "config.yaml"
    assert main(["import", str(file), "--out", str(out)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    assert captured.err.startswith("error: ") and words in captured.err.replace("'", "")
    assert len(captured.err.splitlines()) <= 3


def test_secrets_are_shown_to_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dpo.yaml"
    secrets = {
        "hub_token": "canary-1",
        "swanlab_api_key": "canary-2",
        "run_name": "hf_" + "Ab1" * 11,
    }
    file.write_text(yaml.safe_dump(TRL | secrets), encoding="utf-8")
    for more in ([], ["--json"]):
        assert main(["import", str(file), "--from", "trl", *more]) == 0
        captured = capsys.readouterr()
        for secret in secrets.values():
            assert secret not in captured.out + captured.err
