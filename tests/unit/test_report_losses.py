"""The report of other losses than DPO: no ln 2 that is not theirs, no reference that is none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.report_runs import build_run

from likelier.report.charts import draw_charts
from likelier.report.health import check_chosen
from likelier.report.read import RunFolder, read_run
from likelier.report.summary import log_ratio, reads_reference, reward_scale, starts_at_ln2


def of(path: Path, loss: dict[str, Any]) -> RunFolder:
    """A run folder as if another loss had made it."""
    run = read_run(build_run(path / "run"))
    return replace(run, config={**run.config, "loss": loss})


MIXED = {"name": "mixture", "parts": [{"name": "ipo_sum", "tau": 0.5}, {"name": "bco"}]}
CASES: list[tuple[dict[str, Any], bool, float | None, bool]] = [
    ({"name": "sigmoid", "beta": 0.1}, True, 0.1, True),
    ({"name": "sigmoid", "beta": 0.1, "nll": 0.2}, True, 0.1, False),
    ({"name": "ipo_mean", "tau": 0.5}, True, 0.5, False),
    ({"name": "simpo", "beta": 2.5, "gamma": 1.0}, False, 2.5, False),
    ({"name": "simper"}, False, 1.0, False),
    (MIXED, True, 0.5, False),
    ({"name": "of a later version", "beta": 0.3}, True, 0.3, False),
    ({}, True, None, False),
]


@pytest.mark.parametrize(("loss", "reference", "scale", "ln2"), CASES)
def test_what_is_known_of_a_loss(
    tmp_path: Path, loss: dict[str, Any], reference: bool, scale: float | None, ln2: bool
) -> None:
    run = of(tmp_path, loss)
    assert (reads_reference(run), reward_scale(run), starts_at_ln2(run)) == (reference, scale, ln2)
    change = log_ratio(run, [1.0])
    assert change == (1 / scale if scale and reference else None)


def test_without_a_reference_nothing_is_compared_with_one(tmp_path: Path) -> None:
    run = of(tmp_path, {"name": "simpo", "beta": 2.5, "gamma": 1.0})
    assert check_chosen(run).state == "unknown"
    rewards = next(chart for chart in draw_charts(run) if chart.id == "rewards")
    assert "reads no reference" in rewards.reading and "since training began" not in rewards.reading
