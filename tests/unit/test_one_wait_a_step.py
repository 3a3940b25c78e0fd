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

    def bring_over(*given: object) -> None:
        raise Waited

    monkeypatch.setattr(step, "_in_step_order", bring_over)
    with policy.running(), pytest.raises(Waited):
        step.loss_and_gradients(policy, batches, bind(live(config)["loss"]))
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.is_meta for p in trained)
