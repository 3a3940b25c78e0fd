"""Numbers that are not finite stop a run before they are in a weight, or on the disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.runs import Place, make_place

from likelier.base.errors import DataError, RunFailed
from likelier.batching.batch import Batch
from likelier.model.load import load
from likelier.run import train
from likelier.training.optimizer import MasterAdamW

PLANTED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=18)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


def assert_finite_on_disk(run: Path, steps: list[int]) -> None:
    """These checkpoints, all of them whole and finite, and no model."""
    assert not (run / "model").exists()
    assert not (run / "adapter").exists()
    found = sorted((run / "checkpoints").glob("step-*")) if (run / "checkpoints").exists() else []
    assert [int(path.name[5:]) for path in found] == steps
    for file in run.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), (file, name)


def assert_places(said: str, place: Place, out: Path, pairs: int) -> None:
    """Three lines at most, the pairs of the step by their places, the good checkpoint by its."""
    what, hint = said.split("\n")
    places = what.partition("pairs: ")[2].split(", ")
    assert len(places) == len(set(places)) == pairs
    assert places[0].startswith(f"{place.data}:")
    assert all(number.isdigit() for number in places[1:])
    assert "look at these pairs and at" in hint and "optim.lr" in hint
    assert f"{out}/checkpoints/step-00000002 is good, nothing else was saved" in hint


def in_weights(model: torch.nn.Module) -> None:
    model.get_parameter(PLANTED).data[3, 4] = float("nan")


def in_a_gradient(model: torch.nn.Module) -> None:
    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoiled = gradient.clone()
        spoiled[0, 0] = float("inf")
        return spoiled

    model.get_parameter(PLANTED).register_hook(spoil)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (in_weights, f"a log-prob is not finite because {PLANTED} is not"),
        (in_a_gradient, f"the gradient of {PLANTED} is not finite"),
    ],
)
def test_in_the_middle_of_a_run(
    place: Place, tmp_path: Path, plant: Callable[[torch.nn.Module], None], message: str
) -> None:
    """Planted after the third step: the fourth makes no update, checkpoint 2 stays."""
    policy = load(place.base)

    def on_step(row: dict) -> None:
        if row["step"] == 3:
            plant(policy.causal_lm)

    settings = place.config(tmp_path / "out")
    del settings["model"]
    with pytest.raises(RunFailed) as found:
        train(settings, policy.model, policy.tokenizer, on_step=on_step)
    assert str(found.value).startswith(f"step 4: {message}, so no update was made; pairs: ")
    assert_places(str(found.value), place, tmp_path / "out", 4)
    assert found.value.exit_code == 1
    assert_finite_on_disk(tmp_path / "out", [2])


def test_no_weight_moves_where_a_gradient_is_not_finite(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    in_a_gradient(policy.causal_lm)
    settings = place.config(tmp_path / "out")
    del settings["model"]
    with pytest.raises(RunFailed, match="gradient"):
        train(settings, policy.model, policy.tokenizer)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "a loss is not finite"), (float("inf"), "a loss is not finite")],
)
def test_in_the_loss(place: Place, tmp_path: Path, value: float, message: str) -> None:
    calls = 0

    def loss(values):
        nonlocal calls
        calls += 1
        good = -torch.nn.functional.logsigmoid(values.log_ratio_margin_P)
        return good if calls < 6 else good + value  # the gate and the first evaluation count, too

    with pytest.raises(RunFailed, match=f"^step 3: {message}, so no update was made") as found:
        train(place.config(tmp_path / "out"), loss=loss)
    assert_places(str(found.value), place, tmp_path / "out", 4)
    assert_finite_on_disk(tmp_path / "out", [2])


def test_a_log_prob_of_minus_infinity(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sigmoid loss of such a rejected answer is 0, and so is its gradient."""
    original = Batch.completion_logps

    def underflows(self: Batch, logp_E: torch.Tensor) -> torch.Tensor:
        logp_R = original(self, logp_E)
        if (tmp_path / "out" / "checkpoints").exists():
            logp_R[1] = -torch.inf
        return logp_R

    monkeypatch.setattr(Batch, "completion_logps", underflows)
    with pytest.raises(RunFailed, match=r"step \d: a log-prob is not finite, so no upd") as found:
        train(place.config(tmp_path / "out"))
    named = str(found.value).partition("pairs: ")[2].partition("\n")[0]
    assert 1 <= len(named.split(",")) <= 2  # those of the answer, not all of the batch
    assert_finite_on_disk(tmp_path / "out", [2])


