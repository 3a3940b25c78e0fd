"""Weights that stay in their files and are brought in a layer at a time, beside those in memory."""

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.families import PADDED_FAMILIES, TREE_FAMILIES, saved, tiny_model, with_lora
from tests.support.numerics import TELLING, gradients
from tests.support.runs import Place, bytes_of, differing, make_place
from tests.support.tiny import tiny_tokenizer
from torch import Tensor

from likelier.base.errors import ConfigError, StoppedEarly
from likelier.batching.batch import lay_out
from likelier.model import stream
from likelier.model.adapters import made_again
from likelier.model.frozen import StoredLinear, keep_stored, widen
from likelier.model.load import _to_gpu, load, must_be_on_one_device
from likelier.model.policy import Policy
from likelier.model.recompute import checkpoint_layers
from likelier.model.running import deterministic
from likelier.model.stream import in_file, layers_of, overfills, stream_to, streamed_weights
from likelier.reference.fingerprint import model_identity
from likelier.run import train
from likelier.training.memory import held

CPU = torch.device("cpu")
FAMILIES = (*TREE_FAMILIES, *PADDED_FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family as a bfloat16 checkpoint."""
    return saved(tmp_path_factory.mktemp("bfloat16"), FAMILIES)


class Bringing:
    """Copies weights from where they were put aside: where they lie, they are spoilt."""

    def __init__(self, model: Any):
        aside = {m.weight for m in model.modules() if isinstance(m, StoredLinear)}
        self.true: dict[int, Tensor] = {}
        for weight in aside:
            true, weight.data = weight.detach(), torch.full_like(weight, torch.nan)
            self.true[weight.data_ptr()] = true
        self.calls: list[list[int]] = []
        self.alive: dict[int, weakref.ref[Tensor]] = {}
        self.most_alive = 0

    def __call__(self, weights: Sequence[Tensor]) -> Mapping[int, Tensor]:
        self.calls.append([weight.data_ptr() for weight in weights])
        copies = {at: self.true[at].clone() for at in self.calls[-1]}
        self.alive |= {number: weakref.ref(copy) for number, copy in copies.items()}
        alive = sum(ref() is not None for ref in self.alive.values())
        self.most_alive = max(self.most_alive, alive)
        return copies


def streamed(folder: Path, dtype: str) -> tuple[Policy, Bringing]:
    """A model whose layers' weights are brought, with a fresh adapter on it."""
    policy = load(folder, dtype=dtype, frozen=True)
    if policy.dtype == torch.bfloat16:
        keep_stored(policy.causal_lm, torch.bfloat16, torch.bfloat16)
    inside = torch.nn.ModuleList(layers_of(policy.model))  # the head stays as it is
    bringing = Bringing(inside)
    stream_to(policy.causal_lm, CPU, bringing)
    return with_lora(policy, "all-linear"), bringing


def step(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    with made_again(policy.causal_lm, policy.dtype), policy.running() as scorer:
        logp_E = scorer(lay_out(TELLING, policy.backend))
        logp_E.backward(torch.linspace(1, 2, len(logp_E)))
    return logp_E.detach(), gradients(policy.model)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "layers-again"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("family", [f for f in TREE_FAMILIES if f != "gpt2"])
def test_a_step_is_the_resident_one_to_the_bit(
    folders: dict[str, Path], family: str, dtype: str, again: bool
) -> None:
    """Also what a layer's bias adds, and what runs once more in the backward."""
    ours, bringing = streamed(folders[family], dtype)
    theirs = with_lora(load(folders[family], dtype=dtype, frozen=True, stream="never"))
    assert ours.backend == theirs.backend
    for policy in (ours, theirs):
        if again:
            checkpoint_layers(policy.causal_lm)
    bringing.calls.clear()
    (our_logps, our_grads), (their_logps, their_grads) = step(ours), step(theirs)
    assert our_logps.isfinite().all() and torch.equal(our_logps, their_logps)
    assert our_grads.keys() == their_grads.keys() and our_grads
    for name, gradient in our_grads.items():
        assert torch.equal(gradient, their_grads[name]), name
    layers = len(layers_of(ours.causal_lm))
    whole = [call for call in bringing.calls if len(call) > 1]
    # Up once; down once, and the last layer's copies are there still.
    assert len(whole) <= 2 * layers - 1 + (ours.backend != "segments")


def test_biases_are_added_as_a_plain_layer_adds_them() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        plain = torch.nn.Linear(24, 40).to(dtype)
        ours = torch.nn.Linear(24, 40).to(dtype)
        ours.load_state_dict(plain.state_dict())
        keep_stored(ours, dtype, dtype)
        assert isinstance(ours, StoredLinear)
        ours.here = lambda weight: weight.clone()
        plain.weight.requires_grad_(False)
        ours.bias.requires_grad_()
        for shape in [(5, 24), (2, 3, 24), (24,), (0, 24)]:
            inputs = [torch.linspace(-1, 1, 24, dtype=dtype).expand(shape).clone() for _ in "ab"]
            outputs = [
                layer(input.requires_grad_())
                for layer, input in zip((ours, plain), inputs, strict=True)
            ]
            for output in outputs:
                output.backward(torch.full_like(output, 0.7))
            assert torch.equal(*outputs)
            assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
        assert torch.equal(ours.bias.grad, plain.bias.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "layers-again"])
def test_one_layer_after_the_other_is_brought_once_a_sweep(
    folders: dict[str, Path], again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up in the forward, down in the backward; never more than two layers' copies at a time."""
    monkeypatch.setattr(stream, "ThreadPoolExecutor", lambda *_: SimpleNamespace(submit=_at_once))
    policy, bringing = streamed(folders["exaone4-sliding"], "float32")
    if again:
        checkpoint_layers(policy.causal_lm)
    assert policy.backend == "segments"
    numbers = {
        module.base_layer.weight.data_ptr(): at
        for at, layer in enumerate(layers_of(policy.causal_lm))
        for module in layer.modules()
        if hasattr(module, "base_layer")
    }
    step(policy)  # whatever was made ready before belongs to this one
    bringing.calls.clear()
    gc.collect()
    bringing.most_alive = 0
    step(policy)
    order = [{numbers[one] for one in call} for call in bringing.calls if len(call) > 1]
    assert order == [{1}, {2}, {3}, {2}, {1}, {0}]  # the first is there from the step before
    assert bringing.most_alive <= 2 * 7


def _at_once(function: Any, *given: Any) -> Any:
    made = function(*given)
    return SimpleNamespace(result=lambda: made)


def test_what_does_not_lie_apart_is_moved_and_a_step_runs_there(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, which refuse those of another device."""
    monkeypatch.setattr("likelier.model.policy._tree_backends", lambda policy: ("dense",))
    policy = with_lora(load(folders["llama"], dtype="float32", frozen=True))
    assert policy.backend == "dense" and policy.scorer  # both compare values
    meta = torch.device("meta")
    size = stream_to(policy.causal_lm, meta, lambda some: {w.data_ptr(): w.to(meta) for w in some})
    apart = streamed_weights(policy.model)
    weights = list(policy.model.parameters())
    assert size == sum(p.nbytes for p in weights if id(p) in apart) > 0
    assert all(p.is_meta == (id(p) not in apart) for p in weights)
    must_be_on_one_device(policy.model, "here")
    batch = lay_out(TELLING, policy.backend).to(meta)
    with policy.running() as scorer:
        scorer(batch).sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in weights if p.requires_grad)


def test_an_adapter_computes_where_the_weights_are_brought(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = with_lora(load(folders["llama"], frozen=True))
    trained.model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    meta = torch.device("meta")

    def elsewhere(model: Any) -> None:
        keep_stored(model, torch.bfloat16, torch.bfloat16)
        stream_to(model, meta, lambda some: {w.data_ptr(): w.to(meta) for w in some})

    monkeypatch.setattr("likelier.model.load.read_ahead", elsewhere)
    loaded = load(tmp_path / "adapter", dtype="bfloat16", frozen=True)
    fresh = with_lora(load(folders["llama"], dtype="bfloat16", frozen=True))
    for policy in (loaded, fresh):
        matrices = [p for name, p in policy.model.named_parameters() if "lora_" in name]
        assert matrices and all(p.is_meta for p in matrices)


def test_what_is_brought_is_not_made_wide(folders: dict[str, Path]) -> None:
    policy, _ = streamed(folders["llama"], "float32")
    assert not widen(policy.model) and policy.dtype is torch.float32


def test_the_weights_are_known_by_the_same_hash(folders: dict[str, Path]) -> None:
    resident = load(folders["llama"], dtype="float32", frozen=True, stream="never").causal_lm
    model = load(folders["llama"], dtype="float32", frozen=True).causal_lm
    stream_to(model, CPU, lambda some: {w.data_ptr(): w.clone() for w in some})
    assert model_identity(model) == model_identity(resident)


# On a GPU


def test_a_gpu_streams_what_it_does_not_hold(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, made = torch.device("meta"), []
    monkeypatch.setattr(stream, "_copying_to", lambda device: made.append(device))
    for does_not_fit, may in ((False, True), (True, False), (True, True)):
        model = load(folders["llama"], dtype="bfloat16", frozen=True).causal_lm
        monkeypatch.setattr("likelier.model.load.overfills", lambda *_, over=does_not_fit: over)
        said = _to_gpu(model, meta, may)
        lies_apart = streamed_weights(model)
        assert bool(lies_apart) == (does_not_fit and may) == bool(said) == bool(made)
        assert all(p.is_meta or id(p) in lies_apart for p in model.parameters())
    assert said[0].endswith("GiB of weights are brought to the GPU layer by layer, which is slow")


def test_a_gpu_has_to_leave_room_for_training(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders["llama"]).causal_lm
    held = sum(p.nbytes for p in model.parameters())
    for free, expected in ((held, True), (2 * held, False)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _, free=free: (free, 10 * free))
        assert overfills(model, torch.device("cuda")) == expected
    assert not overfills(model, CPU)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gpu_gives_the_bits_of_a_model_that_it_holds(
    folders: dict[str, Path], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for does_not_fit in (True, False):
        monkeypatch.setattr("likelier.model.load.overfills", lambda *_, over=does_not_fit: over)
        policy = with_lora(load(folders["llama"], dtype=dtype, frozen=True))
        assert policy.device.type == "cuda"
        assert bool(streamed_weights(policy.model)) == does_not_fit
        batch = lay_out(TELLING, policy.backend).to(policy.device)
        with deterministic(True), policy.running() as scorer:
            logp_E = scorer(batch)
            logp_E.sum().backward()
        found.append([logp_E.detach(), *gradients(policy.model).values()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


# On a CPU


def test_weights_that_keep_their_dtype_stay_in_their_files(folders: dict[str, Path]) -> None:
    for keywords in ({"dtype": "bfloat16"}, {"dtype": "float32", "frozen": True}):
        model = load(folders["llama"], **keywords).causal_lm  # type: ignore[arg-type]
        matrices = [p for p in model.parameters() if p.ndim == 2]
        assert matrices and all(in_file(p) and p.dtype is torch.bfloat16 for p in matrices)
    wide = load(folders["llama"], dtype="float32").causal_lm
    assert not any(map(in_file, wide.parameters()))


def test_a_file_that_changes_does_not_reach_a_model_that_never_streams(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    never, auto = (load(tmp_path, frozen=True, stream=how).causal_lm for how in ("never", "auto"))
    before = {name: tensor.clone() for name, tensor in never.state_dict().items()}
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-64, 2)
        file.write(b"\x11" * 64)
    assert all(torch.equal(never.state_dict()[name], before[name]) for name in before)
    assert not all(torch.equal(auto.state_dict()[name], before[name]) for name in before)


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The ranges of memory of which the system was told that they will be needed."""
    heard: list[tuple[int, int]] = []

    def advise(start: Any, length: Any, advice: int) -> int:
        assert advice == 3 and start.value % 4096 == 0  # MADV_WILLNEED, of whole pages
        heard.append((start.value, start.value + length.value))
        return 0

    monkeypatch.setattr(stream.ctypes, "CDLL", lambda name: SimpleNamespace(madvise=advise))
    yield heard


def test_the_next_layer_is_read_ahead(
    folders: dict[str, Path], advised: list[tuple[int, int]]
) -> None:
    policy = load(folders["exaone4-sliding"], dtype="float32", frozen=True)
    policy = with_lora(policy)
    assert policy.backend
    advised.clear()
    step(policy)
    layers = layers_of(policy.causal_lm)
    of_layer = {
        (p.data_ptr(), p.data_ptr() + p.nbytes): at
        for at, layer in enumerate(layers)
        for p in layer.parameters()
        if in_file(p)
    }
    order = []
    for low, high in advised:
        found = {at for (start, end), at in of_layer.items() if low <= start and end == high}
        order += [at for at in found if order[-1:] != [at]]
    assert order == [1, 2, 3, 2, 1, 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        yield make_place(tmp_path_factory.mktemp("place"), rows=12, dtype=torch.bfloat16)


def test_a_run_gives_the_same_bytes_wherever_its_weights_lie(place: Place) -> None:
    """A run that stopped goes on with the other: where they lie is no part of what a run is."""

    def config(out: str, how: str) -> dict[str, Any]:
        model = {"path": str(place.base), "dtype": "float32", "stream": how}
        return place.config(out, model=model, adapter={"kind": "lora", "r": 4})

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3 and "loss" in row:
            raise StoppedEarly("here")

    whole = train(config("auto", "auto"))
    with pytest.raises(StoppedEarly):
        train(config("never", "never"), on_step=stop)
    train(config("never", "auto"))
    differ = differing(bytes_of(place.folder / "never"), bytes_of(whole.folder))
    assert set(differ) == {"config.yaml", "adapter/README.md", "adapter/MANIFEST.json"}


def test_a_model_handed_over_lies_where_it_lies(place: Place) -> None:
    given = load(place.base)
    config = place.config("given", model={"stream": "never"})
    with pytest.raises(ConfigError, match="was handed over"):
        train(config, model=given.model, tokenizer=given.tokenizer)


# Counted


def test_weights_in_files_count_for_half_of_the_memory_at_most(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no room is read again: a model larger than the memory is no reason to refuse."""
    policy = load(folders["llama"], dtype="bfloat16", frozen=True)
    weights = sum(p.nbytes for p in policy.model.parameters())
    assert all(map(in_file, policy.model.parameters()))
    assert held(policy)["weights"] == weights
    monkeypatch.setattr("likelier.training.memory.device_memory", lambda device: weights)
    assert held(policy)["weights"] == weights // 2
    never = load(folders["llama"], dtype="bfloat16", frozen=True, stream="never")
    assert held(never)["weights"] == weights


def test_of_weights_that_are_brought_two_layers_count(folders: dict[str, Path]) -> None:
    policy, _ = streamed(folders["exaone4-sliding"], "bfloat16")
    apart = streamed_weights(policy.model)
    named = dict(policy.causal_lm.model.layers[0].named_parameters())
    layer = sum(p.nbytes for name, p in named.items() if name.endswith("base_layer.weight"))
    others = sum(p.nbytes for p in policy.model.parameters() if id(p) not in apart)
    assert held(policy)["weights"] == others + 2 * layer > 0
