"""Frozen weights in half precision under float32: beside plain layers, and in whole runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.families import (
    EXPERT_FAMILIES,
    PADDED_FAMILIES,
    TREE_FAMILIES,
    saved,
    with_lora,
)
from tests.support.numerics import TELLING, distance, gradients
from tests.support.runs import Place, bytes_of, differing, make_place
from tests.support.tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from likelier.base.errors import StoppedEarly
from likelier.batching.batch import lay_out
from likelier.cli import main
from likelier.model import frozen
from likelier.model.adapters import attach_lora
from likelier.model.frozen import (
    StoredEmbedding,
    StoredLinear,
    computing_in,
    dtype_of,
    keep_stored,
    widen,
)
from likelier.model.load import load, quietly
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers
from likelier.reference.fingerprint import reference_identity
from likelier.run import train
from likelier.training.memory import bytes_saved, memory_of

HALVES = (torch.bfloat16, torch.float16)


def twins(bias: bool, stored: torch.dtype, compute: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    """A layer that keeps its weight as stored, and a plain one of the same numbers."""
    kept = nn.Linear(24, 40, bias=bias).to(stored)
    plain = nn.Linear(24, 40, bias=bias).to(compute)
    plain.load_state_dict(kept.state_dict())
    keep_stored(kept, stored, compute)
    plain.requires_grad_(False)
    return kept, plain


def through(layer: nn.Module, input: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the input."""
    input = input.detach().clone().requires_grad_()
    output = layer(input)
    output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output))
    assert input.grad is not None
    return output.detach(), input.grad


@pytest.mark.parametrize("most_cast", [frozen.MOST_CAST, 24 * 7, 1])
@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_and_its_twin(
    bias: bool,
    stored: torch.dtype,
    compute: torch.dtype,
    most_cast: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frozen, "MOST_CAST", most_cast)
    kept, plain = twins(bias, stored, compute)
    assert isinstance(kept, StoredLinear) and kept.weight.dtype is stored
    assert kept.state_dict().keys() == plain.state_dict().keys()
    limit = 1e-14 if compute == torch.float64 else 2e-6
    for shape in [(5, 24), (2, 3, 24), (24,), (0, 24)]:
        input = torch.randn(shape, dtype=compute)
        for ours, theirs in zip(through(kept, input), through(plain, input), strict=True):
            assert ours.shape == theirs.shape and ours.dtype is compute
            assert not ours.numel() or distance(ours, theirs) < limit
    with pytest.raises(TypeError, match=r"met torch\.bfloat16"):
        kept(torch.zeros(1, 24, dtype=torch.bfloat16))


def test_a_kept_weight_that_is_trained_after_all_has_its_gradient() -> None:
    kept, plain = twins(True, torch.bfloat16, torch.float32)
    input = torch.randn(5, 24)
    for layer in (kept, plain):
        layer.requires_grad_(True)
        layer(input).square().sum().backward()
    assert kept.weight.grad is not None and plain.weight.grad is not None
    assert distance(kept.weight.grad.float(), plain.weight.grad) < 2**-7


