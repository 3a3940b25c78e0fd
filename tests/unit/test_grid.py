"""A grid of configs from the words of a command line."""

from pathlib import Path
from typing import Any

import pytest

from likelier.base.errors import ConfigError
from likelier.config.grid import read_grid

BASE = ["model.path=m", "data.train=a.jsonl", "out=runs/sweep"]


def grid(*words: str) -> dict[str, dict[str, Any]]:
    return {run.name: run.values for run in read_grid(None, [*BASE, *words])[1]}


def test_every_value_meets_every_other() -> None:
    out, runs = read_grid(None, [*BASE, "loss.beta=0.05,0.1", "optim.lr=1e-5,2e-5", "train.seed=3"])
    assert out == Path("runs/sweep")
    assert [run.name for run in runs] == [
        "beta=0.05,lr=1e-05", "beta=0.05,lr=2e-05", "beta=0.1,lr=1e-05", "beta=0.1,lr=2e-05",
    ]  # fmt: skip
    assert [(r.config.loss.beta, r.config.optim.lr) for r in runs] == [
        (0.05, 1e-5), (0.05, 2e-5), (0.1, 1e-5), (0.1, 2e-5),
    ]  # fmt: skip
    assert {run.config.train.seed for run in runs} == {3}
    assert [run.config.out for run in runs] == [out / run.name for run in runs]


def test_the_words_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\ndata: {train: a}\nloss: {beta: 0.7}\nout: runs/x\n")
    out, runs = read_grid(file, ["loss.beta=0.1,0.2", "train.steps=5"])
    assert [run.config.loss.beta for run in runs] == [0.1, 0.2]
    assert out == Path("runs/x") and runs[0].config.train.steps == 5


def test_brackets_and_quotes_hold_one_value() -> None:
    found = grid("optim.betas=[0.9,0.99],[0.9,0.999]")
    assert [values["optim.betas"] for values in found.values()] == [[0.9, 0.99], [0.9, 0.999]]
    found = grid("loss={name: sigmoid, beta: 0.1},{name: simpo}")
    assert [values["loss"]["name"] for values in found.values()] == ["sigmoid", "simpo"]
    words = [BASE[0], BASE[2], 'data.train="a,b.jsonl",c.jsonl']
    runs = read_grid(None, words)[1]
    assert [run.config.data.train for run in runs] == ["a,b.jsonl", "c.jsonl"]


def test_names_fit_a_folder_and_stay_apart() -> None:
    names = list(grid("data.columns.prompt=a/b,a-b", "loss.beta=0.1,0.2"))
    assert len(set(names)) == 4 and not any("/" in name for name in names)
    assert names[2] == "prompt=a-b,beta=0.1"  # what a name can hold stays as it is
    long = "x" * 300
    assert all(len(name) < 120 for name in grid(f"data.columns.prompt={long}1,{long}2"))
    assert list(grid("train.save_every=null,5", "train.eval_every=5")) == [
        "save_every=null", "save_every=5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.beta=0.1"], "no key has several values"),
        ([], "no key has several values"),
        (["loss.beta=0.1,0.1"], "two runs are the same: beta=0.1"),
        (["loss.beta=0.1,1e-1"], "two runs are the same: beta=0.1"),
        (["loss.beta=0.1,-1"], "loss.beta: -1 is not"),
        (["loss.beta=0.1,-1"], "(with loss.beta=-1)"),
        (["loss.beta=[0.1,0.2],0.3"], "loss.beta"),
        (["loss.bta=0.1,0.2"], "loss.bta: unknown key"),
        (["loss.beta=0.1,"], "loss.beta"),
        (["loss.beta"], "is not key=value"),
        (["loss.beta=0.1,0.2", "loss.beta=0.3,0.4"], "is given twice"),
        (["loss.name=cdpo,sigmoid", "loss.smoothing=0.1"], "(with loss.name=sigmoid)"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(*words)
    assert said in str(caught.value)


def test_out_is_one_folder() -> None:
    with pytest.raises(ConfigError, match="out: is one folder"):
        read_grid(None, [*BASE[:2], "out=a,b", "loss.beta=0.1,0.2"])
    with pytest.raises(ConfigError, match="out"):
        read_grid(None, [*BASE[:2], "loss.beta=0.1,0.2"])
