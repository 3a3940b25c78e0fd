"""Tiny runs and commands whose results a change of the code must not change.

Nothing of likelier is imported: everything goes through ``python -m likelier`` (and for the runs
of every loss through `likelier.train`) of a Python that is named, so that a version with other
module names can be driven by the same file.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny import pair_rows, save_tiny, write_rows

PATIENCE = 600  # seconds for one command
Rows = list[dict[str, Any]]

# Losses with what combines with them, beside a run of every loss by itself.
MODIFIED: dict[str, dict[str, Any]] = {
    "forward_kl": {"name": "sigmoid", "divergence": "forward_kl"},
    "alpha": {"name": "sigmoid", "divergence": "alpha", "alpha": 0.3},
    "js": {"name": "sigmoid", "divergence": "js"},
    "nll": {"name": "sigmoid", "nll": 0.2},
    "nll_per_answer": {"name": "sigmoid", "nll": 0.2, "nll_per": "answer"},
    "ld": {"name": "sigmoid", "tokens": {"kind": "ld", "alpha": 0.3}},
    "sampo": {"name": "sigmoid", "tokens": {"kind": "sampo"}},
    "decay": {"name": "sigmoid_mean", "tokens": {"kind": "decay", "gamma": 0.9}},
    "wpo": {"name": "sigmoid", "wpo": True},
    "dynamic_beta": {"name": "sigmoid", "dynamic_beta": {"alpha": 0.6, "keep": 0.7}},
    "pair_weights": {"name": "hinge", "pair_weights": True},
    "no_stop_token": {"name": "sigmoid", "stop_token": False},
    "mixture": {
        "name": "mixture",
        "nll": 1.0,
        "parts": [{"name": "sigmoid", "weight": 0.8}, {"name": "bco", "weight": 0.2}],
    },
}
TRAIN_ALL = """
import json, sys, traceback
import likelier
failed = 0
for config in json.load(open(sys.argv[1], encoding="utf-8")):
    try:
        likelier.train(config)
    except Exception:
        failed = 1
        traceback.print_exc()
sys.exit(failed)
"""


@dataclass(frozen=True)
class Likelier:
    """One version of likelier, as a command of its own Python in a folder that it works in."""

    python: Path
    folder: Path

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start Python with these words; output goes to ``log`` and ``log``.err."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {
            "LIKELIER_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }
        with log.open("wb") as out, log.with_name(f"{log.name}.err").open("wb") as err:
            return subprocess.Popen(
                [self.python, *words], cwd=self.folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def run(self, *words: str, log: Path) -> int:
        """A command of likelier to its end: the exit code."""
        return self.start("-m", "likelier", *words, log=log).wait(PATIENCE)


def write_inputs(folder: Path) -> None:
    """The model in ``base``, another in ``other``, and every data file."""
    save_tiny(folder / "base")
    save_tiny(folder / "other", seed=1)
    rows = pair_rows(40)
    texts = pair_rows(40, chat=False)
    numbered = [
        row | {"margin": 0.25 * (n % 5), "weight": 0.5 + n % 3} for n, row in enumerate(rows)
    ]
    files: dict[str, Rows] = {
        "pairs": rows,
        "numbered": numbered,
        "texts": texts,
        "held_out": pair_rows(12, seed=1),
        "unpaired": [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for n, row in enumerate(rows)
            for side in [("rejected", "chosen")[n % 2]]
        ],
        "ranked": [
            {
                "prompt": row["prompt"],
                "completions": [row["chosen"], row["rejected"], other["chosen"]],
                "scores": [9, 2 + n % 3, 5],
            }
            for n, (row, other) in enumerate(zip(rows, rows[7:], strict=False))
        ],
        "long": [_lengthened(row, n) for n, row in enumerate(rows)],
        "transcripts": [
            {
                side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}"
                for side in ("chosen", "rejected")
            }
            for row in texts
        ],
        "compared": [
            {
                "context": row["prompt"],
                "response1": row[("chosen", "rejected")[n % 2]],
                "response2": row[("rejected", "chosen")[n % 2]],
                "overall_preference": (-2, 1)[n % 2],
            }
            for n, row in enumerate(texts)
        ],
        "scored": [
            {"prompt": row["prompt"], "response": row[side], "helpfulness": score}
            for row in texts[::3]
            for side, score in (("chosen", 4), ("rejected", 1))
        ],
        "troubled": _troubled(rows, texts),
    }
    for name, content in files.items():
        write_rows(folder / f"{name}.jsonl", content)
    with (folder / "troubled.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "cut off\n')


def _lengthened(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A chat with earlier turns, every third with a long answer as well."""
    turns = [
        {"role": role, "content": f"{role} {turn} 한강이 흐릅니다."}
        for turn in range(number % 4)
        for role in ("user", "assistant")
    ]
    more = " Python is easy to learn." * (6 if number % 3 == 0 else 0)
    chosen = [{"role": "assistant", "content": row["chosen"][0]["content"] + more}]
    return row | {"prompt": [*turns, *row["prompt"]], "chosen": chosen}


