"""What a model makes of the pairs: the figures of `likelier score`, and labels that stand out."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.support.tiny import pair_rows, save_tiny, write_rows

from likelier.checks.model_view import _odd
from likelier.cli import main


def test_the_figures_are_those_of_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_tiny(tmp_path / "base"))
    data = str(write_rows(tmp_path / "a.jsonl", pair_rows(24)))
    out = tmp_path / "scores.jsonl"
    assert main(["score", data, "--model", base, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["check", data, "--model", base, "--score", "24", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)["reference"]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    means = np.array(
        [[row[f"{side}_logp"] / row[f"{side}_tokens"] for side in ("chosen", "rejected")]
         for row in rows]
    )  # fmt: skip
    assert view["pairs"] == 24
    assert view["chosen"] == pytest.approx(means[:, 0].mean(), rel=1e-9)
    assert view["rejected"] == pytest.approx(means[:, 1].mean(), rel=1e-9)
    assert view["prefers_chosen"]["value"] == pytest.approx((means[:, 0] > means[:, 1]).mean())
    assert view["own"] is None or view["own"] < 0
    assert main(["check", data, "--score", "2"]) == 2


def test_labels_that_stand_out() -> None:
    gap = np.random.default_rng(0).normal(0.5, 0.1, 200)
    gap[[7, 90]] = -2.0
    assert _odd(gap) == [7, 90]
    assert _odd(-np.abs(np.random.default_rng(1).normal(0.5, 0.1, 200))) == []
    assert _odd(gap[:10]) == []
