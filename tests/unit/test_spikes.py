"""Spikes of the gradient norm: counted, said now and then, kept in run.json and in the report."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.runs import Place, make_place

from likelier.evaluation.spikes import FEWEST, MAX_STEPS, WINDOW, Spikes
from likelier.model.load import load
from likelier.report.health import check_spikes
from likelier.report.read import read_run
from likelier.run import train


def heard(norms: list[float]) -> Spikes:
    spikes = Spikes()
    for step, norm in enumerate(norms, start=1):
        spikes.hear({"step": step, "grad_norm": norm})
    return spikes


def test_what_is_one() -> None:
    usual = [1.0, 2.0, 3.0] * 4
    assert heard([*usual, 20.0]).count == 0
    assert heard([*usual, 20.1]).as_record() == {
        "count": 1, "steps": [13], "largest": {"step": 13, "grad_norm": 20.1, "median": 2.0},
    }  # fmt: skip
    assert heard([1.0] * (FEWEST - 1) + [100.0]).count == 0  # too early to say
    assert heard([0.0] * 20 + [1e-13]).count == 0
    assert heard([0.0] * 20 + [1.0]).count == 1


def test_a_run_that_grows_slowly_has_none() -> None:
    assert heard([1.02**n for n in range(1000)]).count == 0


def test_spikes_hide_no_later_ones() -> None:
    norms = [1.0] * WINDOW + [50.0, 1.0] * 10
    assert heard(norms).steps == list(range(WINDOW + 1, WINDOW + 21, 2))


def test_rows_that_say_nothing() -> None:
    spikes = Spikes()
    for row in ({"step": 0, "eval_loss": 1.0}, {"step": 1, "grad_norm": "x"}, {"grad_norm": 1.0}):
        assert not spikes.hear(row)  # type: ignore[arg-type]


def test_many_are_said_ever_more_seldom() -> None:
    spikes, said = Spikes(), 0
    for step in range(1, 400):
        row = {"step": step, "grad_norm": 1000.0 if step > 20 and step % 3 == 0 else 1.0}
        said += bool(spikes.hear(row) and spikes.in_words(row))
    assert spikes.count == 127 and said == 7
    assert len(spikes.steps) == MAX_STEPS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=12)


def test_in_a_run(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gradient of step 13 is 1000 times what it is; a run that was stopped says the same."""
    policy = load(place.base)
    steps = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1000 if steps == 12 else gradient

    def on_step(row: dict) -> None:
        nonlocal steps
        steps = int(row["step"]) if "loss" in row else steps
        if stops_at == row["step"]:
            raise KeyboardInterrupt

    for parameter in policy.causal_lm.parameters():
        parameter.register_hook(spoil)
    settings = place.config(tmp_path / "out", train__steps=14, data__eval=None)
    del settings["model"], settings["train"]["eval_every"]
    stops_at = 0
    train(settings, policy.model, policy.tokenizer, on_step=on_step)
    said = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert len(said) == 1 and said[0].startswith("step 13: the gradient norm is ")
    kept = json.loads((tmp_path / "out" / "run.json").read_text())["spikes"]
    assert kept["count"] == 1 and kept["steps"] == [13]
    check = check_spikes(read_run(tmp_path / "out"))
    assert check.state == "warning" and "(step 13)" in check.reason
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Some gradients stand out" in page
