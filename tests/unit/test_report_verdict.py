"""The verdict claims no more than its interval, and each check fires on its own case alone."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.support.compared_runs import write_table
from tests.support.report_runs import (
    CONFIG,
    add_demo,
    build_run,
    evaluation,
    metrics,
    record,
    write_json,
    write_jsonl,
)

from likelier.evaluation.intervals import wilson
from likelier.evaluation.metrics import SATURATED
from likelier.evaluation.spikes import FACTOR, WINDOW
from likelier.pages import script_language, written_out
from likelier.pages.texts import duration, percent, points, short, signed
from likelier.report import health as health_checks
from likelier.report import learned
from likelier.report.check import Check
from likelier.report.health import check_gap, health
from likelier.report.read import (
    Proportion,
    RunFiles,
    held_out_accuracy,
    newcombe,
    read_run,
)
from likelier.report.summary import describe_status, key_figures
from likelier.report.verdict import AGAINST, BESIDE, Verdict, give_verdict
from likelier.run import FEWEST_STEPS


def with_rows(
    path: Path, rows: list[dict[str, Any]], status: str = "finished", pairs: int = 480
) -> RunFiles:
    """A run of 60 planned steps, each of 32 of its pairs, that holds these metric rows and nothing
    measured besides.
    """
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(str(CONFIG), encoding="utf-8")  # flow style is YAML too
    write_json(path / "run.json", record(60, 60, status) | {"pairs": pairs})
    write_jsonl(path / "metrics.jsonl", rows)
    return read_run(path)


def proportion(share: float, n: int) -> Proportion:
    return Proportion(share, *wilson(share, n), n)


def test_wilson_and_newcombe_give_the_published_intervals() -> None:
    # Newcombe 1998: 81 of 263 has the Wilson interval .2553 to .3662; the difference of 56/70
    # and 48/80, his first example, has .0524 to .3339 by the hybrid score method (his method 10).
    single = proportion(81 / 263, 263)
    assert (single.low, single.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    change = newcombe(proportion(48 / 80, 80), proportion(56 / 70, 70))
    assert change == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert proportion(0.0, 10).low == 0.0 and proportion(1.0, 10).high == 1.0
    assert 0.69 < proportion(1.0, 10).low < 0.73


@pytest.mark.parametrize(
    ("after", "tone", "words"),
    [
        (0.975, "better", "97.5% of the sampled answers"),
        (0.55, "same", "not distinguishable from the model before training"),
        (0.3, "worse", "down from 51% before"),
    ],
)
def test_the_demo_verdict(tmp_path: Path, after: float, tone: str, words: str) -> None:
    run = read_run(add_demo(build_run(tmp_path / "run", steps=2, planned=2), after=after))
    found = verdict_of(run)
    assert found.tone == tone and words in found.changed
    assert "95% interval" in found.sure and "200 answers" in found.sure


def verdict_of(run: RunFiles) -> Verdict:
    return give_verdict(run, health(run))


@pytest.mark.parametrize(
    ("accuracy", "n", "tone", "words"),
    [
        (0.62, 200, "better", "towards the chosen answer more than the rejected one in 62%"),
        (0.62, 20, "same", "not distinguishable from the model before training"),
        (0.5, 5000, "same", "not distinguishable from the model before training"),
        (0.38, 200, "worse", "the wrong way"),
    ],
)
def test_the_held_out_verdict(
    tmp_path: Path, accuracy: float, n: int, tone: str, words: str
) -> None:
    row = {"step": 60, "eval_rewards/accuracies": accuracy, "eval_pairs": n}
    found = verdict_of(with_rows(tmp_path, [evaluation(0), row]))
    assert found.tone == tone and words in found.changed
    assert f"n\u00a0=\u00a0{n:,}" in found.sure


def test_the_interval_of_a_row_wins_over_wilsons(tmp_path: Path) -> None:
    row = {"step": 1, "eval_rewards/accuracies": 0.7, "eval_pairs": 50}
    assert held_out_accuracy(row) == proportion(0.7, 50)
    written = {"eval_rewards/accuracies_low": 0.48, "eval_rewards/accuracies_high": 0.85}
    assert held_out_accuracy(row | written) == Proportion(0.7, 0.48, 0.85, 50)
    assert held_out_accuracy({"step": 1, "eval_rewards/accuracies": 0.7}) is None
    assert verdict_of(with_rows(tmp_path, [row | written])).tone == "same"


def test_without_held_out_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    rows = [row for row in metrics(60) if "loss" in row]
    found = verdict_of(with_rows(tmp_path, rows))
    assert found.tone == "unknown" and "from 0.6931 to 0.2161" in found.changed
    assert "is not known" in found.sure
    one = verdict_of(with_rows(tmp_path, rows[:1]))
    assert "only step written was 0.6931" in one.changed and "is not known" in one.sure
    assert verdict_of(with_rows(tmp_path, [])).sure == ""


def a_check(name: str, state: Any) -> Check:
    return Check(name, state, f"the title of {name}", "a reason", "a fix")


@pytest.mark.parametrize("name", [*AGAINST, *BESIDE, "one of a later version"])
def test_a_warning_is_what_to_look_at_first(tmp_path: Path, name: str) -> None:
    row = {"step": 60, "eval_rewards/accuracies": 0.9, "eval_pairs": 400}
    run = with_rows(tmp_path, [evaluation(0), row])
    found = give_verdict(run, [a_check(name, "warning"), a_check("spikes", "fine")])
    assert f"the title of {name}" in found.to_do and "other" not in found.to_do
    if name == "moved":
        assert found.tone == "same" and "not distinguishable" in found.changed
        assert "wider, and holds 50%" in found.sure
    else:
        assert found.tone == ("mixed" if name in AGAINST else "better")
    two = give_verdict(run, [a_check("spikes", "warning"), a_check("overfitting", "warning")])
    assert "the title of overfitting" in two.to_do and "1 other warning:" in two.to_do


def test_each_check_has_its_place_in_the_verdict(tmp_path: Path) -> None:
    names = {check.name for check in health(read_run(build_run(tmp_path / "run")))}
    assert names == {*AGAINST, *BESIDE}


@pytest.mark.parametrize(
    ("status", "accuracy", "words"),
    [
        ("finished", 0.9, "likelier chat"),
        ("finished", 0.5, "hold out more pairs"),
        ("finished", 0.1, "the wrong way round"),
        ("stopped", 0.9, "resume it with the same command"),
        ("running", 0.9, "has not ended"),
    ],
)
def test_what_to_do_follows_from_what_was_found(
    tmp_path: Path, status: str, accuracy: float, words: str
) -> None:
    row = {"step": 60, "eval_rewards/accuracies": accuracy, "eval_pairs": 400}
    run = with_rows(tmp_path, [evaluation(0), row], status)
    assert words in give_verdict(run, [a_check("gap", "fine")]).to_do
    no_evaluation = with_rows(tmp_path, [row for row in metrics(60) if "loss" in row])
    assert "set data.eval" in give_verdict(no_evaluation, []).to_do


def test_a_run_that_overfits_is_not_called_better(tmp_path: Path) -> None:
    """Right on training pairs and above chance on held-out ones, whose loss is above its lowest."""
    run = build_run(tmp_path / "run")
    rows: list[dict[str, Any]] = []
    for step, loss in ((0, 0.693), (20, 0.60), (40, 0.64), (60, 0.69)):
        accuracy = 0.5 if step == 0 else 0.68
        rows.append({"step": step, "eval_loss": loss, "eval_rewards/accuracies": accuracy,
                     "eval_pairs": 400})  # fmt: skip
        noise = random.Random(step)
        write_table(run, [
            {"step": step, "source": f"held.jsonl:{at}", "pair": f"{at:016x}",
             "prompt": f"{at:016x}", "chosen_logp": -60 + (at % 100 < 100 * accuracy) * step / 10,
             "rejected_logp": -60 + (at % 100 >= 100 * accuracy) * step / 10,
             "reference_chosen_logp": -60.0, "reference_rejected_logp": -60.0,
             "chosen_tokens": 20, "rejected_tokens": 20, "margin": 0.0,
             "loss": loss + noise.gauss(0, 0.05)}
            for at in range(400)
        ], step)  # fmt: skip
    training = [row | {"rewards/accuracies": 0.99} for row in metrics(60) if "loss" in row]
    write_jsonl(run / "metrics.jsonl", sorted([*rows, *training], key=lambda row: row["step"]))
    found = read_run(run)
    checks = {check.name: check for check in health(found)}
    assert checks["overfitting"].state == "warning"
    verdict = give_verdict(found, list(checks.values()))
    assert verdict.tone == "mixed" and checks["overfitting"].title in verdict.to_do


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("finished", "Finished at step 60 of 60."),
        ("stopped", "Stopped early at step 60 of 60."),
        ("running", "Not finished: these are the figures at step 60 of 60."),
    ],
)
def test_the_status_is_said(tmp_path: Path, status: str, words: str) -> None:
    assert describe_status(with_rows(tmp_path, metrics(60), status)).startswith(words)


def test_key_figures_are_those_of_the_folder(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run"))
    cards = {label: value for label, value, _ in key_figures(run)}
    assert list(cards) == [
        "Held-out accuracy",
        "Held-out loss",
        "Chosen answers, log-prob",
        "Time in training steps",
        "Tokens saved by sharing",
    ]
    last = run.held_out[-1]
    assert cards["Held-out accuracy"] == percent(last["eval_rewards/accuracies"])
    # Rewards are beta (0.1) times the log-ratio, so the change in nats is ten times the reward.
    nats = signed(10 * last["eval_rewards/chosen"])
    assert cards["Chosen answers, log-prob"] == f"{nats} nats"
    assert cards["Tokens saved by sharing"] == percent(1 - 158_112 / 301_440)


def looked_at(run: RunFiles) -> set[str]:
    return {check.title for check in health(run) if check.state == "warning"}


def test_a_healthy_run_has_nothing_to_look_at(tmp_path: Path) -> None:
    run = read_run(add_demo(build_run(tmp_path / "run")))
    assert looked_at(run) == set()
    unknown = {check.name for check in health(run) if check.state == "unknown"}
    assert unknown == {"moved", "noise", "length", "saturation", "answers"}  # of an older version
    assert {c.state for c in health(with_rows(tmp_path / "empty", []))} == {"fine", "unknown"}


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | change(row) for row in metrics(60)]


def falling_chosen(row: dict[str, Any]) -> dict[str, Any]:
    return {"eval_rewards/chosen": -0.01 * row["step"]} if "eval_loss" in row else {}


def told_apart_at_once(row: dict[str, Any]) -> dict[str, Any]:
    return all_right_after(row, 1)


def all_right_after(row: dict[str, Any], step: int) -> dict[str, Any]:
    """Training pairs all right after a step, and nearly so held-out ones."""
    if row["step"] <= step:
        return {}
    if "loss" in row:
        return {"rewards/accuracies": 1.0}
    ends = {"eval_rewards/accuracies_low": 0.91, "eval_rewards/accuracies_high": 0.96}
    return {"eval_rewards/accuracies": 0.94, **ends}


def clipped(row: dict[str, Any]) -> dict[str, Any]:
    return {"grad_norm": 4.0 if row["step"] <= 31 else 0.5} if "loss" in row else {}


def no_gradient(row: dict[str, Any]) -> dict[str, Any]:
    return {"grad_norm": 0.0, "loss": math.log(2)} if "loss" in row else {}


def rising(row: dict[str, Any]) -> dict[str, Any]:
    return {"eval_loss": 0.4 + 0.01 * abs(row["step"] - 30)} if "eval_loss" in row else {}


def by_heart(row: dict[str, Any]) -> dict[str, Any]:
    """Late in the run 92% of the training pairs, and 78% of 200 held-out ones."""
    return {"rewards/accuracies": 0.92} if "loss" in row and row["step"] > 20 else {}


def of_pairs(row: dict[str, Any], n: int) -> dict[str, Any]:
    """An evaluation of so many pairs, half of them right."""
    if "eval_loss" not in row:
        return {"rewards/accuracies": 0.5}
    low, high = wilson(0.5, n)
    ends = {"eval_rewards/accuracies_low": low, "eval_rewards/accuracies_high": high}
    return {"eval_rewards/accuracies": 0.5, "eval_pairs": n, **ends}


def few(row: dict[str, Any]) -> dict[str, Any]:
    return of_pairs(row, 92)


@pytest.mark.parametrize(
    ("change", "title", "words"),
    [
        (falling_chosen, "The chosen answers lose probability", "became less likely"),
        (told_apart_at_once, "The pairs were told apart almost at once", "Accuracy was 100%"),
        (clipped, "The gradients are clipped most of the time", "51.7% of the steps"),
        (no_gradient, "Nothing is being learned", "0 in all 60 steps"),
        (rising, "The held-out loss kept rising", "after 0.4 at step 30"),
        (
            by_heart,
            "Overfitting: training pairs are judged better than held-out pairs",
            "92% on training pairs and 77.5% on held-out pairs: a gap of +14.5 points "
            "(95% interval +8.4 to +21.3;",
        ),
        (
            few,
            "There are too few held-out pairs to judge by",
            "With 92 pairs the 95% interval of their accuracy is 40% to 60%, 20 points wide",
        ),
    ],
)
def test_each_check_fires_on_its_own_case(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], title: str, words: str
) -> None:
    run = with_rows(tmp_path, changed(change))
    assert looked_at(run) == {title}
    first = health(run)[0]
    assert first.title == title and words in first.reason and first.fix


def test_what_is_nearly_bad_is_not_reported(tmp_path: Path) -> None:
    def half_clipped(row: dict[str, Any]) -> dict[str, Any]:
        return {"grad_norm": 4.0 if row["step"] <= 30 else 1.0} if "loss" in row else {}

    def rising_twice(row: dict[str, Any]) -> dict[str, Any]:
        return {"eval_loss": 0.4 + 0.01 * abs(row["step"] - 40)} if "eval_loss" in row else {}

    def rising_now_and_then(row: dict[str, Any]) -> dict[str, Any]:
        return {"eval_loss": 0.5 + 0.1 * (row["step"] % 20 == 0)} if "eval_loss" in row else {}

    def below_zero_but_recovering(row: dict[str, Any]) -> dict[str, Any]:
        return {"eval_rewards/chosen": -1 + 0.01 * row["step"]} if "eval_loss" in row else {}

    def falling_above_zero(row: dict[str, Any]) -> dict[str, Any]:
        return {"eval_rewards/chosen": 2 - 0.01 * row["step"]} if "eval_loss" in row else {}

    def right_later(row: dict[str, Any]) -> dict[str, Any]:
        return all_right_after(row, 6)

    def gap_of_chance(row: dict[str, Any]) -> dict[str, Any]:
        return {"rewards/accuracies": 0.88} if "loss" in row and row["step"] > 6 else {}

    def few_enough(row: dict[str, Any]) -> dict[str, Any]:
        return of_pairs(row, 93)

    nearly = (
        half_clipped,
        rising_twice,
        rising_now_and_then,
        below_zero_but_recovering,
        falling_above_zero,
        right_later,
        gap_of_chance,
        few_enough,
    )
    for i, change in enumerate(nearly):
        assert looked_at(with_rows(tmp_path / str(i), changed(change))) == set(), change


def test_pairs_seen_once_cannot_be_learned_by_heart(tmp_path: Path) -> None:
    """A pair is judged before its step's update: a gap at first visits has another cause."""
    found = looked_at(with_rows(tmp_path, changed(by_heart), pairs=1920))
    assert found == {"Held-out pairs are judged worse than training pairs that are new"}


