"""What answers, a tracker and `likelier verify` cost beside the training, of a run of 20 minutes.

    python bench/extras.py [--steps 40] [--repeats 3]

A LoRA run of the 26M shape without and with eight answers and TensorBoard, in turns, each a process
of its own; then the trained adapter is verified. Answers are asked for twice, however long the run
is; a tracker hears every step. From both follows their share of a run of 20 minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import workloads

TWENTY_MINUTES = 1200.0
PLAIN = ["eval.samples=0"]
WITH = ["eval.samples=8", "track=tensorboard"]


def main() -> None:
    """Make model and pairs, then take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", default="cpu", choices=workloads.SHAPES)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="extras-"))
    try:
        row = measure(work, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([{name: x for name, x in row.items() if not isinstance(x, dict)}])
    if options.shape != "smoke":
        record.write("extras-cpu", {"rows": [row]})


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both runs, of their steps and of verify; and shares of 20 minutes."""
    shape = workloads.SHAPES[options.shape]
    workloads.save_model(work / "model", shape)
    rows = workloads.draw(workloads.WORKLOADS["chat"], 8 * options.steps, shape["vocab_size"])
    workloads.write_rows(work / "pairs.jsonl", rows)
    keys = [
        "model.path=model",
        "data.train=pairs.jsonl",
        "data.eval=5%",
        "train.pairs_per_step=4",
        f"train.steps={options.steps}",
        "train.eval_every=null",
        "train.save_every=null",
    ]
    seconds: dict[str, list[float]] = {"plain": [], "with": [], "steps": [], "steps_with": []}
    weights = set()
    for turn in range(options.repeats):
        for name, more in (("plain", PLAIN), ("with", WITH)):
            out = work / f"{name}-{turn}"
            seconds[name].append(timed(work, "train", *keys, *more, f"out={out.name}"))
            lines = (out / "timing.jsonl").read_text("utf-8").splitlines()
            steps = [json.loads(line)["seconds"] for line in lines][1:]
            seconds["steps" if name == "plain" else "steps_with"].append(sum(steps) / len(steps))
            weights.add((out / "adapter" / "adapter_model.safetensors").read_bytes())
    assert len(weights) == 1, "what is trained must not depend on what is shown"
    verify = timed(work, "verify", str(out / "adapter"), "--against", str(out), "--gate")
    median = {name: record.spread(found)["median"] for name, found in seconds.items()}
    a_step = max(0.0, median["steps_with"] - median["steps"])  # less is noise
    fixed = median["with"] - median["plain"] - options.steps * a_step
    steps = TWENTY_MINUTES / median["steps"]
    return {
        "steps": options.steps,
        "seconds": {name: record.spread(found) for name, found in seconds.items()},
        "extra_seconds_a_run": fixed,
        "extra_seconds_a_step": a_step,
        "share_of_20_minutes": (fixed + steps * a_step) / TWENTY_MINUTES,
        "verify_seconds": verify,
        "verify_share_of_20_minutes": verify / TWENTY_MINUTES,
    }


def timed(work: Path, *words: str) -> float:
    """Seconds of one command, from an empty cache."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    settings = os.environ | {"LIKELIER_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "likelier", *words], cwd=work, env=settings, check=True,
                   capture_output=True)  # fmt: skip
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
