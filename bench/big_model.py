"""A first hour with a model of real size: score 20 pairs, two LoRA steps, beside TRL.

    python bench/big_model.py                    EXAONE-4.0-1.2B's shape in bfloat16: half an hour
    python bench/big_model.py --without-bf16     as on a processor that has no bfloat16 products
    python bench/big_model.py --smoke            a minute's try with a tiny model

The model folder is made here, with random weights. likelier runs with its defaults, TRL with what
its search found on smaller models of the shape: one pair a batch, the reference precomputed, and
float32 weights where there are no bfloat16 products. Both train the same adapter on the same pairs
and score the same 20 as the reference, one after the other, because both at once need more memory
than most machines have. ``likelier score`` is a command of its own, from an empty cache.
``--without-bf16`` keeps oneDNN from bfloat16 instructions and asks for float32. The workload
``even`` has prompts of 100 to 300 tokens and answers of 50 to 250, as `real_size.py`.
``most_faster`` is what the factor would be if a step of likelier were only the matrix products that
frozen weights need of its prefix tree, at the largest rate that `torch.matmul` reaches before and
after the two trainers. Rows of other workloads and precisions stay in the results.
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
import torch
import workloads
from limit import DTYPES, matrix_rate, useful_flop
from race import HERE, TRL_PYTHON, Settings, Told, make_case, race
from real_size import draw as evenly
from versus_trl import save_adapter

PAIRS, STEPS = 20, 2
# It tells its own peak: what the system keeps of a child counts its parent's, too, which made the
# model.
SCORE = """
import os, sys
from child import peak_mib
from likelier.cli import main
if main(sys.argv[1:]):
    sys.exit(1)
print(sum(os.times()[:4]), peak_mib())
"""


def main() -> None:
    """Make the model, score, then race two steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--without-bf16", action="store_true")
    add("--workload", choices=(*workloads.WORKLOADS, "even"), default="summaries")
    add("--pairs-per-step", type=int, default=2)
    add("--shrink", type=int, default=1, help="divide the lengths of all texts")
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    options = parser.parse_args()
    if not TRL_PYTHON.exists():
        sys.exit("error: .venv-trl is missing\n  fix: make bench-environment")
    if options.without_bf16:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
    work = Path(tempfile.mkdtemp(prefix="big-model-"))
    try:
        row = measure(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([{name: value for name, value in row.items() if not isinstance(value, dict)}])
    if not options.smoke:
        rows = {
            (one["workload"], one["dtype"]): one for one in [*record.rows("big_model-cpu"), row]
        }
        record.write("big_model-cpu", {"rows": list(rows.values())})


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures: seconds, peaks in MiB, losses."""
    shape = workloads.SHAPES["smoke" if options.smoke else "gpu"]
    workloads.save_model(work / "model", shape, dtype="bfloat16")
    adapter = save_adapter(work / "model", work / "adapter")
    dtype = "float32" if options.without_bf16 else "auto"
    shrink = 8 if options.smoke else options.shrink
    vocabulary = shape["vocab_size"]
    if options.workload == "even":
        rows = evenly(PAIRS, vocabulary, shrink)
    else:
        rows = workloads.draw(
            workloads.WORKLOADS[options.workload], PAIRS, vocabulary, shrink=shrink
        )
    row: dict[str, Any] = {
        "workload": options.workload,
        "dtype": dtype,
        "shrink": shrink,
        "pairs_per_step": options.pairs_per_step,
        "score": score(work, rows, dtype),
    }
    case = make_case(
        work / "case", work / "model", rows, dtype, STEPS, options.pairs_per_step, adapter,
        visit_all=True, lr=2e-4,
    )  # fmt: skip
    weights = "float32" if options.without_bf16 else "bfloat16"
    settings = Settings(batch=1, precompute=True, weights=weights)
    rates = [_rate(DTYPES[weights], shape)]
    told = race(case, {"likelier": None}, "two-steps") | race(case, {"trl": settings}, "two-steps")
    rates.append(_rate(DTYPES[weights], shape))
    row |= {"trl_settings": str(settings), **{who: figures(one) for who, one in told.items()}}
    ours, theirs = row["likelier"], row["trl"]
    row["tokens_of_a_pair"] = case.tokens / PAIRS
    row["score_faster"] = theirs["reference_seconds"] / ours["reference_seconds"]
    row["step_faster"] = theirs["step_seconds"][-1] / ours["step_seconds"][-1]
    last = case.visited[(STEPS - 1) * options.pairs_per_step : STEPS * options.pairs_per_step]
    needed = sum(useful_flop(last, shape, frozen=True).values())
    row |= {"needed_gflop": needed / 1e9, "matrix_gflops": max(rates) / 1e9}
    row["most_faster"] = theirs["step_seconds"][-1] / (needed / max(rates))
    row["memory_share"] = ours["peak_mib"] / theirs["peak_mib"]
    pairs = zip(ours["losses"], theirs["losses"], strict=True)
    row["losses_apart"] = max(abs(a - b) for a, b in pairs)
    return row


def score(work: Path, rows: list[dict[str, str]], dtype: str) -> dict[str, float]:
    """The command ``likelier score`` on all pairs, start-up included: seconds, peak in MiB."""
    workloads.write_rows(work / "score.jsonl", rows)
    words = ["score", str(work / "score.jsonl"), "--model", str(work / "model")]
    more = ["--dtype", dtype, "--out", str(work / "scores.jsonl")]
    settings = os.environ | {"LIKELIER_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-c", SCORE, *words, *more],
        env=settings, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    processor_seconds, peak = map(float, told.stdout.split()[-2:])
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": processor_seconds,
        "peak_mib": peak,
    }


def _rate(dtype: torch.dtype, shape: dict[str, Any]) -> float:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    sizes = [(512, hidden, inner), (1024, inner, hidden), (2048, 2048, 2048)]
    return max(matrix_rate(dtype, sizes).values())


def figures(told: Told) -> dict[str, Any]:
    """What one trainer told."""
    return {
        "start_up_seconds": told.start_up,
        "reference_seconds": told.reference,
        "step_seconds": told.steps,
        "peak_mib": max(told.peaks.values()),
        "losses": told.losses,
    }


if __name__ == "__main__":
    main()