def _troubled(rows: Rows, texts: Rows) -> Rows:
    """Rows among which most of what `likelier check` looks for can be found."""
    first, second, third = rows[0], rows[1], texts[2]
    swapped = {**second, "chosen": second["rejected"], "rejected": second["chosen"]}
    bullets = [
        {**row, "prompt": f"{row['prompt']} ({n})", "chosen": f"- {row['chosen']}"}
        for n, row in enumerate(pair_rows(60, seed=2, chat=False))
    ]
    return [
        *rows[:12],
        first,
        swapped,
        {**third, "prompt": third["prompt"] + "!"},
        {**third, "chosen": " "},
        {**third, "chosen": third["rejected"]},
        {**third, "chosen": None},
        {**third, "chosen": [{"role": "assistant", "content": "섞임"}]},
        {**third, "prompt": "\u1112\u1161\u11ab글"},
        {**third, "chosen": "깨진 \ufffd"},
        {**third, "chosen_score": 1, "rejected_score": 2},
        {"prompt": "A?", "chosen": third["prompt"] * 9 + " 네", "rejected": "아니"},
        {**first, "prompt": [*first["prompt"], *first["prompt"]]},
        {"prompt": "순환", "chosen": "하나", "rejected": "둘"},
        {"prompt": "순환", "chosen": "둘", "rejected": "셋"},
        {"prompt": "순환", "chosen": "셋", "rejected": "하나"},
        *bullets,
    ]


def run_configs(folder: Path, budget_key: str) -> dict[str, dict[str, Any]]:
    """The configs of the eight runs, and of short ones with one thing changed.

    ``budget_key`` is what this version calls the tokens of a batch.
    """

    def config(name: str, file: str = "pairs", **sections: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "model": {"path": str(folder / "base")},
            "data": {"train": str(folder / f"{file}.jsonl"), "eval": "20%"},
            "adapter": {"kind": "none"},
            "optim": {"lr": 1e-3},
            "train": {"steps": 6, "pairs_per_step": 4, budget_key: 96,
                      "eval_every": 2, "save_every": 2},
            "out": str(folder / "runs" / name),
        }  # fmt: skip
        for section, keys in sections.items():
            base[section] = {**base.get(section, {}), **keys}
        return base

    long_run = {"steps": 60, "save_every": 4, "eval_every": 10}
    return {
        "full": config("full"),
        "lora": config("lora", adapter={"kind": "lora", "r": 4, "alpha": 8}, optim={"lr": 1e-2}),
        "whole_step": config("whole_step", loss={"name": "aot"}),
        "unpaired": config("unpaired", "unpaired", loss={"name": "kto"}),
        "moving_reference": config(
            "moving_reference", reference={"update_every": 2, "update_mix": 0.5}
        ),
        "ranked": config("ranked", "ranked", data={"ranked": {"pairs": "all"}}),
        "trimmed": config("trimmed", "long", data={"max_length": 72, "overlong": "trim"}),
        "resumed": config("resumed", train=long_run),
    } | {
        f"with_{name}": config(
            f"with_{name}", "numbered", **{"train": {"steps": 3, "save_every": None}, **sections}
        )
        for name, sections in _more_sections(folder).items()
    }  # fmt: skip


def _more_sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Other sections of the config, by the name of a short run."""

    def file(name: str) -> str:
        return str(folder / f"{name}.jsonl")

    sources = {file("pairs"): 1, file("texts"): 0.5, file("held_out"): 2}
    return {name: {"loss": loss} for name, loss in MODIFIED.items()} | {
        "bfloat16": {"model": {"dtype": "bfloat16"}},
        "checkpointing": {
            "train": {"steps": 3, "save_every": None, "checkpointing": "layers"}
        },
        "other_reference": {
            "reference": {"path": str(folder / "other")}, "data": {"eval": file("held_out")}
        },
        "sources": {"data": {"train": sources}},
        "bad_rows": {"data": {"train": file("troubled"), "on_bad_row": "drop", "max_length": 90}},
    }  # fmt: skip


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The name of the file that the output goes to, and the words of the command."""
    base = ["--model", "base"]
    for name in ("pairs", "unpaired", "ranked", "transcripts", "compared", "scored", "troubled"):
        yield f"check-{name}.json", ["check", f"{name}.jsonl", "--json"]
    yield "check-model.json", [
        "check", "pairs.jsonl", "--json", *base, "--score", "8", "--eval", "held_out.jsonl",
        "--max-length", "40",
    ]  # fmt: skip
    yield "check-ranked-all.json", ["check", "ranked.jsonl", "--json", *base, "--pairs", "all"]
    yield "check-gate.json", ["check", "pairs.jsonl", "--json", "--gate", "language<=0.01"]
    yield "check-fix.json", ["check", "troubled.jsonl", "--json", "--fix", "outputs/fixed.jsonl"]
    yield "check-config.json", ["check", "configs/trimmed.yaml", "--json"]
    for name in ("pairs", "texts", "ranked", "transcripts", "compared", "scored"):
        yield f"score-{name}.jsonl", ["score", f"{name}.jsonl", *base]
    yield "show-pairs.txt", ["show", "pairs.jsonl", *base, "-n", "3"]
    yield "show-texts.txt", ["show", "texts.jsonl", *base, "-n", "3"]
    yield "losses.txt", ["losses"]


