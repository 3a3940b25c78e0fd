"""Run folders to compare, with a log of held-out pairs whose figures are chosen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.support.report_runs import CONFIG, build_run, record, write_json

from likelier.base.files import sealed

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


def write_table(run: Path, rows: list[dict[str, Any]], step: int) -> None:
    (run / "held_out").mkdir(exist_ok=True)
    file = run / "held_out" / f"steps-{step:08d}-{step:08d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)


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
