"""Held-out figures: by hand, in the same bits for any batches, and by `likelier eval`."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from tests.support.runs import Place, make_place, token_pairs
from tests.support.tiny import save_tiny

from likelier.batching.batch import completions_of
from likelier.cli import main
from likelier.evaluation.held_out import (
    Figure,
    PairLogps,
    columns_of,
    differences,
    figures_of,
    hits_of,
    longer_wins,
    percentiles,
)
from likelier.model.load import load
from likelier.model.policy import Policy, score_sequences
from likelier.run import train


def logps(*rows: tuple[float, float, int, int]) -> PairLogps:
    chosen, rejected, long, short = zip(*rows, strict=True)
    return PairLogps(
        *map(np.array, ((*map(float, chosen),), (*map(float, rejected),), long, short))
    )


BASE = logps((-10, -8, 5, 4), (-6, -9, 2, 3), (-4, -4, 2, 2), (-7, -5, 3, 3))
TUNED = logps((-9, -8.5, 5, 4), (-6, -8, 2, 3), (-5, -6, 2, 2), (-7, -5, 3, 3))
PROMPTS = ["a", "a", "b", "c"]


def test_every_figure_by_hand() -> None:
    columns = columns_of(TUNED, BASE)
    by_hand: dict[str, list[float | None]] = {
        "ranking_accuracy": [0, 1, 1, 0],
        "ranking_accuracy_per_token": [1, 0, 1, 0],  # -1.8 > -2.125, -3 < -2.67, -2.5 > -3
        "margin": [1.5, -1, 1, 0],
        "reward_accuracy": [1, 0, 1, 0.5],
        "reward_accuracy_chosen_longer": [1, None, None, None],
        "reward_accuracy_rejected_longer": [None, 0, None, None],
        "reward_accuracy_same_length": [None, None, 1, 0.5],
        "ranking_accuracy_chosen_longer": [0, None, None, None],
        "ranking_accuracy_rejected_longer": [None, 1, None, None],
        "ranking_accuracy_same_length": [None, None, 1, 0],
        "chosen_drift": [0.2, 0, -0.5, 0],
        "rejected_drift": [-0.125, 1 / 3, -1, 0],
    }
    assert columns.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        wanted = [np.nan if one is None else one for one in expected]
        np.testing.assert_allclose(columns[name], wanted, err_msg=name)
    assert longer_wins(TUNED).tolist() == [1, 0, 0.5, 0.5]
    figures = figures_of(columns, PROMPTS)
    assert figures["reward_accuracy"].mean == 0.625
    assert (figures["reward_accuracy"].pairs, figures["reward_accuracy"].prompts) == (4, 3)
    assert (figures["reward_accuracy_same_length"].pairs, figures["margin"].mean) == (2, 0.375)
    assert percentiles(columns["margin"])["p50"] == 0.5


def test_the_initial_policy_beside_itself_changed_nothing() -> None:
    columns = columns_of(BASE, BASE)
    assert (columns["reward_accuracy"] == 0.5).all() and not columns["margin"].any()


def test_a_tie_is_what_rounding_decides() -> None:
    margins = np.array([2e-4, 5e-5, 0, -5e-5, -2e-4])
    assert hits_of(margins).tolist() == [1, 0.5, 0.5, 0.5, 0]


def test_a_difference_is_paired() -> None:
    """Both accuracies vary from pair to pair by far more than their difference does."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 400).astype(float)
    after = np.maximum(before, (rng.random(400) < 0.1).astype(float))
    apart = differences({"accuracy": after}, {"accuracy": before, "other": after})
    figure = figures_of(apart, list(range(400)), least=-1.0)["accuracy"]
    alone = figures_of({"accuracy": before}, list(range(400)))["accuracy"]
    assert figure.is_clear and figure.high - figure.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize(("prompts", "clear"), [(5, False), (6, False), (8, True)])
def test_few_prompts_that_agree_prove_little(prompts: int, clear: bool) -> None:
    """Each of them has the reward accuracy of 1, beside one half of the initial policy."""
    figure = figures_of({"accuracy": np.full(40, 0.5)}, [n % prompts for n in range(40)], least=-1)
    assert figure["accuracy"].is_clear is clear
    assert figure["accuracy"].low < 0.5 < figure["accuracy"].high
    sure = figures_of({"margin": np.linspace(1, 2, 5)}, list(range(5)))["margin"]
    assert sure.low > 0 and not sure.is_clear


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_figures_have_the_same_bits_for_any_batches(at_once: int) -> None:
    rng = np.random.default_rng(1)
    rows = [(*rng.normal(-50, 20, 2).tolist(), *rng.integers(1, 40, 2).tolist()) for _ in range(37)]
    other = [(a + rng.normal(), b + rng.normal(), long, short) for a, b, long, short in rows]
    prompts = [n // 3 for n in range(37)]

    def found(size: int) -> dict[str, Figure]:
        cut = [
            [logps(*some[at : at + size]) for at in range(0, 37, size)] for some in (other, rows)
        ]
        return figures_of(columns_of(*map(PairLogps.joined, cut)), prompts)

    assert found(at_once) == found(37)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        place = make_place(tmp_path_factory.mktemp("place"), rows=24)
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", lambda out: None)
        train(place.config("full"))
        lora = {"kind": "lora", "r": 4, "targets": ["q_proj"]}
        train(place.config("lora", adapter=lora, optim__lr=1e-2))
        yield place


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 24])
def test_batches_of_any_size_give_the_figures(place: Place, at_once: int) -> None:
    """Scored for real in so many pairs at once: equal to what rounding leaves, counts exactly."""
    policies = [load(path, dtype="float64") for path in (place.base, place.folder / "full/model")]
    pairs = token_pairs(policies[0], place.data)
    prompts = [pair.prompt for pair in pairs]

    def scored(policy: Policy, size: int) -> PairLogps:
        batches = []
        for first in range(0, len(pairs), size):
            some = pairs[first : first + size]
            both = [one for pair in some for one in completions_of(pair)]
            found = {at: float(one.sum()) for at, one in score_sequences(policy, both)}
            values = [found[at] for at in range(len(both))]
            counts = [one.num_scored for one in both]
            batches.append(PairLogps(*np.array(values).reshape(-1, 2).T,
                                     *np.array(counts).reshape(-1, 2).T))  # fmt: skip
        return PairLogps.joined(batches)

    def figures(size: int) -> dict[str, Figure]:
        base, tuned = (scored(policy, size) for policy in policies)
        return figures_of(columns_of(tuned, base), prompts)

    ours, whole = figures(at_once), figures(len(pairs))
    assert ours.keys() == whole.keys() and len(ours) >= 8
    for name, figure in ours.items():
        if "accuracy" in name:
            assert figure == whole[name]
        assert figure.mean == pytest.approx(whole[name].mean, abs=1e-9)


