"""What answers, a tracker and `likelier verify` cost beside the training, of a run of 20 minutes.

    python bench/extras.py [--steps 40] [--repeats 3]

A LoRA run of the 26M shape without and with eight answers and TensorBoard, in turns, each a process
of its own; then the trained adapter is verified. Answers are asked for twice, however long the run
is, and a tracker is opened once; it hears every step, which is timed apart, with the rows of the
run again. From both follows their share of a run of 20 minutes.
"""

import argparse
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

from likelier.base.files import read_lines
from likelier.tracking.trackers import open_tracker

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
    seconds: dict[str, list[float]] = {"plain": [], "with": [], "steps": []}
    weights = set()
    for turn in range(options.repeats):
        for name, more in (("plain", PLAIN), ("with", WITH)):
            out = work / f"{name}-{turn}"
            seconds[name].append(timed(work, "train", *keys, *more, f"out={out.name}"))
            if name == "plain":
                later = [row["seconds"] for row in read_lines(out / "timing.jsonl")][1:]
                seconds["steps"].append(sum(later) / len(later))
            weights.add((out / "adapter" / "adapter_model.safetensors").read_bytes())
    assert len(weights) == 1, "what is trained must not depend on what is shown"
    verify = timed(work, "verify", str(out / "adapter"), "--against", str(out), "--gate")
    median = {name: record.spread(found)["median"] for name, found in seconds.items()}
    a_step = tracked(out, work / "tracked")
    fixed = median["with"] - median["plain"]
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


def tracked(run: Path, folder: Path) -> float:
    """Seconds that a tracker takes for a row of a run's log."""
    rows, tracker = read_lines(run / "metrics.jsonl"), open_tracker("tensorboard", folder, "", {})
    began = time.perf_counter()
    for row in rows:
        tracker.write([row])
    seconds = time.perf_counter() - began
    tracker.close()
    return seconds / len(rows)


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
