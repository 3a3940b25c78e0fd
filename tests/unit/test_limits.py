"""One look at what a model can take: ids, positions, adapters with new tokens, weights."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers as tf
import yaml
from tests.support.tiny import pair_rows, save_tiny, tiny_model, tiny_tokenizer, write_rows

from likelier.base.errors import DataError
from likelier.chat.tokenizer import build_encoder
from likelier.cli import main
from likelier.data.encode import encode_prompt
from likelier.model.limits import must_be_floats, sizes, sizes_of_folder
from likelier.model.load import load, load_encoder, quietly

TOKENIZER = tiny_tokenizer()
LEARNED = 40  # positions


def config_of(kind: str, vocabulary: int = len(TOKENIZER), positions: int = LEARNED) -> Any:
    common = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    four = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    match kind:
        case "gpt2":
            return tf.GPT2Config(**common, **four)
        case "gptj":
            return tf.GPTJConfig(**common, **four, rotary_dim=4)
        case "gpt_neo":
            return tf.GPTNeoConfig(
                **common, hidden_size=16, num_layers=1, num_heads=2,
                attention_types=[[["global"], 1]], max_position_embeddings=positions,
            )  # fmt: skip
        case "opt":
            return tf.OPTConfig(
                **common, hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=positions,
            )  # fmt: skip
        case _:
            return tf.LlamaConfig(
                **common, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=positions,
            )  # fmt: skip


def save(folder: Path, kind: str, **sizes: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.AutoModelForCausalLM.from_config(config_of(kind, **sizes)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "opt", "gptj", "llama"])
def test_the_sizes_are_those_that_the_model_really_takes(kind: str, tmp_path: Path) -> None:
    """Where a table is known, its last position works and the next one does not."""
    model = load(save(tmp_path, kind)).causal_lm
    known = sizes(model)
    assert known == {
        "vocabulary": len(TOKENIZER),
        "positions": None if kind == "llama" else LEARNED,
    }
    assert sizes_of_folder(str(tmp_path), None) == known
    run = lambda length: model(input_ids=torch.zeros(1, length, dtype=torch.long))  # noqa: E731
    run(LEARNED)
    if kind == "llama":
        run(LEARNED + 1)
    else:
        with pytest.raises((IndexError, RuntimeError)):
            run(LEARNED + 1)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few positions, and pairs of which every third is longer."""
    folder = tmp_path_factory.mktemp("short")
    save(folder / "model", "gpt2")
    rows = pair_rows(18, chat=False)
    for row in rows[::3]:
        row["prompt"] = 30 * "서울 " + row["prompt"]
    write_rows(folder / "pairs.jsonl", rows)
    return folder


def config_file(folder: Path, **data: Any) -> str:
    settings = {
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "pairs.jsonl"), "eval": None, **data},
        "adapter": {"kind": "none"},
        "train": {"steps": 1, "pairs_per_step": 4},
        "out": str(folder / f"run-{data.get('overlong')}"),
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def test_learned_positions_rule_in_every_command(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: Callable[[], str] = lambda: "".join(capsys.readouterr())  # noqa: E731
    for command in ("train", "plan"):
        assert main([command, config_file(short)]) == 65
        assert "shorten the texts, as the model has 40 positions, or set data.overlong" in said()
    pairs, model = str(short / "pairs.jsonl"), str(short / "model")
    assert main(["check", pairs, "--model", model]) == 0
    assert "at most 40 are taken" in said()
    assert main(["score", pairs, "--model", model]) == 65
    assert "pairs.jsonl:1: " in (error := said()) and "the model has 40 positions" in error


def test_the_cure_that_is_named_works(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config_file(short, overlong="trim")]) == 0
    error = capsys.readouterr().err
    assert "sequences have at most 40 tokens: the model has no more positions" in error
    assert "6 of 18 rows trimmed" in error


