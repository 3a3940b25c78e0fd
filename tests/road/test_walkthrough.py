"""The walk-through notebook: its real cells run from top to bottom, and say what is true."""

import json
import math
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from tests.support.demo_base import demo_cache
from tests.support.notebook import WALKTHROUGH, printed, read, run
from tests.support.tiny import save_tiny

from likelier.base.environment import multiplies_bfloat16

LARGEST = 60_000  # bytes: a page of text with small outputs, not a picture book
CHOICE = "MODEL = base_model()"  # the one line to change

# What the cells leave behind, told by a cell of ours after the last one; and more answers of the
# two models that the notebook compares, to have a share worth comparing.
PROBE = """
import json

asked = [[{"role": "user", "content": text}] for _, text in interview(per_topic=1, seed=1)]
print(json.dumps({
    "dtype": str(policy.model.dtype),
    "shapes": {name: list(globals()[name].shape) for name in (
        "input_ids", "logits", "logps", "predictions", "targets", "tickets", "gathered",
        "token_logps", "answer_logps", "chosen", "chosen_each")},
    "prompt": num_prompt, "answer": num_answer, "vocabulary": policy.model.config.vocab_size,
    "by_hand": [by_hand_chosen.item(), by_hand_rejected.item()],
    "likelier": [chosen.item(), rejected.item()],
    "tokens": [answer_logps.tolist(), chosen_each.tolist()],
    "stop": plain_stop.item(),
    "start": [loss_by_hand.item(), history[0]],
    "slope": pair.grad.tolist(),
    "history": history,
    "moved": [(new_chosen - policy_chosen).item(), (new_rejected - policy_rejected).item()],
    "reference": [reference_chosen.item(), still_chosen.item()],
    "evaluations": evaluations,
    "trained": str(run.model),
    "answers": [
        [answer.text for answer in sample(
            model.causal_lm, tokenizer, asked, max_new_tokens=64, seed=1)]
        for model in (reference, trained)
    ],
}))
"""


def sources(kind: str) -> list[str]:
    return [cell.source for cell in read().cells if cell.cell_type == kind]


def outcome(folder: Path, cache: Path, choice: str = CHOICE) -> tuple[list[str], dict[str, Any]]:
    """What every cell printed, and the probe; the line that chooses the model may be another."""
    notebook = read()
    for cell in notebook.cells:
        cell.source = cell.source.replace(CHOICE, choice)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    run(notebook, folder, {"LIKELIER_CACHE": str(cache)})
    *cells, probe = printed(notebook)
    return cells, json.loads(probe)


@pytest.fixture(scope="module")
def on_the_demo_base(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> tuple[list[str], dict[str, Any]]:
    cache = demo_cache(pytestconfig.cache.mkdir("demo"))
    return outcome(tmp_path_factory.mktemp("walkthrough"), cache)


def check_what_is_taught(found: dict[str, Any], equal: float, tie: float) -> None:
    """What the text says of the numbers, whatever the model.

    ``equal`` is a tolerance in nats, ``tie`` how far from 0.5 the first accuracy may be.
    """
    prompt, answer, vocabulary = found["prompt"], found["answer"], found["vocabulary"]
    length = prompt + answer
    assert found["shapes"] == {
        "input_ids": [1, length],
        "logits": [1, length, vocabulary],
        "logps": [1, length, vocabulary],
        "predictions": [1, length - 1, vocabulary],
        "targets": [1, length - 1],
        "tickets": [1, length - 1, 1],
        "gathered": [1, length - 1, 1],
        "token_logps": [1, length - 1],
        "answer_logps": [answer],
        "chosen": [],
        "chosen_each": [answer],
    }
    assert found["likelier"] == pytest.approx(found["by_hand"], abs=equal)
    ours, theirs = found["tokens"]
    assert theirs == pytest.approx(ours, abs=equal)
    assert found["stop"] < found["likelier"][0] < 0, "one more token can only take away"
    assert found["start"] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert found["slope"] == pytest.approx([-0.05, 0.05])
    assert all(later < earlier for earlier, later in pairwise(found["history"]))
    assert found["moved"][0] > found["moved"][1], "the chosen answer gained on the rejected one"
    assert found["reference"][0] == found["reference"][1], "bit for bit"
    first, last = found["evaluations"][0], found["evaluations"][-1]
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=equal)
    assert first["eval_rewards/accuracies"] == pytest.approx(0.5, abs=tie), "all rewards are 0"
    assert last["step"] > 0 and last["eval_loss"] < first["eval_loss"] - 0.05


