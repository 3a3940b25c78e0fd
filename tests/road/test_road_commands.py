"""The whole road by its commands: check, show, score, train, score again, report."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tests.support.runs import Place, make_place
from tests.support.tiny import TEMPLATE, pair_rows, write_rows

from likelier import get_logprob
from likelier.cli import main
from likelier.model.load import load


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Text pairs in a Parquet file whose columns have other names."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=1)
    rows = pair_rows(24, chat=False)
    named = [{"질문": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows]
    pq.write_table(pa.Table.from_pylist(named), place.folder / "pairs.parquet")
    return place


NAMES = {"prompt": "질문", "chosen": "good", "rejected": "bad"}
COLUMNS = [word for ours, theirs in NAMES.items() for word in ("--columns", f"{ours}={theirs}")]


def score(data: Path, model: Path, out: Path, *more: str) -> list[dict]:
    assert main(["score", str(data), "--model", str(model), "--out", str(out), *more]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_from_a_file_to_a_better_model(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place.folder / "pairs.parquet"
    assert main(["check", str(data), *COLUMNS]) == 0
    assert main(["show", str(data), "--model", str(place.base), "-n", "1", *COLUMNS]) == 0
    assert "the answers part after" in capsys.readouterr().out

    before = score(data, place.base, tmp_path / "before.jsonl", *COLUMNS)
    settings = place.config(
        tmp_path / "run", adapter={"kind": "lora", "r": 8}, data__train=str(data),
        data__columns=NAMES, data__eval="25%", optim__lr=2e-2,
        train__steps=8, train__tokens_per_batch="auto",
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "18 training pairs, 6 held out" in captured.err
    assert "log-probs 8/8" in captured.err  # the spot check: score had filled the cache
    assert captured.err.count("log-probs") == 1
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000

    after = score(data, tmp_path / "run" / "adapter", tmp_path / "after.jsonl", *COLUMNS)
    assert [row["source"] for row in after] == [f"{data}:{n}" for n in range(1, 25)]
    margins = [
        [row["chosen_logp"] - row["rejected_logp"] for row in rows] for rows in (before, after)
    ]
    assert sum(margins[1]) > sum(margins[0]) + 24
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["eval_loss"] < 0.65
    assert main(["report", str(tmp_path / "run")]) == 0


def test_score_is_what_a_plain_forward_gives(place: Place, tmp_path: Path) -> None:
    chats = write_rows(tmp_path / "chats.jsonl", pair_rows(5))
    scored = score(chats, place.base, tmp_path / "scores.jsonl")
    policy = load(place.base)
    for row, pair in zip(scored, pair_rows(5), strict=True):
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                total, each = get_logprob(
                    policy.model, policy.tokenizer, pair["prompt"], pair[side], per_token=True
                )
            assert row[f"{side}_logp"] == pytest.approx(float(total), abs=1e-4)
            assert row[f"{side}_tokens"] == len(each)
    again = score(chats, place.base, tmp_path / "again.jsonl")
    assert again == scored  # from the cache, to the bit


def test_score_takes_the_settings_of_a_run(place: Place, tmp_path: Path) -> None:
    """``data.chat``, ``data.template`` and ``model.dtype``, as options."""
    template = "{{ mark }}" + TEMPLATE
    base = Path(shutil.copytree(place.base, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(template, encoding="utf-8")
    chats = write_rows(tmp_path / "chats.jsonl", pair_rows(4))
    texts = [{name: turns[0]["content"] for name, turns in row.items()} for row in pair_rows(4)]
    plain = write_rows(tmp_path / "plain.jsonl", texts)
    marked = ("--template", "mark=<|system|>")
    expected = score(chats, base, tmp_path / "a.jsonl", *marked)
    found = score(plain, base, tmp_path / "b.jsonl", *marked, "--chat")
    bare = score(plain, base, tmp_path / "c.jsonl", "--chat")
    exact = score(plain, base, tmp_path / "d.jsonl", "--chat", "--dtype", "float64")
    for ours, theirs, other, wide in zip(found, expected, bare, exact, strict=True):
        assert ours["chosen_logp"] == theirs["chosen_logp"] != other["chosen_logp"]
        assert other["chosen_logp"] == pytest.approx(wide["chosen_logp"], abs=1e-4)
        assert other["chosen_logp"] != wide["chosen_logp"]


def test_score_writes_nothing_where_a_row_is_bad(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [*pair_rows(3), {"prompt": "x"}])
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(data), "--model", str(place.base), "--out", str(out)]) == 65
    assert f"{data}:4" in capsys.readouterr().err
    assert not out.exists()
    assert main(["score", str(data), "--model", str(tmp_path / "nowhere")]) == 65
    data.unlink()
    assert main(["score", str(data), "--model", str(place.base)]) == 66
