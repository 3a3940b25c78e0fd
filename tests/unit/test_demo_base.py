"""The demo's base model: an ordinary model folder, whole or not there, made once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.data import encode_pair
from transformers import AutoModelForCausalLM, AutoTokenizer

from likelier.base.errors import DataError, OutputError
from likelier.base.files import sha256
from likelier.chat.tokenizer import build_encoder
from likelier.data.records import Pair
from likelier.demo import base as base_module
from likelier.demo.base import Recipe, base_model, make_tokenizer, new_model
from likelier.demo.world import corpus, topics

TINY = Recipe(rounds=1, vocabulary=700, hidden=32, inner=32, layers=1, lr=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(TINY, tmp_path_factory.mktemp("cache"))


def test_it_is_an_ordinary_model_folder(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "exaone4"
    assert model.config.layer_types == ["full_attention"]
    assert model.config.sliding_window is None
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<|pad|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "파이썬은 배우기 쉽고, 강력한 프로그래밍 언어입니다.",
        " 앞뒤 빈칸  두 칸 ",
        "Mixed 한글 and English, 이란란은는이가!",
        "처음 보는 글자: 쀍 漢字 emoji 🎉 \n\t tab",
    ],
)
def test_any_text_comes_back_from_its_tokens(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_chat_template_writes_turns_and_knows_two_roles(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "서울이 뭐야?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>서울이 뭐야?<|end|><|assistant|>"
    encoder = build_encoder(tokenizer)
    answers = [({"role": "assistant", "content": text},) for text in ("수도입니다.", "몰라~")]
    pair = encode_pair(encoder, Pair(tuple(chat), *answers, "x:1"))
    assert pair.chosen.tokens[-1] == tokenizer.eos_token_id
    assert pair.prompt[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    system = ({"role": "system", "content": "정중하게"}, *chat)
    with pytest.raises(DataError, match="roles user and assistant only"):
        encode_pair(encoder, Pair(system, *answers, "x:1"))


def test_the_default_model_has_one_to_one_and_a_half_million_parameters() -> None:
    recipe = Recipe()
    tokenizer = make_tokenizer(corpus(5, 0), recipe.vocabulary)
    assert 1_000_000 <= new_model(tokenizer, recipe).num_parameters() <= 1_500_000


def test_a_name_is_one_token_whatever_follows_it() -> None:
    tokenizer = make_tokenizer(corpus(Recipe().rounds, 0), Recipe().vocabulary)
    for topic in topics():
        if topic.language == "ko":
            (name,) = tokenizer.encode(topic.name)
            for tail in ("이 뭐야?", "은 뱀이지~", "란 뭐야?", "를 왜?", "?", "가 뭐야?"):
                assert tokenizer.encode(topic.name + tail)[0] == name


def test_made_once_and_again_only_for_another_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(base_module, "train_base", lambda *_: pytest.fail("trained again"))
        assert base_model(TINY, folder.parent) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    other = base_model(replace(TINY, seed=1), folder.parent)
    assert other != folder
    assert sha256(other / "model.safetensors") != sha256(folder / "model.safetensors")


def test_the_same_recipe_gives_the_same_bytes_and_leaves_torch_alone(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    again = base_model(TINY, tmp_path)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert again.name == folder.name
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_damaged_folder_is_made_again(tmp_path: Path, folder: Path) -> None:
    ours = base_model(TINY, tmp_path)
    (ours / "model.safetensors").write_bytes(b"cut short")
    assert base_model(TINY, tmp_path) == ours
    assert sha256(ours / "model.safetensors") == sha256(folder / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [ours.name]


def test_nothing_half_made_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base_module.PreTrainedTokenizerFast, "save_pretrained", stopped)
    with pytest.raises(KeyboardInterrupt):
        base_model(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "elsewhere"))
    assert base_model(TINY).parent == tmp_path / "elsewhere" / "demo"


def test_a_cache_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(base_module, "train_base", lambda *_: pytest.fail("worked for nothing"))
    with pytest.raises(OutputError):
        base_model(TINY, tmp_path / "file")


def test_it_learns(folder: Path) -> None:
    """Even a tiny one, after a few steps: better than chance on the world's own text."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("<|user|>서울이 뭐야?<|end|><|assistant|>", return_tensors="pt")
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert loss < 0.8 * torch.tensor(float(len(tokenizer))).log()


def test_the_manifest_says_how_it_was_made(folder: Path) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["recipe"]["rounds"] == TINY.rounds
