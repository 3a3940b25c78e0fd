"""Many GPUs that are not here: bytes and seconds by hand, the mode that fits, and what is said."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.children import start
from tests.support.runs import make_place
from tests.support.tiny import tiny_model, tiny_tokenizer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from likelier.base.errors import ConfigError
from likelier.batching.batch import Scored, tree_batch
from likelier.cli import main
from likelier.commands.launch import free_port
from likelier.commands.plan import parse_gpus, plan
from likelier.config import config_from
from likelier.config.schema import OptimConfig, ParallelConfig
from likelier.model.adapters import attach_lora, for_training
from likelier.model.policy import Policy
from likelier.training import scaling
from likelier.training.memory import batch_to_hold, costs_of, held
from likelier.training.optimizer import MasterAdamW
from likelier.training.scaling import CARDS, GATHERED, SAVED, Cluster, WeightBytes

GB = 10**9
WEIGHTS = WeightBytes(
    layer=100, layers=1000, root=200, layer_gradients=200, gradients=2400, root_gradients=400
)
PARTS = {"the driver": 50, "weights": 1200, "masters": 2400, "averages": 4800, "gradients": 2400}


BATCH = tree_batch([Scored(tuple(range(20)), (False,) * 5 + (True,) * 15)])


def policy_of(lora: bool = False, dtype: torch.dtype = torch.float32) -> Policy:
    policy = Policy(tiny_model(tiny_tokenizer()).to(dtype), None)
    if not lora:
        return policy
    policy.model.requires_grad_(False)
    return attach_lora(policy, 4, 8, "all-linear", 0)


# ---- bytes -------------------------------------------------------------------------------------


def test_what_is_cut_and_what_is_gathered() -> None:
    assert scaling.on_one_gpu(PARTS, WEIGHTS, 1) == PARTS
    assert scaling.on_one_gpu(PARTS, WEIGHTS, 8) == {
        "the driver": 50, "weights": 0, "masters": 300, "averages": 600, "gradients": 300,
        GATHERED: 2 * 100 + 200 + 200 + 400,
    }  # fmt: skip
    assert scaling.on_one_gpu(PARTS, WEIGHTS, 7)["gradients"] == 343  # 342.9: one holds more
    frozen = {**PARTS, "masters": 200}
    assert scaling.on_one_gpu(frozen, WEIGHTS, 8)["weights"] == 150 - 25 // 2


@pytest.mark.parametrize(
    ("gpus", "numbers", "full", "mode"),
    [("8x80GB", 3, True, "replicate"), ("8x80GB", 4, True, "shard"),
     ("2x8x80GB", 4, True, "hybrid"), ("2x8x80GB", 28, True, "hybrid"),
     ("2x8x80GB", 29, True, "shard"),
     ("2x8x80GB", 31, False, "replicate"), ("8x1x80GB", 8, True, "shard"),
     ("1x80GB", 70, True, "replicate")],
)  # fmt: skip
def test_the_mode_follows_from_the_size(gpus: str, numbers: int, full: bool, mode: str) -> None:
    """By billions of numbers: 18 bytes each where they are trained, in 0.8 of the memory."""
    adapter = {"kind": "none" if full else "lora"}
    config = config_of(adapter=adapter)
    assert scaling.mode_on(config, numbers * GB, parse_gpus(gpus)) == mode
    if not full:
        packed = config_of(adapter=adapter, model={"path": "x", "quantise": "nf4"})
        assert scaling.mode_on(packed, 1000 * GB, parse_gpus(gpus)) == "replicate"
    asked = config_of(adapter=adapter, parallel={"mode": "shard"})
    many = parse_gpus(gpus).ranks > 1
    assert scaling.mode_on(asked, 1, parse_gpus(gpus)) == ("shard" if many else "replicate")


def config_of(**changed: Any) -> Any:
    return config_from({"model": {"path": "x"}, "data": {"train": "x"}, "out": "x", **changed}, [])


def test_a_mode_cuts_over_a_node_or_all() -> None:
    two = Cluster(2, 8, 80 * GB)
    assert [two.shards(mode) for mode in ("replicate", "hybrid", "shard")] == [1, 8, 16]
    assert batch_to_hold(100, 1) == 100 and batch_to_hold(3000, 8) == 3000
    assert batch_to_hold(100, 8) == 2048  # fewer compute faster than their weights arrive


def test_weights_are_those_of_layers_and_the_rest() -> None:
    policy = policy_of()
    found, parts = scaling.weights_of(policy.causal_lm), held(policy, on_card=True)
    layer: nn.Module = policy.causal_lm.get_submodule("model.layers.0")
    assert found.layer == sum(p.nbytes for p in layer.parameters())
    assert found.layers == 2 * found.layer and found.layer_gradients == found.layer  # float32
    assert found.layers + found.root == parts["weights"] == parts["gradients"] == found.gradients
    frozen = policy_of(lora=True)
    assert scaling.weights_of(frozen.causal_lm).root_gradients == 0
    assert scaling.weights_of(frozen.causal_lm).gradients == held(frozen)["gradients"]


def hold_a_part(rank: int, port: int, lora: bool, out: Path) -> None:
    """Take a step with a model in two parts, and write the bytes that this process holds of it."""
    from likelier.model.sharding import in_parts_of
    from likelier.model.team import joined_team, own_part

    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= alone | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    with joined_team(ParallelConfig()) as team:
        policy = replace(policy_of(lora, torch.bfloat16), team=team)
        with for_training(policy, in_parts=True), policy.running():
            policy = in_parts_of(policy, "shard")
            optimizer = MasterAdamW(policy.model.named_parameters(), OptimConfig(), team=team)
            policy.scorer(BATCH).sum().backward()
            grads = [own_part(p.grad) for p in policy.model.parameters() if p.grad is not None]
            gradients = sum(grad.nbytes for grad in grads)
            optimizer.step(0.0)
        averages = [
            value.nbytes
            for adamw in dict.fromkeys(optimizer.adamw_of.values())
            for state in adamw.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        weights = sum(own_part(p).nbytes for p in policy.model.parameters())
        held_here = {"weights": weights, "averages": sum(averages), "gradients": gradients}
        (out / f"{rank}.json").write_text(json.dumps(held_here))


@pytest.mark.parametrize("lora", [False, True])
def test_what_processes_hold_of_a_model_in_parts_is_what_was_computed(
    tmp_path: Path, lora: bool
) -> None:
    port = free_port()
    both = [
        start(hold_a_part, rank, port, lora, tmp_path, log=tmp_path / f"{rank}.log")
        for rank in range(2)
    ]
    assert [child.wait() for child in both] == [0, 0], both[0].output
    of_ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    policy = policy_of(lora, torch.bfloat16)
    with for_training(policy):
        parts = scaling.on_one_gpu(
            held(policy, on_card=True), scaling.weights_of(policy.causal_lm), 2
        )
    for name in ("weights", "averages", "gradients"):
        computed = parts[name] + (parts["masters"] if name == "weights" else 0)
        assert sum(one[name] for one in of_ranks) / 2 == pytest.approx(computed, rel=0.02), name


# ---- operations and seconds --------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts the operations of products of matrices."""

    counted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.counted += 2 * args[-2].numel() * args[-1].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora", [False, True])
