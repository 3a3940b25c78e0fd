"""Several processes as users start them: by `likelier train`, by torchrun, on two machines."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.support.runs import Place, make_place

from likelier.cli import main
from likelier.commands.launch import code_of, free_port

HERE = Path(sys.executable).parent
SOON = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=18)


def _config(place: Place, folder: Path, steps: int = 6) -> Path:
    file = folder / "config.yaml"
    parallel = {"timeout": 20}
    tree = place.config(folder / "out", train__steps=steps, parallel=parallel)
    file.write_text(yaml.safe_dump(tree))
    return file


def _start(*words: str | Path, log: Path | None = None) -> subprocess.Popen[str]:
    """A command that prints into a file, or to whoever reads its output."""
    with log.open("w") if log else nullcontext(subprocess.PIPE) as output:
        return subprocess.Popen(
            [str(word) for word in words], text=True, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def test_the_command_starts_its_processes_stops_them_and_resumes(
    place: Place, tmp_path: Path
) -> None:
    config = _config(place, tmp_path, steps=4000)
    words = [HERE / "likelier", "train", config, "parallel.processes=2"]
    run = _start(*words)
    _wait_for_a_step(tmp_path / "out", run)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=SOON)
    assert run.returncode == 130, said
    assert said.count("stopped after step") == 1 and "starting 2 processes" in said
    run = _start(*words)
    _wait_for_a_step(tmp_path / "out", run)
    os.kill(_child_of(run, rank=1), signal.SIGKILL)
    said, _ = run.communicate(timeout=SOON)
    assert run.returncode == 1, said
    assert "resuming from step" in said and said.count("lost process 1 (last seen at") == 1, said
    assert "Traceback" not in said and "frame #" not in said, said
    run = _start(*words)
    _wait_for_a_step(tmp_path / "out", run)
    run.kill()
    said, _ = run.communicate(timeout=SOON)  # until nobody is left to print
    assert said.count("stopped after step") == 1, said


def test_the_processes_are_told_to_show_tracebacks(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", str(_config(place, tmp_path)), "parallel.processes=2", "--debug"]
    started = []
    monkeypatch.setattr(sys, "argv", ["likelier", *words])
    monkeypatch.setattr("likelier.commands.train.launch", lambda *asked: started.append(asked))
    main(words)
    assert started == [(2, words)]


def test_torchrun_starts_them(place: Place, tmp_path: Path) -> None:
    config = _config(place, tmp_path)
    run = _start(HERE / "torchrun", "--nproc-per-node", "2", "-m", "likelier", "train", config)
    said, _ = run.communicate(timeout=SOON)
    assert run.returncode == 0 and said.count("train 6/6") == said.count("report: ") == 1, said


SCRIPT = """
import os, sys, time
import likelier
from transformers import AutoModelForCausalLM, AutoTokenizer

base, data, out = sys.argv[1:]
for name in ("first", "second"):
    heard = []
    if name == "second" and os.environ["RANK"] == "0":
        time.sleep(3)  # who comes first finds what the other left, if anything
    model, tokenizer = (a.from_pretrained(base) for a in (AutoModelForCausalLM, AutoTokenizer))
    config = {"data": {"train": data}, "adapter": {"kind": "none"}, "eval": {"samples": 0},
              "train": {"steps": 1}, "parallel": {"timeout": 20}, "out": f"{out}/{name}"}
    run = likelier.train(config, model=model, tokenizer=tokenizer, on_step=heard.append)
    print(f"{name}: heard {len(heard)} of {len(run.metrics)} rows", flush=True)
