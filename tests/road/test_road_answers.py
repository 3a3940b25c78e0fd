"""`likelier sample` and `likelier chat` on runs and models: who answers, to what, and by what."""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.runs import Place, make_place
from tests.support.tiny import TEMPLATE, pair_rows, write_rows

from likelier.base.errors import ConfigError, InputMissing
from likelier.cli import main
from likelier.data.load import read_prompts
from likelier.data.shapes import format_with
from likelier.generation.answer_file import record_of
from likelier.generation.sample import decoding_by, sample_batch, seed_at
from likelier.generation.sides import open_sides, run_config
from likelier.model.adapters import adapters_off
from likelier.model.load import load
from likelier.run import train

QUESTIONS = ["서울은 뭐야?", "What is Python?", "파이썬이 뭐야?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """With ``lora`` and ``full``, runs that changed what is said."""
    place = make_place(tmp_path_factory.mktemp("place"), rows=18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(place.folder / "cache"))
        patch.setattr("likelier.run._write_report", lambda out: None)
        many = {"optim__lr": 3e-2, "train__steps": 3, "data__eval": None, "train__eval_every": None}
        train(place.config("lora", adapter={"kind": "lora", "r": 4, "alpha": 256}, **many))
        train(place.config("full", **many))
    write_rows(place.folder / "questions.jsonl", [{"question": text} for text in QUESTIONS])
    yield place


Answers = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def answers(place: Place, tmp_path: Path) -> Answers:
    """The rows that a command writes."""

    def ask(target: Path, *more: str, prompts: Path | None = None) -> list[dict[str, Any]]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        data = prompts or place.folder / "questions.jsonl"
        words = ["--prompts", str(data), "--out", str(out), "--max-new-tokens", "8", *more]
        assert main(["sample", str(target), *words]) == 0
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    return ask


# ---- sample ------------------------------------------------------------------------------------


def test_every_answer_is_what_its_model_draws_at_its_place(
    place: Place, answers: Answers, tmp_path: Path
) -> None:
    rows = answers(place.folder / "lora", "--chat", "-n", "3", "--batch-size", "4", "--seed", "7")
    source = place.folder / "questions.jsonl"
    asked = [(f"{source}:{n}", index) for n in (1, 2, 3) for index in range(3)]
    assert [(row["source"], row["index"]) for row in rows] == asked
    policy = load(place.folder / "lora" / "adapter")
    encoder, tokenizer = policy.encoder(), policy.tokenizer
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_beams": 1,
                "max_new_tokens": 8, "eos_token_id": [tokenizer.eos_token_id]}  # fmt: skip
    (record,) = tmp_path.glob("*.settings.json")
    assert json.loads(record.read_text())["asked"]["decoding"] == settings
    for start in range(0, 9, 4):
        batch = rows[start : start + 4]
        ids = [
            tuple(tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_dict=True
            )["input_ids"])
            for row in batch
        ]  # fmt: skip
        with decoding_by(policy, encoder, settings, seed_at(7, start)):
            found = sample_batch(policy, encoder, ids)
        for row, one in zip(batch, found, strict=True):
            assert (row["answer"], row["stopped"], row["tokens"], row["seed"]) == (
                one.text, one.stopped, len(one.tokens), seed_at(7, start),
            )  # fmt: skip
    assert len({row["answer"] for row in rows[:3]}) > 1, "each draw is another"


def greedy(answers: Answers, target: Path, *more: str, **named: Any) -> list[str]:
    rows = answers(target, "--temperature", "0", "--chat", *more, **named)
    return [row["answer"] for row in rows]


def test_base_and_tuned_of_either_kind_of_run(place: Place, answers: Answers) -> None:
    base = greedy(answers, place.base)
    for kind, folder in (("lora", "adapter"), ("full", "model")):
        run = place.folder / kind
        tuned = greedy(answers, run)
        assert tuned == greedy(answers, run, "--only", "tuned") == greedy(answers, run / folder)
        assert greedy(answers, run, "--only", "base") == base != tuned
    adapter = place.folder / "lora" / "adapter"
    assert greedy(answers, adapter, "--only", "base") == base


def test_both_sides_of_an_adapter_are_one_set_of_weights(place: Place) -> None:
    run = str(place.folder / "lora")
    base, tuned = open_sides(run, run_config(run), {})
    assert base.policy is tuned.policy and (base.name, tuned.name) == ("base", "tuned")
    inside = base.policy.causal_lm.eval()  # its configuration asks for dropout
    with base.answering() as policy, torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        plain = load(place.base).model.eval()(ids).logits
        assert torch.equal(policy.model(ids).logits, plain)
        with adapters_off(policy.model):
            assert torch.equal(inside(ids).logits, plain)
    with tuned.answering() as policy, torch.no_grad():
        assert not torch.equal(policy.model(ids).logits, plain)


def test_prompts_are_read_as_training_reads_them(place: Place, tmp_path: Path) -> None:
    """Those of rows with answers, of messages, of other columns; in the order of the file."""
    chats = pair_rows(3)
    rows = [
        chats[0],
        {"prompt": chats[1]["prompt"]},
        {"chosen": [*chats[2]["prompt"], *chats[2]["chosen"]],
         "rejected": [*chats[2]["prompt"], *chats[2]["rejected"]]},
    ]  # fmt: skip
    for number, row in enumerate(rows):
        data = write_rows(tmp_path / f"{number}.jsonl", [row])
        (prompt,) = read_prompts(data, format_with({}))
        assert list(prompt.content) == chats[number]["prompt"]
        assert prompt.source == f"{data}:1"
    same = {"prompt": "서울은", "chosen": "같다", "rejected": "같다"}
    data = write_rows(tmp_path / "same.jsonl", [same, {**same, "prompt": "한강은"}])
    assert [one.content for one in read_prompts(data, format_with({}))] == ["서울은", "한강은"]
    turns = [{"from": "human", "value": "안녕?"}]
    data = write_rows(tmp_path / "sharegpt.jsonl", [{"conversations": turns}])
    (prompt,) = read_prompts(data, format_with({}))
    assert list(prompt.content) == [{"role": "user", "content": "안녕?"}]
    data = write_rows(tmp_path / "named.jsonl", [{"글": "안녕?", "system": "짧게."}])
    (prompt,) = read_prompts(data, format_with({"prompt": "글"}, chat=True))
    assert [turn["role"] for turn in prompt.content] == ["system", "user"]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"prompt": ""}, "2 prompt: empty"),
        ({"answer": "x"}, '2 prompt: no column "prompt"'),
        ({"prompt": 5}, "2 prompt: text expected"),
        ('{"prompt": "half \\ud83d"}', "2 prompt: the text holds half a surrogate pair"),
        ("{", "2: broken JSON"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: Any, what: str
) -> None:
    data, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    line = bad if isinstance(bad, str) else json.dumps(bad)
    data.write_text(json.dumps({"prompt": "서울은"}) + "\n" + line + "\n")
    words = ["sample", str(place.base), "--prompts", str(data), "--out", str(out)]
    assert main(words) == 65
    assert f"error: {data}:{what}" in capsys.readouterr().err
    assert not out.exists() and not record_of(out).exists()


def test_a_template_that_refuses_a_prompt_is_said_of_its_row(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(place.base, tmp_path / "model"))
    refuses = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + TEMPLATE
    (model / "chat_template.jinja").write_text(refuses, encoding="utf-8")
    turn = {"role": "user", "content": "서울은?"}
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": [turn]}, {"prompt": [turn, turn]}])
    out = tmp_path / "out.jsonl"
    assert main(["sample", str(model), "--prompts", str(data), "--out", str(out)]) == 65
    assert f"error: {data}:2: the chat template refuses it" in capsys.readouterr().err
    assert not out.exists()


def test_text_is_continued_and_that_is_said(
    place: Place, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = answers(place.base)
    assert [row["prompt"] for row in rows] == QUESTIONS
    assert "3 prompts are text, which is continued; --chat makes turns" in capsys.readouterr().err
    rows = answers(place.base, "--chat")
    assert [row["prompt"][0]["role"] for row in rows] == ["user"] * 3
    assert "which is continued" not in capsys.readouterr().err


def test_a_run_brings_its_template_and_its_chat(
    place: Place, tmp_path: Path, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(place.base, tmp_path / "base"))
    marked = "{% if mark %}{{ mark }}{% endif %}" + TEMPLATE
    (base / "chat_template.jinja").write_text(marked, encoding="utf-8")
    plain = pair_rows(6)
    texts = [{name: turns[0]["content"] for name, turns in row.items()} for row in plain]
    data = write_rows(tmp_path / "texts.jsonl", texts)
    run = tmp_path / "run"
    config = place.config(
        run, model={"path": str(base)}, adapter={"kind": "lora", "r": 4},
        data={"train": str(data), "eval": None, "chat": True, "template": {"mark": "글 "}},
        train={"steps": 1, "pairs_per_step": 4, "tokens_per_batch": 256},
    )  # fmt: skip
    train(config)
    capsys.readouterr()
    rows = answers(run)
    said = capsys.readouterr().err
    assert "the chat template is given what the run was trained with: mark=글" in said
    assert [row["prompt"][0]["role"] for row in rows] == ["user"] * 3
    answers(run, "--template", "mark=x")
    assert "what the run was trained with" not in capsys.readouterr().err
    (side, _) = open_sides(str(run), run_config(str(run)), {"mark": "글 "})
    assert side.encoder.template == {"mark": "글 "}


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--only", "base"], 2, "is one model, without a base and a tuned side"),
        (["-n", "2", "--temperature", "0"], 2, "at temperature 0 all answers"),
        (["--temperature", "inf"], 2, "inf is no temperature"),
        (["--columns", "promt=x"], 2, 'did you mean "prompt"'),
        (["--template", "x=1"], 2, "data.template.x"),
        (["--prompts", "nowhere.jsonl"], 66, "nowhere.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: list[str], code: int, what: str,
) -> None:  # fmt: skip
    data, out = place.folder / "questions.jsonl", tmp_path / "out.jsonl"
    given = ["sample", str(place.base), "--prompts", str(data), "--out", str(out), *words]
    assert main(given) == code
    assert what in capsys.readouterr().err
    assert not out.exists()


# ---- who answers -------------------------------------------------------------------------------


def test_what_is_no_model_and_no_finished_run(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(place.folder / "full" / "config.yaml", begun)
    said = {
        "./nowhere": "no such folder",
        str(file): "this is a file, not a model folder",
        str(empty): "this folder holds no model",
        str(begun): "this run has saved no model",
    }
    for target, what in said.items():
        assert main(["chat", target]) == 66
        assert what in capsys.readouterr().err


def test_a_run_whose_base_is_gone_still_has_its_tuned_model(place: Place, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place.folder / "full", tmp_path / "run"))
    config = (run / "config.yaml").read_text("utf-8")
    (run / "config.yaml").write_text(config.replace(str(place.base), str(tmp_path / "gone")))
    with pytest.raises(InputMissing, match="--only tuned does without it"):
        open_sides(str(run), run_config(str(run)), {})
    (side,) = open_sides(str(run), run_config(str(run)), {}, only="tuned")
    assert side.name == "tuned"
    with pytest.raises(ConfigError, match="is one model"):
        open_sides(str(place.base), None, {}, only="tuned")


# ---- chat, from a pipe -------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(lines: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8"))

    return put


def test_lines_are_answered_by_both_until_they_end(
    place: Place, typed: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    typed(f"서울은 뭐야?\r\n\nWhat is Python?\n/save {file}\n".encode())
    words = ["chat", str(place.folder / "lora"), "--max-new-tokens", "24", "--temperature", "1"]
    assert main(words) == 0
    first = capsys.readouterr()
    headings = [line for line in first.out.splitlines() if line in ("base", "tuned")]
    assert headings == ["base", "tuned"] * 2
    assert "temperature 1, at most 24 new tokens, seed 0" in first.err
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["side"] for row in rows] == ["base", "tuned"]
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 2
        asked = [turn["content"] for turn in row["messages"][::2]]
        assert asked == ["서울은 뭐야?", "What is Python?"]
    assert rows[0]["messages"] != rows[1]["messages"]
    typed("서울은 뭐야?\nWhat is Python?\n".encode())
    assert main(words) == 0
    assert capsys.readouterr().out == first.out
    drawn = ["chat", str(place.base), "--max-new-tokens", "8"]
    said = []
    for seed in ("1", "1", "2"):
        typed("서울은 뭐야?\n서울은 뭐야?\n".encode())
        assert main([*drawn, "--seed", seed]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    typed(f"/save {file}\n/save\n/nonsense\n/help\n서울은?\n/quit\n한강은?\n".encode())
    assert main([*words, "--only", "base"]) == 0
    second = capsys.readouterr()
    assert f"error: {file}: is there already" in second.err and "no file is named" in second.err
    assert "there is no /nonsense" in second.err and "/reset        forget" in second.err
    assert second.out.splitlines().count("base") == 1 and "tuned" not in second.out
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == rows


def test_reset_and_system_change_what_is_said_next(
    place: Place, typed: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    typed(
        "서울은?\n/reset\n/system 짧게 답해.\n한강은?\n/save one.jsonl\n/system\n/save two.jsonl\n"
        .encode()
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words = ["--system", "Be kind.", "--max-new-tokens", "8"]
        assert main(["chat", str(place.base), *words]) == 0
    said = capsys.readouterr().err
    assert "the system text is changed" in said and "there is no system text" in said
    (one,), (two,) = (
        [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        for name in ("one.jsonl", "two.jsonl")
    )
    assert one["side"] == "model" and one["model"] == str(place.base)
    roles = [turn["role"] for turn in one["messages"]]
    assert roles == ["system", "user", "assistant"]
    assert one["messages"][0]["content"] == "짧게 답해."
    assert one["messages"][1]["content"] == "한강은?"
    assert two["messages"] == one["messages"][1:]


@pytest.mark.parametrize(("presses", "sides"), [(1, ["base", "tuned"]), (2, ["base"])])
def test_a_second_ctrl_c_stops_at_once_and_asks_nobody_else(
    place: Place, typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], presses: int, sides: list[str],
) -> None:  # fmt: skip
    """Both come while the first answer is written; the conversation is continued all the same."""
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 8:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("likelier.commands.chat._show", show)
    file = tmp_path / "talk.jsonl"
    typed(f"서울은 뭐야?\n/save {file}\n".encode())
    assert main(["chat", str(place.folder / "lora"), "--max-new-tokens", "40"]) == 0
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line in ("base", "tuned")] == sides
    stopped = "base: stopped after 8 tokens" if presses == 1 else "stopped\n"
    assert stopped in said.err
    base, tuned = map(json.loads, file.read_text("utf-8").splitlines())
    assert base["messages"][1]["content"] == "".join(shown[:8])
    assert bool(tuned["messages"]) == (presses == 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_not_utf_8_ends_it_with_its_line(
    place: Place, typed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("\n서울은?\n".encode() + "한강".encode("cp949") + b"\n")
    assert main(["chat", str(place.base), "--max-new-tokens", "4"]) == 65
    said = capsys.readouterr()
    assert "error: stdin:3: the line is not UTF-8" in said.err and "CP949" in said.err
    assert said.out.startswith("model\n")


def test_a_model_without_a_template_is_continued(
    place: Place, typed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(place.base, tmp_path / "model"))
    (model / "chat_template.jinja").unlink()
    typed("서울은\n/system 짧게.\n".encode())
    assert main(["chat", str(model), "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().err
    assert "no chat template: each text is continued as it is" in said
    assert "this model has no chat template that would write a system text" in said
    assert main(["chat", str(model), "--system", "짧게."]) == 2
    assert main(["chat", str(model), "--template", "x=1"]) == 2


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--only", "tuned"], "is one model, without"),
        (["--temperature", "inf"], "inf is no temperature"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--template", "x=1"], "data.template.x"),
        (["--epochs", "1"], "No such option"),
    ],
)
def test_words_that_chat_does_not_take(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert main(["chat", str(place.base), *words]) == 2
    assert what in capsys.readouterr().err