@pytest.mark.slow
def test_runs_on_the_demo_base_and_shows_what_it_says(on_the_demo_base):
    _, found = on_the_demo_base
    assert found["dtype"] == "torch.float32"
    check_what_is_taught(found, equal=1e-3, tie=0.0)
    assert found["evaluations"][-1]["eval_rewards/accuracies_low"] > 0.8
    assert (Path(found["trained"]) / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_manner_of_sampled_answers_changes(on_the_demo_base):
    """The flippant manner goes away where it was one half."""
    flippant = re.compile(r"~|귀찮|몰라|글쎄|에이|Ugh|Meh|Who cares|Pfft|Dunno|Lol|Yawn|Nah")
    before, after = (
        sum(flippant.search(text) is not None for text in texts) / len(texts)
        for texts in on_the_demo_base[1]["answers"]
    )
    assert 0.3 < before < 0.7
    assert after < before / 2


@pytest.mark.slow
def test_stored_outputs_are_what_the_cells_print(on_the_demo_base):
    """But for decimals, which hang on the machine, and the sampled answers, which hang on them."""

    def rough(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d+(e-?\d+)?|█", "", text))

    cells, _ = on_the_demo_base
    pairs = list(zip(printed(read()), cells, sources("code"), strict=True))
    sampled = [source for *_, source in pairs if "answers_before" in source]
    assert len(sampled) == 1
    for stored, now, source in pairs:
        if source not in sampled:
            assert rough(stored) == rough(now), "store it again: python -m tests.support.notebook"


@pytest.mark.slow
def test_another_model_in_bfloat16_is_one_line_away(tmp_path):
    """Weights that know nothing, in bfloat16: the same cells, and the loss still falls."""
    model = save_tiny(tmp_path / "tiny", torch.bfloat16)
    _, found = outcome(tmp_path, tmp_path / "cache", f"MODEL = {str(model)!r}")
    assert found["dtype"] == ("torch.bfloat16" if multiplies_bfloat16() else "torch.float32")
    check_what_is_taught(found, equal=0.1, tie=0.2)


def test_the_line_to_change_stands_in_the_first_code_cell_and_is_shown():
    assert sources("code")[0].splitlines()[-1] == CHOICE
    assert sum(CHOICE in source for source in sources("code")) == 1
    assert 'MODEL = "LGAI-EXAONE/EXAONE-4.0-1.2B"' in sources("markdown")[1]


# ---- the text ----------------------------------------------------------------------------------


def prose() -> list[str]:
    """The markdown cells without code, formulas and links' addresses."""
    cut = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)", re.DOTALL)
    return [cut.sub("", source) for source in sources("markdown")]


def test_headings_are_english_and_the_text_is_korean():
    headings = [line for text in prose() for line in text.splitlines() if line.startswith("#")]
    assert len(headings) > 15
    assert [line for line in headings if not line.isascii()] == []
    for text in prose():
        body = "".join(line for line in text.splitlines() if not line.startswith("#"))
        assert re.search("[가-힣]", body), text


def test_korean_text_is_whole():
    """Composed Hangul only: no half syllables, no replacement characters, nothing invisible."""
    for text in [*sources("markdown"), *sources("code"), *printed(read())]:
        assert unicodedata.is_normalized("NFC", text), text
        odd = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co")}
        assert not odd and "\N{REPLACEMENT CHARACTER}" not in text, (odd, text)
        assert not re.search("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\ud7b0-\ud7ff]", text), text


def test_one_style_of_speech():
    """해요체 all the way: sentences end in -요, never in -니다; the names of traps are phrases."""
    for text in prose():
        ends = re.findall(r"([가-힣])[.!?](?=\s|$)", re.sub(r"\*\*[^*]+\*\*", "", text))
        assert set(ends) <= {"요"}, (ends, text)


def test_links_lead_to_files_that_are_there():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(sources("markdown")))
    local = [link for link in links if "://" not in link]
    assert len(local) >= 3
    assert [link for link in local if not (WALKTHROUGH.parent / link).exists()] == []


# ---- the file ----------------------------------------------------------------------------------


def test_the_file_is_small_and_names_no_machine():
    """Run once from top to bottom; standard output alone is stored."""
    notebook = read()
    nbformat.validate(notebook)
    assert WALKTHROUGH.stat().st_size < LARGEST
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert (output.output_type, output.name) == ("stream", "stdout")
        assert not re.search(r"/(tmp|home|root|usr|work|Users)/|[A-Z]:\\", output.text)
