"""What tests of runs that break off share: a cache, a place with a run that nobody disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.children import no_report
from tests.support.runs import Place, make_place

from likelier.run import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Place]:
    """With ``whole``, a run that nobody disturbed."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(cache))
        patch.setattr("likelier.run._write_report", no_report)
        train(place.config("whole"))
    yield place


@pytest.fixture
def config(place: Place, tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(place.config(tmp_path / "out")))
    return file
