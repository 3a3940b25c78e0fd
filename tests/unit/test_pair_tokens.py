"""Pairs token by token: figures that add up to those of the training, and where a margin lies."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.runs import Place, bytes_of, differing, make_place, token_pairs

from likelier.base.errors import OutputError
from likelier.base.files import read_json, read_lines
from likelier.batching.batch import completions_of
from likelier.chat.tokenizer import build_encoder
from likelier.evaluation.pair_tokens import (
    margin_shares,
    movement,
    pair_rows,
    scored_pairs,
)
from likelier.losses.registry import bind
from likelier.model.load import load
from likelier.model.policy import Policy
from likelier.pages.token_map import token_map
from likelier.reference.cache import NoReference, cached_reference
from likelier.run import train
from likelier.training.batches import cut_batches
from likelier.training.step import step_values


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def policy(place: Place) -> Policy:
    """The base with its weights moved, so that it is not its reference."""
    moved = load(place.base)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in moved.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return moved


LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"name": "sigmoid", "beta": 0.2},
    "mean": {"name": "sigmoid_mean"},
    "no reference": {"name": "simpo"},
    "decay": {"name": "sigmoid", "tokens": {"kind": "decay", "gamma": 0.9}},
    "ld": {"name": "sigmoid", "tokens": {"kind": "ld", "alpha": 0.5}},
    "sampo": {"name": "sigmoid", "tokens": {"kind": "sampo"}},
    "wpo": {"name": "sigmoid", "wpo": True},
    "nll": {"name": "sigmoid", "nll": 0.3, "nll_per": "token"},
    "whole step": {"name": "aot"},
    "mixture": {
        "name": "mixture",
        "parts": [{"name": "sigmoid"}, {"name": "ipo_sum", "weight": 0.1}],
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_add_up_to_the_figures_of_the_training(
    place: Place, policy: Policy, name: str
) -> None:
    loss = bind(LOSSES[name])
    pairs = token_pairs(policy, place.data)[:3]
    base = load(place.base)
    sequences = {one for pair in pairs for one in completions_of(pair)}
    reference = cached_reference(base, sequences, 256) if loss.needs("reference") else NoReference()
    encoder = build_encoder(policy.tokenizer)
    scored = list(scored_pairs(policy, pairs, loss, reference))
    rows = pair_rows(scored, loss, encoder, 1000)
    for pair, one, row in zip(pairs, scored, rows, strict=True):
        batches = cut_batches([pair], reference, policy.backend, 512, loss.tokens)
        with policy.running():
            values = step_values(policy, batches, loss)
        assert row["loss"] == pytest.approx(float(values.loss_P[0]), abs=1e-12)
        margin = float(loss.beta * values.log_ratio_margin_P[0])
        assert row["margin"] == pytest.approx(margin, abs=1e-12) and abs(margin) > 1e-4
        moved = movement([side.log_ratios for side in one.sides.values()], row["common"])
        assert loss.beta * sum(moved.values()) == pytest.approx(margin, abs=1e-10)
        added = 0.0
        for side, figures, sign in (
            ("chosen", values.chosen, 1),
            ("rejected", values.rejected, -1),
        ):
            tokens = row["sides"][side]
            weights = tokens.get("weights") or [1.0] * len(tokens["logps"])
            known = tokens.get("reference_logps") or [0.0] * len(tokens["logps"])
            assert len(tokens["logps"]) == len(tokens["texts"]) == len(tokens["ids"])
            logp = math.fsum(w * p for w, p in zip(weights, tokens["logps"], strict=True))
            other = math.fsum(w * p for w, p in zip(weights, known, strict=True))
            assert logp == pytest.approx(float(figures.policy_P[0]), abs=1e-10)
            assert other == pytest.approx(float(figures.reference_P[0]), abs=1e-10)
            assert tokens["logp"] == pytest.approx(logp, abs=1e-10)
            added += sign * loss.beta * (logp - other)
            assert "".join(tokens["texts"]).endswith("<|end|>")
        assert added == pytest.approx(margin, abs=1e-10)
        assert ("reference_logps" in row["sides"]["chosen"]) == (name != "no reference")


def test_shares_by_hand() -> None:
    """Both begin with one token; the chosen one ends with the token that moved most."""
    chosen, rejected = [0.5, 1.0, -0.25, 3.0], [0.5, -0.5, 0.25]
    assert movement([chosen, rejected], 1) == {
        (0, 0): 0.0, (0, 1): 1.0, (0, 2): -0.25, (0, 3): 3.0, (1, 1): 0.5, (1, 2): -0.25,
    }  # fmt: skip
    shares = margin_shares([chosen, rejected], 1, [{3}, {2}])
    assert (shares["tokens"], shares["total"]) == (6, 5.0)
    assert shares["first"] == {"tokens": 1, "sum": 0.0, "share": 0.0}
    assert shares["end"] == {"tokens": 2, "sum": 2.75, "share": 3.25 / 5}
    assert shares["manner"] == {"tokens": 6, "sum": 4.0, "share": 1.0}
    assert shares["top"] == {"tokens": 1, "sum": 3.0, "share": 3.0 / 5}


def test_shares_of_nothing() -> None:
    shares = margin_shares([[0.0, None], [0.0]], 1, [set(), set()])
    assert shares["total"] == 0 and shares["top"] == {"tokens": 1, "sum": 0.0, "share": 0.0}
    assert margin_shares([[None]], 0, [set()])["tokens"] == 0


FIGURES = st.lists(st.none() | st.floats(-50, 50), min_size=1, max_size=30)


@given(FIGURES, FIGURES, st.integers(0, 30), st.data())
def test_movement_adds_up_and_shares_are_shares(
    chosen: list, rejected: list, common: int, data: st.DataObject
) -> None:
    common = min(common, len(chosen), len(rejected))
    rejected[:common] = chosen[:common]
    ends = [data.draw(st.sets(st.integers(0, len(side) - 1))) for side in (chosen, rejected)]
    margin = sum(x or 0 for x in chosen) - sum(x or 0 for x in rejected)
    assert sum(movement([chosen, rejected], common).values()) == pytest.approx(margin, abs=1e-9)
    shares = margin_shares([chosen, rejected], common, ends)
    for name in ("first", "end", "manner", "top"):
        assert 0 <= shares[name]["share"] <= 1 + 1e-9
        assert shares[name]["tokens"] <= shares["tokens"]
        assert abs(shares[name]["sum"]) <= shares["total"] + 1e-9
    assert shares["end"]["share"] <= shares["manner"]["share"] + 1e-9


@pytest.fixture(scope="module")
def kept(place: Place) -> Path:
    return train(place.config("kept", train__steps=8, loss={"name": "sigmoid", "beta": 0.3})).folder


def test_a_run_keeps_some_pairs_token_by_token(kept: Path, place: Place) -> None:
    rows = read_lines(kept / "pair_tokens.jsonl")
    assert 4 <= len(rows) <= 12 and len({row["source"] for row in rows}) == len(rows)
    trained = load(kept / "model")
    pairs = {pair.source: pair for pair in token_pairs(trained, place.data)}
    base = load(place.base)
    for row in rows:
        sequences = dict(
            zip(("chosen", "rejected"), completions_of(pairs[row["source"]]), strict=True)
        )
        for name, side in row["sides"].items():
            for model, key in ((trained, "logp"), (base, "reference_logp")):
                scored = cached_reference(model, {sequences[name]}, 256)
                assert side[key] == pytest.approx(scored.completion_logp(sequences[name]), abs=1e-3)
        chosen, rejected = (row["sides"][name] for name in ("chosen", "rejected"))
        ratio = chosen["logp"] - chosen["reference_logp"]
        ratio -= rejected["logp"] - rejected["reference_logp"]
        assert row["margin"] == pytest.approx(0.3 * ratio, abs=1e-6)
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-row["margin"])), abs=1e-6)
        assert token_map(row) is not None


def test_nothing_trained_changes(kept: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likelier.run._keep_tokens", lambda *_: None)
    settings = place.config("bare", train__steps=8, loss={"name": "sigmoid", "beta": 0.3})
    bare = bytes_of(train(settings).folder)
    assert differing(bytes_of(kept), bare) == ["pair_tokens.jsonl"]


def test_a_run_is_finished_without_the_tokens(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("likelier.evaluation.pair_tokens.keep_pair_tokens", fail)
    run = train(place.config("failed", train={"steps": 1, "pairs_per_step": 2}))
    assert read_json(run.folder / "run.json")["status"] == "finished"
    assert "the report will show no tokens of pairs: RuntimeError" in capsys.readouterr().err


def test_a_disk_that_refuses_the_tokens_leaves_a_run_to_resume(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is finished, nothing could make them again."""

    def full(*_: Any) -> None:
        raise OutputError("pair_tokens.jsonl: No space left on device")

    config = place.config("full_disk", train={"steps": 1, "pairs_per_step": 2})
    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr("likelier.evaluation.pair_tokens.write_lines", full)
        train(config)
    run = train(config)
    whole = train(place.config("roomy_disk", train={"steps": 1, "pairs_per_step": 2}))
    written, expected = ((one.folder / "pair_tokens.jsonl").read_bytes() for one in (run, whole))
    assert written == expected


