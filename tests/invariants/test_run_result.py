"""What a run leaves behind: a model that learnt, standard files, and an untouched reference."""

import gc
import json
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.support.runs import Place, bytes_of, differing, make_place, token_pairs, training_rows
from tests.support.tiny import TEMPLATE, pair_rows, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from likelier.base.errors import ConfigError, StoppedEarly
from likelier.base.files import read_json, read_lines
from likelier.batching.batch import completions_of
from likelier.data.records import TokenPair
from likelier.model.adapters import attach_lora
from likelier.model.load import load, quietly
from likelier.model.policy import Policy, score_sequences
from likelier.model.scorer import Scorer
from likelier.reference.cache import load_reference, reference_of_run
from likelier.report.read import read_run
from likelier.run import Run, train

LORA = {"kind": "lora", "r": 4, "alpha": 8}
FULL = {"kind": "none"}
BETA = 0.1

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def runs(place: Place) -> dict[str, Run]:
    """One run of each kind of tuning, with rates high enough to move every weight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", lambda out: None)
        held = str(write_rows(place.folder / "held.jsonl", pair_rows(38)[30:]))
        return {
            "full": train(place.config("full", data__eval=held, optim__lr=3e-3)),
            "lora": train(place.config("lora", data__eval=held, optim__lr=3e-2, adapter=LORA)),
        }


@pytest.mark.parametrize(
    ("adapter", "beta", "rate"),
    # The frozen head of a random base lets adapters move log-probs by some ten nats only.
    [(FULL, 0.1, 1e-2), ({"kind": "lora", "r": 16, "alpha": 32}, 0.5, 2e-2)],
)
def test_one_batch_is_learnt(
    place: Place, tmp_path: Path, adapter: dict, beta: float, rate: float
) -> None:
    data = write_rows(tmp_path / "four.jsonl", pair_rows(10)[::3])
    settings = place.config(
        tmp_path / "out", adapter=adapter, data__train=str(data), data__eval=None,
        loss={"beta": beta}, optim={"lr": rate, "schedule": "constant", "warmup": 0},
        train={"steps": 30, "pairs_per_step": 4, "save_every": None},
    )  # fmt: skip
    rows = training_rows(train(settings).folder)
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["loss"] < 0.1
    assert rows[-1]["rewards/accuracies"] == 1.0


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def test_the_base_on_disk_is_left_alone(place: Place, runs: dict[str, Run]) -> None:
    fresh = make_place(place.folder / "fresh", rows=1)
    for file in fresh.base.iterdir():
        assert (place.base / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_separate_reference_keeps_its_bits(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Policy] = []

    def watched(*arguments: Any, **named: Any) -> Policy:
        seen.append(load(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr("likelier.model.load.load", watched)
    other = make_place(tmp_path / "other", rows=1)
    train(place.config(tmp_path / "out", reference__path=str(other.base)))
    start, reference = seen
    assert_same_bits(weights(reference.causal_lm), weights(load(other.base).causal_lm))
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert not torch.equal(*(p.causal_lm.model.norm.weight for p in (start, reference)))


def test_a_separate_reference_is_let_go(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its log-probs are known, a second model takes no memory from training."""
    models: list[weakref.ref] = []
    alive: list[list[bool]] = []

    def watched(*arguments: Any, **named: Any) -> Policy:
        policy = load(*arguments, **named)
        models.append(weakref.ref(policy.model))
        return policy

    def on_step(row: dict) -> None:
        gc.collect()
        alive.append([model() is not None for model in models])

    monkeypatch.setattr("likelier.model.load.load", watched)
    settings = place.config(tmp_path / "out", reference__path=str(place.base), train__steps=1)
    train(settings, on_step=on_step)
    assert alive
    assert all(state == [True, False] for state in alive)


def test_adapters_off_is_the_base(place: Place, tmp_path: Path) -> None:
    """To the bit, weights and what they give; adapters on is something else."""
    policy = load(place.base)
    settings = place.config(tmp_path / "out", adapter=LORA, optim__lr=3e-2)
    del settings["model"]
    train(settings, policy.model, policy.tokenizer)
    base = load(place.base).causal_lm
    trained = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in weights(policy.causal_lm).items()
        if ".lora_" not in name
    }
    assert_same_bits(trained, weights(base))
    tokens = torch.arange(5, 25)[None]
    model: Any = policy.model.eval()
    with torch.no_grad():
        expected = base.eval()(input_ids=tokens).logits
        assert not torch.allclose(model(input_ids=tokens).logits, expected, atol=1e-3)
        for layer in model.modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.enable_adapters(False)
        assert torch.equal(model(input_ids=tokens).logits, expected)


