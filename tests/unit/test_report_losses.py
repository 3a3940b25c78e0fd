"""The report of other losses than DPO: no ln 2 that is not theirs, no reference that is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.report_runs import build_run, write_json

from likelier.losses.registry import bind
from likelier.report.charts import draw_charts
from likelier.report.health import check_chosen
from likelier.report.page import render_report
from likelier.report.read import RunFiles, read_run
from likelier.report.summary import log_ratio, reads_reference, starts_at_ln2


def of(path: Path, loss: dict[str, Any] | None) -> RunFiles:
    """A run folder as if another loss had made it; without one, as an older version wrote it."""
    run = read_run(build_run(path / "run"))
    record = {key: value for key, value in run.record.items() if key != "loss"}
    written = {} if loss is None else {"loss": bind(loss).as_record()}
    return replace(run, record=record | written)


MIXED = {"name": "mixture", "parts": [{"name": "ipo_sum", "tau": 0.5}, {"name": "bco"}]}
CASES: list[tuple[dict[str, Any] | None, bool, float | None, bool]] = [
    ({"name": "sigmoid", "beta": 0.1}, True, 0.1, True),
    ({"name": "sigmoid", "beta": 0.3, "divergence": "forward_kl"}, True, 0.3, True),
    ({"name": "f_dpo", "beta": 0.2}, True, 0.2, True),
    ({"name": "sigmoid", "beta": 0.1, "nll": 0.2}, True, 0.1, False),
    ({"name": "sigmoid", "beta": 0.1, "nll": 0.0, "stop_token": True}, True, 0.1, True),
    ({"name": "ipo_mean", "tau": 0.5}, True, 0.5, False),
    ({"name": "simpo", "beta": 2.5, "gamma": 1.0}, False, 2.5, False),
    ({"name": "simper"}, False, 1.0, False),
    (MIXED, True, 0.5, False),
    (None, True, None, False),
]


@pytest.mark.parametrize(("loss", "reference", "scale", "ln2"), CASES)
def test_what_is_known_of_a_loss(
    tmp_path: Path, loss: dict[str, Any] | None, reference: bool, scale: float | None, ln2: bool
) -> None:
    run = of(tmp_path, loss)
    assert (reads_reference(run), starts_at_ln2(run)) == (reference, ln2)
    assert run.record.get("loss", {}).get("reward_scale") == scale
    change = log_ratio(run, [1.0])
    assert change == (1 / scale if scale and reference else None)


def test_a_run_of_an_older_version_says_what_is_missing(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run")
    record = json.loads((path / "run.json").read_text("utf-8"))
    assert read_run(path).gaps == ()
    write_json(path / "run.json", {key: record[key] for key in record if key != "loss"})
    (gap,) = read_run(path).gaps
    assert "an older version wrote it" in gap and gap in render_report(read_run(path))


def test_a_loss_of_the_callers_own_is_not_taken_for_dpo() -> None:
    def sigmoid(values: Any) -> Any:
        return -values.log_ratio_margin_P

    written = bind({"name": "sigmoid", "beta": 0.2}, sigmoid).as_record()
    assert written == {"reads_reference": True, "reward_scale": 0.2, "starts_at_ln2": False}


def test_without_a_reference_nothing_is_compared_with_one(tmp_path: Path) -> None:
    run = of(tmp_path, {"name": "simpo", "beta": 2.5, "gamma": 1.0})
    assert check_chosen(run).state == "unknown"
    rewards = next(chart for chart in draw_charts(run) if chart.id == "rewards")
    assert "reads no reference" in rewards.reading and "since training began" not in rewards.reading
