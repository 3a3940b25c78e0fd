"""Two trainers on one case, as processes that take turns step by step."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workloads
from child import MARK, hash_ids

HERE = Path(__file__).parent
TRL_PYTHON = HERE.parent / ".venv-trl" / "bin" / "python"
# Both trainers: full-size steps that no schedule, decay or warm-up tells apart.
OPTIM = {"schedule": "constant", "warmup": 0, "betas": [0.9, 0.999], "eps": 1e-8,
         "weight_decay": 0.0, "max_grad_norm": 1.0}  # fmt: skip
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Case:
    """What both trainers are asked to do: a model, pairs in a fixed order, and steps."""

    folder: Path
    spec: dict[str, Any]
    visited: tuple[Any, ...]  # likelier's TokenPair of every visit, in order
    ids: str  # the hash of all their token ids

    @property
    def tokens(self) -> int:
        """Of prompts and answers, each pair unshared."""
        return sum(len(ids) + len(prompt) for prompt, *answers in map(_ids, self.visited)
                   for ids in answers)  # fmt: skip


def _ids(pair: Any) -> tuple[Any, Any, Any]:
    return pair.prompt, pair.chosen.tokens, pair.rejected.tokens


@dataclass(frozen=True)
class Settings:
    """What TRL's user may choose without changing what is trained."""

    batch: int
    precompute: bool = True
    weights: str = "float32"
    autocast: bool = False

    def __str__(self) -> str:
        reference = "precomputed" if self.precompute else "live"
        autocast = ", bf16 autocast" if self.autocast else ""
        return f"batch {self.batch}, reference {reference}, {self.weights} weights{autocast}"


@dataclass
class Told:
    """What one process told: seconds of every phase and step, losses, peaks in MiB."""

    start_up: float = 0.0
    reference: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    held: float = 0.0  # MiB before the first step
    tree_tokens: int | None = None  # that likelier computed in all steps


def make_case(
    folder: Path,
    model: Path,
    rows: list[dict[str, str]],
    dtype: str,
    steps: int,
    pairs_per_step: int,
    adapter: Path | None = None,
    max_length: int = MAX_LENGTH,
    lr: float = 1e-5,
    visit_all: bool = False,
) -> Case:
    """Write pairs and configs; TRL gets the pairs in the order in which likelier visits them.

    With ``visit_all`` it also gets those that no step visits, behind the others: both have a
    reference for all pairs.
    """
    folder.mkdir(parents=True)
    workloads.write_rows(folder / "pairs.jsonl", rows)
    asked = {
        "model": {"path": str(adapter or model), "dtype": dtype},
        "data": {"train": str(folder / "pairs.jsonl"), "eval": None, "max_length": max_length},
        "adapter": {"kind": "lora" if adapter else "none"},
        "loss": {"beta": 0.1},
        "optim": {**OPTIM, "lr": lr},
        "train": {"steps": steps, "pairs_per_step": pairs_per_step, "save_every": None},
        "eval": {"samples": 0},
        "out": str(folder / "run"),
    }
    visits, pairs = in_order(asked, model)
    assert len(pairs) == len(rows), "likelier left pairs out"
    if visit_all:
        visits += [index for index in range(len(rows)) if index not in visits]
    workloads.write_rows(folder / "visited.jsonl", [rows[index] for index in visits])
    visited = tuple(pairs[index] for index in visits)
    spec = {
        "model": str(model),
        "adapter": str(adapter) if adapter else None,
        "visited": str(folder / "visited.jsonl"),
        "steps": steps,
        "pairs_per_step": pairs_per_step,
        "likelier": asked,
    }
    return Case(folder, spec, visited, hash_ids(map(_ids, visited)))


def in_order(asked: dict[str, Any], model: Path) -> tuple[list[int], Any]:
    """The index of the pair of every visit of a run of likelier, in order, and its pairs."""
    from transformers import AutoTokenizer, GenerationConfig

    from likelier.chat.tokenizer import build_encoder
    from likelier.config import config_from
    from likelier.data.load import load
    from likelier.training.order import make_order

    encoder = build_encoder(
        AutoTokenizer.from_pretrained(model), GenerationConfig.from_pretrained(model)
    )
    config = config_from(asked, [])
    pairs = load(config.data, encoder, seed=config.train.seed).train
    order = make_order(pairs, config.train)
    return [i for step in range(1, order.num_steps + 1) for _, i in order.step(step)], pairs


class Runner:
    """One measured process. `until` reads what it tells; `turn` lets it go on."""

    def __init__(
        self,
        case: Case,
        trainer: str,
        settings: Settings | None,
        name: str,
        python: Path | None = None,
    ):
        out = case.folder / name
        out.mkdir()
        spec = json.loads(json.dumps(case.spec))
        spec["likelier"]["out"] = str(out / "run")
        if settings is not None:
            spec["trl"] = {**vars(settings), "out": str(out / "run")}
        (out / "case.json").write_text(json.dumps(spec), encoding="utf-8")
        # Caches of the reference are empty before every measured run, on both sides.
        environment = {**os.environ, "LIKELIER_CACHE": str(out / "cache"), "HF_HOME": str(out),
                       "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # fmt: skip
        python = python or (TRL_PYTHON if trainer == "trl" else Path(sys.executable))
        program = str(HERE / f"child_{trainer}.py")
        self.case, self.told, self.log = case, Told(), out / "stderr.txt"
        self.launched = time.time()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(python), program, str(out / "case.json")], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip

    def step(self) -> bool:
        """Let it run to the end of its next step; False once it has ended.

        Raises RuntimeError where it failed, and where it trains on other ids than the case's.
        """
        assert self.process.stdin and self.process.stdout
        if self.told.steps:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK) and self._hear(json.loads(line.removeprefix(MARK))):
                return True
        if self.process.wait() != 0:
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{self.log.parent.name} failed:\n{tail}")
        return False

    def _hear(self, event: dict[str, Any]) -> bool:
        told = self.told
        match event["event"]:
            case "reference":
                told.reference = event["seconds"]
            case "begin":
                told.start_up = event["at"] - self.launched - told.reference
                told.held = event["mib"]
            case "ids" if event["hash"] != self.case.ids:
                raise RuntimeError("the two trainers make different token ids of the same pairs")
            case "peak":
                told.peaks[event["until"]] = event["mib"]
            case "timing":
                told.tree_tokens = sum(row["tokens"] for row in event["rows"])
            case "step":
                told.steps.append(event["seconds"])
                told.losses.append(event["loss"])
                return True
        return False

    def stop(self) -> None:
        """End it, however far it is."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def race(case: Case, runners: dict[str, Settings | None], name: str) -> dict[str, Told]:
    """Run trainers on a case, one step of each in turn; a name is ``likelier`` or ``trl``."""
    started: dict[str, Runner] = {}
    try:
        for who, chosen in runners.items():  # start-up is nobody else's turn
            started[who] = Runner(case, who, chosen, f"{name}-{who}")
            started[who].step()
        going = dict(started)
        while going:
            going = {who: runner for who, runner in going.items() if runner.step()}
    finally:
        for runner in started.values():
            runner.stop()
    return {who: runner.told for who, runner in started.items()}
