"""How near `likelier plan` comes to the run itself: its peak memory and its time.

    python bench/plan.py                            26M and 150M, every kind of tuning
    python bench/plan.py --sizes 1.28B --tunings lora qlora full8   each row needs up to 20 GB
    python bench/plan.py --smoke                    a minute's try with a tiny model

Models are stored in bfloat16 and compute as the defaults have it. Plan and run take turns, as
processes of their own from an empty cache of the reference. ``planned`` is what the plan prints:
what its process reached in two steps, or what is counted of a phase that it does not go through.
``counted`` is what it counts alone, as for a card that is not here. ``used`` is the peak resident
memory of the run. A run is timed from the call of `likelier.train` to its return; importing is not
part of either. Rows of other sizes and tunings stay in the results.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import workloads

TRAIN = """
import json, sys, time
from likelier.base.heap import without_small_caches
without_small_caches()  # as the command does
from likelier.run import train
config = json.load(open(sys.argv[1]))
began = time.perf_counter()
train(config)
print(time.perf_counter() - began)
"""
PLAN = """
import json, sys
from likelier.base.heap import without_small_caches
without_small_caches()  # as the command does
from dataclasses import asdict
from likelier.config import config_from
from likelier.commands.plan import plan
print(json.dumps(asdict(plan(config_from(json.load(open(sys.argv[1])), [])))))
"""
SIZES = {"smoke": "smoke", "26M": "cpu", "150M": "150M", "1.28B": "gpu"}  # names of shapes
TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"adapter": {"kind": "none"}},
    "full8": {"adapter": {"kind": "none"}, "optim": {"kind": "adamw8bit"}},
    "lora": {},
    "lora, layers again": {"train": {"checkpointing": "layers"}},
    "qlora": {"model": {"quantise": "nf4"}},
    "qlora, layers again": {
        "model": {"quantise": "nf4"}, "train": {"checkpointing": "layers"}
    },
}  # fmt: skip


def timed(program: str, config: Path, cache: Path) -> tuple[Any, float]:
    """What a child prints, and its peak resident memory in MiB."""
    shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "LIKELIER_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(config)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        told = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"a child ended with {child.returncode}")
    return json.loads(told), usage.ru_maxrss / 1024


def measure(options: argparse.Namespace, work: Path, size: str, tuning: str) -> dict[str, Any]:
    """Plan and run in turns; what is foretold, what came, and their ratio."""
    asked = {
        "data": {"train": str(work / "pairs.jsonl"), "eval": None},
        "train": {"steps": options.steps, "pairs_per_step": options.pairs_per_step,
                  "save_every": options.save_every},
        "eval": {"samples": 0},
    }  # fmt: skip
    for section, keys in TUNINGS[tuning].items():
        asked[section] = asked.get(section, {}) | keys
    asked["model"] = {"path": str(work / "model"), **asked.get("model", {})}
    found: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        asked["out"] = str(work / f"{tuning}-{repeat}")  # type: ignore[assignment]
        config = work / "config.json"
        config.write_text(json.dumps(asked), encoding="utf-8")
        planned, _ = timed(PLAN, config, work / "cache")
        seconds, used = timed(TRAIN, config, work / "cache")
        shutil.rmtree(work / f"{tuning}-{repeat}")
        counted = max(sum(parts.values()) for parts in planned["phases"].values())
        figures = {
            "planned_seconds": planned["seconds"],
            "run_seconds": seconds,
            "time_ratio": planned["seconds"] / seconds,
            "planned_mib": planned["peak_memory"] / 2**20,
            "counted_mib": counted / 2**20,
            "used_mib": used,
            "memory_ratio": planned["peak_memory"] / 2**20 / used,
            "counted_ratio": counted / 2**20 / used,
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)
    return {
        "tuning": tuning,
        "size": size,
        "steps": options.steps,
        "pairs_per_step": options.pairs_per_step,
        "settings": planned["settings"],
        "phases": planned["phases"],
        **{name: record.spread(values) for name, values in found.items()},
    }


def main() -> None:
    """Every size and tuning."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=["26M", "150M"])
    add("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    add("--workload", choices=workloads.WORKLOADS, default="summaries")
    add("--repeats", type=int, default=3)
    add("--steps", type=int, default=4)
    add("--pairs-per-step", type=int, default=8)
    add("--save-every", type=int, help="steps between checkpoints; left out: none")
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.repeats = ["smoke"], 1
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        work = Path(tempfile.mkdtemp(prefix="plan-"))
        try:
            shape = workloads.SHAPES[SIZES[size]]
            workloads.save_model_apart(work / "model", shape, options.seed, "bfloat16")
            drawn = workloads.draw(
                workloads.WORKLOADS[options.workload], options.steps * options.pairs_per_step,
                shape["vocab_size"], options.seed, shrink=8 if options.smoke else 1,
            )  # fmt: skip
            workloads.write_rows(work / "pairs.jsonl", drawn)
            for tuning in options.tunings:
                rows.append(measure(options, work, size, tuning))
                if not options.smoke:
                    record.write("plan-cpu", {"rows": _with_others(rows)})
        finally:
            shutil.rmtree(work, ignore_errors=True)
    record.show([_line(row) for row in rows])


def _with_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, and those of other sizes and tunings that were measured before."""
    file = record.RESULTS / "plan-cpu.json"
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    ours = {(row["size"], row["tuning"]) for row in rows}
    kept = [row for row in before if (row.get("size"), row.get("tuning")) not in ours]
    order = {name: place for place, name in enumerate([*SIZES, *TUNINGS])}
    both = [row for row in kept if "tuning" in row] + rows
    return sorted(both, key=lambda row: (order[row["size"]], order[row["tuning"]]))


def _line(row: dict[str, Any]) -> dict[str, Any]:
    def ratio(name: str) -> str:
        found = row[name]
        return f"{found['median']:.2f} ({found['least']:.2f}-{found['most']:.2f})"

    return {
        "size": row["size"],
        "tuning": row["tuning"],
        "used MiB": row["used_mib"]["median"],
        "planned/used": ratio("memory_ratio"),
        "counted/used": ratio("counted_ratio"),
        "planned/run s": ratio("time_ratio"),
    }


if __name__ == "__main__":
    main()
