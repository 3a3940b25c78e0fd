"""`likelier query`: views over a run's files, ready questions, and nothing else within reach."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.report_runs import build_run, record, write_json, write_jsonl

from likelier.base import environment
from likelier.cli import main
from likelier.commands import query as module

pytest.importorskip("duckdb", reason="the extra `query` is not installed")


def visits(rows: Iterable[tuple[int, str, float]], **more: Any) -> pa.Table:
    """Rows of a pair log: step, source, margin; the loss is 1 less the margin."""
    figures = {"chosen_logp": -5.0, "rejected_logp": -6.0, "reference_chosen_logp": -5.5,
               "reference_rejected_logp": -6.5, "chosen_tokens": 4,
               "rejected_tokens": 5}  # fmt: skip
    return pa.Table.from_pylist([
        {"step": step, "epoch": 1, "source": source, "pair": "p", "prompt": "q", "margin": margin,
         "loss": 1 - margin, **figures, **more}
        for step, source, margin in rows
    ])  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five pairs of two files over three steps, and one held-out pair."""
    folder = tmp_path / "run"
    for name in ("pair_log", "held_out"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "run.json", record(3, 3, "finished"))
    first = [(1, "a.jsonl:1", 0.0), (1, "a.jsonl:2", 0.0), (1, "b.jsonl:1", 0.0)]
    later = [(2, "a.jsonl:1", -0.5), (2, "a.jsonl:2", 0.25), (2, "b.jsonl:1", 0.5),
             (2, "b.jsonl:2#2", 0.5), (2, "a.jsonl:9", -0.1),
             (3, "a.jsonl:1", -0.25), (3, "a.jsonl:2", -0.5), (3, "b.jsonl:1", 0.75)]  # fmt: skip
    pq.write_table(visits(first), folder / "pair_log" / "steps-00000001-00000001.parquet")
    pq.write_table(visits(later), folder / "pair_log" / "steps-00000002-00000003.parquet")
    held = [(0, "a.jsonl:7", 0.0), (2, "a.jsonl:7", 0.125), (3, "a.jsonl:7", -0.125)]
    pq.write_table(
        visits(held).drop_columns("epoch"), folder / "held_out" / "steps-00000000.parquet"
    )
    write_jsonl(folder / "metrics.jsonl", [
        {"step": 1, "loss": 0.69, "rewards/margins": 0.0},
        {"step": 1, "eval_loss": 0.7, "eval_rewards/accuracies": 0.5},
    ])  # fmt: skip
    write_jsonl(folder / "timing.jsonl", [{"step": 1, "seconds": 0.5, "tokens": 90}])
    return folder


def asked(capsys: pytest.CaptureFixture, run: Path, sql: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["query", str(run), sql, "--json"]) == 0, capsys.readouterr().err
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_never_flipped_by_hand(run: Path, capsys: pytest.CaptureFixture) -> None:
    """a:1 and a:9 were never right; a:2 once was, and step 1 sees an untrained policy."""
    assert asked(capsys, run, "never-flipped") == [
        {"source": "a.jsonl:1", "visits": 2, "best_margin": -0.25, "last_margin": -0.25,
         "last_loss": 1.25},
        {"source": "a.jsonl:9", "visits": 1, "best_margin": -0.1, "last_margin": -0.1,
         "last_loss": 1.1},
    ]  # fmt: skip


