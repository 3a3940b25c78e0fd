"""Loading: what is saved comes back, and what cannot be read is said in one line."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from likelier.base.errors import ConfigError, DataError, InputMissing, LikelierError
from likelier.base.model_files import load_tokenizer
from likelier.config import config_from
from likelier.model.adapters import attach_lora
from likelier.model.limits import sizes_of_folder
from likelier.model.load import load, must_be_on_one_device, parse_dtype, reference_policy
from likelier.model.policy import Policy

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As peft writes it: weights and their description, no tokenizer."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    policy = attach_lora(load(model_folder), r=4, alpha=8, targets="all-linear", seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    policy.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    return folder


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.fixture
def adapter_copy(adapter_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=TOKENS, use_cache=False).logits


def edit(path: Path, **values: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def refusal(path: Path | str, kind: type[LikelierError]) -> str:
    """The message of a refused load: of the right kind, short, and located."""
    with pytest.raises(kind) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert caught.value.where
    return message


# What is saved comes back


def test_a_saved_folder_comes_back_bit_for_bit(model_folder: Path) -> None:
    policy = load(model_folder)
    before = tiny_model(tiny_tokenizer(), torch.bfloat16).state_dict()
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    assert torch.equal(logits(policy.model), logits(plain))
    assert policy.model.dtype is torch.bfloat16
    assert policy.path == str(model_folder)
    assert policy.causal_lm is policy.model and not policy.has_adapter
    assert policy.device.type == "cpu"
    text = "파이썬이 뭐야? What is it?"
    assert policy.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert policy.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_loaded_model_is_ready_to_train(model_folder: Path) -> None:
    model = load(model_folder).model
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", torch.float32, "float64"])
def test_the_dtype_is_a_choice(model_folder: Path, dtype: Any) -> None:
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert load(model_folder, dtype=dtype).causal_lm.dtype is wanted


def test_a_device_map_is_passed_through(model_folder: Path) -> None:
    assert load(model_folder, device_map="cpu").device.type == "cpu"


def test_a_model_in_parts_is_refused(model_folder: Path) -> None:
    """As ``device_map="auto"`` makes them on several GPUs, or with parts on the disk."""
    model = load(model_folder).causal_lm
    must_be_on_one_device(model, "model")
    model.get_output_embeddings().to("meta")
    with pytest.raises(ConfigError, match="lies on cpu and meta") as caught:
        must_be_on_one_device(model, "model")
    assert caught.value.where == "model"


def test_a_base_in_parts_is_not_put_together_for_its_adapter(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(model: Any) -> None:
        model.get_output_embeddings().to("meta")

    monkeypatch.setattr("likelier.model.load.read_ahead", part)
    with pytest.raises(ConfigError, match="lies on cpu and meta"):
        load(adapter_folder, frozen=True)


@pytest.mark.parametrize("name", ["float31", "nn", ""])
def test_no_such_dtype(model_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no dtype is called") as caught:
        load(model_folder, dtype=name)
    assert caught.value.where == "model.dtype"
    assert parse_dtype("auto") == "auto"


def test_an_adapter_comes_back_on_its_base(adapter_folder: Path, model_folder: Path) -> None:
    policy = load(adapter_folder)
    assert policy.has_adapter and policy.path == str(adapter_folder)
    assert policy.causal_lm is not policy.model
    trainable = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert not torch.equal(logits(policy.model), logits(load(model_folder).model))
    saved = load_file(adapter_folder / "adapter_model.safetensors")
    held = {
        name.replace(".default", ""): tensor
        for name, tensor in policy.model.state_dict().items()
        if "lora_" in name
    }
    assert saved.keys() == held.keys()
    assert all(torch.equal(saved[name], held[name]) for name in saved)


def test_an_adapter_takes_its_bases_tokenizer_unless_it_has_one(adapter_copy: Path) -> None:
    assert len(load(adapter_copy).tokenizer) == len(tiny_tokenizer())
    tokenizer, generation = load_tokenizer(str(adapter_copy))
    assert len(tokenizer) == len(tiny_tokenizer())
    assert generation is not None and generation.eos_token_id == tokenizer.eos_token_id
    own = tiny_tokenizer()
    own.add_tokens(["<|new|>"])
    own.save_pretrained(adapter_copy)
    assert "<|new|>" in load(adapter_copy).tokenizer.get_vocab()
    tokenizer, generation = load_tokenizer(str(adapter_copy))
    assert "<|new|>" in tokenizer.get_vocab()
    assert generation is not None  # still the base's: an adapter has none


def test_a_tokenizer_alone(model_folder: Path, copy: Path) -> None:
    tokenizer, generation = load_tokenizer(str(model_folder))
    assert generation is not None and generation.eos_token_id == tokenizer.eos_token_id
    (copy / "generation_config.json").unlink()
    (copy / "model.safetensors").unlink()
    assert load_tokenizer(str(copy))[1] is None


def test_hub_ids_are_read_from_the_cache_without_a_network(
    model_folder: Path, adapter_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(adapter_copy / "adapter_config.json", base_model_name_or_path="someone/base")
    for name, folder in (("base", model_folder), ("lora", adapter_copy)):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base, adapter = load("someone/base"), load("someone/lora")
    assert base.path == "someone/base" and not base.has_adapter
    assert adapter.path == "someone/lora" and adapter.has_adapter
    assert hasattr(adapter.model, "disable_adapter")
    assert len(adapter.tokenizer) == len(base.tokenizer)


# What is not there


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "runs/none/model", "no model", ""])
def test_no_such_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "folder" in refusal(path, InputMissing)
    with pytest.raises(InputMissing):
        load_tokenizer(path)


def test_a_hub_id_without_a_network_is_missing_at_once() -> None:
    start = time.monotonic()
    message = refusal("someone/no-such-model", InputMissing)
    assert "someone/no-such-model" in message and "check the spelling" in message
    with pytest.raises(InputMissing):
        load_tokenizer("someone/no-such-model")
    assert time.monotonic() - start < 10


def test_a_file_is_no_folder(model_folder: Path) -> None:
    assert "a file" in refusal(model_folder / "config.json", InputMissing)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "neither config.json nor adapter_config.json" in refusal(tmp_path, InputMissing)


def test_an_adapter_whose_base_is_gone(adapter_copy: Path) -> None:
    described = adapter_copy / "adapter_config.json"
    for base in ("/no/such/base", "someone/no-such-base"):
        edit(described, base_model_name_or_path=base)
        message = refusal(adapter_copy, InputMissing)
        assert f"its base model {base}" in message and str(adapter_copy) in message
    edit(described, base_model_name_or_path=None)
    assert "names no base model" in refusal(adapter_copy, DataError)


# What must not be run


class Payload:
    """Pickled, it writes a file wherever it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unread(copy: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Payload(marker)))
    assert f"only pickled weights here ({name})" in refusal(copy, DataError)
    assert not marker.exists()
    pickle.loads((copy / name).read_bytes())
    assert marker.exists()


