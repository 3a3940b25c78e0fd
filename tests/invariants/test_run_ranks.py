"""A run of several processes is the run of one: same gradients, same weights, same order.

The processes are real, and talk over gloo.
"""

import json
import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.support.ranks import run_ranks, start_ranks
from tests.support.runs import Place, bytes_of, differing, make_place
from tests.support.tiny import save_tiny
from torch import Tensor
from torch.distributed import checkpoint as dcp

from likelier.training import step as one_step

FIRST_GRADIENT, LATER_WEIGHTS = 1e-10, 1e-8
AS_HYBRID = 2  # processes that count as those of one machine
TRAINED = {
    "full": {"adapter": {"kind": "none"}},
    "untied": {"adapter": {"kind": "none"}, "model": "untied"},
    "lora": {"adapter": {"kind": "lora", "r": 4}},
    "whole-step": {"adapter": {"kind": "none"}, "loss": {"name": "aot"}},
    "moving": {"adapter": {"kind": "none"}, "reference": {"update_every": 3}},
}
TEAMS = [
    *((kind, *team) for kind in ("full", "lora")
      for team in ((2, "replicate"), (2, "shard"), (4, "hybrid"), (4, "shard"))),
    ("untied", 4, "hybrid"), ("whole-step", 2, "replicate"), ("whole-step", 4, "shard"),
    ("moving", 2, "replicate"), ("moving", 4, "shard"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("place"), dtype=torch.float64)
    save_tiny(place.folder / "untied", torch.float64, tied=False)
    return place


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, Path]:
    """A run of each kind by one process."""
    return {kind: _ran(place, kind, 1, "auto") for kind in TRAINED}


def _config(place: Place, kind: str, size: int, mode: str, **changes: Any) -> dict[str, Any]:
    """Twenty steps of three pairs, the last of two: of four processes, some have no pair."""
    settings: dict[str, Any] = dict(TRAINED[kind])
    if model := settings.pop("model", None):
        settings["model"] = {"path": str(place.folder / model)}
    return place.config(
        f"{kind}-{size}-{mode}", **settings, parallel={"mode": mode, "timeout": 100},
        **{"train": {"epochs": 59 / 24, "pairs_per_step": 3, "tokens_per_batch": 64,
                     "save_every": 1, "keep": 100, "eval_every": 10,
                     "best": "eval_loss"}, **changes},
    )  # fmt: skip


def _ran(place: Place, kind: str, size: int, mode: str) -> Path:
    config = _config(place, kind, size, mode)
    out = Path(config["out"])
    run_ranks(size, config, out.with_suffix(".logs"), exact=True,
              local_size=AS_HYBRID if mode == "hybrid" else None)  # fmt: skip
    return out


