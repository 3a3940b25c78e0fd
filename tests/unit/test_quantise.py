"""Weights in four bits: beside the plain layers that they unpack to, and in whole runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from tests.support.families import TREE_FAMILIES, saved, tiny_model
from tests.support.numerics import TELLING, distance, gradients
from tests.support.runs import Place, make_place
from tests.support.tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from likelier.base import environment
from likelier.base.errors import ConfigError, DataError
from likelier.batching.batch import lay_out
from likelier.cli import main
from likelier.commands.plan import plan
from likelier.config import config_from, live
from likelier.generation.sample import sample
from likelier.model.adapters import attach_lora
from likelier.model.frozen import widen
from likelier.model.load import load, quietly
from likelier.model.policy import Policy
from likelier.model.quantise import describe_packed, numbers_of, settle, unpack
from likelier.model.recompute import checkpoint_layers
from likelier.reference.fingerprint import model_identity
from likelier.run import train
from likelier.training.memory import memory_of, operations_of

Linear4bit = bitsandbytes.nn.Linear4bit


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family as a bfloat16 checkpoint."""
    return saved(tmp_path_factory.mktemp("bfloat16"), TREE_FAMILIES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("LIKELIER_CACHE", str(cache))
        yield make_place(tmp_path_factory.mktemp("place"), rows=18, dtype=torch.bfloat16)


def packed_layers(policy: Policy) -> dict[str, Any]:
    return {n: m for n, m in policy.model.named_modules() if isinstance(m, Linear4bit)}


def packed_bytes(policy: Policy) -> dict[str, Tensor]:
    """Everything of the packed weights: bytes, scales and what else unpacks them."""
    found = {}
    for name, layer in packed_layers(policy).items():
        name = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        found |= {f"{name}.{k}": v.clone() for k, v in layer.state_dict().items()}
    return found


def unpacked(weight: Any) -> Tensor:
    """By the formula: a code a number, times the scale of its block, itself such a product."""
    state = weight.quant_state
    nested = state.state2.code[state.absmax.long()]
    blocks = torch.arange(len(nested)) // state.state2.blocksize
    scale = nested * state.state2.absmax[blocks] + state.offset
    packed = weight.data.flatten().long()
    code = state.code[torch.stack([packed >> 4, packed & 15], -1).flatten()]
    numbers = state.shape.numel()
    blocks = torch.arange(numbers) // state.blocksize
    return (code[:numbers] * scale[blocks]).view(state.shape)


@pytest.mark.parametrize("inputs", [16, 32, 48, 64, 96, 33, 128, 1000])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_unpacks_by_the_formula(inputs: int, stored: torch.dtype) -> None:
    """Also where a row is not a number of blocks, and where the last block is short."""
    weight = torch.randn(7, inputs, generator=torch.Generator().manual_seed(inputs)).to(stored)
    packed = bitsandbytes.nn.Params4bit(weight, quant_type="nf4").to("cpu")
    assert numbers_of(packed) == 7 * inputs
    expected = unpacked(packed)
    assert float((expected - weight.float()).abs().max()) < 0.16 * float(weight.abs().max())
    for dtype, limit in ((torch.float32, 2e-7), (torch.float64, 2e-7), (torch.bfloat16, 2**-8)):
        found = unpack(packed, dtype)
        assert found.dtype is dtype and found.shape == weight.shape
        assert distance(found.double(), expected.double()) < limit


def twin_of(policy: Policy) -> Policy:
    """The same model with plain layers of the weights as they unpack."""
    assert policy.path is not None
    twin = load(policy.path, dtype="float32")
    for name, layer in packed_layers(policy).items():
        other: Any = twin.model.get_submodule(name)
        weight = unpack(layer.weight, torch.float32)
        other.weight = nn.Parameter(weight if type(other) is nn.Linear else weight.T)
    return twin


def double(policy: Policy) -> None:
    """Everything in float64 but packed weights, which unpack to it."""
    widen(policy.model)
    for tensor in (*policy.model.parameters(), *policy.model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()


def with_lora(policy: Policy) -> Policy:
    """With adapters that do something."""
    policy = attach_lora(policy, r=4, alpha=8, targets="all-linear", seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return policy


def step(policy: Policy, backend: str | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-prob of every completion, and the gradients of a sum of them."""
    policy.model.zero_grad()
    batch = lay_out(TELLING, backend or policy.backend)
    with policy.running(backend) as scorer:
        logp_R = batch.completion_logps(scorer(batch))
        logp_R.backward(torch.linspace(1, 2, len(logp_R), dtype=logp_R.dtype))
    return logp_R.detach(), gradients(policy.model)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", TREE_FAMILIES)
def test_a_model_gives_what_its_unpacked_twin_gives(
    folders: dict[str, Path], family: str, dtype: torch.dtype, recomputes: bool
) -> None:
    """In a tree and in padded rows; values, and the gradients of adapters."""
    packed = load(folders[family], dtype="float32", quantise="nf4")
    assert packed.dtype is torch.float32 and packed_layers(packed)
    twin = twin_of(packed)
    policies = with_lora(packed), with_lora(twin)
    for policy in policies:
        if dtype == torch.float64:
            double(policy)
        if recomputes:
            checkpoint_layers(policy.causal_lm)
    ours, our_grads = step(policies[0])
    for theirs, their_grads in (step(policies[1]), step(policies[0], "padded")):
        assert float((ours - theirs).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-13)
        assert our_grads.keys() == {n for n in their_grads if "lora_" in n}
        for name, gradient in our_grads.items():
            assert distance(gradient, their_grads[name]) < (
                1e-4 if dtype == torch.float32 else 1e-6
            ), name
    again, same_grads = step(policies[0])
    assert torch.equal(again, ours)
    assert all(torch.equal(same_grads[name], g) for name, g in our_grads.items())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_what_the_unpacked_twin_gives(folders: dict[str, Path], dtype: str) -> None:
    packed = load(folders["llama"], dtype=dtype, quantise="nf4")
    assert packed.device.type == "cuda"
    twin = load(folders["llama"], dtype=dtype)
    for name, layer in packed_layers(packed).items():
        other: Any = twin.model.get_submodule(name)
        other.weight = nn.Parameter(unpack(layer.weight, twin.dtype))
    logps = []
    for policy in (packed, twin):
        batch = lay_out(TELLING, policy.backend).to(policy.device)
        with torch.no_grad(), policy.running() as scorer:
            logps.append(batch.completion_logps(scorer(batch)).double().cpu())
    assert float((logps[0] - logps[1]).abs().max()) < (1e-3 if dtype == "float32" else 0.5)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_nothing_that_runs_a_model_changes_its_packed_weights(
    place: Place, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes repacks them in an evaluation, where the processor has AVX-512 bfloat16."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: has_bfloat16)
    for dtype in ("float32", "bfloat16"):
        policy = load(place.base, dtype=dtype, quantise="nf4")
        before, identity = packed_bytes(policy), model_identity(policy.causal_lm)
        step(with_lora(policy))
        policy.model.eval()
        with torch.no_grad(), policy.running() as scorer:
            scorer(lay_out(TELLING, policy.backend))
        sample(policy.model, policy.tokenizer, ["5 6 7"], temperature=0.0, max_new_tokens=3, seed=0)
        policy.causal_lm(torch.arange(5)[None])
        after = packed_bytes(policy)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert model_identity(policy.causal_lm, base_only=True) == identity
        for name, layer in packed_layers(policy).items():
            assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False), name


ASKED = "def get_kernel(*given, **named):\n    raise SystemExit('the Hub was asked')\n"
ASKS = "try:\n  from kernels import get_kernel\n  get_kernel()\nexcept ImportError:\n  pass\n"


@pytest.mark.parametrize("stand_in", [False, True])
def test_importing_asks_the_hub_for_no_kernel(tmp_path: Path, stand_in: bool) -> None:
    """The library itself asks only on some processors; what stands in for it, everywhere."""
    (tmp_path / "kernels.py").write_text(ASKED)
    if stand_in:
        (tmp_path / "bitsandbytes.py").write_text(ASKS)
    script = (
        "from likelier.base.environment import import_bitsandbytes\n"
        "found = import_bitsandbytes()\n"
        "assert found.__name__ == 'bitsandbytes' and import_bitsandbytes() is found\n"
        "import kernels\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"
    command = [sys.executable, "-c", script]
    child = subprocess.run(command, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")


def test_plain_and_packed_runs_share_a_process(folders: dict[str, Path]) -> None:
    """The library is hidden from peft while plain weights are adapted, and found for others."""
    script = (
        "import sys\n"
        "from likelier.model.adapters import attach_lora\n"
        "from likelier.model.load import load\n"
        "def kinds(how):\n"
        f"    policy = load({str(folders['llama'])!r}, quantise=how)\n"
        "    model = attach_lora(policy, 2, 4, 'all-linear', 0).model\n"
        "    names = {type(m).__name__ for m in model.modules() if hasattr(m, 'lora_A')}\n"
        "    return names, 'bitsandbytes' in sys.modules\n"
        "found = [kinds('none'), kinds('nf4'), kinds('none')]\n"
        "assert found == [({'Linear'}, False), ({'Linear4bit'}, True), ({'Linear'}, True)], found\n"
        "from peft.import_utils import is_bnb_4bit_available\n"
        "assert is_bnb_4bit_available()\n"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_the_identity_is_of_the_packed_weights(folders: dict[str, Path]) -> None:
    def identity(policy: Policy) -> str:
        return model_identity(policy.causal_lm, base_only=True)

    packed = load(folders["llama"], quantise="nf4")
    first = identity(packed)
    assert first == identity(load(folders["llama"], quantise="nf4"))
    assert first != identity(load(folders["llama"]))
    assert first == identity(attach_lora(packed, 2, 4, "all-linear", seed=0))
    layer = next(iter(packed_layers(packed).values()))
    for tensor in (layer.weight.data, layer.weight.quant_state.absmax):
        tensor.view(-1)[0] ^= 1
        assert identity(packed) != first
        tensor.view(-1)[0] ^= 1
    layer.weight.quant_state.offset += 1e-3
    assert identity(packed) != first


def test_a_packed_number_counts_as_a_number(folders: dict[str, Path]) -> None:
    packed, plain = load(folders["llama"], quantise="nf4"), load(folders["llama"])
    numbers = [sum(map(numbers_of, p.model.parameters())) for p in (packed, plain)]
    assert numbers[0] == numbers[1]
    batch = lay_out(TELLING, packed.backend)
    assert operations_of(batch, packed.causal_lm) == operations_of(batch, plain.causal_lm)
    attach_lora(plain, 2, 4, "all-linear", seed=0)
    for parameter in plain.model.parameters():
        parameter.requires_grad_(False)
    assert memory_of(packed).fixed < 0.5 * memory_of(plain).fixed
    scales = [layer.weight.quant_state.absmax for layer in packed_layers(packed).values()]
    held = [*packed.model.parameters(), *scales]
    assert memory_of(packed).fixed == sum(tensor.nbytes for tensor in held)


def test_a_plan_of_a_packed_base(place: Place) -> None:
    lora = {"kind": "lora", "r": 2}
    plans = [
        plan(config_from(place.config("none", adapter=lora, model__quantise=quantise)))
        for quantise in ("none", "nf4")
    ]
    assert plans[0].disk == plans[1].disk  # of the adapter alone
    assert plans[0].tokens == plans[1].tokens


def test_what_is_packed_is_said(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    load(folders["llama"], dtype="float32", quantise="nf4")
    assert capsys.readouterr().err == (
        "79% of the weights are held in four bits (NF4); "
        "weights stay bfloat16 in memory, except in LlamaRMSNorm\n"
    )


# Configs and what is missing


def test_it_is_a_key_of_adapters_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    lora = {"kind": "lora"}
    given = config_from(place.config("run", model__quantise="nf4", adapter=lora))
    assert live(given)["model"]["quantise"] == "nf4"
    assert "quantise" not in live(config_from(place.config("run")))["model"]
    with pytest.raises(ConfigError, match=r"quantise: weights in four bits cannot be trained\n"):
        config_from(place.config("run", model__quantise="nf4"))
    with pytest.raises(ConfigError, match=r"use model\.dtype: float32"):
        config_from(
            place.config("run", model__quantise="nf4", adapter=lora, model__dtype="float64")
        )


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes is not installed."""
    known = environment._installed
    monkeypatch.setattr(
        environment, "_installed", lambda name: None if name == "bitsandbytes" else known(name)
    )


def test_the_missing_library_is_named_before_torch_is_imported(
    place: Place, missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={place.base}", f"data.train={place.data}", "model.quantise=nf4"]
    assert main(["train", *words, f"out={place.folder / 'none'}"]) == 2
    said = capsys.readouterr().err
    assert "model.quantise: needs bitsandbytes>=0.50, which is not installed\n" in said
    assert "run: pip install 'likelier[quantise]'\n" in said
    with pytest.raises(ConfigError, match="which is not installed"):
        load(place.base, quantise="nf4")


def test_an_old_library_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_installed", lambda name: "0.40")
    with pytest.raises(ConfigError, match=r"needs bitsandbytes>=0\.50, not 0\.40"):
        load(place.base, quantise="nf4")


def test_a_model_without_linear_layers_is_not_packed(tmp_path: Path) -> None:
    """None of what is there is a linear layer by its type."""
    with pytest.raises(ConfigError, match="has no linear layers but its head"):
        describe_packed(tiny_model("llama"))


# Bases that were quantised before


@pytest.fixture(scope="module")
def quantised(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as others save it: packed, with another dtype to compute in."""
    folder = tmp_path_factory.mktemp("quantised") / "base"
    wanted = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(
            place.base, quantization_config=wanted, dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_base_is_taken_as_it_is(quantised: Path, dtype: str) -> None:
    policy = load(quantised, dtype=dtype, frozen=True)
    layers = packed_layers(policy)
    assert len(layers) == 14
    for layer in layers.values():
        assert layer.weight.quant_state.dtype == layer.compute_dtype == policy.dtype
    before = packed_bytes(policy)
    policy = with_lora(policy)
    (ours, grads), (theirs, others) = step(policy), step(policy, "padded")
    assert float((ours - theirs).abs().max()) < (1e-5 if dtype == "float32" else 0.5)
    assert grads and grads.keys() == others.keys()
    after = packed_bytes(policy)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_quantised_base_is_trained_by_an_adapter_only(
    quantised: Path, place: Place, tmp_path: Path
) -> None:
    path = {"model__path": str(quantised), "train__steps": 1}
    with pytest.raises(ConfigError, match=r"quantised \(bitsandbytes\), so they cannot be trained"):
        train(place.config(tmp_path / "full", **path))
    lora = {"kind": "lora", "r": 2}
    with pytest.raises(
        ConfigError, match=r"model\.quantise: has no effect: the weights are quanti"
    ):
        train(place.config(tmp_path / "twice", **path, adapter=lora, model__quantise="nf4"))
    run = train(place.config(tmp_path / "run", **path, adapter=lora))
    described = json.loads((run.model / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(quantised)


def with_method(folder: Path, to: Path, **described: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["quantization_config"] = described
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("method", "packages"), [("gptq", "optimum gptqmodel"), ("awq", "gptqmodel")]
)
def test_the_library_of_other_quantised_bases_is_named(
    folders: dict[str, Path], tmp_path: Path, method: str, packages: str
) -> None:
    base = with_method(folders["llama"], tmp_path / "base", quant_method=method, bits=4)
    with pytest.raises(ConfigError) as found:
        load(base, frozen=True)
    needed = packages.replace(" ", " and ")
    assert str(found.value).splitlines() == [
        f"{base}: its weights are quantised ({method}), and to read them needs {needed}",
        f"  run: pip install {packages}",
    ]
    assert found.value.exit_code == 2


def test_a_method_that_nobody_knows_quantises_nothing(place: Place, tmp_path: Path) -> None:
    """transformers leaves it alone, and the weights are numbers as they are."""
    base = with_method(place.base, tmp_path / "base", quant_method="unheard-of")
    train(place.config(tmp_path / "run", model__path=str(base), train__steps=1))


def test_a_quantised_base_without_its_library(quantised: Path, missing: None) -> None:
    with pytest.raises(ConfigError, match=f"{quantised}: needs bitsandbytes>=0.50, which is not"):
        load(quantised, frozen=True)


def test_weights_that_are_not_packed_as_config_says(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = with_method(
        folders["llama"], tmp_path / "base", quant_method="bitsandbytes", load_in_4bit=True
    )
    with pytest.raises(DataError, match=r"proj.weight"):
        load(base, frozen=True)


SPOILT: dict[str, Any] = {
    "another shape": lambda w, s: setattr(s, "shape", torch.Size((32, 64))),
    "blocks of no known size": lambda w, s: setattr(s, "blocksize", 0),
    "numbers of no known kind": lambda w, s: setattr(s, "quant_type", "evil"),
    "bytes of": lambda w, s: setattr(w, "data", w.data[:7]),
    "scales of torch": lambda w, s: setattr(s, "absmax", s.absmax[:3]),
    "levels of torch": lambda w, s: setattr(s, "code", s.code[:3]),
    "scales of scales of": lambda w, s: setattr(s.state2, "absmax", s.state2.absmax[:0]),
    "levels of scales of": lambda w, s: setattr(s.state2, "code", s.state2.code.double()),
    "offset of scales that are not finite": lambda w, s: setattr(
        s, "offset", torch.tensor(torch.nan)
    ),
}


@pytest.mark.parametrize("said", SPOILT)
def test_parts_that_do_not_fit_are_refused_before_anything_reads_them(
    folders: dict[str, Path], said: str
) -> None:
    """bitsandbytes would read beside them, or end the process."""
    model = load(folders["llama"], dtype="float32", quantise="nf4").causal_lm
    weight: Any = next(p for p in model.parameters() if hasattr(p, "quant_state"))
    SPOILT[said](weight, weight.quant_state)
    with pytest.raises(DataError, match=f"weight is packed in parts that do not fit: .*{said}"):
        settle(model, torch.float32, "here")
