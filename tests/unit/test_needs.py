"""Memory counted without computing, against what is really allocated; and advice that is true."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.runs import Place, make_place
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import Exaone4ForCausalLM

from likelier.base.errors import ConfigError
from likelier.batching.batch import Batch, Scored, lay_out
from likelier.cli import main
from likelier.commands import plan as command
from likelier.commands.needs import MARGIN, _alive
from likelier.commands.plan import parse_size, plan
from likelier.config import config_from
from likelier.config.schema import OptimConfig
from likelier.model.adapters import attach_lora, for_training
from likelier.model.load import load
from likelier.model.logprob import Head, token_logps
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers
from likelier.training import memory
from likelier.training.adamw8bit import AT_ONCE
from likelier.training.optimizer import MasterAdamW

GB = 10**9


class Real:
    """Stands in for a mode of fake tensors: what is counted is then really allocated."""

    def __init__(self, **_: Any):
        pass

    def from_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def policy_of(folder: Path, kind: str, dtype: str, layers: bool) -> Policy:
    quantise: Any = "nf4" if kind == "qlora" else "none"
    policy = load(folder, dtype=dtype, frozen=kind != "full", quantise=quantise)
    if kind != "full":
        policy = attach_lora(policy, 4, 8, "all-linear", 0)
    if layers:
        checkpoint_layers(policy.causal_lm)
    return policy


def batch_of(policy: Policy, tokens: int = 300) -> Batch:
    ids = tuple(i % 300 for i in range(tokens + 1))
    scored = (False,) * (tokens // 2) + (True,) * (tokens + 1 - tokens // 2)
    return lay_out([Scored(ids, scored)], policy.backend)


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_what_is_counted_on_fake_tensors_is_what_is_allocated(
    kind: str, dtype: str, layers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(save_tiny(tmp_path / "m", torch.bfloat16), kind, dtype, layers)
    weights = [p.detach().clone() for p in policy.model.parameters()]
    asked: list[dict[str, bool]] = [{}, {"adds": True}, {"backward": False}]
    with for_training(policy):
        counted = [memory.most_alive(policy, batch_of(policy), **how) for how in asked]
        saved = memory.bytes_saved(policy, batch_of(policy))
        monkeypatch.setattr(memory, "FakeTensorMode", Real)
        allocated = [memory.most_alive(policy, batch_of(policy), **how) for how in asked]
    for ours, theirs in zip(counted, allocated, strict=True):
        for part in ("saved", "most"):  # two integers of each token are the batch's own
            assert ours[part] == pytest.approx(theirs[part], abs=16 * 301)
    if not layers:
        assert counted[0]["saved"] == pytest.approx(saved, abs=32 * 301)
    gradients = memory.held(policy)["gradients"]
    assert counted[1]["saved"] == counted[0]["saved"] + gradients
    assert counted[0]["most"] < counted[1]["most"] <= counted[0]["most"] + gradients
    assert counted[2]["most"] < counted[0]["most"]
    after = list(policy.model.parameters())
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(after, weights, strict=True))


def test_an_interrupt_waits_until_all_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised inside, where C++ calls Python, it ended the process: `terminate called`, exit -6."""
    policy = policy_of(save_tiny(tmp_path / "m"), "lora", "float32", layers=False)
    add, sizes = memory._Alive._add, []

    def interrupted(alive: Any, size: int) -> None:
        if not sizes:
            os.kill(os.getpid(), signal.SIGINT)
        sizes.append(size)
        add(alive, size)

    monkeypatch.setattr(memory._Alive, "_add", interrupted)
    with for_training(policy), pytest.raises(KeyboardInterrupt):
        memory.most_alive(policy, batch_of(policy))
    assert len(sizes) > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_the_head_takes_a_chunk_of_logits_and_its_gradient(
    dtype: torch.dtype, trained: bool, tmp_path: Path
) -> None:
    policy = policy_of(save_tiny(tmp_path / "m"), "full", str(dtype)[6:], layers=False)
    policy.model.requires_grad_(trained)
    weight = policy.scorer.head().weight
    rows = 2**23 // len(weight) + 10  # a whole chunk and a bit
    hidden = torch.randn(rows, weight.shape[1], dtype=dtype, requires_grad=True)
    each = torch.arange(rows)
    with memory._Alive([hidden, weight, each]) as alive:
        logps = token_logps(hidden, Head(weight), each, each % len(weight))
        logps.backward(torch.ones_like(logps))
    beside = 3 * hidden.nbytes + 2 * 4 * rows * 4  # of the rows: gradients, sums
    counted = memory._bytes_of_head(policy)
    assert counted <= alive.most <= 1.05 * counted + beside


