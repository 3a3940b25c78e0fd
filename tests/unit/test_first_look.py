"""`train` and `show` in processes of their own: what they answer before, or without, torch."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.base.errors import InputMissing
from likelier.base.model_files import describe_files
from likelier.commands.train import first_look
from likelier.config import config_from
from likelier.training.run_folder import asked, open_folder

MAX_SECONDS = (
    3.0  # of processor time; it takes about one, and importing torch takes more than these
)
SCRIPT = """
import sys
from likelier.cli import entry
try:
    entry()
finally:
    loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module}
    print("torch" if "torch" in loaded else "no torch", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=8)


def answered(*words: str) -> tuple[int, list[str], float]:
    """The exit code of a command, the lines of its stderr, and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stderr.splitlines(), seconds


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        ("data.train=absent.jsonl", 66, "error: absent.jsonl: "),
        ("data.eval=absent.jsonl", 66, "error: absent.jsonl: "),
        ("model.path=./absent", 66, "error: ./absent: no such folder"),
        ("train.stepz=3", 2, "error: train.stepz: unknown key"),
        ("loss.beta=0.3", 73, "this folder holds another run: loss.beta"),
    ],
)
def test_train_answers_before_torch(
    place: Place, tmp_path: Path, key: str, code: int, said: str
) -> None:
    config = place.config(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    if code == 73:
        record = {"asked": asked(config_from(config)), "status": "stopped"}
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    got, lines, seconds = answered("train", str(tmp_path / "config.yaml"), key)
    assert got == code, lines
    assert said in lines[0] and lines[-1] == "no torch"
    assert seconds < MAX_SECONDS


@pytest.mark.parametrize(
    ("key", "value"), [("data__train", {"absent.jsonl": 0.5}), ("reference__path", "./absent")]
)
def test_every_path_is_looked_at(place: Place, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(InputMissing, match="absent"):
        first_look(config_from(place.config(tmp_path / "out", **{key: value})))
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_known_without_torch(place: Place, tmp_path: Path) -> None:
    config = place.config(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with open_folder(config_from(config)):
        code, lines, seconds = answered("train", str(tmp_path / "config.yaml"))
    assert code == 73 and lines[-1] == "no torch"
    assert "another process works in this folder (process " in lines[0]
    assert seconds < MAX_SECONDS


def test_a_finished_run_is_known_without_torch(place: Place, tmp_path: Path) -> None:
    config = place.config(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "report.html").touch()
    record = {"asked": asked(config_from(config)), "status": "finished"}
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    code, lines, seconds = answered("train", str(tmp_path / "config.yaml"))
    assert code == 0 and lines == [f"{tmp_path / 'out'} is finished: nothing to do", "no torch"]
    assert seconds < MAX_SECONDS


AT_THE_FIRST_STEP = """
import json, sys
import likelier.cli
from likelier.run import train

def hear(row):
    if "loss" in row:
        print(json.dumps([name for name, module in sys.modules.items() if module]))
        sys.stdout.flush()

train(json.loads(sys.argv[1]), on_step=hear)
"""
# Installed here, and used by other commands or later.
UNUSED = {"bitsandbytes", "datasets", "matplotlib", "pandas", "plotly", "polars", "pyarrow",
          "sklearn", "torchvision"}  # fmt: skip
OTHER_ROOMS = {"likelier.demo", "likelier.generation", "likelier.report", "likelier.testing"}


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_first_step_has_imported_what_it_uses(adapter: str, place: Place, tmp_path: Path) -> None:
    config = place.config(tmp_path / "out", adapter={"kind": adapter}, train__steps=1)
    words = [sys.executable, "-c", AT_THE_FIRST_STEP, json.dumps(config, default=str)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[0]))
    assert not loaded & (UNUSED | OTHER_ROOMS)
    assert ("peft" in loaded) == (adapter == "lora")


def test_what_is_loaded_is_said(place: Place, tmp_path: Path) -> None:
    said = describe_files(place.base)
    assert said.startswith(f"{place.base}, ") and said.endswith("kB")
    assert "k parameters in float32, " in said
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert describe_files(tmp_path) == f"{tmp_path}, an adapter on org/base"
    assert describe_files("org/name") == "org/name, from the Hub or its cache"


def test_plain_texts_on_a_chat_model_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line with the cure, in `run.json` and the report; and the cure ends it."""
    from likelier.run import train

    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    place = make_place(tmp_path / "place", rows=8)
    write_rows(place.data, pair_rows(8, chat=False))
    for chat in (False, True):
        out = tmp_path / f"out-{chat}"
        capsys.readouterr()
        train(place.config(out, data__chat=chat, train__steps=1))
        lines = [x for x in capsys.readouterr().err.splitlines() if "data.chat: true" in x]
        codes = [kind["code"] for kind in json.loads((out / "run.json").read_text())["findings"]]
        report = (out / "report.html").read_text(encoding="utf-8")
        assert len(lines) == codes.count("plain") == (not chat)
        assert ("Set data.chat: true" in report) == (not chat)
