"""Models of four sizes on 1 to 512 GPUs: what each holds, a step's seconds, and what bounds it.

    python bench/scaling_model.py            writes scaling_*.json in bench/results
    python bench/scaling_model.py --smoke    one size; leaves no file

Computed by `likelier.training.scaling`, not measured: no GPU takes part. Weights, masters, averages
and gradients are counted on models without values; what a token keeps for the backward is counted
here on models of an eighth and a quarter of the width, one and two layers deep, linear in both.
Rates are those of its data sheets, and the shares of them that it assumes. Pairs are those of the
workload `chat`, dealt by `likelier.training.dealing.deal`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import record
import torch
import workloads
from dealing import drawn
from saved_bytes import in_way
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers.models.exaone4 import Exaone4Config

from likelier.batching.batch import completions_of, tree_batch
from likelier.data.records import TokenPair
from likelier.model.adapters import attach_lora
from likelier.model.logprob import Head
from likelier.model.policy import Policy
from likelier.training import memory, scaling
from likelier.training.dealing import deal

CARD, ON_A_NODE, GPUS, PAIRS = "H100", 8, (1, 8, 64, 512), (256, 4096)
DRIVER = 600 << 20
RANK, VOCABULARY = 16, 1024  # of adapters; of narrow models, which changes nothing that they keep
LLAMA = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}
QWEN = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "1.2B": (Exaone4Config, {**workloads._EXAONE, **workloads.SHAPES["gpu"]}),
    "8B": (LlamaConfig, {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336,
                         "num_hidden_layers": 32, "num_attention_heads": 32}),
    "32B": (Qwen3Config, {**QWEN, "hidden_size": 5120, "intermediate_size": 25600,
                          "num_hidden_layers": 64, "num_attention_heads": 64}),
    "70B": (LlamaConfig, {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672,
                          "num_hidden_layers": 80, "num_attention_heads": 64}),
}  # fmt: skip


def model_of(name: str, **changed: Any) -> Any:
    """A bfloat16 model of a size, with some keys changed; on the meta device it has no values."""
    kind, shape = SHAPES[name]
    shape = {**shape, **changed}
    if kind is Exaone4Config:
        shape["layer_types"] = ["full_attention"] * shape["num_hidden_layers"]
    return AutoModelForCausalLM.from_config(kind(**shape), dtype=torch.bfloat16)


def adapted(model: Any) -> Any:
    """The model with an adapter on all linear layers, the only part that is trained."""
    import peft

    model.requires_grad_(False)
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


@cache
def saved_per_token(name: str, tuning: str, way: str) -> int:
    """Bytes that a token keeps with all layers at full width."""
    _, shape = SHAPES[name]
    found = {}
    for width in (8, 4):
        widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        narrow = {key: shape[key] // width for key in widths} | {"vocab_size": VOCABULARY}
        for layers in (1, 2):
            torch.manual_seed(0)
            policy = Policy(model_of(name, **narrow, num_hidden_layers=layers).train(), None)
            if tuning == "LoRA":
                policy.model.requires_grad_(False)
                policy = attach_lora(policy, RANK, 2 * RANK, "all-linear", seed=0)
            with in_way(policy, way):
                found[width, layers] = memory.memory_of(policy).per_token
    more = shape["num_hidden_layers"] - 1
    eighth, quarter = (found[w, 1] + more * (found[w, 2] - found[w, 1]) for w in (8, 4))
    return eighth + 7 * (quarter - eighth)  # linear: an eighth, two eighths, eight eighths


@cache
def step_of(pairs: int) -> tuple[list[TokenPair], np.ndarray]:
    """Pairs of a step, and of each (P, 3): tokens, pairs of tokens that attend, positions."""
    made = drawn("chat", pairs, np.random.default_rng(0))
    batches = [tree_batch(completions_of(pair)) for pair in made]
    counts = [(b.num_tokens, int((b.depth_BL + 1).sum()), len(b.predict_N)) for b in batches]
    return made, np.array(counts)


def longest_pair() -> int:
    """Tokens of the longest."""
    return int(step_of(PAIRS[-1])[1][:, 0].max())


class Sized:
    """A model of a size and a tuning: its bytes, and what it computes."""

    def __init__(self, name: str, tuning: str):
        self.name, self.tuning = name, tuning
        with torch.device("meta"):
            self.causal_lm = model_of(name)
            model = self.causal_lm if tuning == "full" else adapted(self.causal_lm)
        self.numbers = sum(p.numel() for p in self.causal_lm.parameters())
        self.layers = self.causal_lm.config.num_hidden_layers
        self.costs, self.weights = memory.costs_of(self.causal_lm), scaling.weights_of(model)
        head = Head(self.causal_lm.get_output_embeddings().weight)
        self.head = memory.bytes_of_head(head, torch.bfloat16)
        self.parts = {"the driver": DRIVER, **memory.held_by(model.parameters(), "adamw")}

    def fixed(self, cluster: scaling.Cluster, mode: str) -> dict[str, int]:
        """Bytes on each GPU before a batch."""
        return scaling.on_one_gpu(self.parts, self.weights, cluster.shards(mode))

    def memory(self, cluster: scaling.Cluster, mode: str, way: str) -> memory.Memory:
        """The same, with what a token takes."""
        fixed = sum(self.fixed(cluster, mode).values())
        per_token = saved_per_token(self.name, self.tuning, way)
        return memory.Memory(cluster.memory, fixed, per_token, self.head)

    def seconds(
        self, cluster: scaling.Cluster, mode: str, way: str, pairs: int, batch: int
    ) -> dict[str, float]:
        """Where the seconds of a step of so many pairs go, in batches of so many tokens."""
        made, counts = step_of(pairs)
        costs = self.costs.with_backward(self.tuning == "full", way == "layers")
        dealt = deal(made, cluster.ranks, costs, "flex")
        parts = [counts[part].sum(0).tolist() for part in dealt if part]
        batches = max(-(-tokens // batch) for tokens, _, _ in parts)
        work = [costs.of(*part) for part in parts]
        return scaling.seconds_of_step(work, batches, self.weights, cluster, mode)


def choice(sized: Sized, cluster: scaling.Cluster) -> tuple[str, str, bool]:
    """The mode and what checkpointing becomes, as a run decides; and whether that fits."""
    usable = memory.Memory(cluster.memory, 0, 0).usable
    mode = memory.mode_by_size(
        sized.numbers, sized.tuning == "full", usable, cluster.ranks, cluster.gpus
    )
    mode = mode if cluster.ranks > 1 else "replicate"
    tokens = memory.batch_to_hold(longest_pair(), cluster.shards(mode))
    if (found := sized.memory(cluster, mode, "none")).needs(tokens) <= found.usable:
        return mode, "none", True
    found = sized.memory(cluster, mode, "layers")
    return mode, "layers", found.needs(longest_pair()) <= found.usable


def row_of(sized: Sized, gpus: int, sizes: Sequence[int]) -> dict[str, Any]:
    """One row of the table."""
    card = scaling.CARDS[CARD]
    nodes = max(1, gpus // ON_A_NODE)
    cluster = scaling.Cluster(nodes, gpus // nodes, card.memory, CARD)
    row: dict[str, Any] = {"model": sized.name, "tuning": sized.tuning, "gpus": gpus}
    mode, way, fits = choice(sized, cluster)
    found = sized.memory(cluster, mode, way)
    row |= {"mode": mode, "checkpointing": way, "fixed": found.fixed + found.head}
    most = sized.memory(cluster, mode, "layers")
    one_layer = (
        saved_per_token(sized.name, sized.tuning, "none") // sized.layers
    )  # as it runs again
    room = most.usable - most.fixed - most.head
    row["longest"] = max(0, room // (most.per_token + one_layer))
    if not fits:
        row["peak"] = found.needs(longest_pair())
        parts = sized.fixed(cluster, mode) | {scaling.SAVED: found.per_token * 1024}
        return row | {"bound": scaling.bound_of(parts, found.usable, {})}
    batch = memory.tokens_per_batch(found, torch.device("cuda"))
    row["peak"] = found.needs(batch)
    for pairs in sizes:
        seconds = sized.seconds(cluster, mode, way, pairs, batch)
        row[f"seconds_{pairs}"] = float(sum(seconds.values()))
        row[f"arithmetic_{pairs}"] = float(seconds["arithmetic"] / sum(seconds.values()))
        row[f"bound_{pairs}"] = scaling.bound_of({}, 0, seconds)
    return row


def limits_of(sized: Sized) -> dict[str, Any]:
    """What no number of GPUs changes: what is gathered at once, what a token keeps, and how many
    tokens a batch needs for its arithmetic to take as long as gathering does."""
    gathered = scaling.on_one_gpu(sized.parts, sized.weights, 8)[scaling.GATHERED]
    row = {"model": sized.name, "tuning": sized.tuning, "gathered": gathered}
    for way in ("none", "layers"):
        row[f"per_token_{way}"] = saved_per_token(sized.name, sized.tuning, way)
    card = scaling.CARDS[CARD]
    costs = sized.costs.with_backward(sized.tuning == "full", again=False)
    for nodes in (1, 8):
        cluster = scaling.Cluster(nodes, ON_A_NODE, card.memory, CARD)
        alone = scaling.seconds_of_step([1.0], 1, sized.weights, cluster, "shard")["gathering"]
        row[f"tokens_{nodes}"] = alone * scaling.PRODUCTS_REACH * card.rate / costs.token
    return row


def main() -> None:
    """Every size, both tunings, every number of GPUs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="one size; leaves no file")
    smoke = parser.parse_args().smoke
    sizes = PAIRS[:1] if smoke else PAIRS
    rows, limits = [], []
    for name in list(SHAPES)[: 1 if smoke else None]:
        for tuning in ("LoRA", "full"):
            sized = Sized(name, tuning)
            limits.append(limits_of(sized))
            print(limits[-1], flush=True)
            for gpus in GPUS[:2] if smoke else GPUS:
                rows.append(row_of(sized, gpus, sizes))
                print(rows[-1], flush=True)
    if not smoke:
        assumed = {
            "card": CARD,
            "products_reach": scaling.PRODUCTS_REACH,
            "transfers_reach": scaling.TRANSFERS_REACH,
        }
        record.write("scaling_model", {**assumed, "rows": rows})
        record.write("scaling_limits", {**assumed, "rows": limits})
        cards = [{"name": name, **asdict(card)} for name, card in scaling.CARDS.items()]
        record.write("scaling_cards", {**assumed, "rows": cards})


if __name__ == "__main__":
    main()