def losses_of(schema: dict[str, Any]) -> dict[str, bool]:
    """The names of all losses, and whether each reads pairs (else single labelled completions)."""
    found = {}
    for one in schema["properties"]["loss"]["oneOf"]:
        keys = schema["$defs"][_target(one)]["properties"]
        if keys["name"]["const"] != "mixture":
            found[keys["name"]["const"]] = "nll" in keys
    return found


def _target(node: dict[str, Any]) -> str:
    """The definition that a node of a JSON Schema refers to."""
    return node["$ref"].rpartition("/")[2]


def run_everything(likelier: Likelier) -> dict[str, int]:
    """All runs into ``runs`` and all outputs into ``outputs``; the exit code of each command.

    The eight runs are commands of their own; those of single losses share a process, for speed.
    """
    folder = likelier.folder
    (folder / "outputs").mkdir()
    (folder / "configs").mkdir()
    outputs, codes = folder / "outputs", {}
    codes["schema"] = likelier.run("schema", log=outputs / "schema.json")
    schema = json.loads((outputs / "schema.json").read_text(encoding="utf-8"))
    train_keys = schema["$defs"][_target(schema["properties"]["train"])]["properties"]
    new_key = "tokens_per_batch"
    configs = run_configs(folder, new_key if new_key in train_keys else "tokens_per_pass")
    if "checkpointing" not in train_keys:  # an older version calls it so
        del (train := configs["with_checkpointing"]["train"])["checkpointing"]
        train["gradient_checkpointing"] = True
    for name, paired in losses_of(schema).items():
        config = json.loads(json.dumps(configs["with_nll"]))
        config["data"]["train"] = str(folder / f"{'numbered' if paired else 'unpaired'}.jsonl")
        config |= {"loss": {"name": name}, "out": str(folder / "runs" / f"loss_{name}")}
        configs[f"loss_{name}"] = config
    in_one_process = []
    for name, config in configs.items():
        path = folder / "configs" / f"{name}.yaml"  # JSON is YAML
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        if name.startswith(("loss_", "with_")):
            in_one_process.append(config)
            continue
        if name == "resumed":
            _kill_after_step(likelier, path, Path(config["out"]), step=9)
        codes[f"train {name}"] = likelier.run("train", str(path), log=outputs / f"train-{name}.log")
    every = folder / "configs" / "every_loss.json"
    every.write_text(json.dumps(in_one_process), encoding="utf-8")
    log = outputs / "train-every-loss.log"
    codes["train every loss"] = likelier.start("-c", TRAIN_ALL, str(every), log=log).wait(PATIENCE)
    for name, words in commands(folder):
        codes[name] = likelier.run(*words, log=outputs / name)
    for name in losses_of(schema):
        codes[f"losses {name}"] = likelier.run("losses", name, log=outputs / f"losses-{name}.txt")
    return codes


def _kill_after_step(likelier: Likelier, config: Path, out: Path, step: int) -> None:
    """Begin a run and kill it once a step is in its log.

    Raises RuntimeError where it ended before it was killed.
    """
    log = out / "metrics.jsonl"
    started = likelier.start(
        "-m", "likelier", "train", str(config), log=likelier.folder / "outputs" / "killed.log"
    )
    end = time.monotonic() + PATIENCE
    while started.poll() is None and time.monotonic() < end:
        if log.exists() and f'"step": {step},' in log.read_text(encoding="utf-8"):
            started.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    if started.wait(PATIENCE) != -signal.SIGKILL:
        raise RuntimeError(f"the run in {out} ended before it could be killed; see killed.log.err")
    if '"step": 60' in log.read_text(encoding="utf-8"):
        raise RuntimeError(f"the run in {out} took its last step before it was killed")
