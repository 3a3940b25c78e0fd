"""How close a training step comes to the machine: useful arithmetic over time and matrix rate.

    python bench/limit.py            all workloads, float32 and bfloat16
    python bench/limit.py --smoke    a minute's try with a tiny model

Useful is what the prefix tree of a whole step needs, forward (2 operations a weight) and backward
(4): every distinct token through the layers, the head at the predicting positions, attention over
the allowed (query, key) pairs. The embedding, recomputation, the optimizer and everything
elementwise count as nothing. The yardstick is the largest rate of `torch.matmul` over several
sizes, measured between the steps while the trainer waits.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
import torch
import workloads
from race import Runner, make_case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def useful_flop(
    pairs: Sequence[Any], shape: dict[str, Any], frozen: bool = False
) -> dict[str, float]:
    """Operations that one step over TokenPairs needs, by part; frozen weights need no gradient."""
    from likelier.batching.batch import completions_of, tree_batch

    batch = tree_batch([answer for pair in pairs for answer in completions_of(pair)])
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    weights = hidden * (2 * queries + 2 * keys) + 3 * hidden * inner  # of one layer
    layers = shape["num_hidden_layers"]
    allowed = int((batch.depth_BL + 1).sum())  # a token sees its ancestors and itself
    operations = 4.0 if frozen else 6.0  # a weight and token: forward, to the input, to the weight
    return {
        "layers": operations * batch.num_tokens * weights * layers,
        "head": operations * len(batch.predict_N) * hidden * shape["vocab_size"],
        "attention": 3.0 * 2 * 2 * allowed * queries * layers,  # scores, and the sum of values
    }


def matrix_rate(dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]]) -> dict[str, float]:
    """Operations a second of x @ weight.T for (rows, inputs, outputs), the best of 3 each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {}
    for rows, inputs, outputs in sizes:
        x = torch.randn(rows, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        times = 50 if device == "cuda" else 1
        torch.matmul(x, weight.T)
        seconds = []
        for _ in range(3):
            _wait(device)
            began = time.perf_counter()
            for _ in range(times):
                torch.matmul(x, weight.T)
            _wait(device)
            seconds.append((time.perf_counter() - began) / times)
        rates[f"{rows}x{inputs}x{outputs}"] = 2.0 * rows * inputs * outputs / min(seconds)
    return rates


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    options: argparse.Namespace, work: Path, model: Path, workload: str, dtype: str
) -> dict[str, Any]:
    """Steps and matrix products in turns; the first step is left out."""
    shape = workloads.SHAPES[options.shape]
    steps, pairs_per_step = 1 + options.repeats, options.pairs_per_step
    rows = workloads.draw(
        workloads.WORKLOADS[workload], steps * pairs_per_step, shape["vocab_size"], options.seed,
        shrink=8 if options.smoke else 1,
    )  # fmt: skip
    case = make_case(work / f"{workload}-{dtype}", model, rows, dtype, steps, pairs_per_step)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    sizes = [(4096, hidden, inner), (4096, inner, hidden), (1024, 1024, 1024), (2048, 2048, 2048)]
    if not options.smoke:
        sizes.append((4096, 4096, 4096))
    runner = Runner(case, "likelier", None, "limit")
    rates: list[dict[str, float]] = []
    try:
        runner.step()  # the warm-up
        while True:
            rates.append(matrix_rate(DTYPES[dtype], sizes))
            if not runner.step():
                break
    finally:
        runner.stop()
    seconds = runner.told.steps[1:]
    parts = [
        useful_flop(case.visited[at : at + pairs_per_step], shape)
        for at in range(pairs_per_step, steps * pairs_per_step, pairs_per_step)
    ]
    by_size = {size: statistics.median(rate[size] for rate in rates) for size in rates[0]}
    limit = max(by_size.values())
    reached = [sum(p.values()) / s for p, s in zip(parts, seconds, strict=True)]
    whole = sum(sum(part.values()) for part in parts)
    return {
        "workload": workload,
        "dtype": dtype,
        "reached": record.spread([rate / 1e9 for rate in reached]),
        "limit": limit / 1e9,
        "limit_by_size": {size: rate / 1e9 for size, rate in by_size.items()},
        "share": record.spread([rate / limit for rate in reached]),
        "parts": {part: sum(p[part] for p in parts) / whole for part in parts[0]},
        "step_seconds": seconds,
    }


def main() -> None:
    """Every workload in every precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", nargs="+", choices=workloads.WORKLOADS, default=list(workloads.WORKLOADS))
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    on_gpu = torch.cuda.is_available()
    add("--shape", choices=workloads.SHAPES, default="gpu" if on_gpu else "cpu")
    add("--repeats", type=int, default=5, help="timed steps")
    add("--pairs-per-step", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="tiny model, short texts; leaves no file")
    options = parser.parse_args()
    if options.smoke:
        options.shape = "smoke"
    work = Path(tempfile.mkdtemp(prefix="limit-"))
    rows: list[dict[str, Any]] = []
    try:
        workloads.save_model(work / "model", workloads.SHAPES[options.shape], options.seed)
        for dtype in options.dtype:
            for workload in options.workload:
                rows.append(measure(options, work, work / "model", workload, dtype))
                if not options.smoke:
                    shape = workloads.SHAPES[options.shape]
                    record.write(f"limit-{options.shape}", {"shape": shape, "rows": rows})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show([_line(row) for row in rows])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    share = row["share"]
    return {
        "workload": row["workload"],
        "dtype": row["dtype"],
        "GFLOP/s": row["reached"]["median"],
        "matrix rate": row["limit"],
        "share": f"{share['median']:.2f} ({share['least']:.2f}-{share['most']:.2f})",
        **{part: f"{of:.0%}" for part, of in row["parts"].items()},
    }


if __name__ == "__main__":
    main()
