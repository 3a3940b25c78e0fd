"""Same config, same bytes: in another folder, another process, and whatever the cache holds."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.runs import MISSING, Place, bytes_of, differing, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.run import train

LORA = {"kind": "lora", "r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)


@pytest.fixture(scope="module")
def full(place: Place) -> Iterator[dict[str, bytes]]:
    """The bytes of full tuning with nothing in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", lambda out: None)
        yield bytes_of(train(place.config("full")).folder)


def test_what_is_compared(full: dict[str, bytes]) -> None:
    names = set(full)
    assert {"metrics.jsonl", "reference.safetensors", "config.yaml"} <= names
    assert "model/model.safetensors" in names
    assert {f"checkpoints/step-0000000{step}/exp_avg.safetensors" for step in (2, 4)} <= names
    assert "pair_log/steps-00000003-00000004.parquet" in names
    assert (
        full["checkpoints/step-00000002/masters.safetensors"]
        != (full["checkpoints/step-00000004/masters.safetensors"])
    )


def test_again_with_the_cache_warm(place: Place, full: dict[str, bytes], tmp_path: Path) -> None:
    for out in ("one", "two"):  # the second reads what the first put into the cache
        run = train(place.config(tmp_path / out))
        assert differing(bytes_of(run.folder), full) == []


def test_whatever_was_scored_before(
    place: Place, full: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same answers in other passes have other last bits; a run must not take them."""
    some = write_rows(tmp_path / "some.jsonl", pair_rows(30)[::2])
    settings = place.config(tmp_path / "other", data__eval=None, train__eval_every=MISSING)
    settings["data"]["train"] = str(some)
    settings["train"] |= {"tokens_per_batch": 60, "steps": 1}
    train(settings)
    run = train(place.config(tmp_path / "out"))
    assert differing(bytes_of(run.folder), full) == []


def learnt(found: dict[str, bytes]) -> dict[str, bytes]:
    """What training made: weights, optimizer states and the pair log."""
    made = (".safetensors", ".parquet")
    return {n: b for n, b in found.items() if n.endswith(made) and not n.startswith("held_out/")}


def test_evaluation_changes_nothing(place: Place, full: dict, tmp_path: Path) -> None:
    for every in (1, None):
        run = train(place.config(tmp_path / f"every-{every}", train__eval_every=every))
        assert differing(learnt(bytes_of(run.folder)), learnt(full)) == []
        evaluated = [row["step"] for row in run.metrics if "eval_loss" in row]
        assert evaluated == ([0, 1, 2, 3, 4, 5] if every else [0, 5])


def test_another_process_and_hash_seed(place: Place, tmp_path: Path) -> None:
    """By the command line, in a new interpreter; the adapter's targets are a set on the way."""
    settings = place.config(tmp_path / "there", adapter=LORA)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-m", "likelier", "train", str(tmp_path / "config.yaml")],
        env=os.environ | {"PYTHONHASHSEED": seed, "LIKELIER_CACHE": str(tmp_path / "there-cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    there = bytes_of(tmp_path / "there")
    assert "adapter/adapter_model.safetensors" in there
    here = train(place.config(tmp_path / "here", adapter=LORA))
    assert differing(bytes_of(here.folder), there) == []
