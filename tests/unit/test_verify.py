"""Exported models beside what was trained: the right ones pass, and every wrong one is caught."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.exported import moved_run
from transformers import AutoModelForCausalLM

from likelier.base.files import write_json
from likelier.batching.batch import completions_of
from likelier.cli import main
from likelier.commands.verify import compared, trained_by
from likelier.config import load_config
from likelier.data.load import load as load_data
from likelier.export.verify import Compared
from likelier.model.load import load
from likelier.model.policy import score_sequences

NAMES = {"log-probs", "order", "prompts", "end", "answers"}


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_run(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    out = run.parent / "merged"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


def found(artefact: Path, run: Path) -> dict[str, Compared]:
    return {one.name: one for one in compared(str(artefact), trained_by(run))}


def test_right_exports_are_the_same(run: Path, merged: Path, tmp_path: Path) -> None:
    """In float32 to rounding; in bfloat16 a tenth of what training changed, by far."""
    most = {"float32": 1e-4, "bfloat16": 0.05}
    for form, dtype in (("merged", "float32"), ("merged", "bfloat16"), ("adapter", "auto")):
        out = tmp_path / f"{form}-{dtype}"
        words = [] if dtype == "auto" else ["--dtype", dtype]
        assert main(["export", str(run), "--to", form, "--out", str(out), *words]) == 0
        same = found(out, run)
        assert same.keys() == NAMES
        assert all(one.state == "same" for one in same.values()), same
        figures = same["log-probs"].figures
        assert figures["largest"] <= most.get(dtype, 0.0)
        assert figures["low"] <= figures["mean"] <= figures["high"] <= figures["largest"]
        assert figures["tokens"] > 100 and figures["changed"] > 0.3  # more than a nat an answer
        assert figures["mean"] <= 0.1 * figures["changed"]


def test_plain_transformers_gives_every_held_out_log_prob(run: Path, merged: Path) -> None:
    config = load_config(run / "config.yaml")
    policy = load(run / "adapter")
    pairs = load_data(config.data, policy.encoder(), config.loss, config.train.seed).eval
    sequences = list(dict.fromkeys(one for pair in pairs for one in completions_of(pair)))
    ours = dict(score_sequences(policy, sequences))
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert len(sequences) == 24 and plain.dtype is torch.float32
    for number, one in enumerate(sequences):
        with torch.no_grad():
            logp_LV = plain(torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
        places = [at for at, wanted in enumerate(one.scored) if wanted]
        theirs = torch.stack([logp_LV[at - 1, one.tokens[at]] for at in places])
        assert float((theirs - ours[number].double()).abs().max()) < 1e-4


def lose_the_head(folder: Path, base: Path) -> None:
    with_base(folder, base, lambda name, old, new: old if name == "lm_head.weight" else new)


def lose_the_scale(folder: Path, base: Path) -> None:
    with_base(folder, base, lambda name, old, new: old + (new - old) / 4)


def halve_the_scale(folder: Path, base: Path) -> None:
    with_base(folder, base, lambda name, old, new: old + (new - old) / 2)


def swap_the_sides(folder: Path, base: Path) -> None:
    with_base(folder, base, lambda name, old, new: old - (new - old))


def change_the_template(folder: Path, base: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text("utf-8").replace("\\n", " :"), "utf-8")


def lose_the_template(folder: Path, base: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def change_the_end(folder: Path, base: Path) -> None:
    for name, key, value in (("generation_config", "eos_token_id", 0),
                             ("tokenizer_config", "eos_token", "<unk>")):  # fmt: skip
        described = json.loads((folder / f"{name}.json").read_text("utf-8"))
        write_json(folder / f"{name}.json", {**described, key: value})


def with_base(
    folder: Path, base: Path, change: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    old, new = (load_file(path / "model.safetensors") for path in (base, folder))
    weights = {name: change(name, old[name], tensor).contiguous() for name, tensor in new.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "differs"),
    [
        (lose_the_head, "log-probs"),
        (lose_the_scale, "log-probs"),
        (halve_the_scale, "log-probs"),
        (swap_the_sides, "order"),
        (change_the_template, "prompts"),
        (lose_the_template, "prompts"),
        (change_the_end, "end"),
    ],
)
def test_a_wrong_export_is_caught(
    run: Path, merged: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], differs: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    wrong = shutil.copytree(merged, tmp_path / "wrong")
    (wrong / "MANIFEST.json").unlink()
    spoil(wrong, run.parent / "base")
    assert main(["verify", str(wrong), "--against", str(run), "--gate"]) == 3
    said = capsys.readouterr()
    assert f"\n✗ {differs}: " in f"\n{said.out}"
    assert f"{wrong}: not what was trained: " in said.err


def test_without_a_gate_a_difference_is_only_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run.parent / "base"), "--against", str(run), "--pairs", "2"]) == 0
    assert "✗ log-probs: " in capsys.readouterr().out


def test_an_update_that_bfloat16_rounds_away_is_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = moved_run(tmp_path, rate=2e-6)
    out = tmp_path / "rounded"
    words = ["export", str(run), "--out", str(out), "--dtype"]
    assert main([*words, "bfloat16"]) == 3
    said = capsys.readouterr()
    assert "not what was trained: log-probs" in said.err and "--dtype float32" in said.err
    assert "is lost" in said.out
    shutil.rmtree(out)
    assert main([*words, "float32"]) == 0


def test_what_is_printed_and_what_json_holds(
    run: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(merged), "--against", str(run), "--pairs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.startswith("✓ ") for line in lines)
    assert "of 3 pairs; training changed" in lines[0]
    assert main(["verify", str(merged), "--against", str(run), "--pairs", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["state"] for row in rows} == dict.fromkeys(NAMES, "same")


@pytest.mark.parametrize(
    ("artefact", "against", "code", "says"),
    [
        ("nothing", "run", 66, "nothing"),
        ("nothing.gguf", "run", 66, "there is no such file"),
        ("http://127.0.0.1:9", "run", 66, "no answer"),
        ("merged", "base", 66, "there is no run here"),
    ],
)
def test_what_is_not_there(
    run: Path, merged: Path, artefact: str, against: str, code: int, says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = artefact if "://" in artefact else str(run.parent / artefact)
    assert main(["verify", named, "--against", str(run.parent / against)]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "adapter", "--dtype", "float32"], "--dtype: has no effect with --to adapter"),
        (["--quantise", "q8_0"], "--quantise: has no effect with --to merged"),
        (["--converter", "x"], "--converter: has no effect with --to merged"),
        (["--public"], "--public: has no effect without --push"),
    ],
)
def test_an_option_without_effect_is_refused(
    run: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "x"), *words]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "x").exists()