"""


def test_a_script_that_torchrun_starts_trains_twice(place: Place, tmp_path: Path) -> None:
    """The second time its processes meet at a store that holds what the first time left there."""
    (tmp_path / "script.py").write_text(SCRIPT)
    run = _start(HERE / "torchrun", "--nproc-per-node", "2", tmp_path / "script.py",
                 place.base, place.data, tmp_path / "out")  # fmt: skip
    said, _ = run.communicate(timeout=SOON)
    assert run.returncode == 0 and said.count("report: ") == 2, said
    for name in ("first", "second"):
        lines = sorted(line for line in said.splitlines() if line.startswith(f"{name}: "))
        assert lines == [f"{name}: heard 0 of 3 rows", f"{name}: heard 3 of 3 rows"], said


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a wire between them: two machines, but for their disks."""
    names, bridge = [f"likelier-{os.getpid()}-{at}" for at in (0, 1)], f"lk{os.getpid() % 10**8}"
    if not shutil.which("ip") or os.geteuid() != 0 or not _ip("netns", "add", names[0]):
        pytest.skip("network namespaces need `ip` and the rights of root")
    try:
        _ip("netns", "add", names[1])
        _ip("link", "add", f"{bridge}a", "netns", names[0], "type", "veth",
            "peer", "name", f"{bridge}b", "netns", names[1])  # fmt: skip
        for at, (name, end) in enumerate(zip(names, "ab", strict=True)):
            inside = ("-n", name)
            _ip(*inside, "addr", "add", f"10.77.0.{at + 1}/24", "dev", f"{bridge}{end}")
            _ip(*inside, "link", "set", f"{bridge}{end}", "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield [*names, f"{bridge}b"]
    finally:
        for name in names:
            _ip("netns", "del", name)


def test_two_machines_meet_and_one_that_loses_its_wire_ends(
    place: Place, tmp_path: Path, hosts: list[str]
) -> None:
    config = _config(place, tmp_path, steps=4000)
    first, second, wire = hosts
    port = free_port()
    logs = [tmp_path / f"host-{at}.log" for at in (0, 1)]
    runs = [
        _start(
            "ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={wire[:-1]}{end}",
            HERE / "torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"10.77.0.1:{port}", "--local-addr", f"10.77.0.{at + 1}",
            "--rdzv-conf", f"is_host={int(at == 0)}", "-m", "likelier", "train", config,
            log=logs[at],
        )
        for at, (host, end) in enumerate(((first, "a"), (second, "b")))
    ]  # fmt: skip
    try:
        _wait_for_a_step(tmp_path / "out", runs[0])
        _ip("-n", second, "link", "set", wire, "down")
        # torchrun's own process on the second machine looks for the first for two minutes more.
        until = time.monotonic() + SOON
        while not all("error: parallel: lost process" in log.read_text() for log in logs):
            assert time.monotonic() < until, [log.read_text() for log in logs]
            time.sleep(0.1)
        assert "lost process 1 (last seen at step" in logs[0].read_text()
        assert "lost process 0 (while process 1 was at step" in logs[1].read_text()
    finally:
        for run in runs:
            run.kill()
            run.wait()


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


def _wait_for_a_step(out: Path, run: subprocess.Popen[str]) -> None:
    """Until it has logged a row that was not there before."""
    log = out / "timing.jsonl"
    before, until = _size(log), time.monotonic() + SOON
    while _size(log) <= before:
        assert run.poll() is None and time.monotonic() < until, run.args
        time.sleep(0.05)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _child_of(run: subprocess.Popen[str], rank: int) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            setting = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == run.pid and f"RANK={rank}".encode() in setting:
            return int(entry.name)
    raise AssertionError("no such process")


@pytest.mark.parametrize(
    ("codes", "of_run"),
    [((0, 0), 0), ((1, -9), 1), ((-9, 1), 1), ((1, 73), 73), ((75, 75), 75), ((-9, -9), 1)],
)
def test_the_exit_code_of_a_run_is_the_telling_one(codes: tuple[int, ...], of_run: int) -> None:
    ended = [SimpleNamespace(poll=lambda code=code: code, returncode=code) for code in codes]
    assert code_of(ended) == of_run  # type: ignore[arg-type]