def test_averages_in_eight_bits_are_unpacked_a_few_at_once() -> None:
    for numbers in (AT_ONCE // 4, 2 * AT_ONCE):
        master = torch.nn.Parameter(torch.randn(numbers // 1024, 1024))
        optimizer = MasterAdamW([("w", master)], OptimConfig(kind="adamw8bit"))
        for _ in range(2):
            master.grad = torch.randn_like(master)
            state = [t for part in optimizer.state().values() for t in part.values()]
            with memory._Alive([master, master.grad, *state]) as alive:
                optimizer.step(0.0)
        counted = memory.bytes_of_update([master], "adamw8bit")
        assert counted == pytest.approx(alive.most, rel=0.15)
    assert memory.bytes_of_update([master], "adamw") == 0


# ---- a card that is not here -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("24 gb", 24 * 10**9), ("1.5TB", 15 * 10**11),
     ("512MiB", 2**29), ("2000000kB", 2 * 10**9)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "24G", "1e3GB", "0GB", "", "24GBs", "9999TB"])
def test_what_is_no_size_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--device: {re.escape(repr(text))} is no size") as seen:
        parse_size(text)
    assert seen.value.exit_code == 2 and "24GB" in str(seen.value.hint)


def long_row() -> str:
    """A pair far longer than all others."""
    ask, said, other = (
        ("role", "user"),
        "Seoul is the capital of Korea. " * 8,
        "No idea at all. " * 8,
    )
    chat = [dict([ask, ("content", "What is Seoul?")])]
    answers = {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", said), ("rejected", other))
    }
    return json.dumps({"prompt": chat, **answers}) + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model so wide that what a step keeps is more than what the head makes."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=40)
    (file := place.data).write_text(file.read_text() + long_row())
    config = tiny_model(tiny_tokenizer()).config
    config.intermediate_size = 1024
    Exaone4ForCausalLM(config).to(torch.bfloat16).save_pretrained(place.base)
    return place


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that takes nothing, and no computing: the model is so small that both hide it."""
    monkeypatch.setattr(command, "_DRIVER", 0)
    monkeypatch.setattr(command, "_measure", None)
    yield


@pytest.fixture
def unadvised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans whose advice is not looked at: to count every change takes most of a plan."""
    monkeypatch.setattr(command, "changes", lambda *_: [])


KINDS: list[tuple[set[str], dict[str, Any]]] = [
    ({"adapter.kind", "train.checkpointing", "optim.kind"}, {"adapter": {"kind": "none"}}),
    ({"train.checkpointing", "model.quantise"}, {"adapter": {"r": 2}}),
    ({"train.tokens_per_batch"}, {"adapter": {"r": 2}, "train__tokens_per_batch": 400}),
    ({"data.max_length"}, {"adapter": {"r": 2}, "train__tokens_per_batch": 16}),
]


def asked_of(place: Place, **changes: Any) -> dict[str, Any]:
    settings = {"train__tokens_per_batch": "auto", "train__pairs_per_step": 16} | changes
    return place.config("nowhere", **settings)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("offered", "kind"), KINDS, ids=["full", "lora", "batches", "pairs"])
