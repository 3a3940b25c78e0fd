"""A sample of every kind of hostile input, met by the command; `make faults` meets them all."""

from pathlib import Path

import pytest
from faults.hostile import meet_cases
from faults.hostile.case import CASES

# One for each thing that would go wrong: what is listed here ends in a second or two.
SAMPLE = {
    "models": ("model.safetensors is a FIFO", "config.json: vocabulary of 10^8",
               "weights: a header of 2^60", "an index that points to /dev/zero",
               "code for a model of its own", "only pytorch_model.bin, with a payload"),
    "adapters": ("layers up to 10^9", "only pickled, with a payload", "a base with control bytes"),
    "tokenizers": ("no stop", "tokenizer.json: nested 100,000 deep", "code of its own, for check"),
    "templates": ("globals of a function", "a refusal with control bytes", "an inclusion"),
    "data": ("a line: broken JSON with control bytes", "a.parquet is a FIFO",
             "a file: a line of 2 GB with nothing in it"),
    "configs": ("YAML: a bomb of anchors", "YAML: an object of Python",
                "a secret in an address of data", "out is a device"),
    "surroundings": ("the folder is gone",),
}  # fmt: skip


def test_every_case_has_a_name_of_its_own() -> None:
    names = [(case.kind, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 700
    assert {(kind, name) for kind, some in SAMPLE.items() for name in some} <= set(names)


@pytest.mark.slow
def test_a_sample_is_met(tmp_path: Path) -> None:
    chosen = [n for n, case in enumerate(CASES) if case.name in SAMPLE[case.kind]]
    outcomes = meet_cases(chosen, tmp_path, 2)
    assert [f"{one.kind}: {one.name}: {one.problems}" for one in outcomes if one.problems] == []
