"""A merged model gives what base and adapter gave together, whatever the base lay in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.families import EXPERT_FAMILIES, TREE_FAMILIES, saved, with_lora
from tests.support.numerics import TELLING
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from likelier.base.errors import ConfigError
from likelier.batching.batch import lay_out
from likelier.export.merge import save_merged
from likelier.model.load import load, quietly
from likelier.model.policy import Policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family as a bfloat16 checkpoint."""
    return saved(tmp_path_factory.mktemp("bfloat16"), (*TREE_FAMILIES, *EXPERT_FAMILIES))


def logps(policy: Policy) -> Tensor:
    with torch.no_grad(), policy.running() as scorer:
        return scorer(lay_out(TELLING, policy.backend)).double()


def stirred(policy: Policy, scale: float = 0.1) -> Policy:
    """Adapters that change something: fresh ones change nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("quantise", ["none", "nf4"])
@pytest.mark.parametrize("family", [*TREE_FAMILIES, *EXPERT_FAMILIES])
def test_it_gives_what_base_and_adapter_gave(
    folders: dict[str, Path], family: str, quantise: Any, tmp_path: Path
) -> None:
    if quantise == "nf4" and family == "gpt2":
        pytest.skip("has no linear layers but its head")
    targets = "all-linear" if family in TREE_FAMILIES else ["q_proj"]
    base = load(folders[family], dtype="float32", frozen=True, quantise=quantise)
    before = logps(base)
    policy = stirred(with_lora(base, targets))
    there = logps(policy)
    assert float((there - before).abs().max()) > 1e-2
    save_merged(policy, torch.float32, tmp_path / "merged")
    merged = load(tmp_path / "merged", dtype="float32")
    assert not merged.has_adapter and merged.dtype is torch.float32
    assert not hasattr(merged.causal_lm.config, "quantization_config")
    assert float((logps(merged) - there).abs().max()) < 1e-4  # rounding differs by processor
    assert merged.tokenizer.get_vocab() == policy.tokenizer.get_vocab()


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_rounding_comes_once_and_last(
    folders: dict[str, Path], quantise: Any, tmp_path: Path
) -> None:
    """In bfloat16 every weight is the float32 one, rounded."""
    policy = stirred(
        with_lora(load(folders["llama"], dtype="float32", frozen=True, quantise=quantise))
    )
    tensors = []
    for dtype in (torch.float32, torch.bfloat16):
        save_merged(policy, dtype, tmp_path / str(dtype))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(dtype), dtype="auto")
        assert model.dtype is dtype
        tensors.append(model.state_dict())
    exact, rounded = tensors
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["q_proj"]])
def test_a_tied_head_is_written_apart_only_where_it_differs(
    folders: dict[str, Path], targets: list[str], tmp_path: Path
) -> None:
    policy = stirred(with_lora(load(folders["exaone4"], dtype="float32", frozen=True), targets))
    save_merged(policy, torch.float32, tmp_path / "merged")
    merged: Any = load(tmp_path / "merged", dtype="float32").causal_lm
    is_tied = merged.lm_head.weight is merged.model.embed_tokens.weight
    assert is_tied == merged.config.tie_word_embeddings == (targets == ["q_proj"])
    there = logps(policy)
    assert float((logps(load(tmp_path / "merged", dtype="float32")) - there).abs().max()) < 1e-4


def adapted(folder: Path, **wanted: Any) -> Policy:
    import peft

    policy = load(folder, dtype="float32")
    with quietly():
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], **wanted)
        model = peft.get_peft_model(policy.causal_lm, config)
    return Policy(model, policy.tokenizer)


def test_layers_that_were_trained_whole_take_the_place_of_the_bases(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = stirred(adapted(folders["llama"], modules_to_save=["lm_head", "norm"]))
    there = logps(policy)
    save_merged(policy, torch.float32, tmp_path / "merged")
    assert float((logps(load(tmp_path / "merged", dtype="float32")) - there).abs().max()) < 1e-4


@pytest.mark.parametrize("wanted", [{"use_dora": True}, {"bias": "lora_only"}])
def test_what_is_no_sum_of_products_is_refused(
    folders: dict[str, Path], wanted: dict[str, Any], tmp_path: Path
) -> None:
    policy = adapted(folders["llama"], **wanted)
    if "bias" in wanted:  # what peft calls a bias of the adapter itself
        model: Any = policy.causal_lm
        model.model.layers[0].self_attn.q_proj.lora_bias["default"] = True
    with pytest.raises(ConfigError, match="is not merged here"):
        save_merged(policy, torch.float32, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapters_of_which_several_are_active_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = adapted(folders["llama"])
    model: Any = policy.model
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ConfigError, match="2 adapters are active"):
        save_merged(policy, torch.float32, tmp_path / "merged")


def test_the_generation_config_ends_where_the_tokenizer_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A base whose config knows another end than its turns have: both end an answer."""
    policy = with_lora(load(folders["llama"], dtype="float32", frozen=True))
    own = policy.tokenizer.eos_token_id
    policy.causal_lm.generation_config.eos_token_id = own + 3
    save_merged(policy, torch.float32, tmp_path / "merged")
    config = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert config.eos_token_id == sorted({own, own + 3})
    assert policy.causal_lm.generation_config.eos_token_id == own + 3
