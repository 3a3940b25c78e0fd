"""A GPU is waited for once a step: traced with tensors that have no values, which cannot be read.

They also refuse tensors of another device: what stays on the CPU by mistake is found here, too.
"""

from typing import Any

import pytest
from tests.support.tiny import tiny_model, tiny_tokenizer

from likelier.config import Config, live
from likelier.data.records import Completion, TokenPair
from likelier.losses.registry import bind
from likelier.model.adapters import attach_lora
from likelier.model.policy import Policy
from likelier.reference.cache import NoReference
from likelier.training import batches as batches_module
from likelier.training import step
from likelier.training.batches import Batcher

LOSSES: list[dict[str, Any]] = [
    {"name": "sigmoid"},
    {"name": "ipo_mean"},
    {"name": "simpo"},
    {"name": "sigmoid", "wpo": True},
]


class Waited(Exception):
    """The one place where a step waits was reached."""


def pairs() -> list[TokenPair]:
    def answer(token: int, length: int) -> Completion:
        return Completion((token,) * length, (True,) * length)

    return [
        TokenPair((5, 6, 7, *range(20, 20 + n)), answer(8, 4 + n), answer(9, 3), str(n))
        for n in range(6)
    ]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss)))
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_nothing_is_read_before_the_values_are_brought_over(
    loss: dict[str, Any], lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.model.policy._tree_backends", lambda policy: ("dense",))
    config = Config.model_validate(
        {"model": {"path": "a"}, "data": {"train": "b"}, "out": "c", "loss": loss}
    )
    policy = Policy(tiny_model(tiny_tokenizer()).train(), tiny_tokenizer())
    policy = attach_lora(policy, 4, 8, "all-linear", 0) if lora else policy
    assert policy.backend == "dense" and policy.scorer  # both compare values
    policy.model.to("meta")
    batches = Batcher(policy, NoReference(), bind(live(config)["loss"]), 32)(pairs())
    assert len(batches) > 1 and batches[0].token_BL.is_meta

    happened: list[str] = []

    def bring_over(*given: object) -> None:
        raise Waited(*happened)

    monkeypatch.setattr(step, "_in_step_order", bring_over)
    with policy.running(), pytest.raises(Waited, match="prepared"):
        step.loss_and_gradients(
            policy, batches, bind(live(config)["loss"]), lambda: happened.append("prepared")
        )
    assert happened == ["prepared"]  # what comes next, while the GPU computes
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.is_meta for p in trained)


def test_what_was_prepared_is_used_once_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And made anew where the size of batches has changed since, or other pairs are asked for."""
    config = Config.model_validate({"model": {"path": "a"}, "data": {"train": "b"}, "out": "c"})
    policy = Policy(tiny_model(tiny_tokenizer()).train(), tiny_tokenizer())
    batcher = Batcher(policy, NoReference(), bind(live(config)["loss"]), 32)
    cut, made = batches_module.cut_batches, []

    def counting(*given: Any) -> Any:
        made.append(given[0])
        return cut(*given)

    monkeypatch.setattr(batches_module, "cut_batches", counting)
    batcher.prepare(pairs())
    ready = batcher(pairs())
    assert len(made) == 1 and len(ready) > 1
    batcher.halve(RuntimeError(), ready)
    assert len(batcher(pairs())) > len(ready) and len(made) == 2
    (batch,) = batcher(pairs()[:1])
    assert len(batch.position_P) == 1 and len(made) == 3
