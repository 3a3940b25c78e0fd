"""One of several processes is lost, stands still, fails or disagrees: the others end and say so."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.support.children import KILLED
from tests.support.ranks import run_ranks, small_files, start_ranks
from tests.support.runs import Place, bytes_of, differing, make_place
from tests.support.tiny import save_tiny

from likelier.base.errors import UNWRITABLE
from likelier.base.files import read_manifest
from likelier.model.team import Team
from likelier.report import pair_texts
from likelier.training.checkpoint import steps_saved
from likelier.training.optimizer import MasterAdamW

SOON = 60.0  # seconds in which the others end
PHASES = ["the reference", "the preflight", "step 3, gradients", "step 4, saving"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=18)


@pytest.fixture(scope="module")
def whole(place: Place) -> dict[str, bytes]:
    """A run of two processes that nobody disturbed."""
    run_ranks(2, _config(place, "whole"), place.folder / "whole.logs")
    return bytes_of(place.folder / "whole")


def _config(place: Place, out: str | Path, **parallel: Any) -> dict[str, Any]:
    return place.config(out, train__steps=6, parallel={"timeout": 30, **parallel})


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    time.sleep(600)


def _ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_is_killed(
    place: Place, whole: dict[str, bytes], tmp_path: Path, phase: str, lost: int
) -> None:
    config = _config(place, tmp_path / "out")
    began = time.monotonic()
    children = start_ranks(2, config, tmp_path / "logs", events={lost: (phase, _kill)})
    codes = [child.wait() for child in children]
    left = children[1 - lost]
    assert time.monotonic() - began < SOON
    assert codes[lost] == KILLED and codes[1 - lost] == 1, left.output
    # The first keeps what the others are at: where it is lost, what it did last is not known.
    named = f"(last seen at {phase})" if lost else "(while process 1 was at "
    assert f"lost process {lost} {named}" in left.output
    assert "the same command resumes" in left.output and "Traceback" not in left.output
    folder = tmp_path / "out/checkpoints"
    for step in steps_saved(folder):
        assert read_manifest(folder / f"step-{step:08d}") is not None
    run_ranks(2, config, tmp_path / "again")
    assert differing(bytes_of(tmp_path / "out"), whole) == []


def test_a_process_is_never_started(place: Place, tmp_path: Path) -> None:
    config = _config(place, tmp_path / "out", timeout=2)
    (alone,) = start_ranks(2, config, tmp_path / "logs", missing=1)
    assert alone.wait() == 1
    assert "the other processes were not met within 2 seconds" in alone.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_a_process_stands_still(place: Place, tmp_path: Path, mode: str) -> None:
    """It is waited for as long as parallel.timeout says."""
    config = _config(place, tmp_path / "out", timeout=4, mode=mode)
    event = {1: ("step 3, gradients", _stop)}
    began = time.monotonic()
    left, still = start_ranks(2, config, tmp_path / "logs", events=event)
    try:
        assert left.wait() == 1
        assert time.monotonic() - began < SOON
        assert "lost process 1 (last seen at step 3, gradients)" in left.output
    finally:
        still.send(signal.SIGKILL)


def test_a_process_that_hangs_shows_where(place: Place, tmp_path: Path) -> None:
    """One of those that are left asks it, once."""
    config = _config(place, tmp_path / "out", timeout=4)
    children = start_ranks(3, config, tmp_path / "logs", events={1: ("step 3, gradients", _hang)})
    first, hanging, third = children
    try:
        assert (first.wait(), third.wait()) == (1, 1)
        assert "lost process 1 (last seen at step 3, gradients)" in first.output
        assert hanging.output.count("in _hang\n") == 1 and "in _take_steps" in hanging.output
        assert "in _hang" not in first.output and third.output == ""
    finally:
        hanging.send(signal.SIGKILL)


def test_one_process_is_asked_to_stop(place: Place, whole: Any, tmp_path: Path) -> None:
    """All end after the same step; the first says it."""
    config = _config(place, tmp_path / "out")
    event = {1: ("step 3, gradients", _ask)}
    first, second = start_ranks(2, config, tmp_path / "logs", events=event)
    assert (first.wait(), second.wait()) == (75, 75)
    assert "stopped after step 3" in first.output and second.output == ""
    run_ranks(2, config, tmp_path / "logs")
    ended = bytes_of(tmp_path / "out")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert ended[name] == whole[name]


def test_a_signal_between_two_steps_is_not_lost(place: Place, tmp_path: Path) -> None:
    """It comes after this process has said that there was none; and the first takes its time."""
    config = _config(place, tmp_path / "out")
    events = {0: ("step 2, gradients", _slow_texts), 1: ("step 2, gradients", _ask_later)}
    first, second = start_ranks(2, config, tmp_path / "logs", events=events)
    assert (first.wait(), second.wait()) == (75, 75), first.output
    assert "stopped after step 3" in first.output and second.output == ""


def _ask_later() -> None:
    """Stop this process as soon as it has told the others that nobody asks for it."""
    gathered = Team.gathered

    def then_asked(team: Team, value: Any) -> Any:
        found = gathered(team, value)
        if isinstance(value, tuple) and value[0] is None:
            Team.gathered = gathered  # type: ignore[method-assign]
            _ask()
        return found

    Team.gathered = then_asked  # type: ignore[method-assign]


def _slow_texts() -> None:
    pair_texts.keep_pair_texts = lambda *arguments: time.sleep(2.5)


def test_all_are_interrupted_and_the_first_says_it(place: Place, tmp_path: Path) -> None:
    config = _config(place, tmp_path / "out")
    events = dict.fromkeys((0, 1), ("the reference", _interrupt))
    children = start_ranks(2, config, tmp_path / "logs", events=events)
    assert [child.wait() for child in children] == [130, 130]
    assert children[0].output.endswith("interrupted\n") and children[1].output == ""


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("damage", ["_nan", "_huge", "_huge_and_read_late"])
def test_a_gradient_of_one_process_is_not_finite(place: Place, tmp_path: Path, damage: str) -> None:
    """All know which one, and the first says it."""
    config = _config(place, tmp_path / "out", mode="shard")
    events = {1: ("step 2, gradients", globals()[damage])}
    children = start_ranks(2, config, tmp_path / "logs", events=events)
    assert [child.wait() for child in children] == [1, 1]
    name = "model.layers.1.mlp.down_proj.weight"
    what = f"the gradient of {name}" if damage == "_nan" else f"of which {name} has the largest,"
    assert f"{what} is not finite" in children[0].output and children[1].output == ""


def _nan() -> None:
    _damage_gradients(float("nan"))


def _huge() -> None:
    _damage_gradients(3e38)


def _huge_and_read_late() -> None:
    """This process looks a second late whether the first one says the error."""
    check = dist.PrefixStore.check

    def late(store: dist.PrefixStore, keys: list[str]) -> bool:
        time.sleep(1.0)
        return check(store, keys)

    dist.PrefixStore.check = late  # type: ignore[method-assign]
    _huge()


def _damage_gradients(value: float) -> None:
    """From here on those of one weight are of this value in this process."""
    gradients = MasterAdamW._gradients

    def damaged(optimizer: MasterAdamW) -> Any:
        found = gradients(optimizer)
        found["model.layers.1.mlp.down_proj.weight"].fill_(value)
        return found

    MasterAdamW._gradients = damaged  # type: ignore[method-assign]


@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_is_full_for_one_process(place: Place, tmp_path: Path, full: int) -> None:
    """Each writes its parts; torch tells all what went wrong, one of them says it, once."""
    config = _config(place, tmp_path / "out", mode="shard")
    event = {full: ("step 2, saving", small_files)}
    children = start_ranks(2, config, tmp_path / "logs", events=event)
    codes = [child.wait() for child in children]
    assert codes == [UNWRITABLE, UNWRITABLE]
    assert "cannot write: File too large" in children[0].output and children[1].output == ""
    assert steps_saved(tmp_path / "out/checkpoints") == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"train__steps": 7}, "config"), ({"parallel__mode": "shard"}, "parallel.mode")],
)
def test_processes_with_other_settings_are_refused(
    place: Place, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    settings = {"train__steps": 6, "parallel__timeout": 30, "parallel__mode": "replicate"}
    ours, other = (place.config(tmp_path / "out", **settings | more) for more in ({}, changed))
    children = start_ranks(2, ours, tmp_path / "logs", others={1: other})
    assert [child.wait() for child in children] == [1, 1]
    assert f"process 1 has another {named} than process 0" in children[0].output
    assert children[1].output == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["data", "model"])
def test_processes_that_read_other_files_are_refused(
    place: Place, tmp_path: Path, what: str
) -> None:
    """Under the same names, as on machines of which one has an older copy."""
    other = make_place(tmp_path / "other", rows=15 if what == "data" else 18)
    if what == "model":
        save_tiny(other.base, seed=1)
    config = _config(place, tmp_path / "out")
    config["model"]["path"], config["data"]["train"] = place.base.name, place.data.name
    folders = enumerate((place.folder, other.folder))
    events = {rank: ("the start", partial(os.chdir, folder)) for rank, folder in folders}
    children = start_ranks(2, config, tmp_path / "logs", events=events)
    assert [child.wait() for child in children] == [1, 1]
    assert f"process 1 has another {what} than process 0" in children[0].output