def saved_by(layer: nn.Module, input: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(input)
    return saved


def test_the_backward_needs_the_stored_weight_and_no_copy() -> None:
    kept, _ = twins(False, torch.bfloat16, torch.float32)
    input = torch.randn(5, 24, requires_grad=True)
    (saved,) = saved_by(kept, input)
    assert saved.data_ptr() == kept.weight.data_ptr() and saved.nbytes == 24 * 40 * 2

    class Naive(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.weight.float())

    kept.__class__ = Naive
    assert any(tensor.nbytes == 24 * 40 * 4 for tensor in saved_by(kept, input))  # what is avoided


# Whole models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family as a bfloat16 checkpoint."""
    return saved(
        tmp_path_factory.mktemp("bfloat16"), (*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES)
    )


@pytest.fixture(scope="module")
def plain_of(folders: dict[str, Path]) -> Any:
    def plain(family: str) -> Policy:
        model = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
        return Policy(model.train(), tiny_tokenizer())

    return plain


def step(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    with policy.running() as scorer:
        logp_E = scorer(lay_out(TELLING, policy.backend))
        logp_E.backward(torch.linspace(1, 2, len(logp_E)))
    return logp_E.detach(), gradients(policy.model)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("family", [*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES])
def test_a_model_gives_what_the_float32_model_gives(
    folders: dict[str, Path], plain_of: Any, family: str, recomputes: bool
) -> None:
    """Values and gradients of fresh adapters; Gemma scales by a number that it rounds when made."""
    kept = load(folders[family], dtype="float32", frozen=True)
    assert kept.dtype is torch.float32
    assert any(isinstance(m, StoredLinear | StoredEmbedding) for m in kept.model.modules())
    # peft warns of, or refuses, some layers of experts and of state spaces.
    targets = "all-linear" if family in TREE_FAMILIES else ["q_proj"]
    kept, plain = with_lora(kept, targets), with_lora(plain_of(family), targets)
    assert kept.backend == plain.backend
    assert kept.scorer.rule == plain.scorer.rule
    for policy in (kept, plain):
        if recomputes:
            checkpoint_layers(policy.causal_lm)
    (ours, our_grads), (theirs, their_grads) = step(kept), step(plain)
    assert ours.dtype is torch.float32
    assert float((ours - theirs).abs().max()) < 1e-5
    assert our_grads.keys() == their_grads.keys() and our_grads
    for name, gradient in our_grads.items():
        assert "lora_" in name and gradient.dtype is torch.float32
        assert distance(gradient, their_grads[name]) < 1e-4, name


def test_nothing_is_saved_that_the_float32_model_does_not_save(
    folders: dict[str, Path], plain_of: Any
) -> None:
    """The weights take half the bytes, and no copy of one waits for the backward."""
    kept = with_lora(load(folders["exaone4"], dtype="float32", frozen=True))
    plain = with_lora(plain_of("exaone4"))
    batch = lay_out(TELLING, kept.backend)
    assert bytes_saved(kept, batch) <= bytes_saved(plain, batch)

    def held(policy: Policy) -> int:
        return sum(p.nbytes for n, p in policy.model.named_parameters() if "lora_" not in n)

    assert held(kept) < 0.51 * held(plain)
    assert memory_of(kept).fixed == memory_of(plain).fixed - held(plain) + held(kept)


def test_a_tied_head_stays_tied(folders: dict[str, Path]) -> None:
    model: Any = load(folders["exaone4"], dtype="float32", frozen=True).causal_lm
    assert isinstance(model.lm_head, StoredLinear)
    assert isinstance(model.model.embed_tokens, StoredEmbedding)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("family", "others"),
    [("exaone4", "Exaone4RMSNorm"), ("gpt2", "Conv1D, LayerNorm"),
     ("gemma3", "Gemma3RMSNorm, Gemma3TextScaledWordEmbedding")],
)  # fmt: skip
def test_what_stays_and_what_does_not_is_said(
    folders: dict[str, Path],
    family: str,
    others: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    load(folders[family], frozen=True)
    said = capsys.readouterr().err
    assert said.startswith("computing in float32: the weights are bfloat16, and this processor")
    assert said.endswith(f"; weights stay bfloat16 in memory, except in {others}\n")
    assert len(said.splitlines()) == 1


def test_nothing_changes_for_other_checkpoints(folders: dict[str, Path]) -> None:
    """bfloat16 that is computed in, and a model whose weights may all be trained."""
    for keywords in ({"frozen": True}, {"dtype": "float32"}):
        model = load(folders["llama"], **keywords).causal_lm  # type: ignore[arg-type]
        assert not any(isinstance(m, StoredLinear | StoredEmbedding) for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())


class Peeking(nn.Module):
    """Reads a layer's weight, as some indexers and state-space layers do."""

    def __init__(self, layer: nn.Linear, how: str):
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, input: Tensor) -> Tensor:
        if self.how == "product":
            return input @ self.layer.weight.T
        return self.layer(input.to(self.layer.weight.dtype))


@pytest.mark.parametrize("how", ["product", "dtype"])
def test_layers_that_read_a_weight_make_all_of_them_wide(
    folders: dict[str, Path], plain_of: Any, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load(folders["llama"], dtype="float32", frozen=True)
    model: Any = policy.causal_lm
    layer = model.model.layers[0].mlp
    layer.up_proj = Peeking(layer.up_proj, how)
    capsys.readouterr()
    policy = with_lora(policy)
    with policy.running() as scorer:
        ours = scorer(lay_out(TELLING, policy.backend))
    assert "all weights are float32" in capsys.readouterr().err
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    plain = with_lora(plain_of("llama"))
    with plain.running() as scorer:
        assert ours.isfinite().all() and len(ours) == len(scorer(lay_out(TELLING, plain.backend)))


def test_widened_weights_are_plain_again(folders: dict[str, Path], plain_of: Any) -> None:
    policy = load(folders["exaone4"], dtype="float32", frozen=True)
    assert widen(policy.model) and not widen(policy.model)
    assert dtype_of(policy.model) is torch.float32
    ours, theirs = policy.model.state_dict(), plain_of("exaone4").model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Adapters


def test_a_fresh_adapter_is_that_of_the_float32_model(
    folders: dict[str, Path], plain_of: Any
) -> None:
    kept = attach_lora(
        load(folders["llama"], dtype="float32", frozen=True), 4, 8, "all-linear", seed=3
    )
    plain = attach_lora(plain_of("llama"), 4, 8, "all-linear", seed=3)
    theirs = dict(plain.model.named_parameters())
    for name, parameter in kept.model.named_parameters():
        if "lora_" in name:
            assert parameter.dtype is torch.float32 and torch.equal(parameter, theirs[name])


def test_a_merged_adapter_is_that_of_the_bfloat16_model(folders: dict[str, Path]) -> None:
    """Merging is peft's: into the weights as they are stored."""
    merged = []
    for dtype in ("float32", "bfloat16"):
        policy = with_lora(load(folders["llama"], dtype=dtype, frozen=True))
        merged.append(policy.model.merge_and_unload().state_dict())  # type: ignore[operator]
    kept, plain = merged
    assert kept.keys() == plain.keys()
    for name, tensor in plain.items():
        assert distance(kept[name].float(), tensor.float()) < 2**-7, name


def test_an_adapter_that_trains_layers_of_the_base_has_them_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import peft

    wanted = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with quietly():
        model: Any = peft.get_peft_model(load(folders["llama"], dtype="float32").model, wanted)
    head = model.base_model.model.lm_head.modules_to_save["default"]
    with torch.no_grad():
        head.weight.add_(1e-5)  # less than bfloat16 tells apart
    model.save_pretrained(tmp_path / "adapter")
    policy = load(tmp_path / "adapter", dtype="float32", frozen=True)
    again = policy.causal_lm.lm_head.modules_to_save["default"]
    assert again.weight.requires_grad and torch.equal(again.weight, head.weight)


def test_log_probs_are_known_by_stored_bytes_and_by_what_computes(
    folders: dict[str, Path],
) -> None:
    def identity(dtype: str, frozen: bool = True) -> str:
        return reference_identity(load(folders["llama"], dtype=dtype, frozen=frozen), False)

    assert identity("float32") == identity("float32")
    assert len({identity("float32"), identity("bfloat16"), identity("float64")}) == 3
    assert identity("float32") != identity("float32", frozen=False)


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        yield make_place(tmp_path_factory.mktemp("place"), rows=12, dtype=torch.bfloat16)


KEPT = "; weights stay bfloat16 in memory, except in Exaone4RMSNorm\n"
LORA: dict[str, Any] = {"kind": "lora", "r": 4}


def test_a_run_on_a_slow_processor(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It computes in float32, says so, passes its preflight, and resumes to the same bytes."""
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    whole = train(place.config("whole", adapter=LORA))
    said = capsys.readouterr().err
    assert "computing in float32" in said and KEPT in said
    record = json.loads((whole.folder / "run.json").read_text("utf-8"))
    assert record["resolved"]["model"]["dtype"] == "float32"
    assert record["preflight"]["unit"] == "an answer"
    assert 1e-4 < record["preflight"]["tolerance"] < 2e-4

    def stop(row: dict) -> None:
        if row["step"] == 3 and "loss" in row:
            raise StoppedEarly("here")

    with pytest.raises(StoppedEarly):
        train(place.config("stopped", adapter=LORA), on_step=stop)
    train(place.config("stopped", adapter=LORA))
    assert differing(bytes_of(place.folder / "stopped"), bytes_of(whole.folder)) == []


def test_scores_and_references_keep_their_weights_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    assert main(["score", str(place.data), "--model", str(place.base)]) == 0
    assert capsys.readouterr().err.count(KEPT) == 1
    other = {"path": str(place.base)}
    train(place.config("referred", reference=other, train__steps=1))
    assert capsys.readouterr().err.count(KEPT) == 1  # the reference; all of the policy is trained


def test_full_tuning_has_float32_masters(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.model.load.multiplies_bfloat16", lambda device: False)
    run = train(place.config("full"))
    trained = load(run.model)
    assert trained.dtype is torch.float32
    finer = [p for p in trained.model.parameters() if not torch.equal(p, p.bfloat16().float())]
    assert finer


# Computing in float32 for a while


def logps_of(policy: Policy) -> Tensor:
    with torch.no_grad(), policy.running("padded") as scorer:
        return scorer(lay_out(TELLING, "padded"))


@pytest.mark.parametrize("lora", [False, True], ids=["bare", "LoRA"])
@pytest.mark.parametrize("family", [*TREE_FAMILIES, *EXPERT_FAMILIES, *PADDED_FAMILIES])
def test_a_model_in_half_precision_computes_in_float32_for_a_while(
    folders: dict[str, Path], plain_of: Any, family: str, lora: bool
) -> None:
    """Afterwards it is what it was: the same memory, no copy of it, and the same log-probs."""
    half = load(folders[family], dtype="bfloat16")
    if lora:
        half = with_lora(half, ["c_attn"] if family == "gpt2" else ["q_proj"])
    before = logps_of(half)
    state = {name: (p.data_ptr(), p.dtype, p.requires_grad) for name, p in named(half)}
    kinds = [(type(m), vars(m).get("compute_dtype")) for m in half.model.modules()]
    assert half.scorer  # found in half precision, and read in float32 here
    try:
        with computing_in(half.causal_lm, torch.float32):
            exact = logps_of(half)
    except (RuntimeError, TypeError):
        assert family in PADDED_FAMILIES
        with computing_in(half.causal_lm, torch.float32, casts=False):
            exact = logps_of(half)
    assert exact.dtype is torch.float32
    with computing_in(half.causal_lm, torch.float32, casts=False):
        assert float((exact - logps_of(half)).abs().max()) < 1e-4
    if not lora and "gemma" not in family:  # which scales by a number that it rounds when made
        assert float((exact - logps_of(plain_of(family))).abs().max()) < 1e-4
    assert float((exact - before).abs().max()) > 1e-4
    assert {name: (p.data_ptr(), p.dtype, p.requires_grad) for name, p in named(half)} == state
    assert [(type(m), vars(m).get("compute_dtype")) for m in half.model.modules()] == kinds
    assert torch.equal(logps_of(half), before)


def named(policy: Policy) -> list[tuple[str, Tensor]]:
    return [*policy.model.named_parameters(), *policy.model.named_buffers()]


@pytest.mark.parametrize("casts", [True, False])
def test_only_what_is_small_is_widened(folders: dict[str, Path], casts: bool) -> None:
    policy = load(folders["llama"], dtype="bfloat16")
    with computing_in(policy.causal_lm, torch.float32, casts=casts):
        wide = [p for p in policy.model.parameters() if p.dtype is torch.float32]
        assert wide and (max(p.ndim for p in wide) == 1) == casts
