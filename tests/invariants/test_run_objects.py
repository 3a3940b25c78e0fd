"""Objects in the place of files: the same run, and the model that was handed over is trained."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.support.runs import Place, bytes_of, differing, training_rows
from tests.support.tiny import pair_rows, tiny_model, tiny_tokenizer, write_rows

from likelier.base.errors import ConfigError, DataError, OutputError
from likelier.config import Config, config_from
from likelier.model.load import load, quietly
from likelier.run import train
from likelier.training.optimizer import MasterAdamW

LORA = {"kind": "lora", "r": 4, "alpha": 8}
TRAIN, HELD = pair_rows(24), pair_rows(30)[24:]

pytestmark = pytest.mark.usefixtures("no_report")


def without(tree: dict, *keys: str) -> dict:
    """A config without ``section.key``; sections that are empty then go, too."""
    for name in keys:
        section, key = name.split(".")
        tree[section].pop(key, None)
        if not tree[section]:
            del tree[section]
    return tree


@pytest.mark.parametrize("adapter", [{"kind": "none"}, LORA])
def test_the_same_bytes_as_from_files(place: Place, tmp_path: Path, adapter: dict) -> None:
    files = {
        "train": str(write_rows(tmp_path / "train.jsonl", TRAIN)),
        "eval": str(write_rows(tmp_path / "held.jsonl", HELD)),
    }
    from_files = train(place.config(tmp_path / "files", adapter=adapter, data=files))
    objects = place.config(tmp_path / "objects", adapter=adapter)
    del objects["model"], objects["data"]
    policy = load(place.base)
    from_objects = train(
        objects, policy.model, policy.tokenizer, train=iter(TRAIN), eval=tuple(HELD)
    )
    ours, theirs = bytes_of(from_objects.folder), bytes_of(from_files.folder)
    # What names the source (config, pair log, texts, card) or hashes what does (manifests) differs.
    named = {name for name in differing(ours, theirs)}
    kept = {name for name in theirs if name.endswith((".safetensors", "metrics.jsonl"))}
    assert kept and not kept & named
    assert all(
        name.startswith(
            (
                "config.yaml",
                "pair_log/",
                "held_out/",
                "pair_texts.jsonl",
                "pair_tokens.jsonl",
                "adapter/adapter_config.json",
            )
        )
        or name.endswith(("MANIFEST.json", "README.md"))
        for name in named
    ), named


def test_the_model_handed_over_is_trained(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    settings = without(place.config(tmp_path / "out"), "model.path")
    run = train(settings, policy.model, policy.tokenizer)
    saved = load_file(run.model / "model.safetensors")
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, saved[name]), name
        assert parameter.grad is None


def test_an_own_config_object(place: Place, tmp_path: Path) -> None:
    config = config_from(place.config(tmp_path / "out", train__steps=1))
    assert isinstance(config, Config)
    seen: list[dict] = []
    run = train(config, on_step=seen.append)
    assert seen == run.metrics
    assert [row["step"] for row in seen] == [0, 1, 1]


def test_rows_beside_a_model_from_a_folder(place: Place, tmp_path: Path) -> None:
    settings = without(place.config(tmp_path / "out", train__steps=2), "data.train")
    run = train(settings, train=TRAIN)
    assert len(training_rows(run.folder)) == 2


def test_going_on_with_a_trained_model_is_refused(place: Place, tmp_path: Path) -> None:
    """The model in memory has changed since the run began: it is no start any more."""

    class Crash(Exception):
        pass

    def on_step(row: dict) -> None:
        if row["step"] == 3:
            raise Crash

    policy = load(place.base)
    settings = without(place.config(tmp_path / "out"), "model.path")
    with pytest.raises(Crash):
        train(settings, policy.model, policy.tokenizer, on_step=on_step)
    with pytest.raises(OutputError, match="the model changed since this run began"):
        train(settings, policy.model, policy.tokenizer)
    fresh = load(place.base)
    train(settings, fresh.model, fresh.tokenizer)


def in_memory(out: Path, adapter: dict) -> dict:
    return {
        "adapter": adapter,
        "data": {"eval": None},
        "optim": {"lr": 1e-2},
        "train": {"steps": 3, "pairs_per_step": 6},
        "out": str(out),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_run_of_the_same_object(tmp_path: Path, dtype: torch.dtype) -> None:
    """Starts from what the first made: loss ln 2 again, and no hook of the first is in the way."""
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model(tokenizer, dtype)
    for out in ("one", "two"):
        settings = in_memory(tmp_path / out, {"kind": "none"})
        rows = training_rows(train(settings, model, tokenizer, train=TRAIN).folder)
        assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-2)
        assert rows[-1]["loss"] < rows[0]["loss"] - 1e-3


def test_adapters_go_on_by_their_wrapper_or_folder(tmp_path: Path) -> None:
    """The bare model, with the first run's adapters in its layers, would be saved as nonsense."""
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model(tokenizer)
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    first = train(in_memory(tmp_path / "one", LORA), model, tokenizer, train=TRAIN)
    again = in_memory(tmp_path / "two", {"kind": "lora"})
    with pytest.raises(ConfigError, match="has adapters inside, as an earlier run leaves them"):
        train(again, model, tokenizer, train=TRAIN)
    assert not (tmp_path / "two").exists()
    policy = load(first.model)
    second = train(again, policy.model, policy.tokenizer, train=TRAIN)
    assert training_rows(second.folder)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    names = [load_file(run.model / "adapter_model.safetensors").keys() for run in (first, second)]
    assert names[0] == names[1]