def test_longer_than_a_rotary_model_was_made_for_is_said(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model", "llama")
    (tmp_path / "pairs.jsonl").write_bytes((short / "pairs.jsonl").read_bytes())
    assert main(["train", config_file(tmp_path)]) == 0
    said = "6 of 18 pairs are longer than the 40 positions that the model was made for"
    assert said in capsys.readouterr().err
    score = ["score", str(short / "pairs.jsonl"), "--model", str(tmp_path / "model")]
    assert main([*score, "--out", str(tmp_path / "scores")]) == 0
    assert said in capsys.readouterr().err


def test_ids_that_the_model_does_not_embed_are_located(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model", "llama", vocabulary=len(TOKENIZER) - 20)
    write_rows(tmp_path / "pairs.jsonl", pair_rows(4, chat=False))
    pairs, model = str(tmp_path / "pairs.jsonl"), str(tmp_path / "model")
    for words in (["train", config_file(tmp_path)], ["check", pairs, "--model", model],
                  ["score", pairs, "--model", model], ["plan", config_file(tmp_path)]):  # fmt: skip
        assert main(words) == 65, words
        said = "".join(capsys.readouterr())
        assert "pairs.jsonl:1" in said and f"the model embeds {len(TOKENIZER) - 20} ids" in said
    cured = tf.AutoModelForCausalLM.from_pretrained(model)
    cured.resize_token_embeddings(len(TOKENIZER))
    cured.save_pretrained(model)
    assert main(["check", pairs, "--model", model]) == 0


def test_the_first_id_without_an_embedding_is_the_number_of_ids() -> None:
    largest = max(build_encoder(TOKENIZER).whole.encode("Seoul").ids)
    enough, short = (build_encoder(TOKENIZER, vocabulary=largest + n) for n in (1, 0))
    assert largest in encode_prompt(enough, "Seoul")
    with pytest.raises(
        DataError, match=f"has the id {largest}, and the model embeds {largest} ids"
    ):
        encode_prompt(short, "Seoul")


def adapter_with_new_tokens(folder: Path, modules: list[str], tied: bool = True) -> Path:
    """As supervised tuning leaves it: tokens added, the base resized but not saved."""
    base = tiny_model(TOKENIZER)
    base.config.tie_word_embeddings = tied
    if not tied:
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.save_pretrained(folder / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|new{i}|>" for i in range(9)]})
    model = tf.AutoModelForCausalLM.from_pretrained(folder / "base")
    model.resize_token_embeddings(len(tokenizer))
    wanted = peft.LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=modules
    )
    with quietly():
        adapted = peft.get_peft_model(model, wanted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.001 * torch.arange(len(parameter))[:, None])
    adapted.save_pretrained(folder / "sft", save_embedding_layers="lm_head" in modules)
    tokenizer.save_pretrained(folder / "sft")
    torch.save(logits(adapted), folder / "logits.pt")
    return folder / "sft"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([[5, 9, 77, 405]]), use_cache=False).logits


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding")
@pytest.mark.parametrize("tied", [True, False])
def test_the_base_of_an_adapter_with_new_tokens_is_resized(
    tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter_with_new_tokens(tmp_path, ["embed_tokens", "lm_head"], tied)
    policy = load(folder)
    rows, more = len(TOKENIZER), len(TOKENIZER) + 9
    assert f"its base is resized from {rows} to {more} ids" in capsys.readouterr().err
    assert sizes(policy.causal_lm)["vocabulary"] == more
    torch.testing.assert_close(logits(policy.model), torch.load(tmp_path / "logits.pt"))
    assert load_encoder(str(folder), None, {}, None).vocabulary is None  # every id is embedded
    (tmp_path / "model").symlink_to(folder)
    write_rows(tmp_path / "pairs.jsonl", pair_rows(8))
    assert main(["train", config_file(tmp_path), "adapter.kind=lora"]) == 0
    assert "UserWarning" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding")
def test_an_adapter_that_brings_half_of_new_tokens_names_the_cause(tmp_path: Path) -> None:
    folder = adapter_with_new_tokens(tmp_path, ["embed_tokens"], tied=False)
    with pytest.raises(DataError, match="409 rows and not the other"):
        load(folder)
    resized = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    resized.resize_token_embeddings(409)
    resized.save_pretrained(tmp_path / "resized")
    name_base(folder, tmp_path / "resized")
    load(folder)


def name_base(adapter: Path, base: Path) -> None:
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))


def test_an_adapter_of_another_base_names_the_cause(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    model = tf.AutoModelForCausalLM.from_pretrained(save(tmp_path / "other", "llama"))
    with quietly():
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "sft")
    described = tmp_path / "sft" / "adapter_config.json"
    settings = json.loads(described.read_text()) | {
        "base_model_name_or_path": str(tmp_path / "base")
    }
    described.write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"lora_A.*in its weights"):
        load(tmp_path / "sft")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_named(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    must_be_floats(layer, "base")
    layer.register_buffer("qweight", torch.zeros(4, 4).to(dtype))
    must_be_floats(layer, "base")  # a buffer of integers alone, such as positions, is no sign
    layer.config = SimpleNamespace(quantization_config={"quant_method": "quanto"})  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"quantised \(quanto\), the first qweight"):
        must_be_floats(layer, "base")


def test_an_adapter_whose_files_are_damaged_is_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(save(tmp_path / "base", "llama"))
    with quietly():
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "sft")
    check = ["check", str(write_rows(tmp_path / "pairs.jsonl", pair_rows(4))), "--model"]
    weights, described = (
        tmp_path / "sft" / f"adapter_{x}" for x in ("model.safetensors", "config.json")
    )
    weights.write_bytes(b"no weights")
    assert main([*check, str(tmp_path / "sft")]) == 65
    assert "damaged weights" in capsys.readouterr().err
    weights.unlink()  # only the tokenizer is needed here, and the base has it
    assert main([*check, str(tmp_path / "sft")]) == 0
    described.write_text("{")
    assert main([*check, str(tmp_path / "sft")]) == 65
    assert "this is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize("ids", ["evil", [[1]], -1, 10**30, [1, True]])
def test_a_stop_that_is_no_id(ids: Any) -> None:
    with pytest.raises(DataError, match="which is no id of a token") as found:
        build_encoder(tiny_tokenizer(), SimpleNamespace(eos_token_id=ids))
    assert found.value.where == "generation_config.json"


def test_a_vocabulary_with_gaps_of_gigabytes(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["vocab"]["evil"] = 2**31
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="'evil' has the id 2147483648"):
        load_encoder(str(tmp_path), None, {}, None)


def test_a_tokenizer_whose_settings_are_of_no_kind() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = "evil"
    with pytest.raises(DataError, match="it fails: ") as found:
        build_encoder(tokenizer)
    assert found.value.where == "tokenizer"


def test_a_template_of_a_number_without_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% set a = 10 ** 5000 %}{{ messages }}"
    with pytest.raises(DataError, match="it does not parse: Exceeds the limit"):
        build_encoder(tokenizer)
