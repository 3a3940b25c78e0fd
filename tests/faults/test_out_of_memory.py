"""Out of memory in the middle of a step: begun anew with half the batches, the same gradient."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.runs import make_place

from likelier.base.errors import RunFailed
from likelier.base.files import read_lines
from likelier.model.scorer import Scorer
from likelier.run import train


def fails_at(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """A device on which batches of more tokens than this do not fit while gradients are made."""
    seen: list[int] = []
    forward = Scorer.forward

    def tight(self: Scorer, batch: object, *more: object) -> object:
        values = forward(self, batch, *more)  # type: ignore[arg-type]
        if torch.is_grad_enabled():
            seen.append(batch.num_tokens)  # type: ignore[attr-defined]
            if seen[-1] > limit:
                # As in a backward that breaks off: part of the gradient is there already.
                values.sum().backward()
                raise torch.OutOfMemoryError("CUDA out of memory")
        return values

    monkeypatch.setattr(Scorer, "forward", tight)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [{"name": "sigmoid"}, {"name": "bco"}])
def test_the_same_run_in_smaller_batches(
    tmp_path: Path,
    loss: dict,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = make_place(tmp_path, rows=16, dtype=dtype)
    changes = {"data__eval": None, "train__steps": 3, "train__eval_every": None, "loss": loss}
    train(place.config("small", train__tokens_per_batch=128, **changes))
    seen = fails_at(monkeypatch, 128)
    capsys.readouterr()
    train(place.config("tight", train__tokens_per_batch=256, **changes))
    told = capsys.readouterr().err
    assert told.count("out of memory: from here on batches of at most 128 tokens") == 1
    assert sum(tokens > 128 for tokens in seen) == 1
    small, tight = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("small", "tight"))
    assert len(small) == 3
    # In bfloat16 another batch rounds otherwise, and first margins are near ties; what a broken
    # step leaves behind is far larger.
    exact = dtype == torch.float32
    rounding = 1e-6 if exact else 2e-2
    for ours, theirs in zip(tight, small, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours if exact else ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=rounding, abs=rounding)


def test_halved_as_often_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path, rows=16)
    changes = {"train__steps": 2, "train__pairs_per_step": 8}
    seen = fails_at(monkeypatch, 100)
    train(place.config("tight", train__tokens_per_batch=1024, **changes))
    told = capsys.readouterr().err
    sizes = [size for size in (512, 256, 128, 64, 32) if f"at most {size} tokens" in told]
    assert sizes[:2] == [512, 256] and sum(tokens > 100 for tokens in seen) == len(sizes)


def test_a_pair_alone_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(tmp_path, rows=16)
    fails_at(monkeypatch, 8)
    with pytest.raises(RunFailed, match="batches of 32 tokens do not fit"):
        train(place.config("tight", train__tokens_per_batch=256, train__checkpointing="none"))
    record = json.loads((tmp_path / "tight" / "run.json").read_text())
    assert record["step"] == 0 and record["status"] == "running"