@pytest.mark.parametrize("run", ["full", "lora"])
def test_eval_is_the_plain_log_probs(
    place: Place, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides, row by row, against `likelier score` of each model alone."""
    folder, out = place.folder / run, tmp_path / "rows.jsonl"
    assert main(["eval", str(folder), str(place.data), "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    visits = pyarrow.parquet.read_table(folder / "pair_log")["prompt"].to_pylist()
    assert f"{len(set(visits))} of 8 prompts were trained on" in captured.err
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    weights = folder / ("model" if run == "full" else "adapter")
    for side, path in (("base", place.base), ("tuned", weights)):
        scores = tmp_path / f"{side}.jsonl"
        words = ["score", str(place.data), "--model", str(path), "--out", str(scores)]
        assert main(words) == 0
        for row, line in zip(rows, scores.read_text("utf-8").splitlines(), strict=True):
            expected = json.loads(line)
            assert row["source"] == expected.pop("source")
            ours = {name: value for name, value in row["models"][side].items() if name in expected}
            assert ours == pytest.approx(expected, abs=1e-3)
    margins = [row["models"]["tuned"]["margin"] for row in rows]
    tuned = figures["models"]["tuned"]
    assert tuned["margin"]["mean"] == pytest.approx(np.mean(margins))
    assert tuned["margin"]["p95"] == pytest.approx(np.percentile(margins, 95))
    assert tuned["reward_accuracy"]["mean"] == np.mean(np.array(margins) > 0)
    assert (figures["pairs"], figures["prompts"], len(rows)) == (24, 8, 24)
    assert "reward_accuracy" not in figures["models"]["base"]
    (difference,) = figures["differences"]
    assert (difference["of"], difference["less"]) == ("tuned", "base")
    assert difference["figures"]["margin"]["distinguishable"] is True


def test_one_model_is_in_memory_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alive: list[weakref.ref[Policy]] = []
    before: list[int] = []

    def watched(*words: Any, **more: Any) -> Policy:
        before.append(sum(one() is not None for one in alive))
        policy = load(*words, **more)
        alive.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr("likelier.generation.sides.load", watched)
    words = ["eval", str(place.folder / "full"), str(place.data), "--also", str(place.base)]
    assert main([*words, "--json"]) == 0
    assert before == [0, 0, 0]
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["models"]) == ["base", "tuned", str(place.base)]
    less = [(one["of"], one["less"]) for one in figures["differences"]]
    path = str(place.base)
    assert less == [("tuned", "base"), (path, "base"), (path, "tuned")]
    same = figures["differences"][1]["figures"]
    assert same.pop("reward_accuracy_above_longer_wins")["distinguishable"]
    assert not any(one["distinguishable"] for one in same.values())
    assert same["margin"]["mean"] == 0.0 and same["reward_accuracy"]["mean"] == 0.0


def test_what_cannot_be_told_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(place.base), str(place.data), "--also", str(place.folder / "lora")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "not distinguishable on these 24 pairs (8 prompts)" in printed
    assert "lora less model, pair by pair" in printed and "reward accuracy" not in printed


def test_a_model_with_other_tokens_has_no_rewards(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other", torch.float32, seed=5)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    words = ["eval", str(place.folder / "lora"), str(place.data), "--also", str(other), "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert "cuts texts into other tokens than base" in captured.err
    assert "margin" not in figures["models"][str(other)]
    assert "ranking_accuracy" in figures["models"][str(other)]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere", "DATA"], 66, "nowhere"),
        (["BASE", "nowhere.jsonl"], 66, "nowhere.jsonl"),
        (["BASE", "DATA", "--also", "BASE"], 2, "--also: names a model twice"),
        (["BASE", "DATA", "--out", "DATA"], 73, "which is read"),
        (["BASE", "BAD"], 65, "bad.jsonl:1"),
        (["BASE", "UNPAIRED"], 65, "one labelled answer each"),
    ],
)
def test_bad_input_is_one_line(
    place: Place, tmp_path: Path, words: list[str], code: int, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = {"BASE": str(place.base), "DATA": str(place.data)}
    for name, row in (
        ("bad", {"prompt": "a", "chosen": "b", "rejected": 3}),
        ("unpaired", {"prompt": "a", "completion": "b", "label": True}),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n", "utf-8")
        names[name.upper()] = str(file)
    assert main(["eval", *(names.get(word, word) for word in words)]) == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