def test_a_pickled_adapter_is_refused_unread(adapter_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    weights = adapter_copy / "adapter_model.safetensors"
    weights.rename(adapter_copy / "another.safetensors")
    (adapter_copy / "adapter_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    assert "pickled weights are never read" in refusal(adapter_copy, DataError)
    assert not marker.exists()


def test_pickled_weights_are_not_read_where_other_safetensors_stand_beside(copy: Path) -> None:
    """Whole and harmless ones: a library that looks for any weights would take them."""
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert "model.safetensors" in refusal(copy, DataError)


def test_safetensors_are_read_where_pickles_stand_beside(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    load(copy)
    assert not marker.exists()


def test_code_in_the_folder_is_refused_and_not_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\n"
    (copy / "own.py").write_text(code, encoding="utf-8")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    edit(copy / "config.json", model_type="own", architectures=["Own"], auto_map=own)
    assert "cannot be loaded" in refusal(copy, DataError)
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    refusal(copy, DataError)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "entry", "own"),
    [
        ("config.json", "AutoConfig", "own.Own"),
        ("config.json", "AutoModelForCausalLM", "own.Own"),
        ("tokenizer_config.json", "AutoTokenizer", ["own.Own", None]),
    ],
)
def test_code_beside_a_model_that_needs_none_is_not_run(
    copy: Path, tmp_path: Path, file: str, entry: str, own: object
) -> None:
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\n"
    (copy / "own.py").write_text(code, encoding="utf-8")
    edit(copy / file, auto_map={entry: own})
    for read in (load, load_tokenizer, lambda folder: sizes_of_folder(folder, None)):
        with suppress(LikelierError):
            read(str(copy))
    assert not marker.exists()


# What is damaged


def drop_a_tensor(folder: Path) -> None:
    file = next(folder.glob("*model.safetensors"))
    tensors = load_file(file)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, file, {"format": "pt"})


