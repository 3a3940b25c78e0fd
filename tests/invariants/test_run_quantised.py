"""Runs on a base in four bits: beside a plain QLoRA loop, resumed, and what they leave behind."""

import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from tests.support.runs import Place, bytes_of, differing, make_place, token_pairs, training_rows
from tests.support.tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Exaone4ForCausalLM

from likelier.data.records import Completion
from likelier.model.load import load, quietly
from likelier.reference.cache import load_reference
from likelier.run import train
from likelier.training.order import make_order

STEPS, PAIRS, LR, BETA, SEED, R, ALPHA = 20, 4, 5e-3, 0.3, 3, 4, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=21, dtype=torch.bfloat16)


def settings(place: Place, out: str | Path, **changes: object) -> dict:
    wanted = {
        "model": {"path": str(place.base), "dtype": "float32", "quantise": "nf4"},
        "adapter": {"kind": "lora", "r": R, "alpha": ALPHA},
        "loss": {"beta": BETA},
        "optim": {"lr": LR, "schedule": "constant", "warmup": 0},
    }
    return place.config(out, **(wanted | changes))


def answer_logp(model: torch.nn.Module, prompt: tuple[int, ...], answer: Completion):
    """Log-prob of an answer: one forward, all logits, the scored tokens picked and summed."""
    tokens = torch.tensor([prompt + answer.tokens])
    logps = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], dim=-1)
    each = logps.gather(1, tokens[0, 1:, None])[:, 0]
    return each[len(prompt) - 1 :][torch.tensor(answer.scored)].sum()


def qlora_loop(place: Place) -> list[float]:
    """The loss of every step of a loop of peft and bitsandbytes and nothing else."""
    pairs = token_pairs(load(place.base), place.data)
    order = make_order(
        pairs, SimpleNamespace(steps=STEPS, epochs=None, seed=SEED, pairs_per_step=PAIRS)
    )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    torch.manual_seed(SEED)
    with quietly():
        base = AutoModelForCausalLM.from_pretrained(
            place.base, quantization_config=four_bits, dtype=torch.float32
        )
        base.config.attention_dropout = 0.0
        lora = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules="all-linear")
        model = peft.get_peft_model(base, lora).train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR,
                              weight_decay=0.0)  # fmt: skip
    losses = []
    for step in range(1, STEPS + 1):
        margins = []
        for _, index in order.step(step):
            pair = pairs[index]
            sides = (pair.chosen, pair.rejected)
            up, down = (answer_logp(model, pair.prompt, side) for side in sides)
            with torch.no_grad(), model.disable_adapter():
                was_up, was_down = (answer_logp(model, pair.prompt, side) for side in sides)
            margins.append((up - was_up) - (down - was_down))
        loss = torch.nn.functional.softplus(-BETA * torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_twenty_steps_are_those_of_a_plain_loop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a base whose layers bitsandbytes unpacks right, too: 64 inputs are a block."""
    place = make_place(tmp_path_factory.mktemp("blocks"), rows=21)
    config = tiny_model(tiny_tokenizer()).config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Exaone4ForCausalLM(config).save_pretrained(place.base)
    losses = qlora_loop(place)
    steps = {"steps": STEPS, "pairs_per_step": PAIRS, "tokens_per_batch": 200, "seed": SEED}
    run = train(settings(place, "run", data__eval=None, train=steps))
    ours = [row["loss"] for row in training_rows(run.folder)]
    assert losses[-1] < 0.6 < losses[0]
    assert max(abs(a - b) for a, b in zip(ours, losses, strict=True)) < 1e-5


class Crash(Exception):
    """What a run does not expect."""


def crash(row: dict) -> None:
    if row["step"] == 5 and "loss" in row:
        raise Crash


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_resumes_to_the_bit(
    place: Place, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    changes = {"model__dtype": dtype}
    whole = train(settings(place, tmp_path / "whole", **changes))
    with pytest.raises(Crash):
        train(settings(place, tmp_path / "crashed", **changes), on_step=crash)
    assert not (tmp_path / "crashed" / "adapter").exists()
    train(settings(place, tmp_path / "crashed", **changes))
    assert differing(bytes_of(whole.folder), bytes_of(tmp_path / "crashed")) == []


def test_what_a_run_leaves(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter names the base as it was; the log-probs are those of the base in four bits."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))  # one for both runs
    run = train(settings(place, tmp_path / "run"))
    record = json.loads((run.folder / "run.json").read_text())
    assert record["resolved"]["model"]["quantise"] == "nf4"
    assert record["versions"]["bitsandbytes"]
    assert record["parameters"] - record["trainable"] == sum(
        p.numel() for p in load(place.base).model.parameters()
    )
    described = json.loads((run.model / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(place.base)
    plain = settings(place, tmp_path / "plain")
    del plain["model"]["quantise"]
    columns = [load_reference(one.folder / "reference.safetensors") for one in (run, train(plain))]
    assert columns[0].identity != columns[1].identity
    assert columns[0].values.keys() == columns[1].values.keys()
    assert all(not torch.equal(v, columns[1].values[k]) for k, v in columns[0].values.items())
    again = train(settings(place, tmp_path / "again", model__path=str(run.model),
                           adapter={"kind": "lora"}))  # fmt: skip
    assert training_rows(again.folder)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
