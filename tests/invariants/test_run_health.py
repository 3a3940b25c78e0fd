"""Every illness is provoked by a small real run and named; healthy runs of any shape are silent."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.preferences import preferring
from tests.support.runs import Place
from tests.support.tiny import write_rows

from likelier.report.health import health
from likelier.report.read import read_run
from likelier.run import train

RATE = {"max_grad_norm": 10.0, "lr": 1e-3}  # a tiny model has large gradients
FLAT = {**RATE, "lr": 3e-3, "schedule": "constant"}
ALL = preferring(360)
HEAVY = 100, 150, 200
HELD = {"first": 1000, "seed": 5}  # other prompts


@pytest.fixture(autouse=True)
def no_reports(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
    monkeypatch.setattr("likelier.report.page.write_report", lambda out: out / "report.html")


def steps(epochs: float = 1, every: int = 3, pairs: int = 16) -> dict[str, Any]:
    return {"epochs": epochs, "pairs_per_step": pairs, "tokens_per_batch": 1024,
            "eval_every": every, "save_every": None}  # fmt: skip


def warned(
    place: Place, out: Path, rows: list[dict], held: list[dict] | str = "33%", **changes: Any
) -> dict[str, str]:
    """The warnings on a run, by their names."""
    data: dict[str, Any] = {"train": str(write_rows(out.with_suffix(".jsonl"), rows)), "eval": held}
    if isinstance(held, list):
        data["eval"] = str(write_rows(out.with_suffix(".held.jsonl"), held))
    data |= changes.pop("data", {})
    settings = {"optim": RATE, "train": steps(), **changes}
    run = train(place.config(out, data=data, **settings))
    return {one.name: one.reason for one in health(read_run(run.folder)) if one.state == "warning"}


HEALTHY: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": {"kind": "lora", "r": 8}, "optim": {**RATE, "lr": 5e-3}},
    "ipo": {"loss": {"name": "ipo_mean"}},
    "no reference": {"loss": {"name": "simpo"}},
    "larger beta": {"loss": {"name": "sigmoid", "beta": 0.5}},
    "two epochs": {"train": steps(2, 10, 8), "optim": {**RATE, "lr": 5e-4}},
    "hinge": {"loss": {"name": "hinge"}},
    "surer pairs": {"rows": preferring(360, sure=0.9)},
    "constant rate": {"optim": {**RATE, "schedule": "constant"}},
    "whole step": {"loss": {"name": "aot"}},
}


@pytest.mark.parametrize("shape", HEALTHY)
def test_healthy_runs_are_silent(
    place: Place, tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = dict(HEALTHY[shape])
    assert warned(place, tmp_path / "run", changes.pop("rows", ALL), **changes) == {}
    assert "note" not in capsys.readouterr().err.replace("notes:", "")


def short_answers(count: int, first: int) -> list[dict[str, Any]]:
    """Long answers against a word and the end."""
    rows = preferring(count, words=(8, 12), first=first)
    return [row | {"chosen": " 입니다"} for row in rows]


ILL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "known by heart": ("overfitting", "lower before|From that step on", {
        "rows": preferring(60, sure=0.6), "held": preferring(150, sure=0.6, **HELD),
        "train": steps(15, 5, 8), "optim": FLAT}),
    "held-out pairs are swapped": ("overfitting", "before the first step", {
        "rows": preferring(240, sure=0.9), "held": preferring(120, sure=0.1, **HELD)}),
    "better on what it has seen": ("gap", "a gap of", {
        "rows": preferring(60, sure=0.6), "held": preferring(150, sure=0.6, **HELD),
        "train": steps(8, 90, 8), "optim": FLAT}),
    "length": ("length", "where the chosen answer is longer", {
        "rows": preferring(240, sure=0.5, longer=0.9), "held": preferring(150, sure=0.5, **HELD),
        "train": steps(2, 10), "optim": {**RATE, "lr": 2e-3}}),
    "too small a rate": ("moved", "nats a token on average", {"optim": {**RATE, "lr": 1e-7}}),
    "no preference": ("moved", "as by chance", {"rows": preferring(360, sure=0.5)}),
    "rounding": ("noise", "rounding alone moves", {"optim": {**RATE, "lr": 1e-6},
                                                   "model__dtype": "bfloat16"}),
    "saturation": ("saturation", "pull like", {
        "rows": preferring(64, sure=1.0), "held": preferring(120, sure=1.0, **HELD),
        "train": steps(10, 20), "optim": {**FLAT, "lr": 1e-2}}),
    "displacement": ("chosen", "less likely than before", {"optim": {**FLAT, "lr": 2e-2}}),
    "told apart at once": ("shortcut", "within the first tenth", {
        "rows": preferring(400, sure=1.0), "train": steps(2, 3, 8),
        "optim": {**RATE, "lr": 1e-2, "warmup": 0}}),
    "clipping": ("clipping", "100% of the steps", {"optim": {"lr": 1e-3, "max_grad_norm": 0.1}}),
    "few held-out pairs": ("held_out", "With 12 pairs", {"rows": preferring(60), "held": "20%"}),
    "rows dropped": ("rows_used", "were dropped", {
        "rows": [*ALL, *[{"prompt": "a", "chosen": "b"}] * 40], "data": {"on_bad_row": "drop"}}),
    "a spike": ("spikes", "over 10 times the median", {
        "rows": [row | {"weight": 400.0 if n in HEAVY else 1.0} for n, row in enumerate(ALL)],
        "train": steps(2, 10), "loss": {"name": "sigmoid", "pair_weights": True}}),
    "shorter answers": ("answers", "times as long", {
        "rows": short_answers(100, 0), "held": short_answers(120, 1000), "train": steps(6, 20),
        "loss": {"name": "sigmoid", "nll": 5.0}, "optim": {**RATE, "lr": 1e-2},
        "eval": {"samples": 8, "max_new_tokens": 32}}),
}  # fmt: skip


@pytest.mark.parametrize("illness", ILL)
def test_each_illness_is_named(
    place: Place, tmp_path: Path, illness: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, words, changes = ILL[illness]
    changes = dict(changes)
    found = warned(place, tmp_path / "run", changes.pop("rows", ALL), **changes)
    assert name in found and any(word in found[name] for word in words.split("|")), found
    assert f"note: {title_of(tmp_path / 'run', name)}. " in capsys.readouterr().err


def title_of(run: Path, name: str) -> str:
    return next(one.title for one in health(read_run(run)) if one.name == name)


def test_nothing_is_trained(place: Place, tmp_path: Path) -> None:
    settings = place.config(tmp_path / "run")
    del settings["loss" if "loss" in settings else "eval"]
    run = train(settings, loss=lambda values: 0 * values.policy_R[values.chosen_P])
    found = {one.name for one in health(read_run(run.folder)) if one.state == "warning"}
    assert {"learning", "moved"} <= found


def test_a_note_is_said_once_while_the_run_goes_on(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, changes = ILL["clipping"]
    warned(place, tmp_path / "run", ALL, train=steps(2, 3, 8), **changes)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    title = "The gradients are clipped most of the time"
    assert [line.split(":")[0] for line in said if title in line] == ["note after step 13", "note"]


def test_notes_that_fail_do_not_fail_the_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(run: Path) -> None:
        raise RuntimeError("anything")

    monkeypatch.setattr("likelier.report.notes.read_run", fail)
    run = train(place.config(tmp_path / "run", train__steps=20, train__eval_every=10))
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"
    assert "no notes on this run: RuntimeError: anything" in capsys.readouterr().err