def test_hurting_sources_by_hand(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Last visits: a has -0.25, -0.5, -0.1, so losses of 3.85; b 0.75 and 0.5, so 0.75."""
    a, b = asked(capsys, run, "hurting-sources")
    assert (a["file"], a["pairs"], a["accuracy"]) == ("a.jsonl", 3, 0.0)
    assert (b["file"], b["pairs"], b["accuracy"]) == ("b.jsonl", 2, 1.0)
    assert (a["share_of_pairs"], a["share_of_loss"]) == pytest.approx((0.6, 3.85 / 4.6))
    assert b["mean_margin"] == pytest.approx(0.625)


def test_most_forgotten_by_hand(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert asked(capsys, run, "most-forgotten") == [
        {"side": "training", "source": "a.jsonl:2", "visits": 3, "best_margin": 0.25,
         "best_step": 2, "last_margin": -0.5, "fall": 0.75},
        {"side": "held out", "source": "a.jsonl:7", "visits": 3, "best_margin": 0.125,
         "best_step": 2, "last_margin": -0.125, "fall": 0.25},
    ]  # fmt: skip


def test_an_unpaired_example_is_right_by_its_label(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its reward is 0.1 * (-5.0 + 5.5), above 0: right where it is labelled good."""
    for number, label in ((4, 1), (5, 0)):
        table = visits([(number, f"c.jsonl:{number}", 9.0)], label=label)
        pq.write_table(table, run / "pair_log" / f"steps-0000000{number}.parquet")
    found = asked(capsys, run, "SELECT label, correct FROM pairs WHERE step > 3 ORDER BY step")
    assert found == [{"label": 1, "correct": 1.0}, {"label": 0, "correct": 0.0}]


def test_a_tie_is_half(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Within 1e-4 nats of log-ratio, which at beta 0.1 is a margin of 1e-5."""
    rows = [(4, "t.jsonl:1", 0.9e-5), (4, "t.jsonl:2", -0.9e-5), (4, "t.jsonl:3", 1.1e-5)]
    pq.write_table(visits(rows), run / "pair_log" / "steps-00000004.parquet")
    found = asked(capsys, run, "SELECT correct FROM pairs WHERE step = 4 ORDER BY source")
    assert [row["correct"] for row in found] == [0.5, 0.5, 1.0]


def test_slashes_are_underscores_and_rows_without_a_figure_have_none(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    sql = "SELECT step, rewards_margins, eval_rewards_accuracies FROM metrics"
    assert asked(capsys, run, sql) == [
        {"step": 1, "rewards_margins": 0.0, "eval_rewards_accuracies": None},
        {"step": 1, "rewards_margins": None, "eval_rewards_accuracies": 0.5},
    ]
    assert asked(capsys, run, "SELECT sum(tokens) AS n FROM timing") == [{"n": 90.0}]


def test_the_list_names_every_column_and_question(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = build_run(tmp_path / "run")
    capsys.readouterr()
    assert main(["query", str(run)]) == 0
    said = capsys.readouterr().out
    for view in ("pairs", "held_out", "metrics", "timing"):
        assert f"\n{view}  " in f"\n{said}"
        for row in asked(capsys, run, f"DESCRIBE {view}"):
            line = next(x for x in said.splitlines() if x.startswith(f"  {row['column_name']} "))
            known = view != "metrics" or row["column_name"].removeprefix("eval_") != ""
            assert len(line.split()) >= 3 or not known, line
    for name, question in module._texts()["questions"].items():
        assert f"{name}: " in said and question["sql"].splitlines()[0] in said
        asked(capsys, run, name)


def test_a_run_that_has_begun_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(tmp_path / "run.json", record(0, 9, "running"))
    assert main(["query", str(tmp_path), "SELECT count(*) AS n FROM pairs"]) == 0
    said = capsys.readouterr()
    assert said.out == "n\n0\n" and "no pairs on disk yet" in said.err
    for name in module._texts()["questions"]:
        assert asked(capsys, tmp_path, name) == []
    assert main(["query", str(tmp_path / "nowhere"), "SELECT 1"]) == 66


def test_old_runs_lack_columns(run: Path, capsys: pytest.CaptureFixture) -> None:
    old = visits([(9, "old.jsonl:1", 0.5)]).drop_columns(["pair", "prompt", "epoch"])
    pq.write_table(old, run / "pair_log" / "steps-00000009.parquet")
    found = asked(capsys, run, "SELECT pair, epoch, correct FROM pairs WHERE step = 9")
    assert found == [{"pair": None, "epoch": None, "correct": 1.0}]


# ---- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("sql, said", [
    ("SELECT nope FROM pairs", "SQL:1:8: Binder Error: Referenced column"),
    ("SELECT\n  step,\n  nope FROM pairs", "SQL:3:3: Binder Error"),
    ("SELEC 1", "SQL:1:1: Parser Error"),
    ("SELECT 1; SELECT 2", "2 statements"),
    ("", "0 statements"),
    ("DROP VIEW pairs", "this is DROP"),
    ("CREATE TABLE a AS SELECT 1", "this is CREATE"),
    ("SET memory_limit = '1GB'", "this is SET"),
    ("never-fliped", "did you mean never-flipped?"),
    ("SELECT cast('a' AS int) AS b", "Could not convert"),
])  # fmt: skip
def test_bad_sql_is_one_line_with_its_place(
    run: Path, capsys: pytest.CaptureFixture, sql: str, said: str
) -> None:
    assert main(["query", str(run), sql]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) <= 3


def test_sql_reaches_no_file_and_no_network(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (secret := tmp_path / "secret.csv").write_text("a\n1\n")
    written = tmp_path / "written.csv"
    log = next((run / "pair_log").glob("*.parquet"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for sql in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_parquet('{log}')",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"COPY (SELECT 1) TO '{written}'",
        f"COPY (SELECT 1) TO '{log}'",
        f"ATTACH '{tmp_path}/a.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM read_csv('http://127.0.0.1:9/a.csv')",
        "SELECT * FROM views",  # a variable of Python
        "SELECT getenv('HOME')",
    ):
        assert main(["query", str(run), sql]) == 2, sql
        assert "1" not in capsys.readouterr().out
    assert not written.exists()
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["its end", "a page"])
def test_a_damaged_file_is_named(run: Path, capsys: pytest.CaptureFixture, where: str) -> None:
    file = run / "pair_log" / "steps-00000002-00000003.parquet"
    rows = [(n, f"long-{n}.jsonl:{n}", n / 7) for n in range(2, 4000)]
    pq.write_table(visits(rows), file)
    content = bytearray(file.read_bytes())
    if where == "its end":
        content = content[:-20]
    else:
        content[100:-4000] = b"\xff" * (len(content) - 4100)
    file.write_bytes(bytes(content))
    assert main(["query", str(run), "SELECT sum(margin), max(source) FROM pairs"]) == 65
    error = capsys.readouterr().err
    assert str(file) in error and "damaged" in error
    file.rename(run / "aside")  # the cure
    assert main(["query", str(run), "SELECT count(*) FROM pairs"]) == 0


def test_options_that_do_not_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for words in (
        ["SELECT 1", "--csv", "--json"], ["--csv"], ["SELECT 1", "--out", str(tmp_path / "a.txt")],
        ["--out", str(tmp_path / "a.csv")],
    ):  # fmt: skip
        assert main(["query", str(run), *words]) == 2, words
    for name in ("run.json", "x.json"):
        before = (run / "run.json").read_bytes()
        assert main(["query", str(run), "SELECT 1", "--out", str(run / name)]) == 73
        assert (run / "run.json").read_bytes() == before and not (run / "x.json").exists()


def test_without_the_extra_it_says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = environment._installed
    monkeypatch.setattr(
        environment, "_installed", lambda name: None if name == "duckdb" else known(name)
    )
    assert main(["query", str(run), "SELECT 1"]) == 2
    assert "pip install 'likelier[query]'" in capsys.readouterr().err


# ---- how it answers --------------------------------------------------------------------------

HOSTILE = 'a"b,\x1b[31m\u202e<b>\n한'


def test_every_form_has_the_same_rows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pq.write_table(visits([(8, HOSTILE, 0.5)]), run / "pair_log" / "steps-00000008.parquet")
    sql = "SELECT source, margin, 'inf'::double AS most, NULL AS none FROM pairs WHERE step = 8"
    for ending in ("parquet", "csv", "json", "jsonl"):
        assert main(["query", str(run), sql, "--out", str(tmp_path / f"a.{ending}")]) == 0
    assert "1 rows in " in capsys.readouterr().err
    (from_parquet,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (from_parquet["source"], from_parquet["margin"]) == (HOSTILE, 0.5)
    (from_csv,) = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text("utf-8")))
    assert from_csv == {"source": HOSTILE, "margin": "0.5", "most": "inf", "none": ""}
    expected = {"source": HOSTILE, "margin": 0.5, "most": None, "none": None}
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == [expected]
    assert json.loads((tmp_path / "a.jsonl").read_text("utf-8")) == expected
    assert main(["query", str(run), sql]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said and len(said.splitlines()) == 2


def test_a_long_answer_is_cut_in_the_terminal_alone(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    sql = "SELECT * FROM range(100)"
    assert main(["query", str(run), sql]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 41 and "the first 40 rows" in said.err
    assert len(asked(capsys, run, sql)) == 100


def test_ctrl_c_ends_a_long_question(run: Path) -> None:
    sql = "SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000) b"
    code = "import sys; from likelier.cli import entry; print('up', flush=True); entry()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "query", str(run), sql],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error.strip()) == (130, "interrupted")
