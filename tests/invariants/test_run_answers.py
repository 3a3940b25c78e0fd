"""Answers of a run: what each model really says, whole after a stop; no part of the training."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.families import tiny_model
from tests.support.runs import Place, bytes_of, differing
from tests.support.tiny import pair_rows, tiny_tokenizer, write_rows

from likelier.base.errors import ConfigError, StoppedEarly
from likelier.base.files import read_lines
from likelier.config import config_from
from likelier.data.encode import decode
from likelier.data.records import Completion, TokenPair
from likelier.generation import answers
from likelier.generation.sample import (
    decoding,
    decoding_by,
    generate_batch,
    read_answers,
    sample_batch,
)
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.run import train

LORA = {"kind": "lora", "r": 4, "alpha": 8}
FULL = {"kind": "none"}

pytestmark = pytest.mark.usefixtures("no_report")


def rows_of(run: Any) -> list[dict[str, Any]]:
    return read_lines(run.folder / "samples.jsonl")


def trained(run: Any) -> dict[str, bytes]:
    """Weights, optimizer states and logs; the card and the record name other settings."""
    ends = (".safetensors", ".jsonl", ".parquet")
    files = bytes_of(run.folder).items()
    return {name: x for name, x in files if name.endswith(ends) and name != "samples.jsonl"}


@pytest.mark.parametrize("adapter", [FULL, LORA])
def test_both_models_said_what_stands_there(place: Place, tmp_path: Path, adapter: dict) -> None:
    held = str(write_rows(tmp_path / "held.jsonl", pair_rows(38)[30:]))
    settings = place.config(
        f"says_{adapter['kind']}", adapter=adapter, data__eval=held, eval={"samples": 3},
        optim__lr=3e-2,
    )  # fmt: skip
    run = train(settings)
    rows = rows_of(run)
    assert [row["temperature"] for row in rows] == [0.0] * 3 + [1.0] * 3
    assert all(row["held_out"] and row["source"].startswith(held) for row in rows)
    for when, path in (("before", place.base), ("after", run.model)):
        policy = load(path)
        encoder = policy.encoder()
        prompts = [row["prompt"] for row in rows[:3]]
        ids = [tuple(policy.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        assert [decode(policy.tokenizer, prompt) for prompt in ids] == prompts
        length, ends = rows[0]["max_new_tokens"], sorted(encoder.end_ids.values())
        assert length == 128
        with decoding_by(policy, encoder, decoding(0, length, ends), 0):
            found = sample_batch(policy, encoder, ids)
        with decoding_by(policy, encoder, decoding(1, length, ends), rows[0]["seed"]):
            both = generate_batch(policy, ids + ids, likeliest=len(ids))
        found += read_answers(encoder, both)[len(ids) :]
        for row, said in zip(rows, found, strict=True):
            assert row[when] == said.text
            assert row[f"stopped_{when}"] == said.stopped
            assert row[f"tokens_{when}"] == len(said.tokens)
            assert row[f"repetition_{when}"] == pytest.approx(said.repetition, abs=1e-4)
    assert any(row["before"] != row["after"] for row in rows)


@pytest.mark.parametrize("adapter", [FULL, LORA])
@pytest.mark.parametrize("family", ["exaone4-sliding", "gpt2", "gemma2", "lfm2"])
def test_trained_bytes_do_not_know_of_them(
    place: Place, tmp_path: Path, family: str, adapter: dict
) -> None:
    base, tokenizer = tmp_path / "base", tiny_tokenizer()
    model = tiny_model(family, torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    for one in (model, tokenizer):
        one.save_pretrained(base)
    kept = {}
    for samples in (0, 4):
        run = train(
            place.config(
                tmp_path / str(samples), model={"path": str(base)}, adapter=adapter,
                train__checkpointing="layers" if family == "gpt2" else "auto",
                eval={"samples": samples, "max_new_tokens": 9} if samples else {"samples": 0},
            )
        )  # fmt: skip
        kept[samples] = trained(run)
        assert (run.folder / "samples.jsonl").exists() == (samples > 0)
    assert len(kept[0]) >= 6 and differing(kept[0], kept[4]) == []


def stop_at_three(row: dict[str, float]) -> None:
    if row["step"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_ends_with_the_answers_of_one_that_was_not(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(place.config("answers_whole", eval={"samples": 3}))
    settings = place.config("answers_stopped", eval={"samples": 3})

    with pytest.raises(StoppedEarly):
        train(settings, on_step=stop_at_three)
    written = Path(settings["out"]) / "samples.jsonl"
    assert all("before" in row and "after" not in row for row in read_lines(written))
    asked = []
    monkeypatch.setattr(answers, "generate_batch", _counted(asked, answers.generate_batch))
    resumed = train(settings)
    assert rows_of(resumed) == rows_of(whole)
    assert len(asked) == 1  # greedy and drawn at once, after the training only


def _counted(asked: list, original: Any) -> Any:
    def counted(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        return original(*arguments, **named)

    return counted


def test_without_held_out_prompts_those_of_the_training_are_asked(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(place.config("answers_train", data__eval=None, train__eval_every=None,
                             eval={"samples": 2}))  # fmt: skip
    assert not any(row["held_out"] for row in rows_of(run))
    said = capsys.readouterr().err
    assert "answering 2 prompts before the training, which are trained on: none is held" in said
    assert said.count("prompt: ") == 2
    assert "2 answers, greedy: " in said and "2 answers, at temperature 1: " in said


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_cannot_generate_is_trained_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    plain = train(place.config("answers_none"))
    calls: list[int] = []
    original = answers.generate_batch

    def refuses(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if when == "before" or len(calls) > 1:
            raise ValueError("this cache is not supported")
        return original(*arguments, **named)

    monkeypatch.setattr(answers, "generate_batch", refuses)
    run = train(place.config(f"answers_fail_{when}", eval={"samples": 2}))
    assert differing(trained(run), trained(plain)) == []
    line = f"no answers from {when} the training: ValueError: this cache is not supported"
    assert line in capsys.readouterr().err


def test_other_prompts_are_answered_anew(place: Place, tmp_path: Path) -> None:
    """Rows of another number of prompts, or damaged ones, are no answers to these."""
    settings = place.config("answers_anew", eval={"samples": 2})
    whole = rows_of(train(place.config("answers_two", eval={"samples": 2})))
    with pytest.raises(StoppedEarly):
        train(settings, on_step=stop_at_three)
    file = Path(settings["out"]) / "samples.jsonl"
    broken = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    broken[1]["prompt"] = "another"
    write_rows(file, broken)
    assert rows_of(train(settings)) == whole


@pytest.mark.parametrize(
    ("weights", "steps", "tokens"),
    [(100, 1, 128), (2**30, 1, 0), (2**30, 5000, 20), (2**30, 10**6, 128)],
)
def test_a_large_model_says_less_where_its_run_is_short(
    place: Place, monkeypatch: pytest.MonkeyPatch, weights: int, steps: int, tokens: int
) -> None:
    policy = load(place.base)
    monkeypatch.setattr(answers, "bytes_of", lambda parameter: weights)
    monkeypatch.setattr(answers, "sizes", lambda model: {"positions": None})
    config = config_from(place.config("length", eval={"samples": 2}))
    pairs = [token_pair()]
    assert answers._max_new_tokens(config, policy, pairs, steps) == tokens
    asked = config_from(place.config("length", eval={"samples": 2, "max_new_tokens": 700}))
    assert answers._max_new_tokens(asked, policy, pairs, steps) == 700


def test_a_large_model_with_a_short_run_says_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "bytes_of", lambda parameter: 2**30)
    run = train(place.config("answers_short", eval={"samples": 2}))
    assert not (run.folder / "samples.jsonl").exists()
    assert capsys.readouterr().err.count("no answers: they take long beside so short a run") == 1


def token_pair() -> TokenPair:
    side = Completion((5, 6), (True, True))
    return TokenPair((1, 2, 3), side, side, "x:1")


def test_a_key_without_effect_is_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"eval\.max_new_tokens"):
        config_from(place.config("ignored", eval={"samples": 0, "max_new_tokens": 5}))


def test_no_answer_goes_behind_the_last_position() -> None:
    policy = Policy(tiny_model("gpt2"), tiny_tokenizer())  # positions from a table of 128
    keys = {"model": {"path": "x"}, "data": {"train": "x"}, "out": "x"}
    config = config_from({**keys, "eval": {"samples": 2, "max_new_tokens": 9000}})
    assert answers._max_new_tokens(config, policy, [token_pair()], 1) == 128 - 3
