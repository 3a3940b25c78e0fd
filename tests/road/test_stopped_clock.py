"""A clock that stands still, as in a suspended machine, stops no run, plan or report."""

import json
from pathlib import Path

import pytest
from tests.support.runs import make_place

from likelier.cli import main
from likelier.commands.plan import plan, print_plan
from likelier.config import config_from
from likelier.run import train


def test_a_run_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path / "place", rows=12)
    monkeypatch.setattr("time.perf_counter", lambda: 7.0)
    monkeypatch.setattr("time.time", lambda: 7.0)
    settings = place.config(tmp_path / "out", train__steps=2)
    print_plan(plan(config_from(settings)), as_json=False)
    train(settings)
    rows = (tmp_path / "out" / "timing.jsonl").read_text().splitlines()
    assert [json.loads(row)["seconds"] for row in rows] == [0.0, 0.0]
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "no report" not in capsys.readouterr().err
