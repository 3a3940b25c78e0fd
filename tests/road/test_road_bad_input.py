"""Bad input by the command line: one clear error, the right exit code, and nothing written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.children import Child, command, start
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.cli import main
from likelier.config import config_from
from likelier.run import train
from likelier.training.run_folder import open_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=12)


@pytest.fixture
def place(good: Place, tmp_path: Path) -> Place:
    """A copy that a test may spoil."""
    return Place(Path(shutil.copytree(good.folder, tmp_path / "place")))


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its time and size."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    }


@dataclass
class Case:
    """A spoiled place or config: what it does, the exit code, and words of the error in order."""

    spoil: Callable[[Place], object]
    code: int
    words: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)


def lines(place: Place, *rows: Any) -> None:
    """Replace the third row of the data, and add others."""
    given = place.data.read_text(encoding="utf-8").splitlines()
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    place.data.write_text("\n".join([*given[:2], *texts, *given[3:]]) + "\n", encoding="utf-8")


def row(**changes: Any) -> dict[str, Any]:
    return {**pair_rows(3)[2], **changes}


def edited(file: str, **changes: Any) -> Callable[[Place], object]:
    def edit(place: Place) -> None:
        path = place.base / file
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return edit


def without_a_stop(place: Place) -> None:
    edited("tokenizer_config.json", eos_token=None)(place)
    edited("generation_config.json", eos_token_id=None)(place)
    edited("config.json", eos_token_id=None)(place)


def nothing(place: Place) -> None:
    pass


HERE = ("pairs.jsonl:3",)
CASES = {
    # bad data: 65
    "broken JSON": Case(lambda p: lines(p, '{"prompt": '), 65, (*HERE, "broken JSON at column")),
    "not UTF-8": Case(
        lambda p: p.data.write_bytes(p.data.read_bytes() + b'{"prompt": "\xb0\xa1"}\n'),
        65,
        ("pairs.jsonl:13", "not UTF-8", "CP949"),
    ),
    "misspelt column": Case(
        lambda p: lines(p, {"prompt": "a", "chosen": " b", "rejectd": " c"}),
        65,
        (*HERE, "rejectd", "rejected"),
    ),
    "null answer": Case(lambda p: lines(p, row(chosen=None)), 65, (*HERE, "chosen")),
    "empty answer": Case(
        lambda p: lines(p, {"prompt": "a", "chosen": "", "rejected": " c"}), 65, (*HERE, "chosen")
    ),
    "answer of nothing": Case(
        lambda p: lines(p, row(rejected=[{"role": "assistant", "content": ""}])),
        65,
        (*HERE, "rejected"),
    ),
    "same answers": Case(
        lambda p: lines(p, row(chosen=row()["rejected"])),
        65,
        (*HERE, "chosen and rejected are the same text"),
    ),
    "several": Case(
        lambda p: lines(p, "{", "[]", row(chosen=None)), 65, (*HERE, "and 2 more", "likelier check")
    ),
    "every row too long": Case(
        nothing, 65, ("no pair is left, all 12 are too long", "data.max_length"),
        {"data__max_length": 8},
    ),
    "most rows too long": Case(
        nothing, 65, ("pairs are too long; at most 5 % may be dropped", "data.max_length"),
        {"data__max_length": 35},
    ),
    "empty file": Case(lambda p: p.data.write_text(""), 65, ("pairs.jsonl: the file is empty",)),
    "no stop token": Case(without_a_stop, 65, ("tokenizer: it has no stop token", "eos_token")),
    "no chat template": Case(
        lambda p: (p.base / "chat_template.jinja").unlink(), 65, ("chat template",)
    ),
    "damaged weights": Case(
        lambda p: os.truncate(p.base / "model.safetensors", 1000),
        65, ("base/model.safetensors: ", "get it again"),
    ),
    "half a model": Case(
        lambda p: (p.base / "model.safetensors").unlink(), 65, ("base: ", "safetensors")
    ),
    "damaged description": Case(
        lambda p: (p.base / "config.json").write_text("{"),
        65, ("base/config.json: ", "get it again"),
    ),
    "other weights than described": Case(
        edited("config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3),
        65,
        ("base: ", "tensors are not in the checkpoint"),
    ),
    "one prompt only": Case(
        lambda p: write_rows(p.data, pair_rows(2)), 65, ("data.eval: ", "cannot be split")
    ),
    "bad evaluation data": Case(
        lambda p: (p.folder / "held.jsonl").write_text("{\n"),
        65,
        ("held.jsonl:1", "broken JSON"),
        {"data__eval": "held.jsonl"},
    ),
    # input missing: 66
    "no data file": Case(lambda p: p.data.unlink(), 66, ("pairs.jsonl",)),
    "data is a folder": Case(
        lambda p: (p.data.unlink(), p.data.mkdir()), 66, ("pairs.jsonl: this is a folder",)
    ),
    "no evaluation file": Case(nothing, 66, ("held.jsonl",), {"data__eval": "held.jsonl"}),
    "no model folder": Case(lambda p: shutil.rmtree(p.base), 66, ("base: no such folder",)),
    "an empty model folder": Case(
        lambda p: (shutil.rmtree(p.base), p.base.mkdir()), 66, ("this folder holds no model",)
    ),
    "no reference folder": Case(
        nothing, 66, ("./nowhere: no such folder",), {"reference": {"path": "./nowhere"}}
    ),
    # config: 2
    "unknown key": Case(nothing, 2, ("loss.betta", "beta"), {"loss": {"betta": 0.1}}),
    "a name of another library": Case(
        nothing, 2, ("learning_rate", "optim.lr"), {"learning_rate": 1e-5}
    ),
    "impossible value": Case(nothing, 2, ("loss.beta", "-1"), {"loss": {"beta": -1}}),
    "text for a number": Case(nothing, 2, ("optim.lr", "fast"), {"optim__lr": "fast"}),
    "both lengths": Case(nothing, 2, ("train.epochs and train.steps",), {"train__epochs": 2}),
    "no such module": Case(
        nothing, 2, ("adapter.targets", "nowhere"),
        {"adapter": {"kind": "lora", "targets": ["nowhere"]}},
    ),
    "a key of no effect": Case(
        nothing, 2, ("model.save_dtype: has no effect",),
        {"adapter": {"kind": "lora"}, "model__save_dtype": "float32"},
    ),
    "template without such a word": Case(
        nothing, 2, ("data.template.enable_thinking",), {"data__template": {"enable_thinking": 1}}
    ),
    # output: 73
    "out is a file": Case(
        lambda p: (p.folder / "out").write_text("x"), 73, ("out: ", "this holds something else")
    ),
    "out is a model folder": Case(
        lambda p: shutil.copytree(p.base, p.folder / "out"), 73, ("holds something else", "config")
    ),
    "out is the model": Case(nothing, 73, ("something else",), {"out": "base"}),
    "out below a file": Case(
        nothing, 73, ("cannot be written: ", "pairs.jsonl is no folder"), {"out": "pairs.jsonl/out"}
    ),
}  # fmt: skip


def told(said: str, code: int, words: tuple[str, ...]) -> None:
    """One clear error of at most three lines, with these words in this order."""
    assert "Traceback" not in said
    error = said[said.index("error: ") :]
    assert error.count("error: ") == 1
    assert 1 <= len(error.splitlines()) <= 3, error
    place = 0
    for word in words:
        assert word in error[place:], (word, error)
        place = error.index(word, place)


@pytest.mark.parametrize("name", CASES)
def test_refused(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.spoil(place)
    monkeypatch.chdir(place.folder)
    settings = place.config("out", **case.changes)
    config = place.folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    before = everything(place.folder)
    code = main(["train", str(config)])
    captured = capsys.readouterr()
    assert code == case.code, captured.err
    told(captured.err, case.code, case.words)
    assert captured.out == ""
    assert everything(place.folder) == before
    assert not Path(os.environ["LIKELIER_CACHE"]).exists()


@pytest.fixture
def config(place: Place) -> Path:
    file = place.folder / "config.yaml"
    file.write_text(yaml.safe_dump(place.config("out", train__steps=2)))
    return file


def test_out_holds_another_run(
    place: Place, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(place.config("out", train__steps=2))
    capsys.readouterr()
    before = everything(place.folder)
    assert main(["train", str(config), "loss.beta=0.3"]) == 73
    told(
        capsys.readouterr().err,
        73,
        ("this folder holds another run: loss.beta: 0.1 before, 0.3 now", "another out folder"),
    )
    assert everything(place.folder) == before


def test_finished_says_so(place: Place, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"report: {place.folder / 'out' / 'report.html'}"
    before = everything(place.folder)
    assert main(["train", str(config)]) == 0
    assert capsys.readouterr().err == f"{place.folder / 'out'} is finished: nothing to do\n"
    assert everything(place.folder) == before


def test_out_is_in_use(place: Place, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_folder(config_from(place.config("out"))):
        before = everything(place.folder)
        assert main(["train", str(config)]) == 73
        told(capsys.readouterr().err, 73, ("another process works in this folder (process ",))
        assert everything(place.folder) == before
    assert main(["train", str(config)]) == 0


def test_two_at_the_same_time(place: Place, config: Path) -> None:
    """One trains, the other is told; the result is that of one."""
    log = [place.folder / f"{n}.log" for n in range(2)]
    both: list[Child] = [start(command, "train", str(config), log=file) for file in log]
    codes = sorted(child.wait() for child in both)
    assert codes in ([0, 73], [0, 0]), [child.output for child in both]
    loser = next((child for child in both if child.wait() == 73), None)
    if loser is not None:
        told(loser.output, 73, ("another process works in this folder",))
    else:  # so quick that the second found it finished
        assert any("is finished: nothing to do" in child.output for child in both)
    again = train(place.config("again", train__steps=2))
    name = "model/model.safetensors"
    assert (place.folder / "out" / name).read_bytes() == (again.folder / name).read_bytes()


def test_a_report_that_fails_does_not_fail_the_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(out: Path) -> Path:
        raise ZeroDivisionError("in a chart")

    monkeypatch.setattr("likelier.report.page.write_report", fails)
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    assert "no report: ZeroDivisionError: in a chart" in said
    assert "Traceback" not in said


def test_the_real_command(place: Place) -> None:
    """A new interpreter: the exit code reaches the shell, and one error its terminal."""
    lines(place, '{"prompt": ')
    config = place.folder / "config.yaml"
    config.write_text(yaml.safe_dump(place.config("out")))
    before = everything(place.folder)
    done = subprocess.run(
        [sys.executable, "-m", "likelier", "train", str(config)],
        capture_output=True,
        text=True,
        cwd=place.folder,
        timeout=600,
    )
    assert done.returncode == 65
    assert done.stdout == ""
    first, _, rest = done.stderr.partition("\n")
    assert first.startswith("loading ")
    assert rest.startswith(f"error: {place.data}:3: broken JSON at column")
    assert len(done.stderr.splitlines()) <= 3
    assert everything(place.folder) == before
