"""The loss examples print what their page shows."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "known-answers.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deterministic_labels", "displacement"])
def test_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "losses" / f"{name}.py"), run_name="__main__")
    assert f"```\n{capsys.readouterr().out}```" in PAGE