def cut_short(folder: Path) -> None:
    file = next(folder.glob("*model.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def configured(name: str = "config.json", **values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **values)


BROKEN_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor missing": (drop_a_tensor, "1 tensors are not in the checkpoint"),
    "more layers": (
        configured(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "11 tensors are not in the checkpoint, the first model.layers.2.",
    ),
    "another vocabulary": (
        configured(vocab_size=999),
        "model.embed_tokens.weight has the shape (400, 32) where config.json asks for (999, 32)",
    ),
    "weights cut short": (cut_short, "damaged weights"),
    "weights of nothing": (write("model.safetensors", ""), "damaged weights"),
    "weights of something else": (write("model.safetensors", "x" * 999), "damaged weights"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "config cut short": (write("config.json", '{"model_type": "ex'), "this is no JSON"),
    "config of nothing": (write("config.json", "{}"), "model_type"),
    "config is a list": (write("config.json", "[]"), "no JSON object"),
    "unknown architecture": (configured(model_type="nonesuch"), "nonesuch"),
    "a model of another kind": (write("config.json", '{"model_type": "clip"}'), "CLIPConfig"),
    "an impossible value": (configured(num_attention_heads="four"), "num_attention_heads"),
    "tokenizer cut short": (write("tokenizer.json", '{"version": "1'), "cannot be loaded"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), "unknown or missing"),
}


@pytest.mark.filterwarnings("ignore")  # what transformers thinks of such files, too
@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_damaged_models_are_refused(copy: Path, name: str) -> None:
    damage, said = BROKEN_MODELS[name]
    damage(copy)
    message = refusal(copy, DataError)
    assert said in message and str(copy) in message


BROKEN_ADAPTERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor missing": (drop_a_tensor, "missing adapter keys"),
    "weights cut short": (cut_short, "damaged weights"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "no adapter_model.safetensors",
    ),
    "another rank": (configured("adapter_config.json", r=7), "size mismatch"),
    "unknown kind": (configured("adapter_config.json", peft_type="NOPE"), "NOPE"),
    "config cut short": (write("adapter_config.json", "{"), "this is no JSON"),
}


@pytest.mark.parametrize("name", BROKEN_ADAPTERS)
def test_damaged_adapters_are_refused(adapter_copy: Path, name: str) -> None:
    damage, said = BROKEN_ADAPTERS[name]
    damage(adapter_copy)
    message = refusal(adapter_copy, DataError)
    assert said in message and str(adapter_copy) in message


def test_a_policy_handed_over_has_no_path() -> None:
    tokenizer = tiny_tokenizer()
    assert Policy(tiny_model(tokenizer), tokenizer).path is None


@pytest.mark.parametrize("how", [load, load_tokenizer])
def test_a_revision_of_a_folder_is_refused(model_folder: Path, how: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="only models of the Hub have revisions"):
        how(str(model_folder), revision="main")


def test_a_reference_with_another_vocabulary_is_refused(copy: Path, model_folder: Path) -> None:
    """Its ids would mean other text."""
    settings = {"model": {"path": str(model_folder)}, "data": {"train": "x"}, "out": "x"}
    config = config_from({**settings, "reference": {"path": str(copy)}})
    initial = load(model_folder)
    assert reference_policy(config, initial) is not None
    tokenizer = load_tokenizer(str(copy))[0]
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(DataError, match="another vocabulary than the policy"):
        reference_policy(config, initial)
