"""Three workloads of random token ids drawn from fixed seeds, and the model they are tried on.

Every id is a word of a word-level tokenizer, so that both trainers read the same text and make
the same ids of it. Lengths are in tokens; answers are counted without their stop token.
"""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths, cut off at both ends."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, rng: np.random.Generator, shrink: int) -> int:
        """One length; ``shrink`` divides all lengths, for smoke runs."""
        drawn = self.median * np.exp(self.sigma * rng.standard_normal())
        return max(2, round(min(max(drawn, self.least), self.most) / shrink))


@dataclass(frozen=True)
class Workload:
    """Prompts, and ``answers`` to each; all pairs of the answers of a prompt are compared."""

    prompt: Lengths
    answer: Lengths
    answers: int = 2

    @property
    def pairs(self) -> int:
        """Pairs of a prompt."""
        return self.answers * (self.answers - 1) // 2


_CHAT = (Lengths(100, 0.8, 8, 512), Lengths(200, 0.7, 8, 500))
WORKLOADS = {
    "summaries": Workload(Lengths(350, 0.25, 64, 700), Lengths(35, 0.4, 4, 128)),
    "chat": Workload(*_CHAT),
    "groups": Workload(*_CHAT, answers=4),
}

# EXAONE 4 with random weights and tied embeddings. `gpu` is the published 1.2B shape.
_EXAONE: dict[str, Any] = {
    "sliding_window": None,
    "sliding_window_pattern": None,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smoke": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 16, "max_position_embeddings": 2048},
    "cpu": {"vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1024,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
            "head_dim": 64, "max_position_embeddings": 4096},
    "150M": {"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 2048,
             "num_hidden_layers": 13, "num_attention_heads": 16, "num_key_value_heads": 4,
             "head_dim": 64, "max_position_embeddings": 4096},
    "gpu": {"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 4096,
            "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "max_position_embeddings": 65536,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0,
                                "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                "original_max_position_embeddings": 8192}},
}  # fmt: skip


def draw(
    workload: Workload, pairs: int, vocabulary: int, seed: int = 0, shrink: int = 1
) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected text: exactly ``pairs`` of them."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < pairs:
        prompt = _words(rng, workload.prompt.draw(rng, shrink), vocabulary)
        answers = [
            " " + _words(rng, workload.answer.draw(rng, shrink), vocabulary)
            for _ in range(workload.answers)
        ]
        rows += [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for chosen, rejected in combinations(answers, 2)
        ]
    return rows[:pairs]


def _words(rng: np.random.Generator, length: int, vocabulary: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(len(SPECIALS), vocabulary, length))


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save_model(folder: Path, shape: dict[str, Any], seed: int = 0, dtype: str = "float32") -> None:
    """Write a random model of a shape, and its word-level tokenizer, to a folder."""
    import torch
    from transformers import Exaone4Config, Exaone4ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    layers = ["full_attention"] * shape["num_hidden_layers"]
    torch.manual_seed(seed)
    model = Exaone4ForCausalLM(Exaone4Config(**_EXAONE, **shape, layer_types=layers))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer(shape["vocab_size"]).save_pretrained(folder)


def save_model_apart(*asked: Any) -> None:
    """`save_model` in a process of its own: the peak that `os.wait4` tells of a child is never less
    than that of the process which starts it.
    """
    made = multiprocessing.get_context("spawn").Process(target=save_model, args=asked)
    made.start()
    made.join()
    if made.exitcode:
        raise RuntimeError("the model was not made")


def tokenizer(vocabulary: int) -> Any:
    """Word ``wI`` is id I; ids below that are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), vocabulary))]
    ids = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>",
    )  # fmt: skip
