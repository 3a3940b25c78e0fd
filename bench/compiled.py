"""What `train.compile` brings: the same steps with layers compiled and as they are, in turns.

    python bench/compiled.py            all workloads, float32 and bfloat16
    python bench/compiled.py --smoke    a minute's try with a tiny model

Two processes take turns step by step. The start and the first step, in which the layers are
compiled, are left out and written down apart.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
import workloads
from race import Runner, make_case


def measure(options: argparse.Namespace, work: Path, workload: str, dtype: str) -> dict[str, Any]:
    """Plain and compiled steps in turns, and the peak memory of each."""
    shape = workloads.SHAPES[options.shape]
    steps = 1 + options.repeats
    rows = workloads.draw(
        workloads.WORKLOADS[workload], steps * options.pairs_per_step, shape["vocab_size"],
        options.seed, shrink=8 if options.smoke else 1,
    )  # fmt: skip
    folder = work / f"{workload}-{dtype}"
    plain = make_case(folder, work / "model", rows, dtype, steps, options.pairs_per_step)
    spec = json.loads(json.dumps(plain.spec))
    spec["likelier"]["train"]["compile"] = True
    runners = {
        name: Runner(case, "likelier", None, name)
        for name, case in (("plain", plain), ("compiled", replace(plain, spec=spec)))
    }
    try:
        while all([runner.step() for runner in runners.values()]):
            pass
    finally:
        for runner in runners.values():
            runner.stop()
    before, after = (runners[name].told for name in ("plain", "compiled"))
    pairs = zip(before.steps[1:], after.steps[1:], strict=True)
    return {
        "workload": workload,
        "dtype": dtype,
        "faster": record.spread([ours / compiled for ours, compiled in pairs]),
        "start_up_seconds": [before.start_up, after.start_up],
        "first_step_seconds": [before.steps[0], after.steps[0]],
        "peak_mib": [before.peaks["end"], after.peaks["end"]],
        "loss_difference": max(
            abs(a - b) for a, b in zip(before.losses, after.losses, strict=True)
        ),
    }


def main() -> None:
    """Every workload in every precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    add("--dtype", nargs="+", default=["float32", "bfloat16"])
    add("--shape", choices=workloads.SHAPES, default="cpu")
    add("--repeats", type=int, default=5, help="timed steps of each")
    add("--pairs-per-step", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.repeats = "smoke", 2
    work = Path(tempfile.mkdtemp(prefix="compiled-"))
    rows: list[dict[str, Any]] = []
    try:
        workloads.save_model(work / "model", workloads.SHAPES[options.shape], options.seed)
        for dtype in options.dtype:
            for workload in options.workload:
                rows.append(measure(options, work, workload, dtype))
                if not options.smoke:
                    record.write(f"compiled-{options.shape}", {"rows": rows})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([{**row, "faster": row["faster"]["median"]} for row in rows])


if __name__ == "__main__":
    main()
