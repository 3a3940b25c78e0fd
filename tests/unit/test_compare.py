"""Runs compared: figures that are known, what may not be compared, and which is best."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.compared_runs import add_held_out, made_run, write_table

from likelier.cli import main
from likelier.evaluation.compare import common, paired, read_held_out
from likelier.report.compare import compare_runs
from likelier.report.compare_page import render_comparison
from likelier.report.read import read_pair_log

GOOD, BAD = 6.0, -6.0  # nats of log-ratio margin


def two(folder: Path, ours: list[float], theirs: list[float], **more: Any) -> list[Path]:
    """Two runs of the margins given; ``more`` is of the second."""
    first = add_held_out(made_run(folder / "first"), ours)
    return [first, add_held_out(made_run(folder / "second", **more), theirs)]


def data_of(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["compare", *map(str, runs), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# ---- figures -----------------------------------------------------------------------------------


def test_figures_are_those_of_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four pairs: two right, one wrong, a tie; drifts and margins by hand."""
    runs = two(tmp_path, [GOOD, 3.0, BAD, 0.00005], [GOOD, 3.0, BAD, 2.0])
    found = data_of(runs, capsys)
    first = found["runs"][0]["figures"]
    assert first["accuracy"]["mean"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert first["margin"]["mean"] == pytest.approx(3.00005 / 4)
    assert first["chosen"]["mean"] == pytest.approx(3.00005 / 4 / 2 / 20)
    assert first["rejected"]["mean"] == pytest.approx(-3.00005 / 4 / 2 / 20)
    assert first["drift"]["mean"] == pytest.approx((6 + 3 + 6 + 0.00005) / 4 / 2 / 20)
    (apart,) = found["differences"]
    assert (apart["run"], apart["against"]) == ("second", "first")
    assert (apart["pairs"], apart["prompts"]) == (4, 2)
    assert apart["figures"]["accuracy"]["mean"] == pytest.approx(0.125)
    assert apart["figures"]["margin"]["mean"] == pytest.approx(1.99995 / 4)


def test_the_last_evaluation_counts(tmp_path: Path) -> None:
    runs = two(tmp_path, [GOOD] * 4, [BAD] * 4)
    for run in runs:
        add_held_out(run, [0.0] * 4, step=0)
        add_held_out(run, [BAD] * 4, step=30)
    found = compare_runs(runs)
    assert [run.figures["accuracy"].mean for run in found.runs] == [1.0, 0.0]
    assert [run.evaluated for run in found.runs] == [60, 60]


def test_pairs_meet_by_their_content_not_by_their_order(tmp_path: Path) -> None:
    """The second run has the same pairs backwards, two of its own, and one of them twice."""
    margins = [float(n) for n in range(1, 9)]
    first = add_held_out(made_run(tmp_path / "first"), margins)
    second = add_held_out(made_run(tmp_path / "second"), [m + 1 for m in margins])
    file = next((second / "held_out").iterdir())
    rows = pq.read_table(file).to_pylist()[::-1]
    own = [{**rows[0], "pair": f"own-{n}", "prompt": f"own-{n}"} for n in range(2)]
    write_table(second, [*rows, rows[3], *own], 60)
    (apart,) = compare_runs([first, second]).differences
    assert (apart.pairs, apart.prompts) == (8, 4)
    assert apart.figures["margin"].mean == pytest.approx(1.0)
    assert apart.figures["margin"].low == pytest.approx(1.0)


def test_intervals_are_paired_and_by_prompt(tmp_path: Path) -> None:
    """What two runs have in common falls out; eight pairs of one prompt are no eight trials."""
    noise = np.random.default_rng(0)
    base = np.repeat(noise.normal(0, 50, 30), 8)
    better = base + np.repeat(noise.normal(1.0, 1.0, 30), 8)
    first = add_held_out(made_run(tmp_path / "first"), base.tolist(), of_a_prompt=8)
    second = add_held_out(made_run(tmp_path / "second"), better.tolist(), of_a_prompt=8)
    (apart,) = compare_runs([first, second]).differences
    found = apart.figures["margin"]
    assert found.low > 0  # unpaired, a spread of 50 would hide it
    by_hand = 1.96 * np.std((better - base)[::8], ddof=1) / math.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * by_hand, rel=0.2)


