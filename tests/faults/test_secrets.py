"""Canaries in everything that can be secret: none sings in any byte of what comes out."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.support.runs import Place, make_place
from tests.support.tiny import pair_rows, write_rows

from likelier.base import foreign
from likelier.base.errors import DataError
from likelier.base.foreign import masked, without_secrets
from likelier.cli import main
from likelier.run import train

CANARY = "CaNaRy17bird"
TOKEN = f"hf_{CANARY}{CANARY}"
FORMS = {
    f"https://me:{CANARY}@host/x": "https://***@host/x",
    f"https:/me:{CANARY}@host/x": "https:/***@host/x",  # as a path is written
    f"git+ssh://{CANARY}@host:22/x": "git+ssh://***@host:22/x",
    f"https://me:p@{CANARY}@host": "https://***@host",
    f"cut: https://me:{CANARY}...": "cut: https://***",
    f"https://host/x?a=1&token={CANARY}&b=2#c": "https://host/x?a=1&token=***&b=2#c",
    f"x?access_token={CANARY}": "x?access_token=***",
    f"x?API-Key={CANARY} y": "x?API-Key=*** y",
    f"x?sig={CANARY}": "x?sig=***",
    f"/x?sig={CANARY}.jsonl:12: empty": "/x?sig=***:12: empty",
    f"x?X-Amz-Signature={CANARY}&amp;X-Amz-Credential={CANARY}":
        "x?X-Amz-Signature=***&amp;X-Amz-Credential=***",
    f'{{"token": "x?token={CANARY}"}}': '{"token": "x?token=***"}',
    f"Authorization: Bearer {CANARY}": "Authorization: Bearer ***",
    f"{{'authorization': 'Basic {CANARY}=='}}": "{'authorization': 'Basic ***'}",
    f"bearer {CANARY}": "bearer ***",
    f"hub_token={CANARY}": "hub_token=***",
    f"--token={CANARY}": "--token=***",
    f'api_key="{CANARY}"': 'api_key="***"',
    f"password: {CANARY}": "password: ***",
    f"with {TOKEN}.": "with ***.",
    f"a_{TOKEN}": "a_***",
}  # fmt: skip
NO_SECRETS = [
    "loading runs/hf_models/hf_hub", "train.tokens_per_batch=256", "loss.stop_token=false",
    "http://localhost:8080/x", "https://host:443", "see https://huggingface.co/a/b?x=1 (me@host)",
    "pairs.jsonl:3: eos_token=<|end|>", "tokenizer: it has no stop token", "token: a", "a:b@c",
    "the bearer certificates", "key=value", "/a:/b", "monkey=banana",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    assert without_secrets(text) == FORMS[text]
    assert without_secrets(FORMS[text]) == FORMS[text]


_PIECES = [
    *"/:=@?&;,-_'\"<> \tħſ",
    *(x for t in (*FORMS, *NO_SECRETS) for x in re.findall(r"\w+", t)),
]


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_a_text_that_is_passed_over_holds_none(text: str) -> None:
    """Texts without a colon and the like are not searched; as if they were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "_MAY_HOLD", re.compile(""))
        searched = without_secrets(text)
    assert without_secrets(text) == searched


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_none(text: str) -> None:
    assert without_secrets(text) == text


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", CANARY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "nothing-secret")
    assert without_secrets(f"401 for '{CANARY}', nothing-secret") == "401 for '***', nothing-secret"


def test_data_with_secrets_in_it() -> None:
    tree = {"a": [f"x?token={CANARY}", 1, None], f"x?token={CANARY}": {"b": (TOKEN,)}}
    assert masked(tree) == {"a": ["x?token=***", 1, None], "x?token=***": {"b": ["***"]}}


# ---- a run whose every name holds one ------------------------------------------------------------

NAME = f"x?token={CANARY}&sig={CANARY}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), rows=12)