def test_a_long_side_is_cut_in_its_middle_and_no_figure_is(place: Place, policy: Policy) -> None:
    loss = bind({"name": "simpo"})
    pair = token_pairs(policy, place.data)[0]
    scored = list(scored_pairs(policy, [pair], loss, NoReference()))
    encoder = build_encoder(policy.tokenizer)
    (whole,), (cut,) = (pair_rows(scored, loss, encoder, most) for most in (1000, 8))
    ours, theirs = whole["sides"]["chosen"], cut["sides"]["chosen"]
    assert theirs["tokens"] == len(ours["ids"]) > 8 and theirs["left_out"] == len(ours["ids"]) - 8
    assert theirs["ids"] == ours["ids"][:6] + ours["ids"][-2:] and theirs["left_out_at"] == 6
    assert theirs["logps"] == ours["logps"][:6] + ours["logps"][-2:]
    assert theirs["ends"] == [7] and theirs["logp"] == ours["logp"]
    assert whole["shares"] == cut["shares"] and whole["margin"] == cut["margin"]
    shown = token_map(cut)
    assert shown is not None
    gaps = [one["gap"] for one in shown["sides"][0]["tokens"] if one["gap"]]
    assert gaps == [f"… {theirs['left_out']} tokens left out …"]


def test_what_is_in_both_answers_is_marked(place: Place, policy: Policy) -> None:
    loss, pair = bind({"name": "simpo"}), token_pairs(policy, place.data)[0]
    tokens, flags = pair.chosen.tokens, pair.chosen.scored
    later = replace(pair.chosen, tokens=(*tokens[:2], 7, *tokens[2:]), scored=(*flags, True))
    (scored,) = scored_pairs(policy, [replace(pair, rejected=later)], loss, NoReference())
    (row,) = pair_rows([scored], loss, build_encoder(policy.tokenizer), 1000)
    assert row["common"] == 2
    assert row["sides"]["chosen"]["shared"] == [*range(len(tokens))]
    assert row["sides"]["rejected"]["shared"] == [0, 1, *range(3, len(tokens) + 1)]
    added = movement([s.log_ratios for s in scored.sides.values()], 2)
    assert added[0, 0] == added[0, 1] == 0.0
