"""A run that moved its model by more than a nat an answer, to be exported and compared."""

from pathlib import Path

import pytest
from tests.support.sentencepiece_model import rows, save_llama
from tests.support.tiny import write_rows

from likelier.base.files import write_json
from likelier.run import train


def moved_run(folder: Path, rate: float = 1e-3) -> Path:
    """LoRA of rank 8 and a scale of 4, on the head, too; ``rate`` is its learning rate."""
    pytest.importorskip("sentencepiece", reason="trains the tokenizer of this test")
    config = {
        "model": {"path": str(save_llama(folder / "base"))},
        "data": {"train": str(write_rows(folder / "pairs.jsonl", rows(60))), "eval": "20%"},
        "adapter": {"r": 8, "alpha": 32, "targets": ["q_proj", "v_proj", "down_proj", "lm_head"]},
        "optim": {"lr": rate},
        "train": {"steps": 16, "pairs_per_step": 8, "eval_every": None, "save_every": None},
        "eval": {"samples": 0},
        "out": str(folder / "run"),
    }
    write_json(folder / "config.json", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        return train(config).folder
