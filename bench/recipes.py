"""`likelier import` against TRL itself: the same loss curve from a TRL config and from its import.

    python bench/recipes.py             every tests/support/recipes/trl-*.yaml of DPOTrainer
    python bench/recipes.py --only ipo  those with this in their name

TRL reads the file by its own parser and trains; likelier trains what `likelier import` made of the
same file. Both train one tiny model on the same pairs in the same order, which is likelier's. Keys
that name the author's model, data and devices are replaced on both sides, and nothing that decides
a number. A fresh adapter is TRL's on both sides, after the two are found to be of one form.
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
import yaml
from child import MARK, hash_ids
from race import HERE, TRL_PYTHON, in_order

CONFIGS = HERE.parent / "tests" / "support" / "recipes"
ALLOWED = 1e-4  # nats of loss, at every step
PAIRS = 24
# What the author's machine decides, and what likelier's order stands for; the rest is the file's.
NOT_THERE = ("attn_implementation", "dataset_name", "dataset_test_split", "dataset_train_split",
             "datasets", "deepspeed", "load_in_4bit", "model_name_or_path", "test_split_size",
             "eval_strategy", "eval_steps")  # fmt: skip
HERE_INSTEAD = {
    "disable_tqdm": True, "eval_strategy": "no", "report_to": "none", "save_strategy": "no",
    "train_sampling_strategy": "sequential", "use_cpu": True, "dataloader_pin_memory": False,
}  # fmt: skip


def main() -> None:
    """Compare every config, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of the name of a config")
    parser.add_argument("--python", type=Path, default=TRL_PYTHON, help="of TRL's environment")
    options = parser.parse_args()
    if not options.python.exists():
        sys.exit("error: .venv-trl is missing\n  fix: make bench-environment")
    work = Path(tempfile.mkdtemp(prefix="recipes-"))
    workloads.save_model(work / "model", workloads.SHAPES["smoke"])
    rows, keys = [], []
    try:
        for config in sorted(CONFIGS.glob("trl-*.yaml")):
            if options.only in config.name and "simpo" not in config.name:  # that is CPOTrainer's
                row, keys = compare(config, work, options.python)
                rows.append(row)
                record.show([{k: row[k] for k in ("config", "steps", "apart", "range", "void")}])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not options.only:
        record.write("recipes", {"keys_of_trl": keys, "rows": rows})
    if any(row["void"] for row in rows):
        sys.exit("void: a curve is further from TRL's than it may be, or hardly moves")


def compare(config: Path, work: Path, python: Path) -> tuple[dict[str, Any], list[str]]:
    """The losses of both, step by step; and the keys that TRL's parser knows."""
    theirs = yaml.safe_load(config.read_text("utf-8"))
    folder, model = work / config.stem, work / "model"
    folder.mkdir()
    ours = folder / "config.yaml"
    rows = workloads.draw(workloads.WORKLOADS["chat"], PAIRS, 512, shrink=16)
    workloads.write_rows(folder / "pairs.jsonl", rows)
    words = [f"model.path={model}", f"data.train={folder / 'pairs.jsonl'}", "data.eval=null",
             "model.quantise=none", f"out={folder / 'run'}"]  # fmt: skip
    program = [sys.executable, "-m", "likelier", "import", str(config), *words, "--out", str(ours)]
    subprocess.run(program, check=True, stderr=subprocess.DEVNULL)
    asked = yaml.safe_load(ours.read_text("utf-8"))
    visits, pairs = in_order(asked, model)
    workloads.write_rows(folder / "visited.jsonl", [rows[index] for index in visits])
    whole = theirs.get("max_steps", -1) <= 0  # the visits of all epochs stand in the file
    here = {key: value for key, value in theirs.items() if key not in NOT_THERE}
    here |= HERE_INSTEAD | ({"num_train_epochs": 1} if whole else {})
    here["output_dir"] = str(folder / "trl")
    (folder / "trl.yaml").write_text(yaml.safe_dump(here), encoding="utf-8")
    case = {
        "config": str(folder / "trl.yaml"),
        "model": str(model),
        "visited": str(folder / "visited.jsonl"),
        "adapter": str(folder / "adapter"),
    }
    environment = {**os.environ, "LIKELIER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    events = _told_by_trl(case, folder, python, environment)
    trains = next(event for event in events if event["event"] == "trains")
    visited = [pairs[index] for index in visits]
    ids = hash_ids((p.prompt, p.chosen.tokens, p.rejected.tokens) for p in visited)
    assert trains["ids"] == ids, "the two make different token ids of the same pairs"
    if trains["adapter"]:
        asked = _on_its_adapter(asked, trains["adapter"], folder, environment)
    losses = {
        "trl": [event["loss"] for event in events if event["event"] == "step"],
        "likelier": _train(asked, folder / "train.yaml", environment),
    }
    apart = [abs(a - b) for a, b in zip(losses["likelier"], losses["trl"], strict=True)]
    moved = max(losses["trl"]) - min(losses["trl"])
    row = {"config": config.name, "trl": trains["trl"], "steps": len(apart),
           "apart": max(apart), "range": moved,
           "void": max(apart) > ALLOWED or moved < 100 * ALLOWED, "loss": asked["loss"],
           "replaced": sorted(set(NOT_THERE) & theirs.keys()), "losses": losses}  # fmt: skip
    return row, trains["keys"]


def _told_by_trl(
    case: dict[str, Any], folder: Path, python: Path, environment: dict[str, str]
) -> list[dict[str, Any]]:
    """All that a run of TRL tells."""
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    child = [str(python), str(HERE / "child_trl_recipe.py"), str(folder / "case.json")]
    said = subprocess.run(
        child, input="go\n" * 1000, capture_output=True, text=True, env=environment, check=False
    )
    if said.returncode:
        sys.exit(f"{folder.name}: TRL failed\n{said.stderr[-3000:]}")
    return [json.loads(x[len(MARK) :]) for x in said.stdout.splitlines() if x.startswith(MARK)]


def _on_its_adapter(
    asked: dict[str, Any], found: dict[str, Any], folder: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Our config on TRL's fresh adapter, once ours is found to be of the same form."""
    once = {**asked, "out": str(folder / "once")}
    once["train"] = {"steps": 1, "pairs_per_step": 1}
    once["optim"] = {"lr": 1e-9}
    _train(once, folder / "once.yaml", environment)
    written = json.loads((folder / "once" / "adapter" / "adapter_config.json").read_text("utf-8"))
    from safetensors import safe_open

    with safe_open(folder / "once" / "adapter" / "adapter_model.safetensors", "pt") as file:
        stored = list(file.keys())
    names = {name.partition(".lora_")[0].rpartition("model.")[2] for name in stored}
    assert sorted(names) == found["modules"], "adapters on other modules"
    assert written["r"] == found["r"], "adapters of another rank"
    scale = written["lora_alpha"] / written["r"]
    assert abs(scale - found["scale"]) < 0.05 * scale, "adapters of another scale"
    return {**asked, "adapter": {"kind": "lora"},
            "model": {**asked["model"], "path": str(folder / "adapter")}}  # fmt: skip


def _train(asked: dict[str, Any], file: Path, environment: dict[str, str]) -> list[float]:
    """The losses of a run of likelier."""
    asked = {**asked, "train": {**asked["train"], "log_every": 1}}
    file.write_text(yaml.safe_dump(asked), encoding="utf-8")
    program = [sys.executable, "-m", "likelier", "train", str(file)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{file}: likelier failed\n{done.stderr[-3000:]}")
    log = Path(asked["out"]) / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


if __name__ == "__main__":
    main()
