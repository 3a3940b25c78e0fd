"""Ctrl-C and SIGTERM: one line, a good checkpoint, and the same command goes on from it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tests.support.children import PATIENCE, Child, command, reached, slowly, start
from tests.support.runs import Place, bytes_of, differing

from likelier.base.errors import StoppedEarly
from likelier.base.files import MANIFEST, read_lines, read_manifest
from likelier.training.signals import listening

PAIR_LOGS = ("pair_log", "held_out")
SLOW_STEPS = {
    "likelier.run.gradients_that_fit": partial(
        slowly, 0.5, "likelier.training.step.gradients_that_fit"
    )
}


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(cache))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)
    (cache / "reached").unlink(missing_ok=True)


def stopped(child: Child, code: int) -> list[str]:
    """The lines that say so, once it ended with this code."""
    assert child.wait() == code, child.output
    assert "Traceback" not in child.output
    assert "Exception ignored" not in child.output
    lines = child.output.splitlines()
    assert not any(line.startswith("error: ") for line in lines)  # who stops a run wants it so
    first = next(i for i, line in enumerate(lines) if "stopped" in line or line == "interrupted")
    return lines[first:]


def goes_on(config: Path, place: Place) -> None:
    """The same command, to the same bytes; a stop cuts the pair logs anew, and their rows agree."""
    child = start(command, "train", str(config), log=config.with_name("again.log"))
    assert child.wait() == 0, child.output
    told = [line for line in child.output.splitlines() if line.startswith("train ")]
    assert all(" held out: loss 0." in line for line in told), told  # from the first step on
    ours, whole = (without_cuts(run) for run in (config.with_name("out"), place.folder / "whole"))
    assert differing(ours, whole) == []
    assert pair_rows(config.with_name("out")) == pair_rows(place.folder / "whole")


def without_cuts(run: Path) -> dict[str, bytes]:
    """The bytes of a run but for the files of its pair logs, and what manifests say of them."""
    logs = tuple(f"{name}/" for name in PAIR_LOGS)
    found = {name: held for name, held in bytes_of(run).items() if not name.startswith(logs)}
    for name in found:
        if name.startswith("checkpoints/") and name.endswith(MANIFEST):
            manifest = json.loads(found[name])
            del manifest["seal"]
            for log in PAIR_LOGS:
                del manifest["logs"][log]
            found[name] = json.dumps(manifest).encode()
    return found


def pair_rows(run: Path) -> list[dict]:
    files = [file for name in PAIR_LOGS for file in sorted((run / name).iterdir())]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_in_a_step(place: Place, config: Path, number: int, code: int) -> None:
    out = config.with_name("out")
    log = config.with_name("first.log")
    child = start(command, "train", str(config), patches=SLOW_STEPS, log=log)
    child.wait_for(reached())
    child.send(number)
    steps = [json.loads(x)["step"] for x in (out / "timing.jsonl").read_text().splitlines()]
    assert stopped(child, code) == [
        f"{out}: stopped after step 1",
        "  the same command resumes from there",
    ]
    assert steps in ([], [1])
    manifest = read_manifest(out / "checkpoints" / "step-00000001")
    assert manifest is not None and manifest["step"] == 1
    assert json.loads((out / "run.json").read_text())["step"] == 1
    assert read_lines(out / "pair_texts.jsonl")  # for `likelier report` of what is there
    goes_on(config, place)


def test_ignored_signals_stay_ignored() -> None:
    """As in `likelier train config.yaml &` within a script, where Ctrl-C means another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with listening() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert isinstance(stop.error(3, "out"), StoppedEarly)
    assert {number: signal.getsignal(number) for number in before} == before


def test_in_a_thread_nothing_is_heard() -> None:
    def work() -> None:
        with listening() as stop:
            heard.append(bool(stop))

    heard: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_time(place: Place, config: Path, number: int) -> None:
    """Leaves at once, out of a step that would take minutes."""
    forever = {"likelier.run.gradients_that_fit": partial(slowly, 600.0, "builtins.list")}
    child = start(command, "train", str(config), patches=forever, log=config.with_name("log"))
    child.wait_for(reached())
    child.send(number)
    time.sleep(0.2)
    assert child.process.is_alive()
    began = time.monotonic()
    child.send(number)
    assert stopped(child, 130) == ["interrupted"]
    assert time.monotonic() - began < 60
    assert not (config.with_name("out") / "checkpoints").exists()
    goes_on(config, place)


@pytest.mark.parametrize(
    ("patched", "original"),
    [
        ("likelier.model.load._load_weights", "likelier.model.load._load_weights"),
        ("likelier.reference.cache.score_sequences", "likelier.model.policy.score_sequences"),
        ("likelier.run.preflight", "likelier.training.preflight.preflight"),
    ],
)
def test_before_the_first_step(
    place: Place, config: Path, patched: str, original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = config.with_name("cache")
    cold.mkdir()
    monkeypatch.setenv("LIKELIER_CACHE", str(cold))
    patches = {patched: partial(slowly, 600.0, original)}
    child = start(command, "train", str(config), patches=patches, log=config.with_name("log"))
    child.wait_for(reached())
    child.send(signal.SIGINT)
    assert stopped(child, 130) == ["interrupted"]
    assert not (config.with_name("out") / "run.json").exists()
    goes_on(config, place)


def test_while_the_model_is_saved(place: Place, config: Path) -> None:
    """The work is done, so it is also brought home."""
    patches = {"likelier.run.save_policy": partial(slowly, 0.5, "likelier.export.save.save_policy")}
    child = start(command, "train", str(config), patches=patches, log=config.with_name("log"))
    child.wait_for(reached())
    child.send(signal.SIGINT)
    assert child.wait() == 0, child.output
    assert differing(bytes_of(config.with_name("out")), bytes_of(place.folder / "whole")) == []


def test_the_real_command(config: Path) -> None:
    """A new interpreter, as a shell starts it."""
    settings = yaml.safe_load(config.read_text())
    settings["train"] |= {"steps": 100_000, "save_every": None, "eval_every": None}
    config.write_text(yaml.safe_dump(settings))
    log = config.with_name("out") / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "likelier", "train", str(config)],
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + PATIENCE
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.startswith("loading ")  # the model, before anything that takes long
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    checkpoint = config.with_name("out") / "checkpoints" / f"step-{step:08d}"
    assert f"stopped after step {step}\n" in said
    assert read_manifest(checkpoint) is not None