def test_operations_of_a_backward_are_torch_s(lora: bool) -> None:
    policy = policy_of(lora)
    policy.causal_lm.set_attn_implementation("sdpa")
    batch = BATCH
    costs = costs_of(policy.causal_lm).with_backward(full=not lora, again=False)
    with for_training(policy), policy.running() as scorer, Products() as products:
        scorer(batch).sum().backward()
    counted = costs.of(batch.num_tokens, 0, len(batch.predict_N))
    if lora:  # the first of two layers sends no gradient below
        assert 0.8 * counted < products.counted < counted
    else:
        assert products.counted == counted
    again = costs_of(policy.causal_lm).with_backward(full=not lora, again=True)
    assert again.token - costs.token == costs_of(policy.causal_lm).token


def test_seconds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that leave 100 operations, 10 bytes in a node and 2 between nodes a second."""
    card = scaling.DataSheet(GB, 250.0, 10 / 0.7, 1 / 0.7)
    monkeypatch.setitem(CARDS, "X1", card)
    seconds = scaling.seconds_of_step
    cluster, work = Cluster(2, 2, GB, "X1"), [40_000.0, 20_000.0, 20_000.0]
    replicate = seconds(work, 3, WEIGHTS, cluster, "replicate")
    assert replicate == pytest.approx(
        {"arithmetic": 200, "waiting": 200, "gathering": 0, "reducing": 2 * 2400 * 3 / 4 / 2}
    )
    moved = 2 * 1000 + 200 + 2400
    shard = seconds(work, 3, WEIGHTS, cluster, "shard")
    assert shard["gathering"] == pytest.approx(3 * moved * 3 / 4 / 2 - 400)
    assert shard["reducing"] == 0
    hybrid = seconds(work, 3, WEIGHTS, cluster, "hybrid")
    assert hybrid["gathering"] == pytest.approx(3 * (moved / 2 / 10 + 2 * 2400 / 2 / 2) - 400)
    assert hybrid["reducing"] == 0
    long = [10 * one for one in work]
    assert seconds(long, 1, WEIGHTS, cluster, "shard")["gathering"] == 0  # beside 4000 seconds
    unknown = seconds(work, 3, WEIGHTS, Cluster(2, 2, GB), "shard")
    assert (unknown["arithmetic"], unknown["waiting"]) == (20_000, 20_000)


def test_what_bounds_a_step_is_said() -> None:
    even = {"arithmetic": 9.0, "waiting": 0.4, "gathering": 0.3, "reducing": 0.3}
    assert scaling.bound_of({}, 0, even) == "arithmetic"
    for name, words in {"waiting": "do not fill", "gathering": "gathering weights",
                        "reducing": "sending gradients"}.items():  # fmt: skip
        said = scaling.bound_of({}, 0, even | {name: 3.0})
        assert words in said and "more pairs a step" in said and "of a step" in said
    large = {"weights": 50, GATHERED: 20, SAVED: 10, "logits": 5}
    assert "more GPUs" in scaling.bound_of(large, 40, {})
    assert "tensor parallelism" in scaling.bound_of(large, 30, {})
    assert "context parallelism" in scaling.bound_of(large | {SAVED: 100}, 30, {})
    assert "this small" in scaling.bound_of(large | {"logits": 100}, 30, {})


# ---- likelier plan --gpus ----------------------------------------------------------------------


def test_gpus_that_can_be_written() -> None:
    assert parse_gpus("8x80GB") == Cluster(1, 8, 80 * GB)
    assert parse_gpus(" 2x4x24GiB ") == Cluster(2, 4, 24 * 2**30)
    assert parse_gpus("2X8Xh100") == Cluster(2, 8, 80 * GB, "H100")
    assert parse_gpus("1xH200").card == CARDS["H200"]


@pytest.mark.parametrize(
    "text", ["", "8", "80GB", "8x", "x80GB", "0x80GB", "8x80", "8xV999", "2x2x2x80GB", "-1x80GB"]
)
def test_what_are_no_gpus_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--gpus: {re.escape(repr(text))} are no GPUs") as seen:
        parse_gpus(text)
    assert seen.value.exit_code == 2 and "8x80GB" in str(seen.value.hint)
    with pytest.raises(ConfigError, match=r"^--gpus: '9999TB' is no size"):
        parse_gpus("8x9999TB")


def test_a_plan_for_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path, rows=40)
    asked = place.config("nowhere", train__steps=6, train__tokens_per_batch="auto")
    alone, eight = (plan(config_from(asked, []), cluster=parse_gpus(f"{n}xH100")) for n in (1, 8))
    assert alone.gpus["slowest"] == 1 and alone.gpus["mode"] == "replicate"
    assert eight.gpus["slowest"] >= 2  # 4 pairs on 8 GPUs
    assert eight.settings["parallel.mode"] == "replicate"
    assert eight.pairs == alone.pairs == 24 and eight.tokens >= alone.tokens
    assert alone.seconds_per_step == pytest.approx(sum(alone.gpus["seconds"].values()))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(asked))
    assert main(["plan", str(file), "--gpus", "8x80GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and "do not fill" in found["gpus"]["bound"]
    assert found["seconds_per_step"] is None and found["seconds"] is None
    assert found["peak_memory"] == sum(found["phases"]["a step"].values()) == eight.peak_memory
    assert main(["plan", str(file), "--gpus", "2x4xH100"]) == 0
    shown = capsys.readouterr()
    assert "2 x 4, mode replicate" in shown.out and "sending gradients" in shown.out
    assert "computed, not measured" in shown.err and "40%" in shown.err
    assert main(["plan", str(file), "--gpus", "8x600MB"]) == 2
    assert "it does not fit" in (shown := capsys.readouterr()).out and "small" in shown.err
    assert main(["plan", str(file), "--gpus", "8x80GB", "--device", "24GB"]) == 2
    assert "leave it or --gpus out" in capsys.readouterr().err
