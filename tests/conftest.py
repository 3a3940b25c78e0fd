"""Every test alike: no network, one thread, a cache of its own, the same examples every time."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Read when torch and huggingface_hub are imported, so before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
# HYPOTHESIS_PROFILE=search looks for new counter-examples.
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "likelier-cache"))