@pytest.mark.parametrize(("kind", "size", "mode"), TEAMS)
def test_a_team_trains_as_one_process_does(
    place: Place, alone: dict[str, Path], kind: str, size: int, mode: str
) -> None:
    out = _ran(place, kind, size, mode)
    ours, theirs = (_state(run / "checkpoints/step-00000001") for run in (out, alone[kind]))
    assert _apart(ours, theirs, "exp_avg") < FIRST_GRADIENT  # a tenth of the first gradient
    assert _apart(_trained(out), _trained(alone[kind])) < LATER_WEIGHTS
    assert _visits(out) == _visits(alone[kind])
    (best,), (best_alone,) = ((run / "best").iterdir() for run in (out, alone[kind]))
    assert best.name == best_alone.name
    assert _apart(_weights(best), _weights(best_alone)) < LATER_WEIGHTS
    for row, plain in zip(_rows(out), _rows(alone[kind]), strict=True):
        assert row == pytest.approx(plain, rel=1e-7, abs=1e-9)
    for ours, theirs in zip(_by_token(out), _by_token(alone[kind]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_a_run_resumes_on_any_number_of_processes(place: Place, alone: Any, mode: str) -> None:
    """Killed on two, it goes on with one, then with four."""
    config = _config(place, "full", 2, mode) | {"out": str(place.folder / f"resumed-{mode}")}
    out = Path(config["out"])
    for size, step in ((2, 5), (1, 11), (4, None)):
        killed = {0: (f"step {step}, gradients", _kill_me)} if step else {}
        children = start_ranks(size, config, out.with_suffix(".logs"), exact=True, events=killed)
        codes = [child.wait() for child in children]
        assert (codes == [0] * size) == (step is None), children[0].output
    assert "resuming from step 10" in children[0].output
    assert "began with processes 1 and resumes with 4: its last bits" in children[0].output
    finished = run_ranks(2, config, out.with_suffix(".logs"))
    assert "is finished" in finished[0].output and finished[1].output == ""
    assert _apart(_trained(out), _trained(alone["full"])) < LATER_WEIGHTS
    assert _visits(out) == _visits(alone["full"])


@pytest.mark.parametrize("mode", ["replicate", "shard"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_of_as_many_processes_resumes_with_the_same_bytes(
    place: Place, kind: str, mode: str
) -> None:
    train = {"steps": 6, "pairs_per_step": 4, "save_every": 2, "eval_every": 2,
             "best": "eval_loss"}  # fmt: skip
    runs = []
    for name, killed in (("whole", {}), ("killed", {1: ("step 5, gradients", _kill_me)})):
        config = _config(place, kind, 2, mode, train=train)
        config["out"] = str(place.folder / f"{name}-{kind}-{mode}")
        for child in start_ranks(2, config, place.folder / f"{name}.logs", events=killed):
            assert (child.wait() == 0) == (not killed), child.output
        run_ranks(2, config, place.folder / f"{name}.logs")
        runs.append(Path(config["out"]))
    # safetensors writes what it notes beside the tensors of a part in an order of its own.
    apart = [f for f in differing(*map(bytes_of, runs)) if mode != "shard" or "step-" not in f]
    assert apart == []
    ours, theirs = (_state(run / "checkpoints/step-00000006") for run in runs)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_each_reference_log_prob_is_made_by_one_process(place: Place, tmp_path: Path) -> None:
    config = _config(place, "full", 2, "replicate", train={"steps": 1, "tokens_per_batch": 64})
    children = run_ranks(2, config | {"out": str(tmp_path / "out")}, tmp_path / "logs")
    assert "log-probs" in children[0].output and children[1].output == ""
    made = (tmp_path / "logs/cache/reference").rglob("*.safetensors")
    counts = [_count(file) for file in made]
    assert len(counts) == 2 and sum(counts) == _count(tmp_path / "out/reference.safetensors")


def test_what_libraries_say_the_first_says_alone(place: Place, tmp_path: Path) -> None:
    config = _config(place, "full", 2, "replicate", train={"steps": 1})
    events = dict.fromkeys((0, 1), ("the reference", _warn))
    first, second = run_ranks(2, config | {"out": str(tmp_path / "out")}, tmp_path, events=events)
    assert "a library warns" in first.output and "a library logs" in first.output
    assert second.output == ""


def _warn() -> None:
    warnings.warn("a library warns", UserWarning, stacklevel=1)
    logging.getLogger("transformers").warning("a library logs")


def test_samples_of_two_processes(place: Place, tmp_path: Path) -> None:
    """Both answer, the first writes; greedy answers are those of one process."""
    changes = {"train": {"steps": 2}, "eval": {"samples": 3, "max_new_tokens": 8}}
    rows = []
    for size, mode in ((1, "auto"), (2, "replicate"), (2, "shard")):
        out = tmp_path / f"{size}-{mode}"
        config = _config(place, "full", size, mode, **changes) | {"out": str(out)}
        run_ranks(size, config, tmp_path / "logs", exact=True)
        lines = (out / "samples.jsonl").read_text().splitlines()
        rows.append([row for row in map(json.loads, lines) if not row["temperature"]])
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 2


def test_half_precision_in_parts_keeps_float32_masters(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", dtype=torch.bfloat16)
    trained = []
    for size, mode in ((1, "auto"), (2, "shard")):
        config = place.config(
            f"{size}", train__steps=4, train__save_every=1, train__keep=9,
            model__dtype="bfloat16", optim__max_grad_norm=None,
            parallel={"mode": mode, "timeout": 100},
        )  # fmt: skip
        run_ranks(size, config, tmp_path / "logs")
        out = Path(config["out"])
        assert {t.dtype for t in load_file(out / "model/model.safetensors").values()} == {
            torch.bfloat16
        }
        trained.append(_state(out / "checkpoints/step-00000004"))
    assert all(t.dtype == torch.float32 for t in trained[1].values())
    first = _state(place.folder / "2/checkpoints/step-00000001")
    gradients = [10 * t for name, t in first.items() if name.startswith("exp_avg/")]
    for gradient in gradients:  # added up in float32: not the nearest numbers of bfloat16
        apart = (gradient - gradient.bfloat16().float()).abs() / gradient.abs().clamp(min=1e-30)
        assert float(apart.max()) > 1e-4
    steps = 4e-3  # of AdamW, each at most the learning rate
    for name, master in trained[0].items():
        if name.startswith("masters/"):
            assert float((trained[1][name] - master).abs().max()) < steps, name


@pytest.mark.parametrize("kind", ["full", "padded"])
def test_half_precision_in_parts_sums_gradients_as_replicas_do(tmp_path: Path, kind: str) -> None:
    """In float32. A model in padded rows is first run for the reference, with its adapter off."""
    place = make_place(tmp_path / "place", dtype=torch.bfloat16)
    described = json.loads((place.base / "config.json").read_text())
    (place.base / "config.json").write_text(json.dumps(described | {"alibi": kind == "padded"}))
    adapter = {"kind": "none"} if kind == "full" else {"kind": "lora", "r": 4}
    states = []
    for mode in ("replicate", "shard"):
        config = place.config(mode, train__steps=1, train__save_every=1, adapter=adapter,
                              parallel={"mode": mode, "timeout": 100})  # fmt: skip
        run_ranks(2, config, tmp_path / "logs")
        states.append(_state(Path(config["out"]) / "checkpoints/step-00000001"))
    assert _apart(states[1], states[0], "exp_avg/") < 1e-5  # bfloat16 keeps 4e-3


def test_a_process_out_of_memory_behind_a_whole_step_has_all_begin_it_anew(
    place: Place, tmp_path: Path
) -> None:
    trained = []
    for name, event in (("plain", {}), ("short", {1: ("step 2, gradients", _no_memory_once)})):
        train = {"steps": 3, "pairs_per_step": 8, "tokens_per_batch": 256}
        config = _config(place, "whole-step", 2, "replicate", train=train)
        config["out"] = str(tmp_path / name)
        children = start_ranks(2, config, tmp_path / "logs", exact=True, events=event)
        assert [child.wait() for child in children] == [0, 0], children[0].output
        trained.append(_trained(tmp_path / name))
    assert _apart(*trained) < LATER_WEIGHTS


def _no_memory_once() -> None:
    """The next backward of this process does not fit."""
    backward = one_step._backward

    def fails(*arguments: Any) -> None:
        one_step._backward = backward
        raise torch.OutOfMemoryError("no memory")

    one_step._backward = fails


def _kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _trained(run: Path) -> dict[str, Tensor]:
    return _weights(run / ("model" if (run / "model").exists() else "adapter"))


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def _state(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint whole, by part and name."""
    if (checkpoint / "masters.safetensors").exists():
        parts = {file.stem: load_file(file) for file in checkpoint.glob("*.safetensors")}
        return {f"{part}/{name}": t for part, some in parts.items() for name, t in some.items()}
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    described = reader.read_metadata().state_dict_metadata
    whole = {name: torch.empty(one.size, dtype=one.properties.dtype)  # type: ignore[union-attr]
             for name, one in described.items()}  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole


def _apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], part: str = "") -> float:
    """The largest distance of two tensors of a name, relative to one."""
    names = {name for name in theirs if name.startswith(part)}
    assert names and names == {name for name in ours if name.startswith(part)}
    pairs = ((ours[name].double(), theirs[name].double()) for name in names)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def _visits(run: Path) -> list[tuple[Any, ...]]:
    files = sorted((run / "pair_log").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return [(row["step"], row["epoch"], row["source"]) for row in rows]


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _by_token(run: Path) -> list[list[float]]:
    """Of the pairs that are kept by their tokens: the log-probs of policy and reference."""
    rows = [json.loads(line) for line in (run / "pair_tokens.jsonl").read_text().splitlines()]
    return [
        [*side["logps"], *(side.get("reference_logps") or ())]
        for row in rows
        for side in row["sides"].values()
    ]


def _count(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return len(opened.get_tensor("keys"))
