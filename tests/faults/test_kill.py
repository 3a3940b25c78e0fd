"""A run that is killed, wherever, and started again gives the bytes of one that was not."""

from pathlib import Path

import pytest
from tests.support.children import KILLED, run, run_until_step, start
from tests.support.runs import Place, bytes_of, differing, make_place

STEPS = 5
KINDS = {"full": {"kind": "none"}, "lora": {"kind": "lora", "r": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def config(place: Place, out: Path, kind: str) -> dict:
    return place.config(out, adapter=KINDS[kind], train__steps=STEPS)


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, place: Place, cache: None) -> tuple[str, dict]:
    """The bytes of a run that nobody disturbed, by the kind of tuning."""
    out = place.folder / f"whole-{request.param}"
    child = start(run, config(place, out, request.param), log=place.folder / "whole.log")
    assert child.wait() == 0, child.output
    return request.param, bytes_of(out)


def go_on(settings: dict, log: Path) -> str:
    child = start(run, settings, log=log)
    assert child.wait() == 0, child.output
    return child.output


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_after_a_step(place: Place, whole: tuple[str, dict], tmp_path: Path, step: int):
    kind, expected = whole
    settings = config(place, tmp_path / "out", kind)
    child = start(run_until_step, settings, step, log=tmp_path / "first.log")
    assert child.wait() == KILLED, child.output
    said = go_on(settings, tmp_path / "second.log")
    saved = (step - 1) // 2 * 2  # the kill comes before the checkpoint of the step itself
    assert ("going on from step" in said) == bool(saved)
    assert not saved or f"going on from step {saved}" in said
    assert differing(bytes_of(tmp_path / "out"), expected) == []
