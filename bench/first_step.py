"""How long a tiny run takes to its first step, beside importing torch, transformers and peft alone.

    python bench/first_step.py [--repeats 7]

The run is a LoRA on a random model of 300,000 weights and 24 short pairs, on one thread, from the
start of Python to the first row of the log. Both take turns; the third of each turn are the imports
where bitsandbytes is not installed, which peft imports where it is. Processor seconds are those of
the process itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

SAY = "u = os.times(); print(json.dumps([time.time(), u.user + u.system]), flush=True); "
IMPORTS = f"import json, os, sys, time; import torch, transformers, peft; {SAY}"
WITHOUT = f"import sys; sys.modules['bitsandbytes'] = None; {IMPORTS}"
RUN = f"""
import json, os, sys, time
import likelier.cli, likelier.training.run_folder as run_folder
logged = run_folder.RunFolder.log
def log(folder, row):
    logged(folder, row)
    if "loss" in row:
        {SAY}os._exit(0)
run_folder.RunFolder.log = log
sys.argv = ["likelier", "train", *sys.argv[1:]]
likelier.cli.entry()
"""


def write_place(folder: Path) -> list[str]:
    """A tiny model and pairs; the words of the command."""
    import data
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    data.write_tokenizer(folder / "model")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(24):
            sides = {"chosen": f"the number {number}", "rejected": f"no number, {number}"}
            row = {name: [{"role": "assistant", "content": said}] for name, said in sides.items()}
            row["prompt"] = [{"role": "user", "content": f"what is {number // 2}?"}]
            file.write(json.dumps(row) + "\n")
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder / "model")), hidden_size=16,
        intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return ["model.path=model", "data.train=pairs.jsonl", "data.eval=null", "train.steps=1",
            "train.pairs_per_step=4", "out=out"]  # fmt: skip


def measured(script: str, words: list[str], folder: Path) -> tuple[float, float]:
    """Wall seconds from the start of the process to its word, and its processor seconds."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    } | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LIKELIER_CACHE": str(folder / "cache")}
    subprocess.run(["rm", "-rf", str(folder / "out")], check=True)
    began = time.time()
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    at, processor = json.loads(done.stdout.splitlines()[-1])
    return at - began, processor


def main() -> None:
    """Measure and write ``bench/results/first_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    ways = {"first step": RUN, "imports": IMPORTS, "imports without bitsandbytes": WITHOUT}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as place:
        words = write_place(Path(place))
        for turn in range(asked.repeats + 1):
            for name, script in ways.items():
                one = measured(script, words if script == RUN else [], Path(place))
                if turn > 0:  # the first fills the caches of files and of bytecode
                    found[name].append(one)
                print(name, *(round(seconds, 2) for seconds in one), flush=True)
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        row: dict[str, Any] = {"what": name}
        for at, kind in enumerate(("wall", "processor")):
            row[kind] = record.spread([round(run[at], 2) for run in runs])
            beside = [a[at] / b[at] for a, b in zip(found["first step"], runs, strict=True)]
            row[f"{kind}_ratio"] = record.spread(beside)
        rows.append(row)
    record.write("first_step", {"rows": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
