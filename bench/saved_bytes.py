"""What a token keeps for the backward, and what making it again costs: LoRA and full tuning.

    python bench/saved_bytes.py            EXAONE-4.0-1.2B's shape, random weights
    python bench/saved_bytes.py --smoke    a tiny model

``plain`` is the model as transformers and peft have it, ``none`` and ``layers`` are values of
train.checkpointing. Bytes are counted by saved-tensor hooks, each storage once, without weights, on
models of one and of two layers: all layers keep the same. Times are the processor's, of one thread,
for a forward and backward over 512 tokens of two layers, in turns, as multiples of plain. The
vocabulary is small: what is kept does not depend on it.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import record
import torch
import workloads
from transformers import AutoModelForCausalLM, Exaone4Config

from likelier.batching.batch import Scored, tree_batch
from likelier.model.adapters import attach_lora, for_training
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers
from likelier.training import memory

WAYS = ("plain", "none", "layers")
VOCABULARY, TIMED_TOKENS, TURNS = 1024, 512, 5


def policy_of(shape: dict[str, Any], dtype: str, tuning: str) -> Policy:
    """A model of a shape with random weights; LoRA has rank 16 on all linear layers."""
    kinds = ["full_attention"] * shape["num_hidden_layers"]
    config = Exaone4Config(**workloads._EXAONE, **shape, layer_types=kinds)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()
    policy = Policy(model, None)
    if tuning == "full":
        return policy
    policy.model.requires_grad_(False)
    return attach_lora(policy, 16, 32, "all-linear", seed=0)


@contextmanager
def in_way(policy: Policy, way: str) -> Iterator[None]:
    """The policy as it trains in one of the ways."""
    if way == "layers":
        checkpoint_layers(policy.causal_lm)
    trained: AbstractContextManager[Any] = nullcontext() if way == "plain" else for_training(policy)
    try:
        with trained:
            yield
    finally:
        if way == "layers":
            policy.causal_lm.activation_checkpointing_disable()


def kib_a_token(shape: dict[str, Any], dtype: str, tuning: str) -> dict[str, float]:
    """What a token keeps with all layers of a shape, from the first and the second."""
    found = {}
    for layers in (1, 2):
        policy = policy_of({**shape, "num_hidden_layers": layers}, dtype, tuning)
        for way in WAYS:
            with in_way(policy, way):
                found[way, layers] = memory.memory_of(policy).per_token
    more = shape["num_hidden_layers"] - 1
    return {way: (found[way, 1] + more * (found[way, 2] - found[way, 1])) / 1024 for way in WAYS}


def times(shape: dict[str, Any], dtype: str, tuning: str) -> dict[str, list[float]]:
    """Seconds of the processor for a forward and backward in every turn."""
    policy = policy_of({**shape, "num_hidden_layers": 2}, dtype, tuning)
    ids = tuple(token % VOCABULARY for token in range(TIMED_TOKENS + 1))
    batch = tree_batch([Scored(ids, (False,) * TIMED_TOKENS + (True,))])
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(1 + TURNS):  # the first warms up
        for way in WAYS:
            with in_way(policy, way), policy.running() as scorer:
                began = time.process_time()
                scorer(batch).sum().backward()
                if turn:
                    took[way].append(time.process_time() - began)
            policy.model.zero_grad(set_to_none=True)
    return took


def main() -> None:
    """Both kinds of tuning in both precisions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny model; leaves no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = {**workloads.SHAPES["smoke" if options.smoke else "gpu"], "vocab_size": VOCABULARY}
    rows, shown = [], []
    for tuning in ("lora", "full"):
        for dtype in ("float32", "bfloat16"):
            kib, took = kib_a_token(shape, dtype, tuning), times(shape, dtype, tuning)
            row: dict[str, Any] = {"tuning": tuning, "dtype": dtype}
            for way in WAYS:
                row[f"{way}_kib"] = kib[way]
                if way != "plain":
                    row[f"{way}_share"] = kib[way] / kib["plain"]
                    turns = zip(took[way], took["plain"], strict=True)
                    row[f"{way}_time"] = record.spread([ours / plain for ours, plain in turns])
            rows.append(row)
            shown.append({name: value["median"] if isinstance(value, dict) else value
                          for name, value in row.items()})  # fmt: skip
    if not options.smoke:
        record.write("saved_bytes", {"rows": rows, "tokens": TIMED_TOKENS})
    record.show(shown)


if __name__ == "__main__":
    main()
