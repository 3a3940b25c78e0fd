"""What findings say of a row, in other languages than the English in which it is kept."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from likelier import pages
from likelier.pages.texts import CATALOGUES, _messages, in_language, known_languages, reworded

SOURCE = Path(pages.__file__).parents[1]
ROOMS = [
    path for room in ("data", "chat", "checks") for path in sorted((SOURCE / room).glob("*.py"))
]
PLACE = {"Unfit": 2, "finding": 2, "_finding": 2, "Finding": 4, "mixed": 1, "_odd": 0}
SAMPLES = {  # of what is put into them, by how it is written; all else is 7
    "{kind}": "an array", "{side}": "chosen", "{skew.unit}": "tokens", "{odd}": "a NUL character",
    "{how}": "scored, as the other side reasons", "{lengths}": "prompt 7, chosen 7", "{best}": "",
    "{type(record).__name__}": "str", "{what}": "7 values",
    "{error}": "10 bytes became 99, which no text does",
    "{unfit.message}": "the chat template refuses it: no",
}  # fmt: skip
LANGUAGES = [code for code in known_languages() if code != "en"]
# What is not written where it is handed over: said by another function, or by a library.
ELSEWHERE = {
    "a row of 7 MiB; at most 7 values and 7 MiB",
    "after this row 10 bytes became 99, which no text does",
    "the gzip file is damaged or cut short after this row: CRC check failed",
    "more than 9 values", "nested too deeply", "the lines end in CR alone",
    "something follows the object, at column 7", "broken JSON at column 7: Expecting value",
    "the prompt begins with 2 beginning-of-sequence tokens (BOS)",
    "the template writes no BOS token, which the tokenizer puts before plain texts",
    "trivial features alone tell chosen from rejected for 90% of the pairs (80% to 95%), "
    "length most of all",
    "trivial features alone tell chosen from rejected for 90% of the pairs (80% to 95%), "
    "Hangul letters most of all",
    "the chat template refuses it at line 7: no",
    "the template leaves out the reasoning of the answer, thinking",
    "the prompt renders as …'a'…, but inside the chat as …'b'…",
    "two user turns in a row", "a system turn that is not the first",
    "the text holds a NUL character", "the text holds the noncharacter U+FDD0",
    "the text holds half a surrogate pair, U+D800", "true or false expected, found 7",
    "what follows row 7 takes more than 9 MiB to decode",
    "its 10 bytes became more than 9 MiB by row 7: it repeats itself",
    "nearly the same prompt is in the training data, at a.jsonl:7",
    "the prompt is also in the training data, at a.jsonl:7",
    "57% of its words stand in training prompts, as at a.jsonl:7",
    "the chat template refuses it: no (of these tools)",
    "no two of its 3 answers differ in their scores; data.ranked.min_gap is 0.5",
    "rejected is longer in 90% of the pairs (median 3 and 7 tokens)",
    'no column "a", which stands for data.columns.prompt',
    'no column "a", but a column "b": did you mean "a"?',
    "an answer without reasoning closes the thinking block at once; that is only read",
    "a number expected, found null", "a list of tools expected, found a list",
}  # fmt: skip


def said_in_the_code() -> Iterator[str]:
    """Every message that is written in the code, with samples for what is put into it."""
    for path in ROOMS:
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call):
                        name = ast.unparse(call.func).split(".")[-1]
                        if name in PLACE and len(call.args) > PLACE[name]:
                            yield from written(call.args[PLACE[name]], function)


def written(node: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield sample(node)
    elif isinstance(node, ast.IfExp):
        yield from written(node.body, function)
        yield from written(node.orelse, function)
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        yield from written(node.value, function)  # of a table of messages
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from written(value, function)
    elif isinstance(node, ast.Name):
        for assign in ast.walk(function):
            if isinstance(assign, ast.Assign):
                for target in assign.targets:
                    if ast.unparse(target) == node.id:
                        yield from written(assign.value, function)
                    elif isinstance(target, ast.Tuple) and isinstance(assign.value, ast.Tuple):
                        for one, value in zip(target.elts, assign.value.elts, strict=True):
                            if ast.unparse(one) == node.id:
                                yield from written(value, function)


def sample(message: ast.JoinedStr) -> str:
    """Nothing for what may be a part of the sentence, a word for what a value is, else 7."""
    text = ""
    for part in message.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif "kind_of_value" in (name := ast.unparse(part).strip("f'\"")):
            text += "a list"
        elif name in SAMPLES or not text[-1:].isalpha():
            text += SAMPLES.get(name, "7")
    return text


MESSAGES = sorted(ELSEWHERE | set(said_in_the_code()))


def test_they_are_found_in_the_code() -> None:
    assert len(MESSAGES) > 130
    assert "chosen and rejected are the same text" in MESSAGES
    assert "the line is an array, not an object" in MESSAGES


@pytest.mark.parametrize("code", LANGUAGES)
def test_each_is_there_in_every_language(code: str) -> None:
    with in_language(code):
        assert [message for message in MESSAGES if reworded(message) == message] == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_sentence_is_left_over(code: str) -> None:
    tree = yaml.safe_load((CATALOGUES / "messages" / f"{code}.yaml").read_text("utf-8"))
    used = set()
    for message in MESSAGES:
        forms = _messages(code)[1]
        used.add(next((english for english, form, _ in forms if form.fullmatch(message)), ""))
    assert set(tree["sentences"]) - used == set()


def test_what_a_row_holds_stays_as_it_is() -> None:
    with in_language("ko"):
        said = reworded('unknown role "a list"')
        assert said == '모르는 역할이에요: "a list"'
        assert reworded("text expected, found a list") == "글이 와야 하는데 다음이 있어요: 목록"
        assert reworded("what nobody wrote down") == "what nobody wrote down"
        assert reworded('unknown role "{0} {}"') == '모르는 역할이에요: "{0} {}"'
    assert reworded("empty") == "empty"
