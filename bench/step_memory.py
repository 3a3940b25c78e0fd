"""Memory of a step beyond what it must keep: weights, gradients, AdamW's averages, saved tensors.

    python bench/step_memory.py            all workloads in float32
    python bench/step_memory.py --smoke    a tiny model

Each workload is a process of its own. What is held before the model is loaded (Python, torch and
its libraries) is left out. Saved tensors are counted by saved-tensor hooks on the largest pass.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import workloads

PAIRS = 8


def child(shape_name: str, workload: str, tokens: int) -> dict[str, float]:
    """Two whole steps in this process, and what they held; MiB."""
    import torch

    from likelier.batching.batch import Scored, tree_batch
    from likelier.batching.pack import pack
    from likelier.config.schema import OptimConfig
    from likelier.model.adapters import for_training
    from likelier.model.load import load
    from likelier.training import memory
    from likelier.training.optimizer import MasterAdamW

    shape = workloads.SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(  # elsewhere: what is freed here would be counted as held
            [sys.executable, "-c", f"import workloads; workloads.save_model(__import__('pathlib')"
             f".Path({folder!r}), workloads.SHAPES[{shape_name!r}])"],
            check=True, cwd=Path(__file__).parent,
        )  # fmt: skip
        rows = workloads.draw(workloads.WORKLOADS[workload], PAIRS, shape["vocab_size"])
        units = [_unit(row, Scored) for row in rows]
        held = _status("VmRSS")
        policy = load(folder, dtype="float32")
    batches = [
        tree_batch(list(dict.fromkeys(one for i in places for one in units[i])))
        for places in pack(units, tokens, policy.backend)
    ]
    optimizer = MasterAdamW(policy.model.named_parameters(), OptimConfig())
    with for_training(policy), policy.running() as scorer:
        for _ in range(2):
            for batch in batches:
                scorer(batch).sum().backward()
            optimizer.step(0.0)
        peak = _status("VmHWM")
        largest = max(batches, key=lambda batch: batch.num_tokens)
        saved = memory.bytes_saved(policy, largest)
    fixed = memory.memory_of(policy).fixed
    torch.set_grad_enabled(False)
    must = (fixed + saved) / 2**20
    return {"tokens": largest.num_tokens, "must_mib": must, "took_mib": peak - held,
            "beyond": (peak - held) / must - 1}  # fmt: skip


def _unit(row: dict[str, str], scored: Any) -> tuple[Any, ...]:
    prompt, *answers = (
        tuple(int(word[1:]) for word in row[name].split())
        for name in ("prompt", "chosen", "rejected")
    )
    return tuple(
        scored(prompt + answer + (2,), (False,) * len(prompt) + (True,) * (len(answer) + 1))
        for answer in answers
    )


def _status(name: str) -> float:
    """A line of this process's memory, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(name)


def main() -> None:
    """Every workload at the size of a pass that a CPU gets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=workloads.SHAPES, default="cpu")
    add("--tokens-per-batch", type=int, default=2048)
    add("--smoke", action="store_true", help="tiny model; leaves no file")
    add("--child", choices=workloads.WORKLOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = "smoke" if options.smoke else options.shape
    if options.child:
        print(json.dumps(child(shape, options.child, options.tokens_per_batch)))
        return
    rows = []
    for workload in workloads.WORKLOADS:
        done = subprocess.run(
            [sys.executable, __file__, "--shape", shape, "--child", workload,
             "--tokens-per-batch", str(options.tokens_per_batch)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        rows.append({"workload": workload, **json.loads(done.stdout.splitlines()[-1])})
    if not options.smoke:
        record.write(f"step_memory-{shape}", {"rows": rows})
    record.show(rows)


if __name__ == "__main__":
    main()
