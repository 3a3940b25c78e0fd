"""The comparison of two versions: what it takes as equal, as other words, and as a difference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from tests.support.same_bytes import Verdict, compare

SCHEMA = {
    "properties": {"train": {"$ref": "#/$defs/TrainConfig"}, "loss": {"oneOf": [
        {"$ref": "#/$defs/SigmoidLoss"}]}},
    "$defs": {
        "TrainConfig": {"properties": {"tokens_per_pass": {"minimum": 16, "description": "old"}}},
        "SigmoidLoss": {"properties": {"name": {"const": "sigmoid"}, "beta": {"maximum": 100}}},
    },
}  # fmt: skip
CHECK = {"rows": 2, "kinds": [{"code": "empty", "message": "2 rows are empty", "mend": "mend it"}]}
CONFIG = {"train": {"tokens_per_pass": 256, "compile": False}}


def recording(folder: Path) -> Path:
    """A recording of one run and three outputs."""
    run, outputs = folder / "runs" / "full", folder / "outputs"
    (run / "model").mkdir(parents=True)
    (run / "ledger").mkdir()
    outputs.mkdir()
    write(folder / "record.json", {"version": "1", "inputs": {"pairs": "a"}, "exit codes": {}})
    write(run / "config.yaml", CONFIG)
    write(run / "run.json", {"time": folder.name})
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    save_file({"weight": np.ones(2, np.float32)}, run / "model" / "model.safetensors")
    pq.write_table(pa.table({"margin": [0.25]}), run / "ledger" / "steps.parquet")
    write(outputs / "schema.json", SCHEMA)
    write(outputs / "check-pairs.json", CHECK)
    (outputs / "losses.txt").write_text("name     needs\nsigmoid  reference  at 0.1\n")
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return recording(tmp_path / "old"), recording(tmp_path / "new")


def test_the_same_is_the_same(two: tuple[Path, Path]) -> None:
    assert compare(*two) == Verdict()


def test_what_was_renamed_on_purpose_is_equal(two: tuple[Path, Path]) -> None:
    old, new = two
    changed(new / "outputs" / "check-pairs.json", '"mend":', '"hint":')
    changed(new / "outputs" / "schema.json", "tokens_per_pass", "tokens_per_batch")
    write(new / "runs" / "full" / "config.yaml", {"train": {"tokens_per_batch": 256}})
    (new / "runs" / "full" / "ledger").rename(new / "runs" / "full" / "pair_log")
    assert compare(old, new) == Verdict()


def test_other_words_are_shown_and_expected(two: tuple[Path, Path]) -> None:
    old, new = two
    changed(new / "outputs" / "check-pairs.json", "2 rows are empty", "2 rows hold no text")
    changed(new / "outputs" / "losses.txt", "reference  at", "reference  begins at")
    changed(new / "outputs" / "schema.json", '"old"', '"new"')
    found = compare(old, new)
    assert found.unexpected == found.added == []
    assert len(found.words) == 3


def test_words_for_the_label_of_an_unpaired_example_are_expected(two: tuple[Path, Path]) -> None:
    old, new = two
    changed(old / "outputs" / "losses.txt", "reference  at", "for thumbs up  at")
    changed(new / "outputs" / "losses.txt", "reference  at", "for label 1  at")
    assert compare(old, new) == Verdict()
    changed(new / "outputs" / "losses.txt", "for label 1", "for label 0")
    assert compare(old, new).unexpected


def test_a_new_loss_is_new_and_expected(two: tuple[Path, Path]) -> None:
    old, new = two
    schema = json.loads(json.dumps(SCHEMA))
    schema["properties"]["loss"]["oneOf"].append({"$ref": "#/$defs/FocalLoss"})
    schema["$defs"]["FocalLoss"] = {"properties": {"name": {"const": "focal"}, "gamma": {"ge": 0}}}
    write(new / "outputs" / "schema.json", schema)
    changed(new / "outputs" / "losses.txt", "sigmoid  ref", "focal  none\nsigmoid  ref")
    found = compare(old, new)
    assert found.unexpected == []
    assert found.added == ["losses.txt: focal", "schema.json: .loss.<focal>"]


@pytest.mark.parametrize(
    ("file", "old_text", "new_text"),
    [
        ("runs/full/metrics.jsonl", "0.5", "0.50000001"),
        ("runs/full/config.yaml", "256", "255"),
        ("outputs/check-pairs.json", '"empty",', '"blank",'),
        ("outputs/check-pairs.json", "2 rows are", "3 rows are"),
        ("outputs/losses.txt", "0.1", "0.2"),
        ("outputs/losses.txt", "sigmoid", "logistic"),
        ("outputs/schema.json", '"maximum": 100', '"maximum": 10'),
        ("outputs/schema.json", '"beta": {', '"gamma": {}, "beta": {'),
        ("record.json", '"a"', '"b"'),
    ],
)
def test_a_difference_is_named(
    two: tuple[Path, Path], file: str, old_text: str, new_text: str
) -> None:
    changed(two[1] / file, old_text, new_text)
    assert compare(*two).unexpected


def test_other_numbers_and_missing_files_are_differences(two: tuple[Path, Path]) -> None:
    old, new = two
    run = new / "runs" / "full"
    one_bit = np.nextafter(np.ones(2, np.float32), np.float32(2))
    save_file({"weight": one_bit}, run / "model" / "model.safetensors")
    pq.write_table(pa.table({"margin": [np.nextafter(0.25, 1)]}), run / "ledger" / "steps.parquet")
    (run / "metrics.jsonl").unlink()
    (new / "outputs" / "check-pairs.json").unlink()
    assert len(compare(old, new).unexpected) == 4
