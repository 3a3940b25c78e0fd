"""Memory counted on the model, tokens of a pass from it, and the arithmetic of a pass."""

import pytest
import torch
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.batching.batch import Scored, tree_batch
from likelier.config import config_from
from likelier.data.records import Completion, TokenPair
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers
from likelier.training.memory import (
    Memory,
    _saved_by,
    checkpoint_if_needed,
    device_memory,
    memory_of,
    operations_of,
    tokens_per_batch,
)

CPU = torch.device("cpu")


def ready_of(dtype: torch.dtype = torch.float32) -> Policy:
    tokenizer = tiny_tokenizer()
    return Policy(tiny_model(tokenizer, dtype), tokenizer)


def test_what_a_token_keeps_holds_for_larger_passes() -> None:
    policy = ready_of()
    per_token = memory_of(policy).per_token
    large = _saved_by(policy, 400) - _saved_by(policy, 200)
    assert per_token == pytest.approx(large / 200, rel=0.02)
    # At least what the two layers' products must keep: eight inputs of the hidden size or more.
    assert per_token > 2 * 8 * 32 * 4


def test_recomputed_activations_are_not_counted() -> None:
    policy = ready_of()
    before = memory_of(policy).per_token
    checkpoint_layers(policy.causal_lm)
    assert memory_of(policy).per_token < before / 3


@pytest.mark.parametrize(
    ("dtype", "bytes_each"), [(torch.float32, 4 + 12), (torch.bfloat16, 2 + 16)]
)
def test_fixed_memory_is_weights_gradients_averages_and_masters(
    dtype: torch.dtype, bytes_each: int
) -> None:
    policy = ready_of(dtype)
    parameters = list(policy.model.parameters())
    assert memory_of(policy).fixed == bytes_each * sum(p.numel() for p in parameters)
    frozen = parameters[0].requires_grad_(False)
    shrunk = (bytes_each - parameters[0].element_size()) * frozen.numel()
    assert memory_of(policy).fixed == bytes_each * sum(p.numel() for p in parameters) - shrunk


@pytest.mark.parametrize(
    ("total", "device", "expected"),
    [
        (10_000_000, "cpu", 2048),  # 7,999,000 / 1000 = 7,999 tokens fit; a CPU needs no more
        (10_000_000, "cuda", 4096),
        (1_000_000, "cpu", 512),  # 799
        (300_000, "cpu", 256),  # 239: the least, and `plan` says that it does not fit
        (100, "cpu", 256),
    ],
)
def test_the_largest_power_of_two_that_fits(total: int, device: str, expected: int) -> None:
    assert tokens_per_batch(Memory(total, 1000, 1000), torch.device(device)) == expected


def test_a_gpu_has_what_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free, and what this process holds already: its weights are counted on their own."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    assert device_memory(torch.device("cuda")) == 50
    assert device_memory(CPU) > 2**30


def test_work_by_hand() -> None:
    """Prompt of 4, answers of 3 and 2: inputs 1 2 3 4 | 5 6 | 7, so 7 tokens in the tree."""
    model = tiny_model(tiny_tokenizer())
    answers = [
        Scored((1, 2, 3, 4, 5, 6, 2), (False,) * 4 + (True,) * 3),
        Scored((1, 2, 3, 4, 7, 2), (False,) * 4 + (True,) * 2),
    ]
    work = operations_of(tree_batch(answers), model)
    # A layer: queries and outputs 32x32, keys and values 32x16, three of 32x64.
    assert work["layers"] == 2 * 7 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert work["head"] == 2 * 4 * 32 * model.config.vocab_size  # at 4, 5, 6 and 7
    # Depths 0 1 2 3 4 5 4 see 1 2 3 4 5 6 5 keys: 26, in 2 layers of 4 heads of 8.
    assert work["attention"] == 2 * 2 * 26 * 32 * 2
    assert list(work) == ["layers", "head", "attention"]


def test_the_counted_arithmetic_is_torch_s() -> None:
    """The products of torch's own counter, layers and head; it does not know tree attention."""
    from torch.utils.flop_counter import FlopCounterMode

    policy = ready_of()
    policy.causal_lm.set_attn_implementation("sdpa")
    batch = tree_batch([Scored(tuple(range(20)), (False,) * 5 + (True,) * 15)])
    work = operations_of(batch, policy.causal_lm)
    with torch.no_grad(), policy.running() as scorer, FlopCounterMode(display=False) as counter:
        scorer(batch)
    products = counter.get_flop_counts()["Global"]
    assert products[torch.ops.aten.mm] == work["layers"] + work["head"]


# Checkpoints where they are needed


def pair_of(prompt: int, answer: int) -> TokenPair:
    tokens = tuple(range(3, 3 + answer))
    chosen, rejected = (Completion((*tokens, last), (True,) * (answer + 1)) for last in (1, 2))
    return TokenPair(tuple(range(50, 50 + prompt)), chosen, rejected, source="here:1")


PAIRS = [pair_of(5, 3), pair_of(20, 30), pair_of(40, 8)]
LONGEST = 20 + 30  # the answers of a pair differ in their last token, which is no input


@pytest.mark.parametrize("asked", ["auto", "none", "layers"])
@pytest.mark.parametrize("lacking", [0, 1])
def test_layers_run_again_where_the_longest_pair_does_not_fit(
    asked: str,
    lacking: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy = ready_of()
    monkeypatch.setattr(Memory, "usable", property(lambda memory: memory.total))
    limit = memory_of(policy).needs(LONGEST) - lacking
    monkeypatch.setattr("likelier.training.memory.device_memory", lambda device: limit)
    config = config_from({"model": {"path": "m"}, "data": {"train": "d"}, "out": "o",
                          "train": {"checkpointing": asked}})  # fmt: skip
    needed = asked == "auto" and lacking
    decided, memory = checkpoint_if_needed(config, policy, PAIRS)
    assert memory in (None, memory_of(policy))
    assert decided == ("layers" if needed else "none" if asked == "auto" else asked)
    assert policy.causal_lm.is_activation_checkpointing == bool(needed)
    said = capsys.readouterr().err
    assert ("the longest pair (50 tokens) needs 0.0 GiB without it" in said) == bool(needed)
    assert len(said.splitlines()) == bool(needed)


def test_what_fits_depends_on_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def count(policy: Policy, kind: str, card: int | None, shares: int) -> Memory:
        asked.append(kind)
        return Memory(10**9, 0, 1)

    monkeypatch.setattr("likelier.training.memory.memory_of", count)
    config = config_from({"model": {"path": "m"}, "data": {"train": "d"}, "out": "o",
                          "adapter": {"kind": "none"}, "optim": {"kind": "adamw8bit"}})  # fmt: skip
    assert checkpoint_if_needed(config, ready_of(), PAIRS) == ("none", Memory(10**9, 0, 1))
    assert asked == ["adamw8bit"]


def test_nothing_is_decided_for_a_model_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ready_of()
    monkeypatch.setattr(type(policy.causal_lm), "supports_gradient_checkpointing", False)
    monkeypatch.setattr("likelier.training.memory.device_memory", lambda device: 1)
    config = config_from({"model": {"path": "m"}, "data": {"train": "d"}, "out": "o"})
    assert checkpoint_if_needed(config, policy, PAIRS)[0] == "none"
