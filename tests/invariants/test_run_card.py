"""The card of a trained model, where its base is found, and who may read its files."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from tests.support.runs import MISSING, Place, make_place
from tests.support.tiny import pair_rows, save_tiny, write_rows
from transformers import AutoTokenizer

import likelier
from likelier.base.files import read_json
from likelier.export.card import _licence
from likelier.model.load import load, quietly
from likelier.run import Run, train

LORA = {"kind": "lora", "r": 4, "alpha": 8}
FULL = {"kind": "none"}
CONTINUED = {"kind": "lora"}  # what a run may say of an adapter that it only continues
COMMIT = "a" * 40

pytestmark = pytest.mark.usefixtures("no_report")


def short_run(place: Place, out: Path, **changes: Any) -> Run:
    return train(place.config(out, **{"train__steps": 2, "train__save_every": 1, **changes}))


@pytest.fixture(scope="module")
def lora(place: Place) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likelier.run._write_report", lambda out: None)
        yield short_run(place, place.folder / "lora", adapter=LORA)


def card_of(run: Run) -> ModelCard:
    card = ModelCard.load(run.model / "README.md")
    assert yaml.safe_load(card.data.to_yaml()) == card.data.to_dict()
    return card


def followed(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the example of a card leaves behind, run beside the folder that it loads."""
    example = re.search(r"```python\n(.*?)```", card_of(run).content, re.DOTALL)
    assert example is not None
    monkeypatch.chdir(run.folder)
    names: dict[str, Any] = {}
    with quietly():
        exec(example[1], names)
    return names


# What the card says


def test_front_matter_of_a_local_base(lora: Run) -> None:
    assert card_of(lora).data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["likelier", "dpo", "lora"],
    }


def test_it_says_what_the_model_was_made_of(lora: Run) -> None:
    content, record = card_of(lora).content, read_json(lora.folder / "run.json")
    assert record is not None
    for line in (
        f"trained on {record['pairs']} preferences, 2 steps of the loss\n`sigmoid`, "
        f"with likelier {likelier.__version__}",
        "| base model | `base` |",
        f"| SHA-256 of the initial policy | `{record['inputs']['model']}` |",
        "| data | `pairs.jsonl` |",
        "| rows | 30 read, 30 used, 0 dropped, 0 trimmed |",
        f"| preferences held out | {record['eval_pairs']} (`data.eval: 20%`) |",
        f"| SHA-256 of all as tokens | `{record['inputs']['data']}` |",
        f"| torch | {record['versions']['torch']} |",
    ):
        assert line in content
    settings = re.search(r"```yaml\n(.*?)```", content, re.DOTALL)
    assert settings is not None
    told = yaml.safe_load(settings[1])
    config = yaml.safe_load((lora.folder / "config.yaml").read_text("utf-8"))
    assert told["loss"] == config["loss"] and told["optim"] == config["optim"]
    assert not {"path"} & told["model"].keys() and not {"train", "eval"} & told["data"].keys()


def test_it_shows_the_last_evaluation_with_its_interval(lora: Run) -> None:
    content, last = card_of(lora).content, lora.metrics[-1]
    low, high = (
        f"{100 * last[f'eval_rewards/accuracies_{end}']:.1f}".removesuffix(".0")
        for end in ("low", "high")
    )
    accuracy = re.search(r"\| accuracy \(95% interval\) \| (.*) \| (.*) \|", content)
    assert accuracy is not None
    assert accuracy[1].startswith("50% (")  # policy and reference are one model before step 1
    assert accuracy[2].endswith(f"({low}% to {high}%)")
    assert f"| loss | 0.6931 | {last['eval_loss']:.4g} |" in content
    assert f"Means over {last['eval_pairs']} preferences" in content


def test_it_names_no_path_of_this_machine(place: Place, lora: Run, tmp_path: Path) -> None:
    other = make_place(tmp_path / "other", rows=1)
    run = short_run(place, tmp_path / "run", reference__path=str(other.base), adapter=LORA)
    for content in (card_of(lora).content, card_of(run).content):
        assert str(place.folder) not in content and str(tmp_path) not in content
    assert "path: base" in card_of(run).content


def test_without_held_out_pairs_and_from_memory(place: Place, tmp_path: Path) -> None:
    settings = place.config(
        tmp_path / "run", data__eval=None, data__train=MISSING, train__steps=1,
        train__eval_every=MISSING, loss={"name": "simpo"},
    )  # fmt: skip
    policy = load(place.base)
    policy.causal_lm.config._name_or_path = ""  # as one that never was on a disk
    policy.causal_lm.name_or_path = ""
    del settings["model"]
    run = train(settings, policy.model, policy.tokenizer, train=pair_rows(12))
    card = card_of(run)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["likelier", "simpo"],
    }
    assert "| base model | handed over in memory |" in card.content
    assert "| data | `(in memory)` |" in card.content
    assert "None were held out" in card.content


# Its example