def test_advice_is_what_the_plan_says_once_it_is_followed(
    place: Place, offered: set[str], kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likelier.commands.needs.WORTH_SAYING", 1.0)
    asked = asked_of(place, **kind)
    before = plan(config_from(asked, []), GB)
    monkeypatch.setattr(command, "changes", lambda *_: [])  # each is followed alone
    assert offered <= {change["keys"].partition("=")[0] for change in before.less_memory}
    for change in before.less_memory:
        assert change["memory"] < before.peak_memory
        key, _, value = change["keys"].partition("=")
        section, _, name = key.partition(".")
        follows = {**asked, section: {**asked[section], name: yaml.safe_load(value)}}
        after = plan(config_from(follows, []), GB)
        assert after.peak_memory == pytest.approx(change["memory"], rel=0.03), change


@pytest.mark.usefixtures("bare", "unadvised")
def test_nothing_is_computed_for_a_card_and_every_auto_is_decided(place: Place) -> None:
    planned = plan(config_from(asked_of(place, adapter={"r": 2}, optim={}), []), 24 * GB)
    assert planned.fits and planned.memory == 24 * GB
    assert (planned.seconds, planned.seconds_per_step, planned.seconds_reference) == (None,) * 3
    assert planned.peak_memory == max(sum(parts.values()) for parts in planned.phases.values())
    assert "a checkpoint" not in planned.phases  # it is written from the main memory
    assert planned.learning_rate == 1e-5
    assert planned.settings == {
        "model.dtype": "bfloat16",
        "optim.lr": 1e-5,
        "train.tokens_per_batch": 16384,  # as a GPU gets them, not the 2048 of a CPU
        "train.checkpointing": "none",
    }


@pytest.mark.usefixtures("bare", "unadvised")
def test_a_small_card_gets_smaller_batches_and_layers_that_run_again(place: Place) -> None:
    config = config_from(asked_of(place, adapter={"r": 2}), [])
    small, smaller = (plan(config, size) for size in (200_000_000, 1_000_000))
    assert 256 < small.tokens_per_batch < 16384 and small.checkpointing == "none" and small.fits
    assert smaller.tokens_per_batch == 256 and smaller.checkpointing == "layers"


@pytest.mark.usefixtures("bare", "unadvised")
def test_the_dtype_of_a_card_is_not_that_of_a_slow_processor(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    config = config_from(asked_of(place), [])
    assert plan(config, GB).settings["model.dtype"] == "bfloat16"


@pytest.mark.usefixtures("bare")
def test_what_would_fill_a_device_to_the_last_byte_does_not_fit(
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asked_of(place, train__tokens_per_batch=512, train__checkpointing="none")
    with monkeypatch.context() as unadvised:
        unadvised.setattr(command, "changes", lambda *_: [])
        needed = plan(config_from(asked, []), GB).peak_memory
        for size, fits in [(needed, False), (int(needed / (1 - MARGIN)) + 1, True)]:
            assert plan(config_from(asked, []), size).fits is fits
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(asked))
    assert main(["plan", str(file), "--device", f"{needed / 1000:.3f}kB"]) == 2
    shown = capsys.readouterr()
    assert "it does not fit" in shown.out and "no time" not in shown.out
    assert "memory: a step needs" in shown.err and "5% are left" in shown.err
    assert "set train.tokens_per_batch=256, which needs" in shown.err  # the least costly that fits
    assert main(["plan", str(file), "--device", "24GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert main(["plan", str(file), "--device", "24"]) == 2
    assert "--device: '24' is no size of a memory" in capsys.readouterr().err


@pytest.mark.usefixtures("unadvised")
def test_layers_that_are_counted_fill_a_card_with_what_tells_of_it(place: Place) -> None:
    """The phases and parts that a reader is shown, of full tuning in bfloat16."""
    planned = plan(config_from(asked_of(place), []), GB)
    step = planned.phases["a step"]
    numbers = step["weights"] // 2
    assert step["masters"] == 4 * numbers and step["averages"] == 8 * numbers
    assert planned.phases["an update"]["gradients"] == 4 * numbers
    assert planned.phases["the comparison before the first step"]["logits and what passes"] > 0
    assert step["the driver"] == command._DRIVER


@pytest.mark.usefixtures("bare", "unadvised")
def test_weights_that_lie_in_files_here_are_on_the_card(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from(asked_of(place, adapter={"r": 2}), [])
    with_room = plan(config, GB)
    monkeypatch.setattr("likelier.training.memory.device_memory", lambda device: 1000)
    without = plan(config, GB)
    assert without.phases["a step"]["weights"] == with_room.phases["a step"]["weights"]
    assert without.settings == with_room.settings


def test_what_cannot_run_on_fake_tensors_is_foretold_from_two_tiny_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(save_tiny(tmp_path / "m"), "full", "float32", layers=False)
    counted = memory.most_alive(policy, batch_of(policy), adds=True)

    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("asks for the value of a tensor")

    monkeypatch.setattr("likelier.commands.needs.most_alive", refuses)
    foretold = _alive(policy, batch_of(policy), adds=True)
    assert foretold["saved"] == pytest.approx(counted["saved"], rel=0.05)
    assert foretold["most"] >= counted["most"]
