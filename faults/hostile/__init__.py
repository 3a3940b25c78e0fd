"""Hostile models, adapters, tokenizers, templates, data, configs and surroundings, by the command.

Every case is made small at run time and met by the real command line in a process of its own. It
holds where the exit code is the listed one, the error is one block with a place and a cure, no raw
control byte is shown, no payload ran, nothing was touched beside ``out``, and memory and time were
bounded (`faults.hostile.case`).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tests.support.children import Child, start
from tests.support.tiny import save_tiny

from faults import Options
from faults.hostile import (  # noqa: F401  # each fills the table
    adapters,
    configs,
    data,
    models,
    surroundings,
    templates,
    tokenizers,
)
from faults.hostile.case import CASES, Outcome, meet_all
from faults.table import Row


def run(options: Options) -> list[Row]:
    """Meet every ``options.stride``-th case."""
    outcomes = meet_cases(range(0, len(CASES), options.stride), options.folder, options.workers)
    rows = []
    for kind in dict.fromkeys(case.kind for case in CASES):
        met = [outcome for outcome in outcomes if outcome.kind == kind]
        failed = [f"{one.name}: {'; '.join(one.problems)}" for one in met if one.problems]
        of = sum(case.kind == kind for case in CASES)
        rows.append(Row(f"hostile {kind}", len(met), len(met) - len(failed), failed, of))
    return rows


def meet_cases(numbers: Sequence[int], folder: Path, workers: int) -> list[Outcome]:
    """What came of these cases, in their order; ``folder`` keeps what those left that failed."""
    save_tiny(folder / "common" / "base")
    adapters.save_adapter(folder / "common" / "adapter")
    models.save_packed(folder / "common" / "packed")
    before = {name: os.environ.get(name) for name in ("LIKELIER_CACHE", "HF_HUB_OFFLINE")}
    os.environ |= {"LIKELIER_CACHE": str(folder / "unused"), "HF_HUB_OFFLINE": "1"}
    try:
        results = [folder / f"results-{worker}.jsonl" for worker in range(workers)]
        children: list[Child] = [
            start(
                meet_all, list(numbers[worker::workers]), str(folder), str(results[worker]),
                log=folder / f"worker-{worker}.log",
            )
            for worker in range(workers)
        ]  # fmt: skip
        for child in children:
            child.process.join()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    found: dict[int, Outcome] = {}
    for lines in results:
        for line in lines.read_text("utf-8").splitlines() if lines.exists() else ():
            number, values = json.loads(line)
            found[number] = Outcome(**values)
    return [found.get(number) or _not_met(number) for number in numbers]


def _not_met(number: int) -> Outcome:
    case = CASES[number]
    return Outcome(case.kind, case.name, None, 0.0, 0.0, ["the case itself fails"])