def test_gradients_that_were_there_do_not_count(place: Place, tmp_path: Path) -> None:
    """A notebook that called backward before must not change the first step."""
    plain = train(place.config(tmp_path / "plain"))
    policy = load(place.base)
    for parameter in policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    settings = without(place.config(tmp_path / "out"), "model.path")
    run = train(settings, policy.model, policy.tokenizer)
    assert run.metrics == plain.metrics


def test_an_adapter_of_ones_own(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    wanted = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    with quietly():
        model = peft.get_peft_model(policy.causal_lm, wanted)
    settings = without(place.config(tmp_path / "out", adapter={"kind": "lora"}), "model.path")
    run = train(settings, model, policy.tokenizer)
    saved = load_file(run.model / "adapter_model.safetensors")
    assert all("q_proj" in name or "v_proj" in name for name in saved)
    assert {min(tensor.shape) for tensor in saved.values()} == {3}
    described = (run.model / "adapter_config.json").read_text()
    assert '"lora_dropout": 0.3' in described


def test_a_frozen_adapter_is_refused(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    with quietly():
        model = peft.get_peft_model(policy.causal_lm, peft.LoraConfig(target_modules=["q_proj"]))
    model.requires_grad_(False)
    settings = without(place.config(tmp_path / "out", adapter={"kind": "lora"}), "model.path")
    with pytest.raises(ConfigError, match="is frozen, so nothing would be trained"):
        train(settings, model, policy.tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_loss_of_ones_own(place: Place, tmp_path: Path) -> None:
    """The sigmoid loss by another name takes the same steps, though it may couple pairs."""

    def mine(values: Any) -> torch.Tensor:
        return torch.nn.functional.softplus(-0.1 * values.log_ratio_margin_P)

    theirs = train(place.config(tmp_path / "theirs"))
    ours = train(place.config(tmp_path / "ours"), loss=mine)
    for one, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


REFUSED: dict[str, tuple[dict, dict, str, type[Exception]]] = {
    "a model alone": ({}, {"model": 1}, "model and tokenizer go together", ConfigError),
    "another dtype": (
        {"model": {"dtype": "float64"}},
        {"both": 1},
        r"model\.dtype: float64: the model handed over computes in torch.float32",
        ConfigError,
    ),
    "a revision": (
        {"model": {"revision": "main"}},
        {"both": 1},
        r"model\.revision: has no effect",
        ConfigError,
    ),
    "one row": ({}, {"train": TRAIN[0]}, "a list of rows is expected, found dict", DataError),
    "no row": ({}, {"train": []}, "the data hold no row", DataError),
    "bad rows": ({}, {"train": [*TRAIN, {"prompt": "x"}]}, r"train\[24\]", DataError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(place: Place, tmp_path: Path, name: str) -> None:
    changes, given, message, kind = REFUSED[name]
    settings = place.config(tmp_path / "out") | changes
    objects: dict[str, Any] = {}
    if "model" in given:
        objects["model"] = load(place.base).model
    if "both" in given:
        policy = load(place.base)
        objects["model"], objects["tokenizer"] = policy.model, policy.tokenizer
    if "train" in given:
        objects["train"] = given["train"]
    with pytest.raises(kind, match=message):
        train(settings, **objects)
    assert not (tmp_path / "out").exists()


def test_hooks_are_taken_off() -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("weight", weight)], config_from(_MINIMAL).optim)
    optimizer.close()
    weight.sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, dtype=torch.bfloat16))


_MINIMAL = {"model": {"path": "x"}, "data": {"train": "y"}, "out": "z"}
