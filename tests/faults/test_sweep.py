"""A sweep of real runs: one reference, one comparison whatever is killed, a worse run stopped."""

import fcntl
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.children import (
    KILLED,
    PATIENCE,
    Child,
    command,
    forked,
    killed_once,
    limited,
    no_report,
    start,
)
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.base.files import read_json
from likelier.cli import main

pytestmark = pytest.mark.slow
BETAS = "loss.beta=0.05,0.3"
IN_FORKS = {
    "likelier.commands.sweep.start_run": forked,
    "likelier.run._write_report": no_report,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With pairs the wrong way round in ``turned.jsonl``, and held-out pairs of many prompts."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=12)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pair_rows(12)]
    write_rows(place.folder / "turned.jsonl", turned)
    write_rows(place.folder / "held.jsonl", pair_rows(102, seed=1)[12::3])
    return place


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    return cache


def config(place: Place, folder: Path, **changes: Any) -> str:
    """A config file whose sweep goes to ``out`` beside it."""
    tree = place.config(folder / "out", data__eval=str(place.folder / "held.jsonl"),
                        train__steps=4, train__eval_every=1, **changes)  # fmt: skip
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


def sweep(folder: Path, *words: str, patches: dict[str, Any] | None = None) -> Child:
    child = start(command, "sweep", *words, patches=IN_FORKS | (patches or {}),
                  log=folder / "sweep.log")  # fmt: skip
    child.wait()
    return child


def until_free(out: Path) -> None:
    """Wait for the run that a killed sweep has left: it stops by itself."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with (out / ".lock").open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.02)
    raise AssertionError("the folder stays in use")


def results(out: Path) -> dict[str, Any]:
    """What a sweep comes to: the comparison, the best config but for its place, every state."""
    best = yaml.safe_load((out / "best.yaml").read_text("utf-8"))
    record = read_json(out / "sweep.json") or {}
    states = {name: {key: value for key, value in state.items() if key != "config"}
              for name, state in record["runs"].items()}  # fmt: skip
    page = (out / "comparison.html").read_bytes()
    return {"page": page, "best": {**best, "out": None}, "states": states}


@pytest.fixture(scope="module")
def whole(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a sweep that nobody disturbed: two betas, of right and of turned data."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(folder))
        child = sweep(folder, config(place, folder), BETAS, both(place))
    assert child.wait() == 0, child.output
    return results(folder / "out")


def both(place: Place) -> str:
    return f"data.train={place.data},{place.folder / 'turned.jsonl'}"


# ---- what it comes to --------------------------------------------------------------------------


def test_six_betas_cost_one_reference(place: Place, tmp_path: Path, own_cache: Path) -> None:
    betas = "0.02,0.05,0.1,0.2,0.3,0.5"
    child = sweep(tmp_path, config(place, tmp_path), f"loss.beta={betas}")
    assert child.wait() == 0, child.output
    made = list((own_cache / "reference").rglob("*.safetensors"))
    assert len(made) == 1  # a file for each set of new values
    columns = {(tmp_path / "out" / f"beta={beta}" / "reference.safetensors").read_bytes()
               for beta in betas.split(",")}  # fmt: skip
    assert len(columns) == 1
    counted = [line for line in child.output.splitlines() if line.startswith("log-probs ")]
    scored = [int(line.split("/")[1]) for line in counted if line.split()[1].split("/")[0] ==
              line.split("/")[1]]  # fmt: skip
    assert scored[0] > 60 and scored[1:] == [8] * 5  # those are spot checks of the cache
    said = " ".join(child.output.split())
    assert "Best: " in said and "[6/6] beta=0.5: finished" in said
    best = tmp_path / "out" / "best.yaml"
    assert main(["train", str(best)]) == 0  # it runs as it is
    assert (tmp_path / "out" / "best" / "run.json").exists()


def test_a_clearly_worse_run_is_stopped_and_can_be_resumed(
    place: Place, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = whole["states"]
    stopped = {name: state for name, state in states.items() if state["status"] == "stopped"}
    assert [state["status"] for state in states.values()].count("finished") == 2
    assert all("turned" in name and state["step"] == 2 for name, state in stopped.items())
    assert all(state["best"] == "beta=0.05,train=" + state["best"].partition("train=")[2]
               for state in stopped.values())  # fmt: skip
    assert all(0 < state["at_least"] <= state["below"] for state in stopped.values())
    assert b"was stopped after step 2 of 4" in whole["page"]
    words = (config(place, tmp_path), "loss.beta=0.05,0.3", both(place))
    assert sweep(tmp_path, *words).wait() == 0
    run = tmp_path / "out" / next(iter(stopped))
    assert main(["train", str(run / "config.yaml")]) == 0
    assert (read_json(run / "run.json") or {})["status"] == "finished"
    child = sweep(tmp_path, *words, "--no-stopping")
    assert child.wait() == 0
    assert {state["status"] for state in results(tmp_path / "out")["states"].values()} == {
        "finished"
    }


def test_nothing_is_left_to_do_the_second_time(place: Place, tmp_path: Path) -> None:
    words = (config(place, tmp_path), BETAS)
    assert sweep(tmp_path, *words).wait() == 0
    before = results(tmp_path / "out")
    child = sweep(tmp_path, *words)
    assert child.wait() == 0 and ": training" not in child.output
    assert results(tmp_path / "out") == before


def test_a_grid_may_be_given_more_values(place: Place, tmp_path: Path) -> None:
    file = config(place, tmp_path)
    assert sweep(tmp_path, file, BETAS).wait() == 0
    child = sweep(tmp_path, file, "loss.beta=0.05,0.1,0.3")
    assert child.wait() == 0 and child.output.count(": training") == 1
    assert list(results(tmp_path / "out")["states"]) == ["beta=0.05", "beta=0.1", "beta=0.3"]
    fewer = sweep(tmp_path, file, "loss.beta=0.05,0.1")
    assert fewer.wait() == 73 and "holds another grid, with beta=0.3" in fewer.output
    other = sweep(tmp_path, file, "loss.beta=0.05,0.1,0.3", "train.seed=1")
    assert other.wait() == 73 and "train.seed: 0 before, 1 now" in other.output


# ---- what is killed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "at", "run"),
    [
        ("likelier.run.reference_of_run", 1, "beta=0.05"),
        ("likelier.run._leave_stopped", 1, "turned"),
        ("likelier.run._save", 1, "beta=0.3"),
    ],
)
def test_a_run_that_is_killed_begins_once_more(
    place: Place, whole: dict[str, Any], tmp_path: Path, called: str, at: int, run: str
) -> None:
    marker = str(tmp_path / "killed")
    kill = {called: partial(killed_once, called, at, run, marker)}
    child = sweep(tmp_path, config(place, tmp_path), BETAS, both(place), patches=kill)
    assert child.wait() == 0 and Path(marker).exists(), child.output
    assert "killed by signal 9; once more" in child.output
    assert results(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("called", "at"),
    [
        ("likelier.commands.sweep.write_json", 6),
        ("likelier.commands.sweep.start_run", 2),
        ("likelier.commands.sweep.write_text", 2),
    ],
)
def test_a_sweep_that_is_killed_comes_to_the_same(
    place: Place, whole: dict[str, Any], tmp_path: Path, called: str, at: int
) -> None:
    marker = str(tmp_path / "killed")
    kill = {called: partial(killed_once, called, at, "", marker)}
    comes_to_the_same(place, whole, tmp_path, kill)


def comes_to_the_same(
    place: Place, whole: dict[str, Any], folder: Path, kill: dict[str, Any]
) -> None:
    """A sweep is killed, and its command given again."""
    words = (config(place, folder), BETAS, both(place))
    assert sweep(folder, *words, patches=kill).wait() == KILLED
    until_free(folder / "out")
    child = sweep(folder, *words)
    assert child.wait() == 0, child.output
    assert results(folder / "out") == whole


def test_a_sweep_that_is_killed_stops_its_run(
    place: Place, whole: dict[str, Any], tmp_path: Path
) -> None:
    """By the run itself, in the midst of a step: it hears that nobody waits for it."""
    marker = str(tmp_path / "killed")
    called = "likelier.run.metrics"
    kill = {called: partial(killed_once, called, 2, "beta=0.3", marker, parent=True)}
    comes_to_the_same(place, whole, tmp_path, kill)


def test_one_run_that_fails_does_not_end_the_others(place: Place, tmp_path: Path) -> None:
    called = "likelier.run.metrics"
    fail = {called: partial(failing, "beta=0.05")}
    words = (config(place, tmp_path), "loss.beta=0.05,0.1,0.3")
    child = sweep(tmp_path, *words, patches=fail)
    assert child.wait() == 1
    assert "failed: beta=0.05 (exit code 1)" in child.output and "Best: " in child.output
    states = results(tmp_path / "out")["states"]
    assert [state["status"] for state in states.values()] == ["failed", "finished", "finished"]
    assert sweep(tmp_path, *words).wait() == 0
    assert results(tmp_path / "out")["states"]["beta=0.05"]["status"] == "finished"


def failing(run: str, *arguments: Any) -> Any:
    """Stand in for the metrics: in one run they cannot be made."""
    from likelier.base.errors import RunFailed
    from likelier.evaluation.metrics import metrics

    if sys.argv[-1] == run:
        raise RunFailed("numbers are not finite")
    return metrics(*arguments)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_the_sweep_with_a_checkpoint(
    place: Place, tmp_path: Path, number: int, code: int
) -> None:
    """Of real processes, started as the command starts them."""
    words = [config(place, tmp_path, optim__lr=1e-4), BETAS, "train.steps=2000"]
    words = [sys.executable, "-m", "likelier", "sweep", *words, "train.eval_every=null"]
    with (tmp_path / "log").open("w") as log:
        done = subprocess.Popen(words, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "out" / "beta=0.05" / "metrics.jsonl").exists():
            assert done.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        done.send_signal(number)
        assert done.wait(PATIENCE) == code
    said = (tmp_path / "log").read_text()
    assert "the same command resumes from there" in said and "error: " not in said
    run = read_json(tmp_path / "out" / "beta=0.05" / "run.json") or {}
    assert run["status"] == "stopped" and run["step"] > 0
    until_free(tmp_path / "out")


# ---- what cannot be done -----------------------------------------------------------------------


def test_bad_grids_run_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(place, tmp_path)
    for words, code, said in (
        (["loss.beta=0.1,-1"], 2, "loss.beta: -1"),
        (["loss.bta=0.1,1"], 2, "loss.bta: unknown key"),
        (["data.train=absent.jsonl,gone.jsonl"], 66, "absent.jsonl"),
        (["model.path=/absent,/gone"], 66, "/absent"),
        (["loss.beta=0.1"], 2, "no key has several values"),
    ):
        assert main(["sweep", file, *words]) == code
        out, err = capsys.readouterr()
        assert out == "" and said in err and len(err.splitlines()) <= 3
    assert not (tmp_path / "out").exists()
    assert main(["sweep", str(tmp_path), "--run", "beta=0.1"]) == 66


def test_a_folder_that_holds_something_else_is_left_alone(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = config(place, tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["sweep", file, BETAS]) == 73
    assert "holds something else (mine.txt)" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    with (out / ".lock").open("w") as lock:
        lock.write("process 1 on here")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["sweep", file, BETAS]) == 73
    assert "another process works in this folder (process 1 on here)" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_full_disk_is_one_line(place: Place, tmp_path: Path) -> None:
    child = start(limited, 2000, "sweep", config(place, tmp_path), BETAS, log=tmp_path / "log")
    assert child.wait() == 73
    assert "cannot write" in child.output and "Traceback" not in child.output
    assert not list((tmp_path / "out").glob("beta=*"))


def test_a_damaged_record_is_made_again(
    place: Place, whole: dict[str, Any], tmp_path: Path
) -> None:
    words = (config(place, tmp_path), BETAS, both(place))
    assert sweep(tmp_path, *words).wait() == 0
    (tmp_path / "out" / "sweep.json").write_text('{"runs": {')
    child = sweep(tmp_path, *words)
    assert child.wait() == 0 and ": training" not in child.output
    assert results(tmp_path / "out") == whole
