"""What several files of tests start from: a place with a model and pairs, and runs of no report."""

import pytest
from tests.support.runs import Place, make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)
