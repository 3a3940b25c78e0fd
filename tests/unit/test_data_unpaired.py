"""Unpaired examples: mismatched completions by content, labels, numbers beside them, no stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.data import load_memory
from tests.support.loss_runs import rows_for
from tests.support.runs import MISSING, Place, make_place

from likelier.base.errors import DataError
from likelier.chat.tokenizer import Encoder, build_encoder
from likelier.checks.inspector import PairInspector
from likelier.config import config_from
from likelier.data.encode import without_stops
from likelier.data.load import load as load_data
from likelier.data.load import mismatched
from likelier.data.records import Completion, Pair, TokenPair, content_hash
from likelier.model.load import load


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=3)


@pytest.fixture(scope="module")
def encoder(place: Place) -> Encoder:
    policy = load(place.base)
    return build_encoder(policy.tokenizer, policy.causal_lm.generation_config)


def prepared(place: Place, encoder: Encoder, loss: dict[str, Any], rows: list, **data: Any) -> Any:
    tree = place.config("x", loss=loss, data={"eval": None, **data}, train__eval_every=MISSING)
    config = config_from(tree, ["data.train"])
    return load_data(config.data, encoder, config.loss, config.train.seed, rows)


def test_mismatched_answers_are_of_other_prompts_and_drawn_by_content() -> None:
    rows = load_memory(rows_for("kto", 12), {}).labelled
    found = mismatched(rows, seed=3)
    for row, other in zip(rows, found, strict=True):
        assert other.prompt != row.prompt and other.chosen != row.chosen
    assert found == mismatched(rows, seed=3)
    assert found != mismatched(rows, seed=4)
    turned = mismatched(rows[::-1], seed=3)[::-1]
    assert [one.chosen for one in turned] == [one.chosen for one in found]
    assert len({id(one) for one in found}) > 6  # not one answer for all


def test_the_same_answer_to_another_prompt_is_no_mismatched_one() -> None:
    rows = [Pair(f"{n}?", said, said, f"a:{n}", label=True) for n, said in enumerate("yyyyyyn")]
    for seed in range(5):
        for row, other in zip(rows, mismatched(rows, seed), strict=True):
            assert other.chosen != row.chosen


def test_one_prompt_has_nothing_to_mismatch() -> None:
    rows = load_memory(rows_for("kto", 3), {}).labelled
    with pytest.raises(DataError, match="no other prompt") as found:
        mismatched(rows, seed=0)
    assert str(found.value.where).startswith("train[")


def test_rows_as_token_pairs(place: Place, encoder: Encoder) -> None:
    rows = rows_for("kto", 12)
    kto = prepared(place, encoder, {"name": "kto"}, rows)
    assert [pair.label for pair in kto.train] == [row["label"] for row in rows]
    assert all(pair.rejected != pair.chosen for pair in kto.train)
    bco = prepared(place, encoder, {"name": "bco_unpaired"}, rows)
    assert all(pair.rejected == pair.chosen for pair in bco.train)
    assert [p.chosen for p in bco.train] == [p.chosen for p in kto.train]
    flipped = [row | {"label": not row["label"]} for row in rows]
    other = prepared(place, encoder, {"name": "bco_unpaired"}, flipped)
    assert content_hash(other.train) != content_hash(bco.train)


def test_margins_and_weights_are_read_where_the_loss_reads_them(
    place: Place, encoder: Encoder
) -> None:
    rows = rows_for("odpo", 6)
    odpo = prepared(place, encoder, {"name": "odpo"}, rows)
    assert [p.margin for p in odpo.train] == [row["margin"] for row in rows]
    assert all(pair.weight is None for pair in odpo.train)
    weighted = prepared(place, encoder, {"name": "sigmoid", "pair_weights": True}, rows)
    assert [p.weight for p in weighted.train] == [row["weight"] for row in rows]
    assert all(pair.margin is None for pair in weighted.train)
    renamed = [{**row, "gap": row["margin"]} for row in rows]
    for row in renamed:
        del row["margin"]
    found = prepared(place, encoder, {"name": "odpo"}, renamed, columns={"margin": "gap"})
    assert [p.margin for p in found.train] == [row["gap"] for row in renamed]
    with pytest.raises(DataError, match="the loss reads this column") as missing:
        prepared(place, encoder, {"name": "odpo"}, [{**r, "margin": None} for r in rows])
    assert str(missing.value.where).endswith("margin")


def test_stop_tokens_left_out(place: Place, encoder: Encoder) -> None:
    rows = rows_for("sigmoid", 4)
    with_stop = prepared(place, encoder, {"name": "sigmoid"}, rows).train
    without = prepared(place, encoder, {"name": "sigmoid", "stop_token": False}, rows).train
    for ours, theirs in zip(without, with_stop, strict=True):
        assert ours.chosen.tokens == theirs.chosen.tokens
        assert theirs.chosen.scored[-1] and not ours.chosen.scored[-1]
        assert ours.chosen.scored[:-1] == theirs.chosen.scored[:-1]


def test_stop_tokens_between_turns_are_left_out_too() -> None:
    several = Completion((7, 1, 8, 9, 1), (True, True, False, True, True))
    short = Completion((6, 2), (True, True))
    (pair,) = without_stops([TokenPair((5,), several, short, "a:1")], [1, 2])
    assert pair.chosen == Completion(several.tokens, (True, False, False, True, False))
    assert pair.rejected.scored == (True, False)


def test_the_kind_of_rows_must_fit_the_loss(place: Place, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="these rows are pairs"):
        prepared(place, encoder, {"name": "kto"}, rows_for("sigmoid", 4))
    with pytest.raises(DataError, match="one labelled answer each"):
        prepared(place, encoder, {"name": "sigmoid"}, rows_for("kto", 4))


def test_kto_of_the_engine_is_the_plain_function(place: Place) -> None:
    from likelier.api import kto_loss
    from likelier.losses.registry import bind
    from likelier.losses.values import StepValues

    policy = torch.tensor([-10.0, -22.0, -5.0, -11.0, -20.0, -7.0], dtype=torch.float64)
    reference = torch.tensor([-11.0, -20.0, -5.5, -12.0, -20.5, -6.0], dtype=torch.float64)
    label = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    values = StepValues(policy, reference, torch.ones(6), torch.arange(3), torch.arange(3, 6),
                          label_P=label)  # fmt: skip
    z0 = (policy[3:] - reference[3:]).mean().clamp(min=0)
    assert z0 > 0
    ours = bind({"name": "kto", "beta": 0.3, "desirable": 1.2}).per_pair(values)
    plain = kto_loss(policy[:3], reference[:3], label, z0, 0.3, desirable=1.2)
    assert torch.equal(ours, plain)


def test_a_file_of_unpaired_examples_from_the_command_line(tmp_path: Path, place: Place) -> None:
    """The split keeps a prompt on one side, as that of pairs does."""
    rows = rows_for("kto", 16)
    tree = place.config("x", loss={"name": "kto"}, data={"eval": "30%"})
    policy = load(place.base)
    encoder = build_encoder(policy.tokenizer, policy.causal_lm.generation_config)
    config = config_from(tree, ["data.train"])
    data = load_data(config.data, encoder, config.loss, config.train.seed, rows)
    assert data.eval and not {p.prompt for p in data.eval} & {p.prompt for p in data.train}


def test_many_rows_in_other_processes_are_the_same(
    place: Place, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mismatched completions are drawn once over all rows, wherever these are encoded."""
    monkeypatch.setenv("LIKELIER_CACHE", str(tmp_path))
    rows = rows_for("kto", 40)
    alone = prepared(place, encoder, {"name": "kto"}, rows)
    monkeypatch.setattr("likelier.data.workers.ROWS_AT_ONCE", 8)
    assert prepared(place, encoder, {"name": "kto"}, rows) == alone
    monkeypatch.setattr("likelier.base.child.Child.ask", None)  # nothing is encoded again
    assert prepared(place, encoder, {"name": "kto"}, rows) == alone


def test_one_prompt_is_enough_where_nothing_is_mismatched(place: Place, encoder: Encoder) -> None:
    rows = [{**row, "prompt": "같은 물음"} for row in rows_for("kto", 4)]
    bco = prepared(place, encoder, {"name": "bco_unpaired"}, rows)
    assert len(bco.train) == 4 and all(pair.rejected == pair.chosen for pair in bco.train)


def test_held_out_prompts_that_are_trained_on_are_counted(place: Place, encoder: Encoder) -> None:
    rows = rows_for("kto", 12)
    held = [{**rows[4], "completion": "다른 대답"}, {**rows[0], "prompt": "처음 보는 물음"}]
    tree = place.config("x", loss={"name": "kto"}, train__eval_every=MISSING)
    config = config_from(tree, ["data.train", "data.eval"])
    data = load_data(config.data, encoder, config.loss, 0, rows, held, PairInspector())
    assert data.counts["eval"]["findings"]["leak"] == 1
    assert [found.code for found in data.findings if found.code == "leak"] == ["leak"]
    assert "1 held-out prompts are also trained on, or nearly" in data.describe()
