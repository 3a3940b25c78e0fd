"""`likelier export`: the merged model of a run, and what is said of it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.runs import Place, make_place
from transformers import AutoModelForCausalLM, AutoTokenizer

from likelier.batching.batch import completions_of
from likelier.cli import main
from likelier.config import load_config
from likelier.data.load import load as load_data
from likelier.model.load import load
from likelier.model.policy import score_sequences
from likelier.run import train

LORA: dict[str, Any] = {"kind": "lora", "r": 4, "alpha": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        yield make_place(tmp_path_factory.mktemp("place"), dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=["none", "nf4"])
def run(place: Place, request: pytest.FixtureRequest) -> Path:
    """A run that changed its model a lot, in float32 on a bfloat16 base."""
    model = {"path": str(place.base), "dtype": "float32", "quantise": request.param}
    config = place.config(
        request.param, model=model, adapter=LORA, optim__lr=0.05, train__save_every=None
    )
    return train(config).folder


def log_probs(policy: Any, run: Path) -> list[torch.Tensor]:
    """Of the tokens of every held-out answer, scored by hand."""
    config = load_config(run / "config.yaml")
    pairs = load_data(config.data, policy.encoder(), config.loss, config.train.seed).eval
    sequences = list(dict.fromkeys(one for pair in pairs for one in completions_of(pair)))
    return [logps.double() for _, logps in sorted(score_sequences(policy, sequences))]


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_what_is_said_is_how_far_it_is_from_what_was_trained(
    run: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the base's bfloat16 rounding costs something, in float32 next to nothing."""
    out = tmp_path / "merged"
    assert main(["export", str(run), "--out", str(out), "--dtype", dtype]) == 0
    said = capsys.readouterr()
    assert f"merged, in {'bfloat16' if dtype == 'auto' else dtype}: {out}" in said.err
    found = re.search(r"log-probs: ((\S+)) nats .*\), (\S+) at most, on \d+ tokens", said.out)
    assert found is not None
    trained = load(run / "adapter", dtype="float32", frozen=True, quantise=run.name)  # type: ignore
    both = [log_probs(policy, run) for policy in (trained, load(out, dtype="float32"))]
    apart = (torch.cat(both[0]) - torch.cat(both[1])).abs()
    assert float(found[2]) == pytest.approx(float(apart.mean()), rel=0.1, abs=3e-8)
    assert float(found[3]) == pytest.approx(float(apart.max()), rel=0.1, abs=1e-6)
    assert (float(apart.max()) < 1e-4) == (dtype == "float32")
    # Without any program of ours.
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert str(model.dtype).endswith("bfloat16" if dtype == "auto" else dtype)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_pairs_that_were_trained_on_are_compared_where_none_is_held_out(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = place.config("unheld", adapter=LORA, data__eval=None, train__eval_every=None)
    del config["train"]["eval_every"]
    run = train(config).folder
    assert main(["export", str(run), "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr()
    assert "no pairs were held out: pairs of the training are compared" in said.err
    assert "of 30 pairs; training changed" in said.out


def test_without_its_data_a_model_is_written_and_not_compared(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    shutil.copy(place.data, data)
    run = train(place.config("moved", adapter=LORA, data__train=str(data))).folder
    data.unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().err
    assert "not compared with what was trained: " in said and str(data) in said
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_run_of_all_weights_is_written_in_another_dtype(place: Place, tmp_path: Path) -> None:
    full = train(place.config("full", optim__lr=1e-2, train__save_every=None)).folder
    out = tmp_path / "wide"
    assert main(["export", str(full), "--to", "adapter", "--out", str(out)]) == 2
    assert main(["export", str(full), "--out", str(out), "--dtype", "float32"]) == 0
    folders = full / "model", out
    old, new = (AutoModelForCausalLM.from_pretrained(x, dtype="auto") for x in folders)
    assert (str(old.dtype), str(new.dtype)) == ("torch.bfloat16", "torch.float32")
    weights = new.state_dict()
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor.float(), weights[name]), name


def test_what_cannot_be_exported_is_said_in_one_line(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("")
    lora = train(place.config("lora", adapter=LORA, train__steps=1)).folder
    there = tmp_path / "there"
    there.mkdir()
    inside = lora / "merged"
    for run, out, code, words in (
        (tmp_path, "merged", 66, "there is no run here"),
        (unfinished, "merged", 66, "this run has saved no model"),
        (lora, "there", 73, "is there already"),
        (lora, str(inside), 73, "lies inside"),
    ):
        capsys.readouterr()
        assert main(["export", str(run), "--out", str(tmp_path / out)]) == code
        said = capsys.readouterr().err
        assert words in said and len(said.splitlines()) <= 3, said
    assert not (tmp_path / "merged").exists() and not inside.exists()
