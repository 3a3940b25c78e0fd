"""The report of a large run: seconds to write it, its size, and seconds until a browser shows it.

    python bench/report_large.py                 100,000 pairs in 3,125 steps, 2,000 held out

The run folder is made up: rows as a run writes them, with 12 evaluations, 200 samples and the
texts of the pairs that the report names. "Opens" is from the request until two frames are drawn
behind the load event, in headless Chromium, of a browser that is already running.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.browser import CHROMIUM, browser_tab
from tests.support.report_runs import build_run, samples, write_jsonl

from likelier.report.page import write_report

OPENED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def log_of(folder: Path, steps: np.ndarray, pairs: np.ndarray, name: str) -> None:
    """A file of a pair log with a row for each pair and step."""
    noise, n = np.random.default_rng(0), len(pairs)
    margin = noise.normal(1.2, 1.0, n) * np.minimum(1, steps / 500)
    table = pa.table(
        {
            "step": steps,
            "epoch": np.zeros(n, np.int64),
            "source": [f"pairs.jsonl:{pair}" for pair in pairs],
            "pair": [f"{pair:016x}" for pair in pairs],
            "prompt": [f"{pair // 2:016x}" for pair in pairs],
            "chosen_logp": -60 + 3 * margin,
            "rejected_logp": -58 - 7 * margin,
            "reference_chosen_logp": np.full(n, -60.0),
            "reference_rejected_logp": np.full(n, -58.0),
            "chosen_tokens": noise.integers(5, 400, n),
            "rejected_tokens": noise.integers(5, 400, n),
            "margin": margin,
            "loss": np.log1p(np.exp(-margin)),
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / name)


def make(folder: Path, pairs: int) -> Path:
    steps = -(-pairs // 32)
    run = build_run(folder / "run", steps=1, planned=steps)
    made = build_run(folder / "rows", steps=steps, planned=steps)  # its logs by step
    for name in ("run.json", "metrics.jsonl", "timing.jsonl"):
        (made / name).replace(run / name)
    every = np.arange(1, pairs + 1)
    log_of(run / "pair_log", (every - 1) // 32 + 1, every, "steps.parquet")
    for step in np.linspace(0, steps, 12).astype(int):
        held = np.arange(2000)
        log_of(run / "held_out", np.full(2000, step), held, f"steps-{step:08d}-{step:08d}.parquet")
    write_jsonl(run / "samples.jsonl", [*samples()] * 17)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        run = make(Path(folder), pairs)
        began = time.perf_counter()
        page = write_report(run)
        written = time.perf_counter() - began
        found = {"pairs": pairs, "write_s": round(written, 2),
                 "bytes": page.stat().st_size,
                 "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # fmt: skip
        if CHROMIUM is not None:
            with browser_tab(Path(folder) / "profile") as tab:
                opened = []
                for _ in range(5):
                    tab.renew()
                    began = time.perf_counter()
                    tab.open(page, settled=OPENED)
                    opened.append(round(time.perf_counter() - began, 2))
                found |= {"opens_s": opened, "complaints": tab.complaints}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
