"""Losses reach the optimum that their papers derive: tabular, and by the real trainer."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Exaone4Config, Exaone4ForCausalLM, PreTrainedTokenizerFast

import likelier
from likelier.api import preference_loss
from likelier.model.policy import get_logprob

# Eight actions: random rewards, a random reference, every pair with the labels of Bradley-Terry.
K, BETA, TAU, FLIPS = 8, 0.5, 0.5, 0.2


def table() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, log reference and P(i beats j), shape (K,), (K,) and (K, K)."""
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(K, generator=generator, dtype=torch.float64)
    log_ref = torch.log_softmax(torch.randn(K, generator=generator, dtype=torch.float64), 0)
    return reward, log_ref, torch.sigmoid(reward[:, None] - reward[None, :])


def optimum(name: str, beats: Tensor, log_ref: Tensor, **parameters: float) -> Tensor:
    """The policy that minimises the expected loss over pairs drawn from the reference."""
    wins = log_ref.exp()[:, None] * log_ref.exp()[None, :] * beats
    first, second = (
        index.flatten() for index in torch.meshgrid(*[torch.arange(K)] * 2, indexing="ij")
    )
    logits = log_ref.clone().requires_grad_()
    solver = torch.optim.LBFGS([logits], lr=1, max_iter=2000, tolerance_grad=1e-16,
                               tolerance_change=0, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        logp = torch.log_softmax(logits, 0)
        loss = preference_loss(
            name, logp[first], logp[second], log_ref[first], log_ref[second],
            weight=wins.flatten(), **parameters,
        ).sum()  # fmt: skip
        loss.backward()
        return loss

    solver.step(closure)
    return torch.softmax(logits.detach(), 0)


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def test_dpo_reaches_the_tilted_reference() -> None:
    reward, log_ref, beats = table()
    wanted = torch.softmax(log_ref + reward / BETA, 0)
    assert apart(wanted, log_ref.exp()) > 0.1
    assert apart(optimum("sigmoid", beats, log_ref, beta=BETA), wanted) < 1e-7


def test_ipo_reaches_its_closed_form() -> None:
    """The reference times exp(P(y beats a draw) / tau)."""
    _, log_ref, beats = table()
    wanted = torch.softmax(log_ref + (beats @ log_ref.exp()) / TAU, 0)
    assert apart(optimum("ipo_sum", beats, log_ref, tau=TAU), wanted) < 1e-7
    # and the trap: DPO's optimum is another one
    assert apart(optimum("sigmoid", beats, log_ref, beta=TAU), wanted) > 0.01


def test_robust_dpo_sees_through_flipped_labels_and_dpo_does_not() -> None:
    reward, log_ref, beats = table()
    flipped = (1 - FLIPS) * beats + FLIPS * beats.T
    clean = torch.softmax(log_ref + reward / BETA, 0)
    robust = optimum("robust", flipped, log_ref, beta=BETA, smoothing=FLIPS)
    plain = optimum("sigmoid", flipped, log_ref, beta=BETA)
    assert apart(robust, clean) < 1e-7
    assert apart(plain, clean) > 0.03
    # cDPO on clean labels is DPO on flipped ones
    assert apart(optimum("cdpo", beats, log_ref, beta=BETA, smoothing=FLIPS), plain) < 1e-7


# Every answer of one to three letters: 39 of them, so that the optimum can be listed.

LETTERS, LONGEST, NEIGHBOURS = "abc", 3, 4
ANSWERS = ["".join(w) for n in range(1, LONGEST + 1) for w in itertools.product(LETTERS, repeat=n)]


def alphabet() -> PreTrainedTokenizerFast:
    """One token a letter."""
    words = {word: number for number, word in enumerate(["<end>", "<unk>", "q", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", pad_token="<end>"
    )


def tiny_transformer() -> Exaone4ForCausalLM:
    config = Exaone4Config(
        vocab_size=6, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=16,
        sliding_window=None, sliding_window_pattern=None, layer_types=["full_attention"] * 2,
        tie_word_embeddings=False, eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Exaone4ForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


@torch.no_grad()
def listed(model: Any, tokenizer: Any) -> Tensor:
    """Log-probs of all answers, given that it is one of them. The longest are cut: no stop."""
    logps = [
        get_logprob(model, tokenizer, "q", answer, stop=len(answer) < LONGEST).double()
        for answer in ANSWERS
    ]
    return torch.log_softmax(torch.stack(logps), 0)


def comparisons(reward: Tensor) -> list[dict[str, Any]]:
    """Each answer against some others, both ways round, weighted by how often it wins."""
    rows = []
    for i, answer in enumerate(ANSWERS):
        for step in range(1, NEIGHBOURS + 1):
            j = (i + step * step) % len(ANSWERS)
            wins = float(torch.sigmoid(reward[i] - reward[j]))
            for up, down, weight in ((i, j, wins), (j, i, 1 - wins)):
                rows.append({"prompt": "q", "chosen": ANSWERS[up], "rejected": ANSWERS[down],
                             "weight": weight})  # fmt: skip
            assert answer != ANSWERS[j]
    return rows


def trained(folder: Path, reward: Tensor, stop_token: bool, steps: int) -> tuple[float, float]:
    """KL of the trained policy to the known optimum, and of the start."""
    model, tokenizer = tiny_transformer(), alphabet()
    wanted = torch.log_softmax(listed(model, tokenizer) + reward / BETA, 0)
    start = listed(model, tokenizer)
    config = {
        "data": {"eval": None, "max_length": 1 + LONGEST, "overlong": "trim"},
        "adapter": {"kind": "none"},
        "loss": {"name": "sigmoid", "beta": BETA, "pair_weights": True, "stop_token": stop_token},
        "optim": {"lr": 4e-3, "schedule": "cosine", "warmup": 0.05},
        "train": {"steps": steps, "pairs_per_step": 2 * NEIGHBOURS * len(ANSWERS),
                  "tokens_per_batch": 4096, "save_every": None},
        "out": str(folder),
    }  # fmt: skip
    likelier.train(config, model=model, tokenizer=tokenizer, train=comparisons(reward))
    found = listed(model, tokenizer)

    def kl(policy: Tensor) -> float:
        return float((policy.exp() * (policy - wanted)).sum())

    return kl(found), kl(start)


def test_the_trainer_reaches_the_optimum_over_sequences_and_only_with_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shift, masks, stop, cuts, weights and packing are all in this one number."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("likelier.run._write_report", lambda out: None)
    reward = torch.randn(len(ANSWERS), generator=torch.Generator().manual_seed(2)).double()
    reward = reward - 0.5 * torch.tensor([len(answer) for answer in ANSWERS])
    with_stop, start = trained(tmp_path / "a", reward, True, 200)
    without, _ = trained(tmp_path / "b", reward, False, 100)
    print(f"KL to the optimum: start {start:.4f}, with stop {with_stop:.5f}, without {without:.4f}")
    assert start > 0.1
    assert with_stop < 0.01
    assert without > 0.05 and without > 10 * with_stop
    assert math.isfinite(without)