def test_the_example_for_an_adapter(lora: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = followed(lora, monkeypatch)
    assert names["model"].active_adapters == ["default"]
    assert names["answer"].shape[1] > names["begin"]


def test_the_example_for_a_model_and_a_template_with_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path / "place", rows=12)
    tokenizer = AutoTokenizer.from_pretrained(place.base)
    tokenizer.chat_template = "{% if polite %}Sir, {% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(place.base)
    run = short_run(place, tmp_path / "run", data__template={"polite": True})
    names = followed(run, monkeypatch)
    assert names["tokenizer"].decode(names["prompt"]["input_ids"][0]).startswith("Sir, ")
    assert type(names["model"]).__name__ == "Exaone4ForCausalLM"


def test_the_example_for_a_model_without_a_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path / "place", rows=1)
    write_rows(place.data, pair_rows(12, chat=False))
    (place.base / "chat_template.jinja").unlink()
    names = followed(short_run(place, tmp_path / "run"), monkeypatch)
    assert names["answer"].shape[1] > names["begin"]


# Where the base is found


def test_a_local_base_is_found_from_any_working_directory(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    run = short_run(place, tmp_path / "run", model__path="./base", adapter=LORA)
    again = short_run(place, tmp_path / "again", model__path=str(run.model), adapter=CONTINUED)
    monkeypatch.chdir(tmp_path)
    for adapter in (run.model, again.model):
        described = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        assert described["base_model_name_or_path"] == str(place.base.resolve())
        assert load(adapter).has_adapter
        with quietly():
            AutoPeftModelForCausalLM.from_pretrained(adapter)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with someone/base, its only branch named v2, and someone/pairs."""
    repository = tmp_path / "hub" / "models--someone--base"
    snapshot = save_tiny(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(COMMIT)
    card = "---\nlicense: other\nlicense_name: exaone\nlicense_link: LICENSE\n---\n# Base\n"
    (snapshot / "README.md").write_text(card, encoding="utf-8")
    data = tmp_path / "hub" / "datasets--someone--pairs"
    (data / "snapshots" / COMMIT).mkdir(parents=True)
    write_rows(data / "snapshots" / COMMIT / "train.jsonl", pair_rows(12))
    (data / "refs").mkdir()
    (data / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    return snapshot


def test_a_base_from_the_hub_keeps_its_id_revision_and_licence(
    place: Place, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = place.config(tmp_path / "run", adapter=LORA, train__steps=1)
    config["model"] = {"path": "someone/base", "revision": "v2"}
    config["data"]["train"] = "someone/pairs:train"
    run = train(config)
    again = short_run(place, tmp_path / "again", model__path=str(run.model), adapter=CONTINUED)
    assert card_of(run).data.datasets == ["someone/pairs"]
    assert "| data | `someone/pairs:train` |" in card_of(run).content
    for one in (run, again):
        described = json.loads((one.model / "adapter_config.json").read_text("utf-8"))
        assert described["base_model_name_or_path"] == "someone/base"
        assert described["revision"] == "v2"
        told = card_of(one).data.to_dict()
        told.pop("datasets", None)
        assert told == {
            "base_model": "someone/base",
            "base_model_relation": "adapter",
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "tags": ["likelier", "dpo", "lora"],
            "license": "other",
            "license_name": "exaone",
            "license_link": "https://huggingface.co/someone/base/blob/v2/LICENSE",
        }
        assert "| revision | `v2` |" in card_of(one).content
    followed(run, monkeypatch)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "mine"},  # the file does not lie beside our card
        ),
        ("---\nlicense: [apache-2.0\n---\n", {}),
        ("---\n- apache-2.0\n---\n", {}),
        ("---\nlicense: {a: 1}\n---\n", {}),
        ("\xff", {}),
        ("", {}),
    ],
)
def test_what_the_card_of_a_local_base_says_of_its_licence(
    place: Place, tmp_path: Path, card: str, licence: dict[str, str]
) -> None:
    (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert _licence(str(tmp_path), None, on_hub=False) == licence


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("slow")])
def test_a_network_that_fails_costs_no_more_than_the_licence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert _licence("someone/base", None, on_hub=True) == {}  # offline, and not in the cache

    def fails(*arguments: object, **named: object) -> str:
        raise error

    monkeypatch.setattr("likelier.export.card.hf_hub_download", fails)
    assert _licence("someone/base", None, on_hub=True) == {}


def test_the_licence_of_a_local_base_is_repeated(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.base, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    card = card_of(short_run(place, tmp_path / "run", model__path=str(tmp_path / "base")))
    assert card.data.license == "apache-2.0"
    assert "| licence of the base model | apache-2.0 |" in card.content


# Who may read it


def test_files_are_as_readable_as_the_umask_says(place: Place, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run = short_run(place, tmp_path / "run", adapter=LORA)
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(run.folder)): f"{path.stat().st_mode & 0o777:o}"
        for path in run.folder.rglob("*")
    }
    assert "adapter/adapter_model.safetensors" in modes and "reference.safetensors" in modes
    wrong = {
        name: mode
        for name, mode in modes.items()
        if mode != ("750" if (run.folder / name).is_dir() else "640")
    }
    assert wrong == {}
