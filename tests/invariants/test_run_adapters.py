"""Adapters that compute in bfloat16: float32 masters, saved as they are, continued and resumed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.runs import Place, bytes_of, differing, make_place
from torch import Tensor
from transformers import AutoModelForCausalLM

from likelier.base.errors import StoppedEarly
from likelier.commands.plan import plan
from likelier.config import config_from
from likelier.model.load import load, quietly
from likelier.run import train

LORA: dict[str, Any] = {"kind": "lora", "r": 4}
LR = 1e-2
NO_CHANGE = 1e-30  # no float32 number of an adapter feels it


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        patch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: True)
        yield make_place(tmp_path_factory.mktemp("place"), rows=12, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def run(place: Place) -> Path:
    return train(place.config("whole", adapter=LORA, optim__lr=LR, train__save_every=5)).folder


def saved(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def masters(run: Path, step: int) -> dict[str, Tensor]:
    found = load_file(run / "checkpoints" / f"step-{step:08d}" / "masters.safetensors")
    return {name.replace(".default", ""): master for name, master in found.items()}


def test_the_adapter_is_saved_as_its_masters(run: Path) -> None:
    found, expected = saved(run), masters(run, 5)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype is torch.float32 and torch.equal(tensor, expected[name])
    finer = [name for name, t in found.items() if not torch.equal(t, t.bfloat16().float())]
    assert len(finer) == len(found)
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["resolved"]["model"]["dtype"] == "bfloat16"


def test_a_continued_adapter_begins_with_its_float32_values(place: Place, run: Path) -> None:
    """A rate that changes nothing: what is saved is what was loaded, to the bit."""
    again = train(
        place.config("again", model__path=str(run / "adapter"), adapter={"kind": "lora"},
                     optim__lr=NO_CHANGE, train__save_every=2)
    ).folder  # fmt: skip
    before = saved(run)
    for found in (saved(again), masters(again, 2)):
        assert found.keys() == before.keys()
        assert all(torch.equal(found[name], before[name]) for name in before)
    record = json.loads((again / "run.json").read_text("utf-8"))
    assert record["preflight"]["largest_reward"] < 0.1  # it is its own reference
    rows = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert all(row.get("loss", 0.6931) == pytest.approx(0.6931, abs=0.01) for row in rows)


def test_a_continued_adapter_resumes_to_the_same_bytes(place: Place, run: Path) -> None:
    def config(name: str) -> dict[str, Any]:
        path = str(run / "adapter")
        return place.config(name, model__path=path, adapter={"kind": "lora"}, optim__lr=LR)

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3 and "loss" in row:
            raise StoppedEarly("here")

    whole = train(config("continued")).folder
    with pytest.raises(StoppedEarly):
        train(config("stopped"), on_step=stop)
    stopped = train(config("stopped")).folder
    assert differing(bytes_of(stopped), bytes_of(whole)) == []


def test_a_model_handed_over_holds_the_trained_float32_values(place: Place, run: Path) -> None:
    policy = load(run / "adapter")
    kept = {id(p): type(m) for m in policy.model.modules() for p in m.parameters(recurse=False)}
    config = place.config("given", optim__lr=LR, adapter={"kind": "lora"})
    del config["model"]
    given = train(config, model=policy.model, tokenizer=policy.tokenizer).folder
    named = dict(policy.model.named_parameters())
    for name, tensor in saved(given).items():
        held = named[name.replace(".weight", ".default.weight")]
        assert held.dtype is torch.float32 and torch.equal(held, tensor)
    assert kept == {
        id(p): type(m) for m in policy.model.modules() for p in m.parameters(recurse=False)
    }


def test_a_plan_leaves_an_adapter_as_it_was(
    place: Place, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(run / "adapter")
    monkeypatch.setattr("likelier.commands.plan.initial_policy", lambda config: policy)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    plan(config_from(place.config("planned", model__path=str(run / "adapter"),
                                  adapter={"kind": "lora"})))  # fmt: skip
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.dtype is before[name].dtype


def test_the_saved_adapter_loads_and_merges_by_peft_alone(
    place: Place, run: Path, tmp_path: Path
) -> None:
    import peft

    folder = shutil.copytree(run / "adapter", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(place.base, dtype=torch.bfloat16)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad(), quietly():
        model = peft.PeftModel.from_pretrained(base, folder)
        adapted = model(input_ids=tokens).logits
        merged = model.merge_and_unload()(input_ids=tokens).logits
        bare = AutoModelForCausalLM.from_pretrained(place.base)(input_ids=tokens).logits
    apart = float((adapted - merged).abs().mean())
    assert apart < 0.2 * float((adapted - bare).abs().mean())