@pytest.mark.parametrize(
    ("training", "held_out", "fires"),
    [(0.7, 0.7, (0.0, 0.01)), (0.75, 0.7, (0.0, 0.03)), (0.95, 0.7, (0.97, 1.0))],
)
def test_a_gap_is_named_by_more_than_chance(
    tmp_path: Path, training: float, held_out: float, fires: tuple[float, float]
) -> None:
    """True shares that are equal, just not too far apart, and far apart, each drawn 400 times."""
    run, chance, named = with_rows(tmp_path, metrics(60)), random.Random(0), 0
    for _ in range(400):
        steps = [
            row | {"rewards/accuracies": sum(chance.random() < training for _ in range(32)) / 32}
            for row in run.train[-15:]
        ]
        share = sum(chance.random() < held_out for _ in range(200)) / 200
        last = {"step": 60, "eval_rewards/accuracies": share, "eval_pairs": 200}
        named += (
            check_gap(replace(run, train=tuple(4 * steps), held_out=(last,))).state == "warning"
        )
    assert fires[0] <= named / 400 <= fires[1]


def test_a_strong_drift_is_told_from_a_small_one(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    write_jsonl(run / "metrics.jsonl", changed(falling_chosen))
    small = next(check for check in health(read_run(run)) if check.state == "warning")
    assert "That is +0.126 nats a training token." in small.reason
    # The same fall with few tokens an answer is a large one.
    for part in sorted((run / "pair_log").iterdir()):
        table = pq.read_table(part)
        fallen = pc.subtract(table["reference_chosen_logp"], 6.0)
        at = table.schema.get_field_index("chosen_logp")
        pq.write_table(table.set_column(at, "chosen_logp", pa.chunked_array(fallen)), part)
    large = next(check for check in health(read_run(run)) if check.state == "warning")
    assert large.title == "The chosen answers lose much of their probability"


def test_dropped_rows_and_lost_topics(tmp_path: Path) -> None:
    run = add_demo(build_run(tmp_path / "run"))
    about = record(60, 60, "finished")
    about["data"] |= {"rows": 1000, "dropped": 51}
    write_json(run / "run.json", about)
    shares = {
        name: {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 200}
        for name, value in (("named_before", 0.91), ("named_after", 0.8))
    }
    write_json(run / "outcome.json", shares)
    assert looked_at(read_run(run)) == {
        "Many rows of the data were dropped",
        "Something else got worse",
    }


def test_numbers_as_people_read_them() -> None:
    assert [percent(v) for v in (0, 0.0004, 0.5, 0.975, 0.9996, 1)] == [
        "0%",
        "<0.1%",
        "50%",
        "97.5%",
        ">99.9%",
        "100%",
    ]
    assert [points(v) for v in (0.465, -0.01, 0.0001)] == ["+46.5", "−1", "0"]
    assert [signed(v, 2) for v in (1.234, -1.0, -0.001)] == ["+1.23", "−1.00", "0.00"]
    assert [short(v) for v in (0.69314718, -0.0, 12345.6, 3.1e-6, -2.5, 1234.5678)] == [
        "0.6931",
        "0",
        "12,346",
        "3.1e−06",
        "−2.5",
        "1,235",
    ]
    times = [duration(s).replace("\u00a0", " ") for s in (8.44, 185, 3599.6, 7620)]
    assert times == [
        "8.4 s",
        "3 min 05 s",
        "1 h 00 min",
        "2 h 07 min",
    ]
    assert [script_language(t) for t in ("바다 sea", "海です", "大海", "sea", "")] == [
        "ko",
        "ja",
        "zh",
        "",
        "",
    ]
    assert written_out("a\u202e\n\t\x1b") == "a⟨U+202E⟩\n\t⟨U+001B⟩" and written_out(None) == ""


def test_the_docs_name_the_limits_that_are_used() -> None:
    """A row of docs/notes.md for each, with the figure of the source."""
    page = (Path(__file__).parents[2] / "docs" / "notes.md").read_text("utf-8")
    for row in (
        f"less than {learned.MOVED:g} nats a token",
        f"below {learned.NOISE:g} times what rounding",
        f"more than {health_checks.LITTLE:g} nats an answer",
        f"below {health_checks.DRIFT_ALARM:g} nats a token",
        f"accuracy of {health_checks.TOO_EASY:.0%} within".replace("%", " %"),
        f"by more than {100 * learned.BY_LENGTH:g} points (or",
        f"a weight below {SATURATED:g}, or all pull like less than "
        f"{learned.LEAST_EFFECTIVE:.0%} of".replace("%", " %"),
        f"more than {health_checks.OFTEN:.0%} of the steps".replace("%", " %"),
        f"over {FACTOR:g} times the median of the {WINDOW} before",
        f"more than {learned.WORSE:g} nats a pair, by a {learned.SURE:.0%} int".replace("%", " %"),
        f"it rose {learned.RISES} times in a row",
        f"more than {100 * health_checks.GAP:g} points of accuracy",
        f"more than {learned.MUCH_LONGER:g} times, or less than {learned.MUCH_SHORTER:g} times",
        f"wider than {100 * health_checks.WIDE:g} points",
        f"more than {health_checks.DROPPED:.0%} |".replace("%", " %"),
        f"a run of {FEWEST_STEPS} steps or more",
    ):
        assert row in page, row