def own_logps(policy: Policy, pairs: Iterable[TokenPair]) -> dict:
    answers = sorted({a for p in pairs for a in completions_of(p)}, key=lambda a: a.tokens)
    found = score_sequences(policy, answers)
    return {answers[index]: logps for index, logps in found}


def test_a_fresh_adapter_is_no_part_of_the_reference(
    place: Place, runs: dict[str, Run], tmp_path: Path
) -> None:
    """Scored with adapters off: to the bit, and under the same identity, what the base gives."""
    kept = [(run.folder / "reference.safetensors").read_bytes() for run in runs.values()]
    assert kept[0] == kept[1]
    policy = attach_lora(load(place.base), 4, 8, "all-linear", seed=0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    pairs = token_pairs(policy, place.data)
    trainable = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    column = reference_of_run(policy, pairs, 10_000, tmp_path, base_only=True, resumes=False)
    bare = reference_of_run(
        load(place.base), pairs, 10_000, tmp_path, base_only=False, resumes=False
    )
    assert column.identity == bare.identity
    assert all(torch.equal(column.values[key], bare.values[key]) for key in bare.values)
    assert trainable == [name for name, p in policy.model.named_parameters() if p.requires_grad]


def test_a_trained_adapter_is_its_own_reference(
    place: Place, runs: dict[str, Run], tmp_path: Path
) -> None:
    """The column holds base with adapter, and the second run goes on with the same adapter."""
    first = runs["lora"].model
    settings = place.config(tmp_path / "out", model__path=str(first), train__steps=3)
    del settings["adapter"]
    run = train(settings)
    assert training_rows(run.folder)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    column = load_reference(run.folder / "reference.safetensors")
    assert column is not None
    pairs = token_pairs(load(place.base), place.data)
    with_adapter, bare = own_logps(load(first), pairs), own_logps(load(place.base), pairs)
    apart = 0.0
    for answer, logps in with_adapter.items():
        assert column.completion_logp(answer) == pytest.approx(float(logps.sum()), abs=1e-4)
        apart = max(apart, abs(float(bare[answer].sum()) - column.completion_logp(answer)))
    assert apart > 1.0
    before = load_file(first / "adapter_model.safetensors")
    after = load_file(run.model / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    moved = {name: (after[name] - before[name]).norm() / before[name].norm() for name in before}
    assert 0 < max(moved.values()) < 0.5


def loaded_plainly(run: Run, place: Place) -> Policy:
    """By transformers and peft alone, as anybody would."""
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    with quietly():
        if run.model.name == "model":
            return Policy(AutoModelForCausalLM.from_pretrained(run.model), tokenizer)
        base = AutoModelForCausalLM.from_pretrained(place.base)
        return Policy(peft.PeftModel.from_pretrained(base, run.model), tokenizer)


def plain_logp(model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    return float(sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(tokens)))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_saved_model_gives_the_last_evaluation(
    place: Place, runs: dict[str, Run], kind: str
) -> None:
    run = runs[kind]
    policy = loaded_plainly(run, place)
    policy.model.eval()
    start = load(place.base).causal_lm.eval()
    held = token_pairs(policy, place.folder / "held.jsonl")
    last = run.metrics[-1]
    assert last["eval_pairs"] == len(held) == 8
    rewards = []
    for pair in held:
        for answer in (pair.chosen, pair.rejected):
            ours = plain_logp(policy.model, pair.prompt, answer.tokens)
            rewards.append(BETA * (ours - plain_logp(start, pair.prompt, answer.tokens)))
    chosen, rejected = torch.tensor(rewards[::2]), torch.tensor(rewards[1::2])
    margin = chosen - rejected
    assert float(margin.abs().max()) > 0.1
    assert last["eval_rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert last["eval_rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    assert last["eval_rewards/margins"] == pytest.approx(float(margin.mean()), abs=1e-4)
    assert last["eval_rewards/accuracies"] == float((margin > 0).double().mean())
    loss = -torch.nn.functional.logsigmoid(margin).mean()
    assert last["eval_loss"] == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_tokenizer_and_template_come_along(place: Place, runs: dict[str, Run], kind: str) -> None:
    ours = AutoTokenizer.from_pretrained(runs[kind].model)
    theirs = AutoTokenizer.from_pretrained(place.base)
    text = "파이썬이 뭐야?\n  Seoul <|end|>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template == TEMPLATE
    assert ours.eos_token_id == theirs.eos_token_id
    again = load(runs[kind].model)  # our own door takes it, too
    assert again.has_adapter == (kind == "lora")


def test_the_configuration_comes_back_as_it_was(place: Place, runs: dict[str, Run]) -> None:
    """With the dropout that training left out."""
    ours = json.loads((runs["full"].model / "config.json").read_text())
    theirs = json.loads((place.base / "config.json").read_text())
    assert ours == theirs
    assert ours["attention_dropout"] == 0.1
    generation = "generation_config.json"
    assert (runs["full"].model / generation).read_text() == (place.base / generation).read_text()


def test_dropout_is_silent_and_comes_back(place: Place, tmp_path: Path) -> None:
    policy = load(place.base)
    seen: list[float] = []

    def on_step(row: dict) -> None:
        seen.append(policy.causal_lm.model.layers[0].self_attn.attention_dropout)

    settings = place.config(tmp_path / "out", train__steps=2)
    del settings["model"]
    train(settings, policy.model, policy.tokenizer, on_step=on_step)
    assert set(seen) == {0.0}
    assert policy.causal_lm.model.layers[0].self_attn.attention_dropout == 0.1
    assert policy.causal_lm.config.attention_dropout == 0.1


def test_the_texts_of_the_pairs_that_the_report_names(place: Place, runs: dict[str, Run]) -> None:
    run = read_run(runs["full"].folder)
    assert run.pair_log is not None
    named = {row["source"] for row in (*run.pair_log.smallest, *run.pair_log.largest)}
    places = {place["source"] for kind in run.findings for place in kind.located}
    assert named and named <= run.texts.keys() <= named | places
    rows = {f"{place.data}:{n}": row for n, row in enumerate(read_lines(place.data), start=1)}
    for source, texts in run.texts.items():
        row = rows[source]
        assert row["prompt"][-1]["content"] in texts["prompt"]
        for side in ("chosen", "rejected"):
            assert texts[side].startswith(row[side][-1]["content"])


def test_findings_in_the_data_are_in_the_record(place: Place, tmp_path: Path) -> None:
    lines = place.data.read_text("utf-8").splitlines()[:6]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([*lines, lines[0], "{"]) + "\n", "utf-8")
    settings = place.config(
        tmp_path / "out", data__train=str(data), data__eval=None, data__on_bad_row="drop",
        train={"steps": 1, "pairs_per_step": 2},
    )  # fmt: skip
    run = read_run(train(settings).folder)
    kinds = {kind.code: kind for kind in run.findings}
    assert (kinds["json"].severity, kinds["json"].count) == ("error", 1)
    assert kinds["json"].located[0]["source"] == f"{data}:8" and kinds["json"].cure
    assert kinds["duplicate"].located[0]["source"] == f"{data}:7"
    assert f"{data}:7" in run.texts and f"{data}:8" not in run.texts


def test_a_run_is_finished_without_the_texts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("likelier.report.pair_texts.keep_pair_texts", fail)
    run = train(place.config(tmp_path / "out", train={"steps": 1, "pairs_per_step": 2}))
    assert read_json(run.folder / "run.json")["status"] == "finished"
    assert "the report will show no texts of pairs: OSError" in capsys.readouterr().err


def test_the_folder_is_complete(runs: dict[str, Run]) -> None:
    for kind, name in (("full", "model"), ("lora", "adapter")):
        run = runs[kind]
        assert run.model == run.folder / name
        found = {path.name for path in run.folder.iterdir()}
        assert found == {
            name, ".lock", "checkpoints", "config.yaml", "held_out", "metrics.jsonl",
            "pair_log", "pair_texts.jsonl", "pair_tokens.jsonl", "reference.safetensors",
            "run.json", "timing.jsonl",
        }  # fmt: skip
        record = read_json(run.folder / "run.json")
        assert record is not None
        assert (record["status"], record["step"], record["steps"]) == ("finished", 5, 5)
        assert record["tokens"]["tree"] < record["tokens"]["plain"]
        assert (record["pairs"], record["eval_pairs"]) == (30, 8)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("half"), rows=12, dtype=torch.bfloat16)


def test_float32_from_a_bfloat16_run_are_the_masters(half: Place, tmp_path: Path) -> None:
    settings = half.config(tmp_path / "out", model__save_dtype="float32", train__save_every=5)
    run = train(settings)
    masters = load_file(run.folder / "checkpoints" / "step-00000005" / "masters.safetensors")
    saved = load_file(run.model / "model.safetensors")
    assert saved.keys() == masters.keys()  # the head is tied, and written once
    assert "lm_head.weight" not in saved
    for name, master in masters.items():
        assert saved[name].dtype == torch.float32
        assert torch.equal(saved[name], master), name
    finer = [name for name in saved if not torch.equal(saved[name], saved[name].bfloat16().float())]
    assert len(finer) > len(saved) / 2
    assert json.loads((run.model / "config.json").read_text())["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(run.model)
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_auto_saves_what_it_computed_with(half: Place, tmp_path: Path) -> None:
    run = train(half.config(tmp_path / "out", train__save_every=5))
    masters = load_file(run.folder / "checkpoints" / "step-00000005" / "masters.safetensors")
    saved = load_file(run.model / "model.safetensors")
    assert saved.keys() == masters.keys()
    for name, master in masters.items():
        assert torch.equal(saved[name], master.bfloat16()), name
    policy = load(run.model)
    assert policy.causal_lm.dtype == torch.bfloat16


def test_narrower_than_it_computed_with(place: Place, tmp_path: Path) -> None:
    wide = train(place.config(tmp_path / "wide", train__steps=2))
    narrow = train(place.config(tmp_path / "narrow", train__steps=2, model__save_dtype="bfloat16"))
    expected = load_file(wide.model / "model.safetensors")
    found = load_file(narrow.model / "model.safetensors")
    assert_same_bits(found, {name: tensor.bfloat16() for name, tensor in expected.items()})


def test_save_dtype_is_refused_where_it_is_not_read(place: Place, tmp_path: Path) -> None:
    settings = place.config(tmp_path / "out", adapter=LORA, model__save_dtype="float32")
    with pytest.raises(ConfigError, match=r"model\.save_dtype: has no effect"):
        train(settings)
    assert not (tmp_path / "out").exists()


def test_checkpointing_activations_changes_little(place: Place, tmp_path: Path) -> None:
    for adapter in (FULL, LORA):
        name = adapter["kind"]
        settings = {"adapter": adapter, "train__steps": 3, "train__save_every": None}
        kept = train(place.config(tmp_path / name, **settings))
        again = train(
            place.config(tmp_path / f"{name}-again", train__checkpointing="layers", **settings)
        )
        for ours, theirs in zip(kept.metrics, again.metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_layers_run_again_where_memory_is_short_and_a_resumed_run_keeps_to_it(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same bytes as where it is asked for; memory that is there later changes nothing."""

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3 and "loss" in row:
            raise StoppedEarly("here")

    asked = train(place.config(tmp_path / "asked", adapter=LORA, train__checkpointing="layers"))
    short = place.config(tmp_path / "short", adapter=LORA)
    seen: list[bool] = []
    scored = Scorer.forward

    def look(self: Scorer, *given: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(self.model.is_activation_checkpointing)
        return scored(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr("likelier.training.memory.device_memory", lambda device: 2**18)
        with pytest.raises(StoppedEarly):
            train(short, on_step=stop)
    line = "train.checkpointing: layers, because the longest pair ("
    assert capsys.readouterr().err.count(line) == 1
    settings = yaml.safe_load((tmp_path / "short" / "config.yaml").read_text("utf-8"))
    assert settings["train"]["checkpointing"] == "layers"
    monkeypatch.setattr(Scorer, "forward", look)
    resumed = train(short)
    assert line not in capsys.readouterr().err
    assert seen and all(seen)
    different = differing(bytes_of(asked.folder), bytes_of(resumed.folder))
    assert not [name for name in different if "MANIFEST" not in name]  # they hash what was asked
    plain = train(place.config(tmp_path / "plain", adapter=LORA))
    settings = yaml.safe_load((plain.folder / "config.yaml").read_text("utf-8"))
    assert settings["train"]["checkpointing"] == "none"


def test_a_model_whose_head_is_its_own_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chunked head needs head(hidden) to be the logits; a layer of another class may not be."""
    policy = load(str(place.base))

    class Scaled(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) * 0.5

    policy.causal_lm.get_output_embeddings().__class__ = Scaled
    config = place.config("own-head", train__steps=1)
    del config["model"]
    train(config, model=policy.model, tokenizer=policy.tokenizer)
    said = capsys.readouterr().err
    assert (
        "using the model's own head, which makes all logits: its output layer is a Scaled" in said
    )
