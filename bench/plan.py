"""How near `likelier plan` comes to the run itself: its time and its peak memory.

    python bench/plan.py            all workloads in float32
    python bench/plan.py --smoke    a minute's try with a tiny model

Plan and run take turns, as processes of their own from an empty cache of the reference. The run
is timed from the call of `likelier.train` to its return; importing is not part of either.
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
from race import make_case

TRAIN = """
import json, sys, time
from likelier.run import train
config = json.load(open(sys.argv[1]))
began = time.perf_counter()
train(config)
print(time.perf_counter() - began)
"""
PLAN = """
import json, sys
from dataclasses import asdict
from likelier.config import config_from
from likelier.commands.plan import plan
print(json.dumps(asdict(plan(config_from(json.load(open(sys.argv[1])), [])))))
"""


def timed(program: str, config: Path, cache: Path) -> tuple[Any, float]:
    """What a child prints, and its peak resident memory in MiB."""
    shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "LIKELIER_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(config)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        told = json.loads(child.stdout.read())
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"a child ended with {child.returncode}")
    return told, usage.ru_maxrss / 1024


def measure(options: argparse.Namespace, work: Path, workload: str) -> dict[str, Any]:
    """Plan and run in turns; what is foretold, what came, and their ratio."""
    shape = workloads.SHAPES[options.shape]
    rows = workloads.draw(
        workloads.WORKLOADS[workload], options.steps * options.pairs_per_step,
        shape["vocab_size"], options.seed, shrink=8 if options.smoke else 1,
    )  # fmt: skip
    case = make_case(
        work / workload, work / "model", rows, "float32", options.steps, options.pairs_per_step
    )
    asked = case.spec["likelier"]
    times, memories, plans, runs = [], [], [], []
    for repeat in range(options.repeats):
        asked["out"] = str(work / f"{workload}-{repeat}")
        config = work / "config.json"
        config.write_text(json.dumps(asked), encoding="utf-8")
        planned, _ = timed(PLAN, config, work / "cache")
        seconds, peak = timed(TRAIN, config, work / "cache")
        shutil.rmtree(asked["out"])
        plans.append(planned["seconds"])
        runs.append(seconds)
        times.append(planned["seconds"] / seconds)
        memories.append(planned["peak_memory"] / 2**20 / peak)
    return {
        "workload": workload,
        "steps": options.steps,
        "pairs_per_step": options.pairs_per_step,
        "planned_seconds": record.spread(plans),
        "run_seconds": record.spread(runs),
        "run_peak_mib": peak,
        "time_ratio": record.spread(times),
        "memory_ratio": record.spread(memories),
    }


def main() -> None:
    """Every workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    add("--shape", choices=workloads.SHAPES, default="cpu")
    add("--repeats", type=int, default=5)
    add("--steps", type=int, default=8)
    add("--pairs-per-step", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.repeats = "smoke", 2
    work = Path(tempfile.mkdtemp(prefix="plan-"))
    rows: list[dict[str, Any]] = []
    try:
        workloads.save_model(work / "model", workloads.SHAPES[options.shape], options.seed)
        for workload in options.workload:
            rows.append(measure(options, work, workload))
            if not options.smoke:
                record.write(f"plan-{options.shape}", {"rows": rows})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([_line(row) for row in rows])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    def ratio(name: str) -> str:
        found = row[name]
        return f"{found['median']:.2f} ({found['least']:.2f}-{found['most']:.2f})"

    return {
        "workload": row["workload"],
        "planned s": row["planned_seconds"]["median"],
        "run s": row["run_seconds"]["median"],
        "planned/run": ratio("time_ratio"),
        "memory planned/run": ratio("memory_ratio"),
    }


if __name__ == "__main__":
    main()
