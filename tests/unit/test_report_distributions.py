"""Held-out pairs one by one: bars that hold every pair, shares that are right, and by length."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.compared_runs import write_table
from tests.support.report_runs import BETA, build_run

from likelier.pages.stills import Still, draw_histogram
from likelier.report.distributions import draw_distributions
from likelier.report.page import make_report
from likelier.report.read import read_run

WORDS = {"id": "a", "title": "a", "reading": "a"}


def row(at: int, step: int, chosen: float, rejected: float, **more: Any) -> dict[str, Any]:
    """A held-out pair whose answers have changed by so many nats."""
    return {
        "step": step,
        "source": f"held.jsonl:{at}",
        "pair": f"{at:016x}",
        "prompt": f"{at:016x}",
        "chosen_logp": -60.0 + chosen,
        "rejected_logp": -58.0 + rejected,
        "reference_chosen_logp": -60.0,
        "reference_rejected_logp": -58.0,
        "chosen_tokens": 20,
        "rejected_tokens": 10,
        "margin": BETA * (chosen - rejected),
        "loss": math.log(2),
    } | more


def evaluated(path: Path, changes: list[tuple[float, float]], **more: Any) -> Path:
    run = build_run(path)
    for step, far in ((0, 0.0), (60, 1.0)):
        rows = [row(at, step, far * c, far * r, **more) for at, (c, r) in enumerate(changes)]
        write_table(run, rows, step)
    return run


def counts(chart: Still, column: int) -> dict[float, int]:
    """How many pairs each bin holds, by where it begins."""
    return {
        float(cells[0].replace("−", "-").replace(",", "")): int(cells[column].replace(",", ""))
        for cells in chart.rows
    }


def test_every_pair_stands_in_one_bar_of_each_kind(tmp_path: Path) -> None:
    changes = [(0.1 * at, -0.2 * at) for at in range(60)] + [(400.0, -400.0)]
    charts, _ = draw_distributions(read_run(evaluated(tmp_path / "run", changes)))
    gaps, drift, _ = charts
    for chart in (gaps, drift):
        for column in (1, 2):
            assert sum(counts(chart, column).values()) == len(changes)
    before, after = counts(gaps, 1), counts(gaps, 2)
    full = {begin for begin, n in before.items() if n}
    assert len(full) == 1 and max(full) <= -2.0  # all were the reference's: 2 nats behind
    assert sum(n for begin, n in after.items() if begin >= 0) == sum(
        c - r - 2 >= 0 for c, r in changes
    )
    chosen, rejected = counts(drift, 1), counts(drift, 2)
    assert sum(n for begin, n in chosen.items() if begin >= 0) == len(changes)
    assert rejected[max(begin for begin in rejected if begin < 0)] < len(changes)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    st.lists(st.floats(-1e-6, 1e-6), min_size=1, max_size=60),
)
def test_bars_hold_all_values_and_a_bin_begins_at_zero(one: list[float], two: list[float]) -> None:
    values = {("plain", "one"): np.array(one), ("train", "two"): np.array(two)}
    chart = draw_histogram(WORDS, "x", values)
    assert 1 <= len(chart.rows) <= 35
    for column, found in enumerate(values.values(), start=1):
        assert sum(int(cells[column].replace(",", "")) for cells in chart.rows) == len(found)
    drawn = [float(x) for _, d in chart.shapes for x in re.findall(r"M(-?[\d.]+) ", d)]
    assert all(0 <= x <= 1000 for x in drawn)


def test_a_model_that_is_as_right_as_it_says_lies_on_the_line(tmp_path: Path) -> None:
    """And one that says more than it holds lies below."""
    noise = np.random.default_rng(0)
    margins = noise.uniform(-3, 3, 4000)
    right = noise.random(4000) < 1 / (1 + np.exp(-np.abs(margins)))
    for factor, below in ((1.0, False), (4.0, True)):
        said = factor * np.where(right, np.abs(margins), -np.abs(margins)) / BETA
        run = evaluated(tmp_path / f"run-{factor}", [(float(m), 0.0) for m in said])
        chart = draw_distributions(read_run(run))[0][2]
        sure, share = (
            [float(cells[at].split("%")[0]) for cells in chart.rows[1:]] for at in (0, 1)
        )
        apart = [s - p for s, p in zip(share, sure, strict=True)]
        assert all(a < -3 for a in apart) if below else max(map(abs, apart)) < 3.5
        assert sum(int(cells[2]) for cells in chart.rows) == 4000


def test_accuracy_by_which_answer_is_longer(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    for step, far in ((0, 0.0), (60, 1.0)):
        longer = [row(at, step, far, 0.0) for at in range(30)]
        shorter = [row(at, step, -far, 0.0, chosen_tokens=5) for at in range(30, 40)]
        write_table(run, [*longer, *shorter], step)
    found = {one.name: one for one in draw_distributions(read_run(run))[1]}
    assert found["the chosen answer is longer"].value == 1.0
    assert found["the chosen answer is longer"].pairs == 30
    assert found["the rejected answer is longer"].value == 0.0
    assert found["all, by taking the longer answer"].value == pytest.approx(0.75)
    assert "both are as long" not in found
    page = make_report(run, "en")
    assert "100% (" in page and 'id="held-out"' in page


def test_without_a_trained_evaluation_there_is_no_section(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    assert draw_distributions(read_run(run)) == ([], [])
    write_table(run, [row(at, 0, 0.0, 0.0) for at in range(9)], 0)
    assert draw_distributions(read_run(run)) == ([], [])
    assert 'id="held-out"' not in make_report(run, "en")