def secret(place: Place, folder: Path, **changes: Any) -> list[str]:
    """The command of a run whose model, data, template and folder have secrets in their names."""
    shutil.copytree(place.base, folder / f"base{NAME}")
    write_rows(folder / f"{NAME}.jsonl", pair_rows(12))
    write_rows(folder / f"eval{NAME}.jsonl", pair_rows(3, seed=1))
    tree = place.config(folder / f"out{NAME}", **changes)
    tree["model"] = {"path": str(folder / f"base{NAME}")}
    tree["data"] = {
        "train": str(folder / f"{NAME}.jsonl"), "eval": str(folder / f"eval{NAME}.jsonl"),
        "template": {"link": f"https://me:{CANARY}@host/x", "also": TOKEN},
    }  # fmt: skip
    template = folder / f"base{NAME}" / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if link and also %}{% endif %}")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return ["train", str(config), f"reference.path={folder / f'base{NAME}'}"]


def singing(folder: Path) -> Iterator[str]:
    """Files below a folder with the canary in any of their bytes; pages packed or not."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if CANARY.encode() in file.read_bytes():
            yield str(file.relative_to(folder))


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "r": 2}])
def test_no_byte_of_a_run_sings(
    place: Place, tmp_path: Path, adapter: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    words = secret(place, tmp_path, adapter=adapter, train__steps=3)
    out = tmp_path / f"out{NAME}"
    assert main(words) == 0
    assert main(words) == 0  # the same run
    assert main(["report", str(out)]) == 0
    assert main(["env"]) == 0
    data, base = str(tmp_path / f"{NAME}.jsonl"), str(tmp_path / f"base{NAME}")
    assert main(["check", data, "--json", "--html", str(out / "check.html")]) == 0
    assert main(["show", data, "--model", base, "--html", str(out / "show.html")]) == 0
    assert main(["show", data, "--model", base, "--row", f"{data}:2"]) == 0
    assert main(["score", data, "--model", base, "--out", str(out / "scores.jsonl")]) == 0
    said = "".join(capfd.readouterr())
    assert "is finished: nothing to do" in said and "token=***" in said
    assert CANARY not in said
    assert list(singing(out)) == []
    kept = json.loads((out / "run.json").read_text())
    assert kept["asked"]["model"]["path"].endswith("/basex?token=***&sig=***")
    assert "token=***" in (out / "config.yaml").read_text()


def test_a_run_with_secrets_resumes_and_another_is_refused(
    place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = secret(place, tmp_path)
    out = tmp_path / f"out{NAME}"

    class Stopped(Exception):
        pass

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise Stopped

    tree = yaml.safe_load(Path(words[1]).read_text())
    tree["reference"] = {"path": tree["model"]["path"]}
    with pytest.raises(Stopped):
        train(tree, on_step=on_step)
    assert main(words) == 0
    assert "resuming from step 2" in capfd.readouterr().err
    assert main([*words, f"model.revision=main?token={CANARY}", "--debug"]) == 73
    assert main([*words, f"data.eval={tmp_path}/no?token={CANARY}.jsonl"]) == 73
    said = capfd.readouterr().err
    assert "another run: model.revision: null before, main?token=*** now" in said
    assert CANARY not in said
    assert list(singing(out)) == []


KEYS = ["model.path", "model.revision", "model.dtype", "data.train", "data.eval", "data.today",
        "data.columns.prompt", "data.template.x", "data.boundary", "adapter.kind",
        "adapter.targets", "reference.path", "loss.name", "optim.schedule", "train.steps", "out",
        "unknown", "hub_token", "unknown.below"]  # fmt: skip
VALUES = [f"https://me:{CANARY}@host/x", f"x?access_token={CANARY}", TOKEN,
          f"https://me:{'p' * 50}{CANARY}@host/x"]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_no_error_about_a_key_sings(
    place: Place, tmp_path: Path, key: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(place.config("out", train__steps=1)), encoding="utf-8")
    for value in VALUES:
        for words in (["train", str(config), f"{key}={value}", "--debug"],
                      ["train", str(config), f"--{key}", value]):  # fmt: skip
            code = main(words)
            said = "".join(capfd.readouterr())
            assert code != 70, said
            assert CANARY not in said, said
    assert list(singing(tmp_path)) == []


def test_an_error_that_python_code_catches() -> None:
    error = DataError(f"401 {TOKEN}", where=f"x?token={CANARY}", hint=f"see https://a:{CANARY}@b")
    assert CANARY not in str(error) + repr(error) + str(vars(error))
