"""What `likelier show` prints: stops, spaces, rows that cannot be used. It needs no torch."""

import html
import json
from pathlib import Path

import pytest
from tests.support.tiny import TEMPLATE, tiny_tokenizer
from tests.unit.test_first_look import answered
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from likelier.chat.tokenizer import build_encoder
from likelier.cli import main
from likelier.commands.show import _pieces

REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROW = {
    "prompt": [turn("user", "서울?"), turn("assistant", "수도"), turn("user", "What?")],
    "chosen": [turn("assistant", "가"), turn("user", "나"), turn("assistant", "다")],
    "rejected": [turn("assistant", "라")],
}
SYSTEM = {**ROW, "prompt": [turn("system", "짧게"), turn("user", "서울?")]}


@pytest.fixture
def model(tmp_path: Path) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REFUSES + TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "exaone4"}')
    return str(tmp_path / "model")


def write(tmp_path: Path, *rows: dict) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_end_is_marked_as_a_stop(tmp_path: Path, model: str, capsys) -> None:
    assert main(["show", write(tmp_path, ROW), "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if "pairs.jsonl:1" in line)
    prompt, chosen, rejected = lines[place + 1], lines[place + 3], lines[place + 5]
    stop = "[stop <|end|>]"
    assert prompt.count("<|end|>") == prompt.count(stop) == 3
    assert chosen.count("<|end|>") == chosen.count(stop) == 3
    assert chosen.count(f"({stop})") == 1, "the user's turn ends in context"
    assert rejected.endswith(f"{stop} ") and rejected.count(stop) == 1


def test_a_header_that_ends_the_prompt_is_no_stop(tmp_path: Path, model: str, capsys) -> None:
    template = TEMPLATE.replace("<|assistant|>\n", "<|assistant|>")
    template = template.replace("|>\n{{ m", "|>{{ m")
    (Path(model) / "chat_template.jinja").write_text(template, "utf-8")
    assert main(["show", write(tmp_path, SYSTEM), "--model", model]) == 0
    shown = capsys.readouterr().out
    assert "<|assistant|>" in shown and "[stop <|assistant|>]" not in shown


def test_rows_that_cannot_be_used_are_shown(tmp_path: Path, model: str, capsys) -> None:
    rows = [SYSTEM, {"prompt": "a"}, {**ROW, "rejected": ROW["chosen"]}, ROW]
    data = write(tmp_path, *rows)
    assert main(["check", data, "--model", model]) == 65
    found = capsys.readouterr().out
    assert main(["show", data, "--model", model, "-n", "4"]) == 0
    said = capsys.readouterr().out
    for number, why in ((1, "the chat template refuses it"), (2, "no column"), (3, "the same")):
        lines = [line for line in said.splitlines() if f"pairs.jsonl:{number}" in line]
        assert len(lines) == 1 and "cannot be used: " in lines[0] and why in lines[0]
        assert f"pairs.jsonl:{number}" in found
    assert "no system turns" in said
    assert "the answers part after" in said, "the fourth row is a pair"


def test_one_row_is_shown_as_far_as_the_template_writes_it(
    tmp_path: Path, model: str, capsys
) -> None:
    unlike = {**ROW, "chosen": [turn("assistant", " ")]}
    data = write(tmp_path, ROW, unlike)
    assert main(["check", data, "--model", model]) == 65
    capsys.readouterr()
    for row in ("2", f"{data}:2"):
        assert main(["show", data, "--model", model, "--row", row]) == 65
        said = capsys.readouterr().out
        assert "pairs.jsonl:1" not in said and "pairs.jsonl:2" in said
        assert "cannot be used: " in said
    assert main(["show", data, "--model", model, "--row", "7"]) == 66
    assert "there is no row 7" in capsys.readouterr().err


def test_a_refused_chat_is_rendered(tmp_path: Path, model: str, capsys) -> None:
    """The template changes the content, so the pair is refused; what it writes is there to see."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'][:1]")
    tokenizer.save_pretrained(model)
    row = {**ROW, "chosen": [turn("assistant", "가나다")]}
    data = write(tmp_path, row)
    assert main(["show", data, "--model", model, "--html", str(tmp_path / "page.html")]) == 65
    assert main(["show", data, "--model", model]) == 65
    said = capsys.readouterr().out
    assert "prompt\n<|user|>\n서<|end|>\n<|assistant|>\n수<|end|>\n<|user|>\nW<|end|>\n" in said
    assert "prompt and chosen\n" in said and "<|assistant|>\n가<|end|>" in said
    assert "cannot be used: " in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_spaces_of_sentencepiece_are_shown() -> None:
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), ("▁서울", -1.0), ("서울", -1.5), ("▁a", -1.0),
                  ("a", -2.0), ("▁", -3.0)]  # fmt: skip
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )
    encoder = build_encoder(tokenizer)
    assert _pieces([2, 3, 4, 5, 1], encoder) == ["␣서울", "서울", "␣a", "a", "</s>"]


def test_show_needs_no_torch(tmp_path: Path, model: str) -> None:
    code, said, _ = answered("show", write(tmp_path, ROW), "--model", model)
    assert code == 0 and said == ["no torch"]


def test_the_advice_to_look_can_be_followed(tmp_path: Path, capsys) -> None:
    """A finding says to look at the row; that leads to what the template writes of it."""
    model = str(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'][:1]")
    tokenizer.save_pretrained(model)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "exaone4"}')
    short = {"prompt": [turn("user", "가")], "chosen": [turn("assistant", "나")],
             "rejected": [turn("assistant", "다")]}  # fmt: skip
    data = write(tmp_path, *[short] * 30, {**short, "chosen": [turn("assistant", "나라")]})
    assert main(["check", data, "--model", model]) == 65
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("error "))
    assert "leaves out text of the answer" in lines[place] and "--row" in lines[place + 1]
    row = lines[place].split(":")[1].split()[0]
    assert main(["show", data, "--model", model, "--row", row]) == 65
    said = capsys.readouterr().out
    assert "pairs.jsonl:31" in said and "<|assistant|>\n나<|end|>" in said


def test_both_forms_speak_korean(tmp_path: Path, model: str, capsys) -> None:
    data = write(tmp_path, SYSTEM, {"prompt": "a"})
    page = tmp_path / "show.html"
    assert main(["show", data, "--model", model, "--lang", "ko"]) == 65
    assert main(["show", data, "--model", model, "--lang", "ko", "--html", str(page)]) == 65
    for said in (capsys.readouterr().out, html.unescape(page.read_text("utf-8"))):
        assert "채팅 템플릿이 거부했어요: no system turns" in said
        assert '"chosen" 열이 없어요' in said and "열의 이름을 바꾸거나" in said
        assert "읽기만 함" in said and "read only" not in said
        assert "cannot be used" not in said and "no column" not in said
