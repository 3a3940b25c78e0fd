"""What `optim.kind: adamw8bit` costs in exactness: the demo's run in full, beside AdamW's own.

    python bench/eight_bits.py            three seeds
    python bench/eight_bits.py --smoke    one seed, a few steps

The seeds differ in data and order, so that their spread says what a difference weighs. Where the
weights end is compared by their distance, as a share of how far AdamW moved them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import record
from safetensors.torch import load_file

from likelier import train
from likelier.demo.base import base_model
from likelier.demo.make import HELD_OUT_FILE, TRAIN_FILE, settings, write_pairs

HELD_OUT = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")


def one(base: Path, folder: Path, seed: int, kind: str, steps: int | None) -> dict[str, Any]:
    """A run, and where it ends: its losses, its last held-out figures, its weights."""
    config = settings(base, folder, folder / f"{kind}-{seed}", seed)
    config["optim"]["kind"] = kind
    if steps is not None:
        config["train"] = {"steps": steps, "pairs_per_step": 32, "eval_every": steps, "seed": seed}
    run = train(config)
    last = [row for row in run.metrics if "eval_loss" in row][-1]
    return {
        "loss": [row["loss"] for row in run.metrics if "loss" in row],
        "held_out": {name: last[name] for name in HELD_OUT},
        "weights": load_file(run.model / "model.safetensors"),
    }


def compare(base: Path, folder: Path, seed: int, steps: int | None) -> dict[str, Any]:
    """The same run with averages in eight bits and in float32."""
    for name, split in ((TRAIN_FILE, "train"), (HELD_OUT_FILE, "eval")):
        write_pairs(folder / name, split, seed)
    plain, eight = (one(base, folder, seed, kind, steps) for kind in ("adamw", "adamw8bit"))
    before = load_file(base / "model.safetensors")
    ends = [run["weights"] for run in (plain, eight)]
    moved = sum(float((ends[0][n] - w).square().sum()) for n, w in before.items())
    apart = sum(float((ends[0][n] - ends[1][n]).square().sum()) for n in before)
    gaps = [abs(a - b) for a, b in zip(plain["loss"], eight["loss"], strict=True)]
    return {
        "seed": seed,
        "steps": len(gaps),
        "held_out": {"adamw": plain["held_out"], "adamw8bit": eight["held_out"]},
        "loss_apart": {"mean": sum(gaps) / len(gaps), "most": max(gaps)},
        "weights_apart": (apart / moved) ** 0.5,
    }


def main() -> None:
    """Run every seed and write what was found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--smoke", action="store_true", help="one seed, five steps")
    arguments.add_argument("--seeds", type=int, default=3, help="how many runs")
    given = arguments.parse_args()
    smoke = given.smoke
    base = base_model()
    rows = []
    for seed in range(1 if smoke else given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(base, Path(folder), seed, 5 if smoke else None))
        print(rows[-1], flush=True)
    record.write("eight_bits-smoke" if smoke else "eight_bits", {"rows": rows})


if __name__ == "__main__":
    main()