def test_a_norm_that_overflows_over_finite_gradients(place: Place, tmp_path: Path) -> None:
    """The squares of 1e30 are infinite in float32, and clipping by them would make 0 of all."""
    policy = load(place.base)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    policy.causal_lm.get_parameter(PLANTED).register_hook(lambda grad: torch.full_like(grad, 1e30))
    settings = place.config(tmp_path / "out")
    del settings["model"]
    with pytest.raises(RunFailed, match=rf"^step 1: the norm of the gradients, .*{PLANTED}") as f:
        train(settings, policy.model, policy.tokenizer)
    assert f.value.exit_code == 1 and "no checkpoint was written before" in str(f.value)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert_finite_on_disk(tmp_path / "out", [])


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_in_the_averages_of_the_optimizer(
    place: Place, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MasterAdamW.step

    def spoils(self: MasterAdamW, lr: float) -> float:
        norm = original(self, lr)
        self.adamw_of[PLANTED].state[self.masters[PLANTED]][kind][2, 3] = torch.inf
        return norm

    monkeypatch.setattr(MasterAdamW, "step", spoils)
    message = rf"^step 1: {kind} of {PLANTED} is not finite after an update, so .*; pairs: "
    with pytest.raises(RunFailed, match=message):
        train(place.config(tmp_path / "out", train__save_every=1))
    assert_finite_on_disk(tmp_path / "out", [])


def test_in_a_reference_that_moves(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from likelier.reference.moving import MovingReference

    original = MovingReference.rescored

    def spoiled(self: MovingReference, batches: list[Batch]) -> list[Batch]:
        rescored = list(original(self, batches))
        if (tmp_path / "out" / "checkpoints").exists():
            rescored[0].reference_R[0] = torch.nan
        return rescored

    monkeypatch.setattr(MovingReference, "rescored", spoiled)
    settings = place.config(tmp_path / "out", reference__update_every=1, reference__update_mix=0.5)
    with pytest.raises(RunFailed, match=r"^step 3: a reference log-prob is not finite.*pairs: "):
        train(settings)
    assert_finite_on_disk(tmp_path / "out", [2])


def test_in_the_reference(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from likelier.reference import cache

    def overflows(*given: object) -> object:
        for number, (index, logps) in enumerate(score(*given)):
            yield index, logps / 0 if number == 3 else logps

    score = cache.score_sequences
    monkeypatch.setattr(cache, "score_sequences", overflows)
    with pytest.raises(RunFailed, match=r"^the reference: .* log-prob that is not finite; pairs: "):
        train(place.config(tmp_path / "out"))
    assert_finite_on_disk(tmp_path / "out", [])
    assert not [*(tmp_path / "likelier-cache").rglob("*.safetensors")]


def test_in_pairs_held_out(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(place.base)

    def on_step(row: dict) -> None:
        if row.get("step") == 2 and "loss" in row:
            in_weights(policy.causal_lm)

    settings = place.config(tmp_path / "out", train__save_every=1)
    del settings["model"]
    with pytest.raises(RunFailed, match=r"^held-out pairs after step 2: a log-prob is not .*pairs"):
        train(settings, policy.model, policy.tokenizer, on_step=on_step)
    assert_finite_on_disk(tmp_path / "out", [1])


def test_many_pairs_are_counted(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    in_a_gradient(policy.causal_lm)
    settings = place.config(tmp_path / "out", train__pairs_per_step=12)
    del settings["model"]
    with pytest.raises(RunFailed, match=r"pairs: \S+:\d+(, \d+){7} and 4 more\n"):
        train(settings, policy.model, policy.tokenizer)


LORA = {"kind": "lora", "r": 2}  # B is 0 at first, so the gradient of A is exactly 0


def test_an_update_that_breaks_a_weight_is_not_saved(place: Place, tmp_path: Path) -> None:
    """0 / (0 + eps) is not a number where eps is too small for float32."""
    settings = place.config(tmp_path / "out", adapter=LORA, optim__eps=1e-60, train__save_every=1)
    with pytest.raises(RunFailed, match=r"lora_A.* is not finite after an update.*\n.*optim.eps"):
        train(settings)
    assert_finite_on_disk(tmp_path / "out", [])


def test_the_last_update_counts_too(place: Place, tmp_path: Path) -> None:
    settings = place.config(tmp_path / "out", adapter=LORA, optim__eps=1e-60, data__eval=None)
    settings["train"] = {"steps": 1, "pairs_per_step": 4, "save_every": None}
    with pytest.raises(RunFailed, match="not finite after an update"):
        train(settings)
    assert_finite_on_disk(tmp_path / "out", [])


def test_weights_that_are_damaged_from_the_start(place: Place, tmp_path: Path) -> None:
    damaged = Place(tmp_path)
    made = make_place(tmp_path, rows=6)
    weights = load_file(damaged.base / "model.safetensors")
    weights[PLANTED][0, 0] = float("nan")
    save_file(weights, damaged.base / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"{PLANTED} holds values that are not finite") as found:
        train(made.config("out"))
    assert found.value.exit_code == 65
    assert not (tmp_path / "out").exists()
