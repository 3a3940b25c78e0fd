"""Every loss, and every option, from the command line to a trained model."""

import json
import math
from pathlib import Path

import pytest
from tests.support.loss_runs import SECTIONS, rows_for
from tests.support.runs import Place, make_place, training_rows
from tests.support.tiny import write_rows

from likelier.cli import main
from likelier.config import strict_yaml
from likelier.losses.declare import LOSSES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=16)


@pytest.fixture(autouse=True)
def quick(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_run(name: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows_for(name))
    config = place.config(
        tmp_path / "out", loss=SECTIONS[name], data={"train": str(data), "eval": "20%"},
        train__steps=3, train__save_every=None, train__eval_every=3,
    )  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(strict_yaml.document(config), encoding="utf-8")
    assert main(["train", str(file)]) == 0, capsys.readouterr().err
    assert "\nloss: " in capsys.readouterr().err
    rows = training_rows(tmp_path / "out")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["grad_norm"] > 0 for row in rows)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "finished" and record["objective"]
    loss = LOSSES.get(name)
    if loss is not None:
        assert ((tmp_path / "out" / "reference.safetensors").exists()) == loss.reads("reference")
        scored = loss.score is not None and name != "sigmoid"
        assert ("scores/chosen" in rows[0]) == scored