def test_unpaired_examples_count_by_their_label(tmp_path: Path) -> None:
    run = add_held_out(made_run(tmp_path / "run"), [2.0, 2.0])
    file = next((run / "held_out").iterdir())
    rows = pq.read_table(file).to_pylist()
    write_table(run, [{**row, "label": label} for row, label in zip(rows, (1, 0), strict=True)], 60)
    held = read_held_out(run).last()
    assert held is not None
    found = held.columns
    assert found["accuracy"].tolist() == [1.0, 0.0]  # the bad one became likelier, too
    assert found["margin"].tolist() == pytest.approx([1.0, -1.0])
    assert found["chosen"][0] == pytest.approx(0.05) and math.isnan(found["chosen"][1])
    assert found["rejected"][1] == pytest.approx(0.05) and math.isnan(found["rejected"][0])
    assert paired(*common([held, held]), of_loss=False)["drift"].mean == 0


# ---- what may be compared ----------------------------------------------------------------------


def test_losses_are_compared_only_where_they_are_the_same(tmp_path: Path) -> None:
    (same,) = compare_runs(two(tmp_path / "a", [1.0] * 4, [2.0] * 4)).differences
    found = compare_runs(two(tmp_path / "b", [1.0] * 4, [2.0] * 4, loss={"beta": 0.3}))
    assert "loss" in same.figures and "loss" not in found.differences[0].figures
    assert ("loss.beta", ("0.1", "0.3")) in found.settings
    assert any("are not compared" in fact and "second" in fact for fact in found.facts)


def test_pairs_that_the_other_run_trained_on_are_left_out(tmp_path: Path) -> None:
    """Of other data, a pair held out here may be one that is learnt by heart there."""
    runs = two(tmp_path, [GOOD] * 6, [GOOD] * 6, inputs={"data": "other"})
    (before,) = compare_runs(runs).differences
    (runs[1] / "pair_log" / "steps.parquet").unlink(missing_ok=True)
    seen = pa.table({"prompt": ["pair-of-0", "elsewhere"]})
    pq.write_table(seen, runs[1] / "pair_log" / "steps.parquet")
    found = compare_runs(runs)
    assert (before.pairs, found.differences[0].pairs) == (6, 4)
    assert any(fact.startswith("Data: second has other pairs") for fact in found.facts)


def test_log_ratios_against_different_models_are_not_compared(tmp_path: Path) -> None:
    first = add_held_out(made_run(tmp_path / "first"), [GOOD] * 4)
    other = made_run(tmp_path / "second", inputs={"model": "x"}, reference={"identity": "x"})
    add_held_out(other, [GOOD] * 4, reference=-55.0)
    found = compare_runs([first, other])
    assert found.differences[0].figures == {} and found.best is None
    assert "different models" in found.differences[0].note
    assert any("second began from other weights" in fact for fact in found.facts)


def test_a_loss_without_reference_is_measured_against_the_initial_policy(tmp_path: Path) -> None:
    first = add_held_out(made_run(tmp_path / "first"), [GOOD] * 4)
    facts = {"loss": {"reads_reference": False, "reward_scale": 2.5, "starts_at_ln2": False}}
    free = made_run(tmp_path / "free", facts=facts, reference={"identity": "none"})
    for run in (first, free):
        add_held_out(run, [0.0] * 4, step=0)
    add_held_out(free, [GOOD] * 4)
    for file in (free / "held_out").iterdir():
        zero = {f"reference_{side}_logp": 0.0 for side in ("chosen", "rejected")}
        rows = [{**row, **zero} for row in pq.read_table(file).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows), file)
    found = compare_runs([first, free])
    (apart,) = found.differences
    assert apart.figures["margin"].mean == pytest.approx(0) and "initial policy" in apart.note
    assert found.runs[1].figures["drift"].mean == pytest.approx(3 / 20)
    (free / "held_out" / "steps-00000000-00000000.parquet").unlink()
    (apart,) = compare_runs([first, free]).differences
    assert apart.figures == {} and apart.note


# ---- which is best -----------------------------------------------------------------------------


def test_the_best_has_the_highest_accuracy_where_that_is_sure(tmp_path: Path) -> None:
    runs = two(tmp_path, [GOOD] * 30 + [BAD] * 30, [GOOD] * 60)
    found = compare_runs(runs)
    assert (found.best, found.tied) == ("second", ())
    assert found.verdict.startswith("Best: second. Its held-out accuracy of 100%")


