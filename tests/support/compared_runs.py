"""Run folders to compare, with a log of held-out pairs whose figures are chosen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.support.report_runs import CONFIG, build_run, record, write_json

from likelier.base.files import sealed
from likelier.report.read import read_run

INPUTS = {"data": "d" * 64, "model": "m" * 64}
IDENTITY = {"identity": "r" * 64}


def add_held_out(
    run: Path,
    margins: Sequence[float],
    *,
    step: int = 60,
    of_a_prompt: int = 2,
    drift: float = 0.0,
    name: str = "pair",
    reference: float = -60.0,
) -> Path:
    """Held-out pairs after a step: their log-ratio margins in nats, the chosen answer having moved
    by half of it and by ``drift`` a token more, as the rejected one has. ``of_a_prompt`` pairs
    share a prompt; a pair is the same in two runs where ``name`` and its number are.
    """
    rows = [
        {
            "step": step,
            "source": f"held.jsonl:{at + 1}",
            "pair": f"{name}-{at}",
            "prompt": f"{name}-of-{at // of_a_prompt}",
            "chosen_logp": reference + margin / 2 + drift * 20,
            "rejected_logp": reference - margin / 2 + drift * 20,
            "reference_chosen_logp": reference,
            "reference_rejected_logp": reference,
            "chosen_tokens": 20,
            "rejected_tokens": 20,
            "margin": 0.1 * margin,
            "loss": float(np.log1p(np.exp(-0.1 * margin))),
        }
        for at, margin in enumerate(margins)
    ]
    write_table(run, rows, step)
    return run


def add_evidence(run: Path, said: str = "바다는 짠물입니다.") -> Path:
    """What a run of now also leaves: held-out pairs before and after, and some pairs by their
    tokens, all of which say ``said``.
    """
    noise = np.random.default_rng(0)
    for step in (0, 60):
        add_held_out(run, (noise.normal(4, 6, 120) * (step > 0)).tolist(), step=step)
    log = read_run(run).pair_log
    assert log is not None
    for at, row in enumerate((*log.largest[:2], *log.smallest[:2])):
        texts = [said, " ", said, "<|end|>"]
        sides = {}
        for name, size in (("chosen", 1.0), ("rejected", -2.0)):
            logps = [size * value for value in (-0.2, -0.1, -0.9 - at, -0.3)]
            sides[name] = {
                "logp": sum(logps), "reference_logp": -4.0, "counted": 4.0, "tokens": 4,
                "left_out": 0, "left_out_at": None, "ids": [5, 6, 7, 1], "shared": [1, 3],
                "ends": [3], "logps": logps, "reference_logps": [-1.0] * 4, "texts": texts,
            }  # fmt: skip
        part = {"tokens": 2, "sum": 1.0, "share": 0.5}
        pair = {
            "source": row["source"], "label": None, "beta": 0.1, "reads_reference": True,
            "log_ratio_margin": 1.0, "margin": 0.1, "is_tie": False, "loss": 0.6, "common": 0,
            "shares": {"tokens": 8, "total": 2.0, "first": part, "end": part, "top": part,
                       "begin": part, "manner": part},
            "sides": sides,
        }  # fmt: skip
        with (run / "pair_tokens.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    return run


def write_table(run: Path, rows: list[dict[str, Any]], step: int) -> None:
    (run / "held_out").mkdir(exist_ok=True)
    file = run / "held_out" / f"steps-{step:08d}-{step:08d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, write_page_checksum=True)


def made_run(path: Path, *, status: str = "finished", **more: Any) -> Path:
    """A run folder without held-out pairs yet; ``loss={"beta": 0.3}`` changes its section, and
    ``inputs={"data": "other"}`` what its data was."""
    build_run(path, status=status)
    resolved = {name: dict(value) if isinstance(value, dict) else value
                for name, value in CONFIG.items()}  # fmt: skip
    inputs = INPUTS | more.pop("inputs", {})
    reference = more.pop("reference", IDENTITY)
    facts = more.pop("facts", {})
    for section, keys in more.items():
        resolved[section] |= keys
    found = record(60, 60, status) | {"format": 2, "inputs": inputs, "reference": reference,
                                      "resolved": resolved} | facts  # fmt: skip
    write_json(path / "run.json", sealed(found))
    text = (path / "run.json").read_text(encoding="utf-8")
    (path / "run.json").write_text(text + "\n", encoding="utf-8")
    return path
