"""LoRA at real size on one device: what `likelier train` holds in memory, and how fast it is.

    python bench/real_size.py 1.28B              EXAONE-4.0-1.2B's shape: five ways to hold it
    python bench/real_size.py 8B                 one step of Llama-3-8B's shape, from its files
    python bench/real_size.py 1.28B --only "nf4 base"    one row; the others recorded here stay

Every row is a process of its own: the command ``likelier train``, loading included, on a model
with random bfloat16 weights that is made here. ``anonymous`` is memory that no file holds, the
most that was seen in samples of 10 ms; ``resident`` counts pages of files that are in use, too,
which the system takes back when it needs them. Prompts have 100 to 300 tokens, answers 50 to 250;
the 8B shape has one pair of 300 tokens in all. Rows run one after the other.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import workloads

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LENGTHS = {"prompt": (100, 300), "answer": (50, 250)}
LORA = {"kind": "lora", "r": 16}
# What differs from a plain LoRA run in float32.
WAYS: dict[str, dict[str, Any]] = {
    "bfloat16 base": {},
    "bfloat16 base, copied": {"model": {"stream": "never"}},
    "bfloat16 base, layers again": {"train": {"checkpointing": "layers"}},
    "nf4 base": {"model": {"quantise": "nf4"}},
    "nf4 base, layers again": {
        "model": {"quantise": "nf4"}, "train": {"checkpointing": "layers"}
    },
}  # fmt: skip


def main() -> None:
    """Make the model, then one row after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("size", choices=("1.28B", "8B", "smoke"))
    add("--only", nargs="+", choices=WAYS, help="these rows")
    add("--pairs", type=int, default=6, help="of 1.28B; two a step")
    add("--dtype", default="float32", help="what is computed in")
    add("--model", type=Path, help="a folder for the model, used again where it is there")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="real-size-"))
    model = options.model or work / "model"
    try:
        if not (model / "config.json").exists():
            make_model(model, options.size)
        ways = {"bfloat16 base": {}} if options.size == "8B" else WAYS
        named = f"real_size-{options.size}-cpu"
        rows = {} if options.only is None else {row["way"]: row for row in record.rows(named)}
        for name, changes in ways.items():
            if options.only is None or name in options.only:
                told = run(work, model, options, name, changes)
                rows[name] = {"size": options.size, "way": name, **told}
                if options.size != "smoke":  # each row takes minutes: none is to be lost
                    found = [rows[name] for name in WAYS if name in rows]
                    record.write(named, {"rows": found})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    record.show(list(rows.values()))


def make_model(folder: Path, size: str) -> None:
    """Random weights in bfloat16; those of 8B one layer at a time, because all would not fit."""
    if size != "8B":
        shape = workloads.SHAPES["smoke" if size == "smoke" else "gpu"]
        workloads.save_model(folder, shape, dtype="bfloat16")
        return
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir(parents=True)
    config = LlamaConfig(**LLAMA_8B, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config).state_dict()
    torch.manual_seed(0)
    parts: dict[str, list[str]] = {}
    for name in described:
        parts.setdefault(name.partition(".layers.")[2].partition(".")[0] or name, []).append(name)
    where = {}
    for number, names in enumerate(parts.values(), start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {name: _drawn(described[name].shape) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    workloads.tokenizer(LLAMA_8B["vocab_size"]).save_pretrained(folder)
    config.save_pretrained(folder)


def _drawn(shape: Any) -> Any:
    import torch

    if len(shape) == 1:  # of a norm
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)


def draw(pairs: int, vocabulary: int, shrink: int) -> list[dict[str, str]]:
    """Rows with lengths drawn evenly from `LENGTHS`; of one pair, 300 tokens in all."""
    rng = np.random.default_rng(0)

    def text(kind: str) -> str:
        length = rng.integers(*LENGTHS[kind]) if pairs > 1 else 100
        ids = rng.integers(len(workloads.SPECIALS), vocabulary, length // shrink)
        return " ".join(f"w{i}" for i in ids)

    return [
        {
            "prompt": text("prompt"),
            **{name: " " + text("answer") for name in ("chosen", "rejected")},
        }
        for _ in range(pairs)
    ]


def run(
    work: Path, model: Path, options: argparse.Namespace, name: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """One run of `likelier train`: peaks in MiB, seconds a pair of its steps after the first."""
    out = work / name.replace(" ", "-")
    pairs, per_step = (1, 1) if options.size == "8B" else (options.pairs, 2)
    vocabulary = json.loads((model / "config.json").read_text("utf-8"))["vocab_size"]
    shrink = 8 if options.size == "smoke" else 1
    workloads.write_rows(work / "pairs.jsonl", draw(pairs, vocabulary, shrink))
    asked: dict[str, Any] = {
        "model": {"path": str(model), "dtype": options.dtype},
        "data": {"train": str(work / "pairs.jsonl"), "eval": None},
        "adapter": LORA,
        "train": {"pairs_per_step": per_step, "epochs": 1, "save_every": None,
                  "checkpointing": "none"},
        "eval": {"samples": 0},
        "out": str(out),
    }  # fmt: skip
    for section, keys in changes.items():
        asked[section] = {**asked[section], **keys}
    (work / "config.yaml").write_text(json.dumps(asked), encoding="utf-8")
    settings = os.environ | {"LIKELIER_CACHE": str(out) + "-cache", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "likelier", "train", str(work / "config.yaml")], env=settings
    )
    peaks = {"anonymous": 0, "resident": 0}
    while process.poll() is None:
        for kind, field in (("anonymous", "RssAnon"), ("resident", "VmHWM")):
            peaks[kind] = max(peaks[kind], held(process.pid, field))
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"error: {name} ended with {process.returncode}")
    lines = (out / "timing.jsonl").read_text("utf-8").splitlines()
    steps = [json.loads(line)["seconds"] for line in lines if "seconds" in line]
    timed = steps[1:] or steps
    return {
        "dtype": options.dtype,
        "peak_anonymous_mib": peaks["anonymous"] / 1024,
        "peak_resident_mib": peaks["resident"] / 1024,
        "seconds_a_pair": sum(timed) / len(timed) / per_step,
        "steps": len(steps),
        "whole_run_seconds": time.perf_counter() - began,
    }


def held(pid: int, field: str) -> int:
    """A line of a process's memory, in KiB; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


if __name__ == "__main__":
    main()