def test_of_equals_the_one_that_moved_least_is_best(tmp_path: Path) -> None:
    """The one with a single hit more is not told apart, and moved further."""
    margins = [GOOD, BAD] * 30
    first = add_held_out(made_run(tmp_path / "first"), margins)
    second = add_held_out(made_run(tmp_path / "second"), [GOOD, *margins[1:], GOOD], drift=0.5)
    worse = add_held_out(made_run(tmp_path / "worse"), [BAD] * 60)
    found = compare_runs([worse, second, first])
    assert (found.best, found.tied) == ("first", ("second", "first"))
    assert "not tell apart" in found.verdict and "second, first" in found.verdict


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_run_that_has_not_ended_is_not_best(tmp_path: Path, status: str) -> None:
    runs = two(tmp_path, [BAD] * 8, [GOOD] * 8, status=status)
    found = compare_runs(runs)
    assert found.best == "first" and "only run" in found.verdict
    assert any(fact.startswith("second ") for fact in found.facts)
    assert found.differences[0].figures["accuracy"].mean == 1.0


# ---- folders as they may be --------------------------------------------------------------------


def test_a_run_of_before_the_log_is_shown_by_its_metrics(tmp_path: Path) -> None:
    first = add_held_out(made_run(tmp_path / "first"), [GOOD] * 4)
    found = compare_runs([first, made_run(tmp_path / "old")])
    assert found.runs[1].figures["accuracy"].mean == pytest.approx(0.775, abs=0.01)
    assert "no log of its held-out pairs" in found.differences[0].note
    assert found.best is None


def test_damaged_files_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    runs = two(tmp_path, [GOOD] * 4, [GOOD] * 4)
    add_held_out(runs[1], [BAD] * 4, step=30)
    (runs[1] / "held_out" / "steps-00000060-00000060.parquet").write_bytes(b"PAR1 not so")
    (runs[1] / "metrics.jsonl").write_text('{"step": 1}\n{]\n')
    found = compare_runs(runs)
    assert found.differences[0].figures["accuracy"].mean == -1.0
    said = "\n".join(found.facts)
    assert "`held_out/steps-00000060-00000060.parquet` cannot be read" in said
    assert "metrics.jsonl" in said


@pytest.mark.parametrize("folder", ["held_out", "pair_log"])
def test_whatever_bit_of_a_log_is_wrong_its_file_is_named_or_read(
    folder: str, tmp_path: Path
) -> None:
    """Arrow raises an OSError for some: those are of what it read, and none of the disk."""
    run = add_held_out(made_run(tmp_path / "run"), [GOOD] * 4)
    (run / "pair_log").mkdir(exist_ok=True)
    file = run / "held_out" / "steps-00000060-00000060.parquet"
    if folder == "pair_log":
        file = file.rename(run / folder / file.name)
    whole, said = file.read_bytes(), []
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        if folder == "held_out":
            said += [read_held_out(run).damaged]
        else:
            gaps: list[str] = []
            read_pair_log(run / folder, gaps)
            said += [tuple(gaps)]
    assert 10 < sum(map(bool, said)) < len(said) - 10


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["first"], 2, "two different runs are needed"),
        (["first", "first"], 2, "given twice"),
        (["first", "first/../first"], 2, "given twice"),
        (["first", "absent"], 66, "there is no such run folder"),
        (["first", "first/held_out"], 66, "no run.json here"),
        (["first", "second", "--html", "first"], 73, "which is read"),
        (["first", "second", "--html", "first/held_out/c.html"], 73, "lies inside first"),
        (["first", "second", "--html", "nowhere/c.html"], 73, "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two(tmp_path, [GOOD] * 4, [BAD] * 4)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) <= 3


def test_the_terminal_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two(tmp_path, [GOOD, BAD] * 20, [BAD, GOOD] * 20, optim={"lr": 2e-4})
    assert main(["compare", *map(str, runs), "--html", str(tmp_path / "c.html")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("optim.lr 0.0001 0.0002", "over 40 pairs of 20 prompts", "Best: first",
                  "no difference that this data can show"):  # fmt: skip
        assert words in said
    page = (tmp_path / "c.html").read_text("utf-8")
    assert "Best: first" in page and page.count("<svg") >= 6


def test_a_page_draws_a_difference_that_is_none_as_one(tmp_path: Path) -> None:
    """The same intervals that the words call no difference are thin and grey."""
    one, other, better = (
        add_held_out(made_run(tmp_path / name), margins)
        for name, margins in (
            ("one", [1.0, -1.0] * 20),
            ("other", [-1.0, 1.0] * 20),
            ("better", [5.0] * 40),
        )
    )
    drawn = render_comparison(compare_runs([one, other]))
    assert 'class="nothing"' in drawn and 'class="clear"' not in drawn
    assert 'class="clear"' in render_comparison(compare_runs([one, better]))
