"""The demo's evidence: intervals by topic, and a demo that may be stopped and repeated."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likelier.base.errors import OutputError
from likelier.config import config_from
from likelier.demo import demo
from likelier.demo import evidence as evidence_module
from likelier.demo import make as make_module
from likelier.demo.base import Recipe, base_model
from likelier.demo.evidence import interrogate, judge, outcome, share_of
from likelier.demo.make import settings
from likelier.demo.world import interview, topics
from likelier.evaluation.metrics import wilson
from likelier.report.read import read_run

TINY = Recipe(rounds=1, vocabulary=700, hidden=32, inner=32, layers=1, lr=1e-2)
SHARES = {
    f"{name}_{when}" for name in ("preferred", "named", "stopped") for when in ("before", "after")
}


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1))
def test_an_interval_holds_its_share_and_is_never_narrower_than_wilsons(
    answers: list[tuple[int, bool]],
) -> None:
    hits = [hit for _, hit in answers]
    found = share_of(hits, [cluster for cluster, _ in answers], seed=0)
    low, high = wilson(found["value"], len(hits))
    assert found["n"] == len(hits)
    assert found["value"] == sum(hits) / len(hits)
    assert 0 <= found["low"] <= low <= found["value"] + 1e-12
    assert found["value"] - 1e-12 <= high <= found["high"] <= 1


def test_answers_that_hang_together_count_as_their_topics() -> None:
    """Ten topics, all or none of whose answers hit: 200 answers, but hardly more than 10 facts."""
    clusters = [topic for topic in range(10) for _ in range(20)]
    together = share_of([topic < 5 for topic in clusters], clusters, seed=0)
    apart = share_of([answer % 2 == 0 for answer in range(200)], clusters, seed=0)
    assert together["value"] == apart["value"] == 0.5
    assert together["high"] - together["low"] == pytest.approx(0.6, abs=0.1)
    assert apart["high"] - apart["low"] == pytest.approx(0.14, abs=0.02)


def test_all_hits_still_leave_doubt() -> None:
    found = share_of([True] * 50, list(range(50)), seed=0)
    assert found["value"] == found["high"] == 1.0
    assert 0.9 < found["low"] < 0.95


def test_the_intervals_depend_on_the_seed_alone() -> None:
    hits = [place % 3 == 0 for place in range(60)]
    clusters = [place // 6 for place in range(60)]
    assert share_of(hits, clusters, seed=1) == share_of(hits, clusters, seed=1)


def test_the_outcome_counts_what_the_rows_say() -> None:
    asked = [topic for topic, _ in interview(3, 0)]
    rows = [
        {"prompt": "x", **{name: name == "preferred_after" or place % 4 == 0 for name in SHARES}}
        for place in range(len(asked))
    ]
    evaluation = {
        "step": 9,
        "eval_rewards/accuracies": 0.75,
        "eval_rewards/accuracies_low": 0.5,
        "eval_rewards/accuracies_high": 0.9,
        "eval_pairs": 12,
    }
    found = outcome(asked, rows, evaluation, seed=0)
    assert found.keys() == SHARES | {"heldout_accuracy"}
    assert found["heldout_accuracy"] == {"value": 0.75, "low": 0.5, "high": 0.9, "n": 12}
    assert found["preferred_after"]["value"] == 1.0
    assert found["named_before"]["value"] == 0.25
    assert found["named_before"]["n"] == len(asked) >= 200


def test_the_settings_are_a_config() -> None:
    config = config_from(settings(Path("b"), Path("pairs"), Path("o"), 3))
    assert config.adapter.kind == "none" and config.train.seed == 3


def test_two_models_are_asked_the_same_and_judged_by_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "MAX_NEW_TOKENS", 6)
    base = base_model(TINY, tmp_path)
    asked, rows = interrogate(base, base, seed=0)
    assert [row["prompt"] for row in rows] == [prompt for _, prompt in interview(3, 0)]
    for about, row in zip(asked, rows, strict=True):
        assert row["topic"] == about.name
        assert row["before"] == row["after"]  # the same model and the same seed
        found = judge(about, row["after"])
        assert {what: row[f"{what}_after"] for what in ("preferred", "named")} == found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(make_module, "PAIRS_EACH", 1)
    monkeypatch.setattr(evidence_module, "MAX_NEW_TOKENS", 6)
    return tmp_path


def test_a_demo_leaves_its_evidence_and_is_left_alone_afterwards(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "runs" / "demo"
    assert demo(out, seed=1, recipe=TINY) == out
    content = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    assert content.keys() == SHARES | {"heldout_accuracy", "seconds", "seed"}
    assert content["seconds"] > 0
    run = read_run(out)
    assert run.outcome.keys() == SHARES | {"heldout_accuracy"}
    assert len(run.samples) == run.outcome["named_after"].n >= 200
    report = (out / "report.html").read_text(encoding="utf-8")
    assert run.samples[0]["prompt"] in report
    for name in ("train", "heldout"):
        assert (place / "runs" / "demo-pairs" / f"{name}.jsonl").stat().st_size > 0
    assert "in the preferred manner" in capsys.readouterr().err

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(make_module, "make", lambda *_: pytest.fail("made again"))
    assert demo(out, seed=1) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "finished" in capsys.readouterr().err
    with pytest.raises(OutputError, match="the demo of seed 1"):
        demo(out, seed=2)


def test_a_demo_stopped_while_sampling_goes_on_from_its_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "demo"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make_module, "interrogate", stopped)
        with pytest.raises(KeyboardInterrupt):
            demo(out, recipe=TINY)
    assert not (out / "outcome.json").exists()
    trained = (out / "model" / "model.safetensors").stat().st_mtime_ns
    demo(out, recipe=TINY)
    assert (out / "outcome.json").exists()
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == trained


def test_a_folder_that_holds_something_else_is_refused_before_the_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "demo"
    out.mkdir()
    (out / "config.json").write_text("{}")
    monkeypatch.setattr(make_module, "base_model", lambda _: pytest.fail("worked for nothing"))
    with pytest.raises(OutputError, match="something else"):
        demo(out)


def test_topics_of_the_interview_are_clustered_over_both_languages() -> None:
    rows = {about.row for about in topics() if about.split == "sample"}
    assert {about.row for about, _ in interview(3, 0)} == rows
    assert len(rows) >= 40
