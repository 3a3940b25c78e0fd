"""`train.best` and `train.patience`: the model of the best evaluation, through kills too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.support.runs import Place, bytes_of, differing
from transformers import AutoModelForCausalLM

from likelier.base.errors import ConfigError
from likelier.base.files import read_json
from likelier.evaluation import evaluator
from likelier.evaluation.metrics import held_out_metrics
from likelier.run import Run, train

pytestmark = pytest.mark.usefixtures("no_report", "cache_of_test")
BEST_AT_4 = [0.69, 0.6, 0.5, 0.55, 0.7]  # after steps 0, 2, 4, 6, 8


class Crash(Exception):
    """What a run does not expect."""


@pytest.fixture
def cache_of_test(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Held-out losses as a list says, by the evaluations of a run that evaluates every 2 steps."""

    def figures(pairs: Any, values: Any, beta: float) -> dict[str, float]:
        return held_out_metrics(pairs, values, beta) | {"eval_loss": losses[step_of[0] // 2]}

    def count(self: evaluator.Evaluator, step: int) -> None:
        step_of[0] = step
        score(self, step)

    step_of, score = [0], evaluator.Evaluator.__call__
    monkeypatch.setattr(evaluator, "held_out_metrics", figures)
    monkeypatch.setattr(evaluator.Evaluator, "__call__", count)


def config(place: Place, out: Path, /, **changes: Any) -> dict[str, Any]:
    return place.config(out, **{"train__steps": 8, "train__best": "eval_loss", **changes})


def weights_after(run: Run, step: int) -> dict[str, Any]:
    return load_file(run.folder / "checkpoints" / f"step-{step:08d}" / "masters.safetensors")


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 2}])
def test_the_best_model_is_kept_beside_the_last(
    place: Place, tmp_path: Path, adapter: dict, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scripted(monkeypatch, BEST_AT_4)
    run = train(config(place, tmp_path / "run", adapter=adapter, train__keep=9))
    (best,) = (run.folder / "best").iterdir()
    assert best.name == "step-00000004" and best == run.best
    assert f"best: step 4 (eval_loss 0.5000), in {best}" in capsys.readouterr().err
    assert read_json(run.folder / "run.json")["best"] == {"step": 4, "eval_loss": 0.5}
    (file,) = best.glob("*model.safetensors")
    kept, (last,) = load_file(file), map(load_file, run.model.glob("*model.safetensors"))
    assert sum(tensor.numel() for tensor in kept.values()) > 1000
    for name, tensor in weights_after(run, 4).items():
        known = name.replace(".default.", ".")
        assert tensor.equal(kept[known]) and not tensor.equal(last[known])
    AutoModelForCausalLM.from_pretrained(best)  # with its tokenizer, as model/ is


def test_it_changes_nothing_that_is_trained(place: Place, tmp_path: Path) -> None:
    with_best, without = (
        bytes_of(train(config(place, tmp_path / str(best), train__best=best)).folder)
        for best in ("eval_accuracy", None)
    )
    changed = differing(with_best, without)
    made = (".safetensors", ".parquet", ".jsonl")  # the others name the config
    assert [name for name in changed if name.endswith(made) and not name.startswith("best/")] == []


def test_patience_ends_a_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scripted(monkeypatch, [0.69, 0.6, 0.65, 0.6, 0.1])  # the same again is not better
    settings = config(place, tmp_path / "run", train__patience=2)
    run = train(settings)
    record = read_json(run.folder / "run.json")
    assert (record["status"], record["step"], record["steps"]) == ("finished", 6, 8)
    assert run.metrics[-1]["step"] == 6 and run.model.is_dir()
    assert "ended after step 6: 2 evaluations were no better" in capsys.readouterr().err
    assert [path.name for path in (run.folder / "best").iterdir()] == ["step-00000002"]
    before = bytes_of(run.folder)
    train(settings)
    assert differing(bytes_of(run.folder), before) == []


def test_nothing_better_than_the_initial_policy(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scripted(monkeypatch, [0.5, 0.6, 0.5, 0.7, 0.8])
    run = train(config(place, tmp_path / "run"))
    assert "no evaluation was better than the initial policy" in capsys.readouterr().err
    assert not (run.folder / "best").exists() and run.best is None


def crash_in(what: str, step: int) -> Callable[..., None]:
    """Die before or after the best model of a step is written, or before the older one goes."""
    save, seen = evaluator.Evaluator._compare, evaluator.remove_folder

    def compare(self: evaluator.Evaluator, row: dict) -> None:
        if row["step"] == step and what == "before":
            raise Crash
        save(self, row)
        if row["step"] == step and what == "after":
            raise Crash

    def remove(path: Path) -> None:
        if what == "between" and path.name == "step-00000002":
            raise Crash
        seen(path)

    evaluator.remove_folder = remove
    return compare


@pytest.mark.parametrize("what", ["before", "between", "after"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_run_that_dies_and_resumes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    scripted(monkeypatch, BEST_AT_4)
    settings = {"train__patience": 2, "train__save_every": 3}
    whole = train(config(place, tmp_path / "whole", **settings)).folder
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(evaluator, "remove_folder", evaluator.remove_folder)
        patch.setattr(evaluator.Evaluator, "_compare", crash_in(what, step))
        train(config(place, tmp_path / "run", **settings))
        raise Crash  # nothing is removed after step 8
    run = train(config(place, tmp_path / "run", **settings)).folder
    assert differing(bytes_of(run), bytes_of(whole)) == []
    assert json.loads((run / "run.json").read_text())["best"] == {"step": 4, "eval_loss": 0.5}


def test_a_best_model_that_is_damaged(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is said; what comes later is no better, and the patience is that of the evaluations."""
    scripted(monkeypatch, BEST_AT_4)
    settings = config(place, tmp_path / "run", train__save_every=3)

    def crash(row: dict[str, float]) -> None:
        if row["step"] == 7:
            raise Crash

    with pytest.raises(Crash):
        train(settings, on_step=crash)
    (tmp_path / "run" / "best" / "step-00000004" / "config.json").write_text("{}")
    train(settings)
    said = capsys.readouterr().err
    assert "the best model, of step 4, is damaged or gone" in said
    assert "best: step 4 (eval_loss 0.5000), lost" in said


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data__eval": None, "train__eval_every": None}, "train.best"),
        ({"train__best": None, "train__patience": 2}, "train.patience"),
        ({"train__eval_every": None, "train__patience": 2}, "train.patience"),
    ],
)
def test_keys_that_nothing_would_read(
    place: Place, tmp_path: Path, changes: dict, key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        train(config(place, tmp_path / "run", **changes))
    assert refused.value.where == key
    assert not (tmp_path / "run").exists()
