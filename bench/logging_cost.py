"""What metrics, logs and notes cost of a run: their own seconds beside those of its steps.

    python bench/logging_cost.py [--steps 40]

A LoRA run of the 26M shape with an evaluation every tenth of it. The functions that write and
examine are timed from outside, in the run itself, so that no two runs have to be told apart in the
noise. Held-out pairs are scored for their figures, which is no cost of writing them down.
"""

import argparse
import os
import pkgutil
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import workloads

TIMED = {  # by what they are part of
    "metrics": ["likelier.run.metrics", "likelier.evaluation.evaluator.held_out_metrics"],
    "pair logs": [
        "likelier.training.pair_log.PairLog.add",
        "likelier.training.pair_log.PairLog.write",
    ],
    "logs": [
        "likelier.training.run_folder.RunFolder.log",
        "likelier.training.run_folder.RunFolder.time",
        "likelier.training.run_folder.RunFolder.write_record",
    ],
    "notes": ["likelier.run._look", "likelier.evaluation.spikes.Spikes.hear"],
}
TRAINING = ["likelier.run.gradients_that_fit", "likelier.training.optimizer.MasterAdamW.step"]


def main() -> None:
    """Make model and pairs, then train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--shape", default="cpu", choices=workloads.SHAPES)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="logging-"))
    try:
        row = measure(work, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([row])
    if options.shape != "smoke":
        record.write("logging_cost-cpu", {"rows": [row]})


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the run's steps, and of each part as a share of them."""
    os.environ |= {"LIKELIER_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    import likelier

    shape = workloads.SHAPES[options.shape]
    workloads.save_model(work / "model", shape)
    rows = workloads.draw(workloads.WORKLOADS["chat"], 8 * options.steps, shape["vocab_size"])
    workloads.write_rows(work / "pairs.jsonl", rows)
    spent: Counter[str] = Counter()
    for part, names in {**TIMED, "training": TRAINING}.items():
        for name in names:
            time_calls(name, part, spent)
    likelier.train(
        {
            "model": {"path": str(work / "model")},
            "data": {"train": str(work / "pairs.jsonl"), "eval": "10%"},
            "train": {"pairs_per_step": 4, "steps": options.steps, "save_every": 10,
                      "eval_every": max(1, options.steps // 10)},
            "eval": {"samples": 0},
            "out": str(work / "run"),
        }
    )  # fmt: skip
    shares = {f"{part}_share": spent[part] / spent["training"] for part in TIMED}
    return {
        "steps": options.steps,
        "training_seconds": spent["training"],
        **shares,
        "share": sum(shares.values()),
    }


def time_calls(name: str, part: str, spent: Counter[str]) -> None:
    """Add what every call of a function takes to a part."""
    home, _, last = name.rpartition(".")
    owner: Any = pkgutil.resolve_name(home)
    call: Callable[..., Any] = getattr(owner, last)

    def timed(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **named)
        finally:
            spent[part] += time.perf_counter() - began

    setattr(owner, last, timed)


if __name__ == "__main__":
    main()
