"""One run on one process and on several: how much faster, and what each process holds.

    python bench/ranks.py                 26M, full tuning: speed in turns, memory of each process
    python bench/ranks.py --size 150M --repeats 1 --steps 2    the memory of a larger one
    python bench/ranks.py --size smoke    to try it

Rows of other sizes that were recorded on this kind of processor stay.

Processes talk over gloo, and each has one thread: with more of them than cores they wait for each
other, so that speed is measured for as many as there are cores, beside one process with one thread,
in turns. ``anonymous`` is memory that no file holds, the most that was seen in samples of 10 ms, of
the process that holds the most. ``others`` are those that do not save the model: the first one
puts it together at the end. Rows: prompts of 100 to 300 tokens, answers of 50 to 250.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import workloads
from real_size import draw, held

TEAMS = [(1, "replicate"), (2, "replicate"), (2, "shard"), (4, "shard")]
PAIRS_PER_STEP = 8


def main() -> None:
    """Every team in turns, as often as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("smoke", "cpu", "150M"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found: dict[tuple[int, str], list[dict[str, Any]]] = {team: [] for team in TEAMS}
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        work = Path(folder)
        workloads.save_model(work / "model", workloads.SHAPES[options.size], dtype="float32")
        vocabulary = workloads.SHAPES[options.size]["vocab_size"]
        rows = draw(PAIRS_PER_STEP * options.steps, vocabulary, 8 if options.size == "smoke" else 1)
        workloads.write_rows(work / "pairs.jsonl", rows)
        for repeat in range(options.repeats):
            for size, mode in TEAMS:
                if size <= cores or repeat == 0:
                    found[size, mode].append(run(work, size, mode, repeat))
    alone = found[TEAMS[0]]
    table = []
    for (size, mode), runs in found.items():
        faster = [one["pairs_per_second"] / other["pairs_per_second"]
                  for one, other in zip(runs, alone, strict=False)]  # fmt: skip
        table.append(
            {
                "size": options.size, "processes": size, "mode": mode,
                "pairs_per_second": record.spread([one["pairs_per_second"] for one in runs]),
                "faster": record.spread(faster) if size <= cores else None,
                "first_mib": max(one["first_mib"] for one in runs),
                "others_mib": max(one["others_mib"] for one in runs),
            }
        )  # fmt: skip
    if options.size != "smoke":
        others = [row for row in record.rows("ranks-cpu") if row["size"] != options.size]
        record.write("ranks-cpu", {"rows": [*others, *table]})
    record.show(table)


def run(work: Path, size: int, mode: str, repeat: int) -> dict[str, Any]:
    """One run: pairs a second of its steps after the first, and peaks in MiB."""
    out = work / f"{size}-{mode}-{repeat}"
    config = {
        "model": {"path": str(work / "model"), "dtype": "float32"},
        "data": {"train": str(work / "pairs.jsonl"), "eval": None},
        "adapter": {"kind": "none"},
        "train": {"pairs_per_step": PAIRS_PER_STEP, "save_every": None, "tokens_per_batch": 1024},
        "eval": {"samples": 0},
        "parallel": {"processes": size, "mode": mode},
        "out": str(out),
    }
    (work / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    settings = os.environ | {
        "LIKELIER_CACHE": f"{out}-cache", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "likelier", "train", str(work / "config.yaml")], env=settings
    )
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for rank, pid in _processes(process.pid).items():
            peaks[rank] = max(peaks.get(rank, 0), held(pid, "RssAnon"))
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"error: {size} processes ended with {process.returncode}")
    lines = (out / "timing.jsonl").read_text("utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines][1:]
    others = [peak for rank, peak in peaks.items() if rank > 0]
    return {
        "pairs_per_second": PAIRS_PER_STEP / statistics.median(seconds),
        "first_mib": peaks[0] / 1024,
        "others_mib": max(others, default=0) / 1024,
    }


def _processes(launcher: int) -> dict[int, int]:
    """The processes of a run by rank; the launcher itself where it is the only one."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    found: dict[int, int] = {}
    try:
        for pid in map(int, children.read_text().split()):
            for setting in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if setting.startswith(b"RANK="):
                    found[int(setting[5:])] = pid
    except (OSError, ValueError):
        return found
    return found or {0: launcher}


if __name__ == "__main__":
    main()
