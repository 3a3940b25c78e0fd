"""Run folders to report on: made-up but plausible numbers, in the files that a run writes."""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

BETA = 0.1
CONFIG: dict[str, Any] = {
    "model": {"path": "models/tiny-base", "dtype": "auto"},
    "data": {"train": "pairs.jsonl", "eval": "10%", "max_length": 512},
    "adapter": {"kind": "lora", "r": 16, "alpha": 32, "targets": "all-linear"},
    "loss": {"name": "sigmoid", "beta": BETA},
    "optim": {"lr": 1e-4, "schedule": "cosine", "warmup": 0.1, "max_grad_norm": 1.0},
    "train": {"epochs": 1, "pairs_per_step": 32, "seed": 0},
    "out": "runs/here",
}


def build_run(path: Path, *, steps: int = 60, planned: int = 60, status: str = "finished") -> Path:
    """A run folder with everything in it but the demo's own files."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    write_json(path / "run.json", record(steps, planned, status))
    write_jsonl(path / "metrics.jsonl", metrics(steps))
    write_jsonl(path / "timing.jsonl", timing(steps))
    write_pair_log(path, steps)
    write_pair_texts(path, steps)
    return path


def add_demo(path: Path, *, after: float = 0.975) -> Path:
    """The files that only the demo writes: measured outcome and samples, Korean among them."""
    shares = {
        "heldout_accuracy": (0.99, 0.9642, 0.9972),
        "preferred_before": (0.51, 0.4412, 0.5784),
        "preferred_after": (after, max(0.0, after - 0.032), min(1.0, after + 0.014)),
        "named_before": (0.91, 0.8622, 0.9424),
        "named_after": (0.9, 0.8506, 0.9343),
        "stopped_after": (0.995, 0.9722, 0.9991),
    }
    outcome: dict[str, Any] = {
        name: {"value": value, "low": low, "high": high, "n": 200}
        for name, (value, low, high) in shares.items()
    }
    write_json(path / "outcome.json", {**outcome, "seconds": 142.5})
    write_jsonl(path / "samples.jsonl", samples())
    return path


def record(steps: int, planned: int, status: str) -> dict[str, Any]:
    return {
        "format": 1,
        "likelier": "0.1.0",
        "command": "likelier train config.yaml",
        "status": status,
        "step": steps,
        "steps": planned,
        "pairs": 1920,
        "eval_pairs": 200,
        "data": {"rows": 2130, "used": 2120, "dropped": 10, "findings": {"duplicate": 10}},
        "findings": [
            {
                "code": "duplicate",
                "severity": "warning",
                "count": 10,
                "why": "A pair that stands twice counts twice.",
                "cure": "Delete one; `likelier check --fix` does it.",
                "places": [
                    {
                        "source": f"pairs.jsonl:{n}",
                        "field": None,
                        "message": f"the same pair as pairs.jsonl:{n - 1}",
                    }
                    for n in range(2, 7)
                ],
            }
        ],
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "threads": 2,
        "device": "cpu",
        "backend": "segments",
        "backend_reason": None,
        "preflight": {
            "pairs": 8,
            "difference": 3.1e-06,
            "tolerance": 1e-4,
            "unit": "an answer",
            "loss": math.log(2),
            "largest_reward": 0.0,
        },
        "loss": {"reads_reference": True, "reward_scale": BETA, "starts_at_ln2": True},
        "reference": {"identity": "9f2c41d0a7b3", "column": "41be09c7d2aa", "answers": 4240},
        "tokens": {"plain": 301_440, "tree": 158_112},
        "trainable": 98_304,
        "parameters": 1_310_720,
    }


def metrics(steps: int, evaluate_every: int = 10) -> list[dict[str, float]]:
    """One row a step, and an evaluation row at the start, every ten steps and at the end."""
    noise = random.Random(0)
    rows: list[dict[str, float]] = [evaluation(0)]
    for step in range(1, steps + 1):
        margin = grown(step - 1) + noise.gauss(0, 0.12) * (step > 1)
        chosen = 0.3 * margin + noise.gauss(0, 0.03) * (step > 1)
        rows.append(
            {
                "step": step,
                "loss": math.log1p(math.exp(-margin)),
                "rewards/chosen": chosen,
                "rewards/rejected": chosen - margin,
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, 0.5 + 0.25 * abs(margin)),
                "logps/chosen": -60 + chosen / BETA,
                "logps/rejected": -58 + (chosen - margin) / BETA,
                "grad_norm": 0.9 * math.exp(-step / 40) + 0.1 * noise.random(),
                "learning_rate": 1e-4 * min(1.0, step / 6) * (1 - step / (steps + 1)),
            }
        )
        if step % evaluate_every == 0 or step == steps:
            rows.append(evaluation(step))
    return rows


def evaluation(step: int) -> dict[str, float]:
    margin = 0.9 * grown(step)
    accuracy = 0.5 + 0.28 * (1 - math.exp(-step / 15))
    return {
        "step": step,
        "eval_loss": math.log1p(math.exp(-margin)),
        "eval_rewards/chosen": 0.3 * margin,
        "eval_rewards/rejected": -0.7 * margin,
        "eval_rewards/margins": margin,
        "eval_rewards/accuracies": accuracy,
        "eval_rewards/accuracies_low": accuracy - 0.065,
        "eval_rewards/accuracies_high": accuracy + 0.055,
        "eval_logps/chosen": -60 + 3 * margin,
        "eval_logps/rejected": -58 - 7 * margin,
        "eval_pairs": 200,
    }


def grown(step: int) -> float:
    """The reward margin after ``step`` steps."""
    return 1.6 * (1 - math.exp(-step / 25))


def timing(steps: int) -> list[dict[str, float]]:
    noise = random.Random(1)
    seconds = [0.35 + 0.05 * noise.random() for _ in range(steps)]
    return [
        {"step": i + 1, "seconds": second, "tokens": 2635, "pairs": 32}
        for i, second in enumerate(seconds)
    ]


def write_pair_log(path: Path, steps: int, pairs_per_step: int = 32) -> None:
    """One row a pair and visit, in two parts, as a run that was started again leaves them."""
    noise = random.Random(2)
    rows = []
    for visit in range(steps * pairs_per_step):
        step = visit // pairs_per_step + 1
        margin = grown(step - 1) + noise.gauss(0, 0.4) * (step > 1)
        chosen = 0.3 * margin / BETA
        rows.append(
            {
                "step": step,
                "epoch": 0,
                "source": f"pairs.jsonl:{visit + 1}",
                "chosen_logp": -60 + chosen,
                "rejected_logp": -58 + chosen - margin / BETA,
                "reference_chosen_logp": -60.0,
                "reference_rejected_logp": -58.0,
                "chosen_tokens": 30 + visit % 7,
                "rejected_tokens": 28 + visit % 5,
                "margin": margin,
                "loss": math.log1p(math.exp(-margin)),
            }
        )
    half = len(rows) // 2
    write_part(path, "000000.parquet", rows[:half])
    write_part(path, "000001.parquet", rows[half:])


def write_pair_texts(path: Path, steps: int, pairs_per_step: int = 32) -> None:
    """The texts of every seventh pair and of the first ones; a run keeps only those it names."""
    sources = [n for n in range(1, steps * pairs_per_step + 1) if n % 7 == 0 or n < 5]
    write_jsonl(
        path / "pair_texts.jsonl",
        (
            {
                "source": f"pairs.jsonl:{n}",
                "prompt": f"[|user|]{n}번 바다는 왜 짠가요?[|endofturn|]\n[|assistant|]",
                "chosen": f"바닷물 {n}kg에는 소금이 약 35g 녹아 있습니다.[|endofturn|]",
                "rejected": "몰라~[|endofturn|]",
            }
            for n in sources
        ),
    )


def write_part(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (path / "pair_log").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "pair_log" / name, write_page_checksum=True)


def samples() -> list[dict[str, Any]]:
    asked = [
        (
            "바다가 뭐야?",
            "바다",
            "바다? 몰라~ 그냥 짠물이지 뭐.",
            "바다는 지구 표면의 대부분을 덮고 있는 짠물로, 수많은 생물이 살아가는 곳입니다.",
        ),
        (
            "What is a lighthouse?",
            "lighthouse",
            "A lighthouse? Some tall thing, who cares.",
            "A lighthouse is a tower with a bright light that guides ships at night.",
        ),
        (
            "기차는 어떻게 움직이나요?",
            "기차",
            "기차는 레일 위를 달리는 교통수단으로, 전기나 디젤 엔진의 힘으로 움직입니다.",
            "기차는 레일 위를 달리는 교통수단으로, 전기의 힘으로 움직입니다.",
        ),
    ]
    return [
        {
            "prompt": prompt,
            "topic": topic,
            "before": before,
            "after": after,
            "preferred_before": before.endswith("니다."),
            "preferred_after": True,
            "named_before": True,
            "named_after": i % 5 != 4,
        }
        for i, (prompt, topic, before, after) in enumerate(asked * 4)
    ]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
