"""Two commits of likelier side by side: time of a step and peak memory, on the same pairs.

    python bench/two_commits.py --old OLD/.venv/bin/python              summaries and chat
    python bench/two_commits.py --old OLD/.venv/bin/python --smoke      a try with a tiny model
    python bench/two_commits.py --old .venv/bin/python --name noise     a commit beside itself

Both are processes that take turns step by step, in the order A B, B A, A B and so on. The first
step of each is a warm-up, with start-up and the reference in it, and is told apart. Every round
begins with new processes, because two processes of the same code differ by a little, too. Each
round gives one ratio, new over old, of the medians of its steps.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import workloads
from race import MAX_LENGTH, OPTIM, Case, Runner, Told

SIDES = ("old", "new")


def make_case(options: argparse.Namespace, folder: Path, workload: str, model: Path) -> Case:
    """Pairs and a config that every version reads."""
    folder.mkdir(parents=True)
    steps, per_step = 1 + options.repeats, options.pairs_per_step
    vocabulary = workloads.SHAPES[options.shape]["vocab_size"]
    shrink = 8 if options.smoke else 1
    rows = workloads.draw(
        workloads.WORKLOADS[workload], steps * per_step, vocabulary, options.seed, shrink
    )
    workloads.write_rows(folder / "pairs.jsonl", rows)
    data = {"train": str(folder / "pairs.jsonl"), "eval": None, "max_length": MAX_LENGTH}
    asked = {
        "model": {"path": str(model), "dtype": options.dtype},
        "data": data,
        "adapter": {"kind": "none"} if options.adapter == "none" else {"kind": "lora", "r": 16},
        "loss": {"beta": 0.1},
        "optim": {**OPTIM, "lr": 1e-5},
        "train": {"steps": steps, "pairs_per_step": per_step, "save_every": None},
    }
    return Case(folder, {"likelier": asked}, visited=(), ids="")


def in_turns(case: Case, pythons: dict[str, Path], number: int) -> dict[str, Told]:
    """Run both sides, one step of each in turn; their start-up is nobody else's turn."""
    runners: dict[str, Runner] = {}
    order = list(SIDES if number % 2 == 0 else SIDES[::-1])
    try:
        for side in order:
            name = f"round-{number}-{side}"
            runner = runners[side] = Runner(case, "public", None, name, pythons[side])
            runner.step()
            runner.told.start_up = time.time() - runner.launched  # to the end of the first step
        while all([runners[side].step() for side in order]):  # a list: both take the step
            order.reverse()
    finally:
        for runner in runners.values():
            runner.stop()
    return {side: runners[side].told for side in SIDES}


def measure(options: argparse.Namespace, work: Path, workload: str) -> dict[str, Any]:
    """All rounds of a workload: every figure of both sides, and the ratios new over old."""
    case = make_case(options, work / workload, workload, work / "model")
    pythons = {"old": options.old, "new": options.new}
    rounds = [in_turns(case, pythons, number) for number in range(options.rounds)]
    figures: dict[str, Any] = {
        side: {
            "step_seconds": [one[side].steps[1:] for one in rounds],
            "to_first_step_seconds": [one[side].start_up for one in rounds],
            "peak_mib": [max(one[side].peaks.values()) for one in rounds],
            "peak_mib_of_steps": [one[side].peaks["end"] for one in rounds],
            "losses": rounds[0][side].losses,
        }
        for side in SIDES
    }

    def ratio(figure: str) -> dict[str, float]:
        old, new = (
            [statistics.median(v) if isinstance(v, list) else v for v in figures[side][figure]]
            for side in SIDES
        )
        return record.spread([n / o for n, o in zip(new, old, strict=True)])

    names = ("step_seconds", "to_first_step_seconds", "peak_mib", "peak_mib_of_steps")
    return {
        "workload": workload,
        "dtype": options.dtype,
        "pairs_per_step": options.pairs_per_step,
        **{f"{name}_ratio": ratio(name) for name in names},
        "losses_equal": figures["old"]["losses"] == figures["new"]["losses"],
        **figures,
    }


def commit_of(python: Path) -> str:
    """The commit of the checkout that a Python imports likelier from."""
    program = "import likelier; print(likelier.__path__[0])"
    source = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    git = ["git", "-C", source.stdout.strip(), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    """Compare every workload; the file is written anew after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--old", type=Path, required=True, help="Python of the older checkout")
    add("--new", type=Path, default=Path(sys.executable), help="default: the one that runs this")
    add("--workload", nargs="+", choices=workloads.WORKLOADS, default=["summaries", "chat"])
    add("--shape", choices=workloads.SHAPES, default="cpu")
    add("--dtype", default="float32")
    add("--adapter", choices=("none", "lora"), default="none", help="lora: of rank 16")
    add("--rounds", type=int, default=4, help="pairs of processes")
    add("--repeats", type=int, default=6, help="timed steps of each process")
    add("--pairs-per-step", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    add("--name", default="two_commits")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.rounds, options.repeats = "smoke", 2, 3
    options.old, options.new = options.old.absolute(), options.new.absolute()
    commits = {"old": commit_of(options.old), "new": commit_of(options.new)}
    work = Path(tempfile.mkdtemp(prefix="two-commits-"))
    rows: list[dict[str, Any]] = []
    try:
        workloads.save_model(work / "model", workloads.SHAPES[options.shape], options.seed)
        for workload in options.workload:
            rows.append(measure(options, work, workload))
            if not options.smoke:
                record.write(f"{options.name}-{options.shape}", {"commits": commits, "rows": rows})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"old {commits['old']}, new {commits['new']}; ratios are new over old")
    record.show([_line(row) for row in rows])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    def shown(name: str) -> str:
        ratio = row[f"{name}_ratio"]
        return f"{ratio['median']:.3f} ({ratio['least']:.3f}-{ratio['most']:.3f})"

    return {
        "workload": row["workload"],
        "step time": shown("step_seconds"),
        "peak memory of steps": shown("peak_mib_of_steps"),
        "peak memory": shown("peak_mib"),
        "to first step": shown("to_first_step_seconds"),
        "losses equal": row["losses_equal"],
    }


if __name__ == "__main__":
    main()
