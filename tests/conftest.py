"""Every test alike: no network, one thread, a cache of its own, the same examples every time."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Read when torch and huggingface_hub are imported, so before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LIKELIER_LANGUAGE"] = "en"  # whatever the system's is
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command line has it for several processes

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
# HYPOTHESIS_PROFILE=search looks for new counter-examples.
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


def pytest_collection_finish() -> None:
    """What is imported stays, so no collection goes through it: what tests leave is found sooner.

    A worker is then smaller, and with it every fork of it that a command makes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _bfloat16_products() -> Iterator[None]:
    """A processor that has them, whatever this one has; tests of one that lacks them say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: True)
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "likelier-cache"))
