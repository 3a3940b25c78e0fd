"""Libraries in C that stand between a process and its file calls, made where they are needed.

safetensors and Arrow call the system without Python, so that only LD_PRELOAD sees what they write.
"""

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

NO_COMPILER = "no C compiler: install one that is called cc, as in: apt install gcc"


class NoCompiler(Exception):
    """There is no C compiler here, so that no file call can be made to fail."""


def has_compiler() -> bool:
    """Whether libraries can be made here."""
    return shutil.which("cc") is not None


@cache
def build(source: str) -> Path:
    """The shared library of a C file of this folder, made once a process.

    Raises NoCompiler where there is none.
    """
    if not has_compiler():
        raise NoCompiler(NO_COMPILER)
    folder = tempfile.mkdtemp(prefix="faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder, source).with_suffix(".so")
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    code = Path(__file__).with_name(source)
    subprocess.run(["cc", *options, "-o", library, code, "-ldl"], check=True)
    return library
