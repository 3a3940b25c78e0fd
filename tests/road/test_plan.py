"""What `likelier plan` says, against the run itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.support.runs import Place, make_place

from likelier.cli import main
from likelier.commands.plan import plan
from likelier.config import config_from
from likelier.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=40)


def test_counts_are_those_of_the_run(place: Place, tmp_path: Path) -> None:
    settings = place.config(tmp_path / "run", train__steps=6, train__tokens_per_batch="auto")
    planned = plan(config_from(settings, []))
    assert not (tmp_path / "run").exists()
    run = train(settings)
    record = json.loads((run.folder / "run.json").read_text())
    assert planned.steps == record["steps"] == 6
    assert planned.pairs == 24
    assert planned.tokens == record["tokens"]["tree"]
    assert planned.plain_tokens == record["tokens"]["plain"]
    assert planned.tokens_per_batch == record["resolved"]["train"]["tokens_per_batch"]
    tensors = {p: p.stat().st_size for p in run.folder.rglob("*.safetensors")}
    saved = sum(size for p, size in tensors.items() if "checkpoints" in p.parts)
    written = sum(tensors.values()) + saved // record["resolved"]["train"]["keep"]
    assert 0.85 * written < planned.disk < written  # one more while it is written; names beside
    assert planned.seconds > planned.seconds_per_step * 6 > 0


def test_a_long_run_is_counted_from_some_of_its_steps(place: Place) -> None:
    """32 steps are looked at, evenly; the counts are those of all 96."""
    short, long = (
        plan(config_from(place.config("nowhere", train__steps=steps), [])) for steps in (32, 96)
    )
    assert long.tokens == pytest.approx(3 * short.tokens, rel=0.1)
    assert long.plain_tokens == pytest.approx(3 * short.plain_tokens, rel=0.1)


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 2}])
def test_no_weight_changes(
    place: Place, tmp_path: Path, adapter: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever plans in Python and trains the same model then must find it as it was."""
    models = []
    adapt = __import__("likelier.commands.plan", fromlist=["adapt"]).adapt

    def spy(config: object, start: object) -> object:
        policy = adapt(config, start)
        weights = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
        models.append((policy.model, weights))
        return policy

    monkeypatch.setattr("likelier.commands.plan.adapt", spy)
    plan(config_from(place.config(tmp_path / "run", adapter=adapter), []))
    ((model, before),) = models
    assert any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_command(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(place.config(tmp_path / "run")))
    assert main(["plan", str(file), "train.steps=3"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 pairs" in shown and "model.dtype=float32" in shown and "0.001" in shown
    assert "it fits" in shown and "a step, counted" in shown
    assert main(["plan", str(file), "train.steps=3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 3 and told["peak_memory"] > 2**20
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_said_before_it_is_tried(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for module in ("commands.plan", "training.memory"):
        monkeypatch.setattr(f"likelier.{module}.device_memory", lambda device: 2**18)
    monkeypatch.setattr("likelier.commands.plan._measure", None)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(place.config(tmp_path / "run")))
    assert main(["plan", str(file)]) == 2
    told = capsys.readouterr().err
    assert "train.checkpointing: layers, because" in told
    assert "of 0 MiB, of which 5% are left for what is not counted" in told
    assert "take a smaller model or shorter pairs: no change of one key is enough" in told


def test_the_peak_is_that_of_the_plan_s_own_process_or_what_is_counted(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is not written by a plan, so what its copies take is counted."""
    config = config_from(place.config(tmp_path / "run", train__steps=4), [])
    monkeypatch.setattr("likelier.commands.plan._peak", lambda policy: 1)
    planned = plan(config)
    parts = planned.phases["a checkpoint"]
    assert planned.peak_memory == sum(parts.values())
    assert parts["copies of masters and averages"] == 12 * parts["weights"] // 4
    assert parts["Python and its libraries"] > 100 * 2**20
    monkeypatch.setattr("likelier.commands.plan._peak", lambda policy: 2**33)
    assert plan(config).peak_memory == 2**33
    never = config_from(place.config(tmp_path / "run", train__save_every=None), [])
    assert "a checkpoint" not in plan(never).phases


LOADED = """
import json, sys
from likelier import run
from likelier.commands.plan import plan
from likelier.config import config_from

settings, packages = json.loads(sys.argv[1]), set()
take_steps = run._take_steps

def taken(*parts):
    take_steps(*parts)
    packages.update(name.partition(".")[0] for name in sys.modules)

run._take_steps = taken
plan(config_from(settings, []))
planned = {name.partition(".")[0] for name in sys.modules}
run.train(settings)
assert packages
print(json.dumps(sorted(packages - planned - sys.stdlib_module_names)))
"""


def test_a_plan_has_loaded_every_package_that_a_run_has_loaded_by_its_last_step(
    place: Place, tmp_path: Path
) -> None:
    """A library takes memory, and its first use may come late in a run."""
    settings = json.dumps(place.config(tmp_path / "run", train__steps=2), default=str)
    words = [sys.executable, "-c", LOADED, settings]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_loss_without_reference(place: Place, tmp_path: Path) -> None:
    settings = place.config(tmp_path / "run", loss={"name": "simpo"}, train__steps=2)
    assert plan(config_from(settings, [])).seconds_reference == 0
