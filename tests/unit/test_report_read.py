"""Reading a run folder: logs as they come, the pair log by its last visits, every gap in words."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.report_runs import build_run, metrics, write_json, write_jsonl, write_part

from likelier.data.records import Completion, TokenPair
from likelier.pages.charts import MAX_POINTS, Series, as_table, means_of, thinned, with_means
from likelier.report.pair_texts import keep_pair_texts
from likelier.report.read import Proportion, read_jsonl, read_proportion, read_run


def test_rows_are_split_and_in_order(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", steps=25, planned=25))
    assert [row["step"] for row in run.train] == list(range(1, 26))
    assert [row["step"] for row in run.held_out] == [0, 10, 20, 25]
    assert all("eval_loss" not in row for row in run.train)
    assert run.gaps == ()


def test_a_step_written_twice_counts_once_and_the_later_row_stands(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", steps=2, planned=2)
    rows = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}]
    write_jsonl(path / "metrics.jsonl", rows)
    assert [(r["step"], r["loss"]) for r in read_run(path).train] == [(1, 5.0), (2, 4.0)]


def test_a_line_still_being_written_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    gaps: list[str] = []
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "\xea\xb0')
    assert read_jsonl(path, gaps) == [{"a": 1}, {"a": 2}] and gaps == []
    path.write_text('{"a": 1}\nnonsense\n[2]\n{"a": 3}', encoding="utf-8")
    assert read_jsonl(path, gaps) == [{"a": 1}, {"a": 3}]
    assert gaps == ["2 of the 4 lines of rows.jsonl could not be read."]


def test_what_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", steps=2, planned=2)
    odd = {"step": 3, "loss": 0.5, "grad_norm": float("nan"), "logps/chosen": float("-inf")}
    write_jsonl(path / "metrics.jsonl", [*metrics(2), odd, {"loss": 1.0}, {"step": "4", "loss": 1}])
    run = read_run(path)
    assert run.train[-1] == {"step": 3, "loss": 0.5}
    expected = "2 values in metrics.jsonl are not finite and are left out of the curves."
    assert run.gaps == (expected,)


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object:os.system {}", "\x00", "- 1"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = build_run(tmp_path / "run", steps=1, planned=1)
    (path / "config.yaml").write_text(text, encoding="utf-8")
    run = read_run(path)
    assert run.config == {}
    assert run.gaps == (
        "config.yaml could not be read, so the settings of this run are not known.",
    )


def test_shares() -> None:
    sound = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    assert read_proportion(sound) == Proportion(0.5, 0.4, 0.6, 100)
    spoilt = ({"n": 0}, {"low": None}, {"value": 1.5, "high": 2}, {"low": 0.55}, {"high": 0.45})
    assert [read_proportion(sound | bad) for bad in spoilt] == [None] * 5
    assert read_proportion(0.5) is None


def visit(source: str, step: int, margin: float, chosen: float = 0.0) -> dict[str, object]:
    return {
        "step": step,
        "epoch": 0,
        "source": source,
        "chosen_logp": -10.0 + chosen,
        "rejected_logp": -20.0,
        "reference_chosen_logp": -10.0,
        "reference_rejected_logp": -20.0,
        "chosen_tokens": 4,
        "rejected_tokens": 5,
        "margin": margin,
        "loss": 0.1,
    }


def test_the_pair_log_keeps_the_last_visit_of_each_pair(tmp_path: Path) -> None:
    path = tmp_path
    write_json(path / "run.json", {})
    # The second part holds the earlier visits: order comes from the steps, not from the files.
    write_part(path, "0.parquet", [visit("b", 9, 3.0), visit("a", 8, -1.0, chosen=-2.0)])
    write_part(path, "1.parquet", [visit("a", 1, 7.0, chosen=2.0), visit("c", 5, 0.5)])
    pair_log = read_run(path).pair_log
    assert pair_log is not None and (pair_log.pairs, pair_log.visits) == (3, 4)
    # Three pairs: no pair stands at both ends.
    assert [(p["source"], p["step"], p["margin"]) for p in pair_log.smallest] == [
        ("a", 8, -1.0),
        ("c", 5, 0.5),
    ]
    assert [p["source"] for p in pair_log.largest] == ["b"]
    assert pair_log.smallest[0]["chosen_change"] == pytest.approx(-2.0)
    # Per token of the answer, which has 4.
    drift = [(row["step"], row["chosen_change_token"]) for row in pair_log.drift]
    assert drift == [
        (1, pytest.approx(0.5)),
        (5, 0.0),
        (8, pytest.approx(-0.5)),
        (9, pytest.approx(0.0)),
    ]


def test_the_drift_is_a_mean_over_the_pairs_of_a_step(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    visits = [visit("a", 1, 0.0, chosen=2.0), visit("b", 1, 0.0, chosen=-1.0)]
    write_part(tmp_path, "0.parquet", visits)
    pair_log = read_run(tmp_path).pair_log
    assert pair_log is not None
    row = {"step": 1, "chosen_change_token": 0.125, "rejected_change_token": 0.0}
    assert pair_log.drift == [pytest.approx(row)]


def test_pairs_seen_only_early_are_not_at_the_ends(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    write_part(tmp_path, "0.parquet", [visit(f"{i}", i, -float(i)) for i in range(1, 11)])
    pair_log = read_run(tmp_path).pair_log
    assert pair_log is not None and pair_log.pairs == 10
    assert [p["step"] for p in pair_log.smallest] == [10, 9, 8]
    assert [p["step"] for p in pair_log.largest] == [6, 7]


def test_both_ends_of_a_long_pair_log(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    write_part(tmp_path, "0.parquet", [visit(f"{i:03}", 1, float(i)) for i in range(100)])
    pair_log = read_run(tmp_path).pair_log
    assert pair_log is not None
    assert [pair["margin"] for pair in pair_log.smallest] == [0, 1, 2, 3, 4, 5]
    assert [pair["margin"] for pair in pair_log.largest] == [99, 98, 97, 96, 95, 94]


def test_pair_log_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    write_part(tmp_path, "0.parquet", [visit("a", 1, 1.0), visit("n", 1, float("nan"))])
    (tmp_path / "pair_log" / "1.parquet").write_bytes(b"PAR1 cut")
    pq.write_table(pa.table({"step": [1]}), tmp_path / "pair_log" / "2.parquet")
    (tmp_path / "pair_log" / ".3.parquet").write_bytes(b"not finished")
    run = read_run(tmp_path)
    assert run.pair_log is not None and run.pair_log.visits == 1
    told = [gap for gap in run.gaps if gap.startswith("pair_log/")]
    assert told == [
        "pair_log/1.parquet could not be read and is left out.",
        "pair_log/2.parquet lacks the column source and is left out.",
    ]


def test_long_lines_are_means_that_keep_the_whole(tmp_path: Path) -> None:
    n = 2 * MAX_POINTS + 1
    line = thinned(Series("loss", "train", tuple(range(n)), tuple(float(i) for i in range(n))))
    assert len(line.x) <= MAX_POINTS and line.x[-1] == n - 1
    assert line.x[0] == 2 and line.y[0] == 1.0 and line.name == "loss, means of 3 points"
    short = Series("loss", "train", (1.0, 2.0), (3.0, 4.0))
    assert thinned(short) is short


def test_a_long_line_is_also_smoothed() -> None:
    values = tuple(1 - x / 500 + 0.25 * (-1) ** x for x in range(500))
    line = Series("loss", "train", tuple(float(x) for x in range(500)), values)
    assert with_means(line) == [replace(line, smooth=True)]
    means = means_of(values)  # of 11 points each
    # What goes up and down is gone, the slope is there, and the ends are those of the line.
    assert (means[0], means[-1]) == (values[0], values[-1])
    for x in range(5, 495):
        assert means[x] == pytest.approx(1 - x / 500, abs=0.25 / 11 + 1e-9)
    readable = replace(line, x=line.x[:100], y=values[:100])
    assert with_means(readable) == [readable]


def test_a_table_shows_the_steps_of_the_rarest_line_and_the_ends() -> None:
    train = Series("training", "train", tuple(range(1, 101)), tuple(0.5 for _ in range(100)))
    held_out = Series("held-out", "held-out", (50.0,), (0.25,), (0.2,), (0.3,))
    header, rows = as_table([train, held_out])
    assert header == ["step", "training", "held-out"]
    assert rows == [["1", "0.5", ""], ["50", "0.5", "0.25 (0.200 to 0.300)"], ["100", "0.5", ""]]


def test_samples_are_read_as_written(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", steps=1, planned=1)
    rows = [{"prompt": "바다가 뭐야?", "before": "몰라~", "after": "바다는 짠물입니다."}]
    write_jsonl(path / "samples.jsonl", rows)
    assert list(read_run(path).samples) == json.loads(json.dumps(rows))


def test_the_texts_of_an_unpaired_example_are_those_of_its_own_completion(tmp_path: Path) -> None:
    """Its rejected side belongs to another prompt; pairs that nothing names are not kept."""
    path = build_run(tmp_path / "run", steps=4, planned=4)
    pair_log = read_run(path).pair_log
    assert pair_log is not None
    worst = pair_log.smallest[0]["source"]
    one, other = Completion((3, 4), (True, True)), Completion((5,), (True,))
    pairs = [
        TokenPair((1, 2), one, other, worst, label=True),
        TokenPair((1, 2), one, other, "pairs.jsonl:2"),  # a finding is there
        TokenPair((1, 2), one, other, "elsewhere.jsonl:1"),
    ]
    keep_pair_texts(path, pairs, lambda ids: " ".join(map(str, ids)))
    assert read_run(path).texts == {
        worst: {"prompt": "1 2", "completion": "3 4"},
        "pairs.jsonl:2": {"prompt": "1 2", "chosen": "3 4", "rejected": "5"},
    }
