"""A few of the cases that `make faults` tries: every so-many-th of each section."""

from importlib import import_module
from pathlib import Path

import pytest
from faults.native import NO_COMPILER, has_compiler

from faults import Options


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER)
@pytest.mark.parametrize(
    ("section", "stride"),
    [("kills", 150), ("errors", 250), ("random_kills", 40), ("corrupt", 250), ("ranks", 100)],
)
def test_some_cases_of_a_section_hold(
    section: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faults.corrupt.FEW_BITS", {})  # each kind of run is a dozen cases more
    rows = import_module(f"faults.{section}").run(Options(tmp_path, stride))
    assert rows
    for row in rows:
        assert row.tried
        assert row.failed == []
