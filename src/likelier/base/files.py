"""Files written whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from likelier.base.errors import DISK_HINT, OutputError

MANIFEST = "MANIFEST.json"
# safetensors and tokenizers are written in Rust, and raise classes of their own for a full disk.
_RUST_OS_ERROR = re.compile(r"(?P<what>[^:]*) \(os error \d+\)")


def cache_dir() -> Path:
    """``$LIKELIER_CACHE``, or ``~/.cache/likelier``; it need not exist yet."""
    return Path(os.environ.get("LIKELIER_CACHE") or "~/.cache/likelier").expanduser()


# ---- writing -------------------------------------------------------------------------------


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into an OutputError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            what = error.strerror or str(error)
        elif found := _RUST_OS_ERROR.search(str(error)):
            what = found["what"].strip()
        else:
            raise
        raise OutputError(f"cannot write: {what}", where=str(path), hint=DISK_HINT) from error


def sync(path: Path) -> None:
    """Flush a file or folder to disk: a rename is only safe once its content is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    """Give a file a mode that the umask made: safetensors makes files for their owner alone."""
    if path.stat().st_mode != mode:  # not every file system can change it
        path.chmod(mode)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name, then put it in place of ``path``.

    Raises OutputError where the disk refuses; what stood at ``path`` then still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _output_errors(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            _set_mode(temporary, mode)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file whole."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSONL file whole."""
    write_text(path, _as_lines(rows))


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to the end of a JSONL file, in one write."""
    text = _as_lines(rows)  # before the file is opened: half a row is never written
    with _output_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_folder(path: Path, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Let ``write`` fill a folder, seal it with a manifest of hashes, and put it at ``path``.

    ``facts`` go into the manifest. ``path`` must not exist.

    Raises OutputError where the disk refuses; ``path`` then still does not exist.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _output_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            seals = {
                str(file.relative_to(temporary)): {
                    "size": file.stat().st_size,
                    "sha256": sha256(file),
                }
                for file in files
            }
            manifest = json.dumps({**facts, "files": seals}, indent=2) + "\n"
            (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
            for file in [*files, temporary / MANIFEST]:
                _set_mode(file, (temporary / MANIFEST).stat().st_mode)
                sync(file)
            sync(temporary)
            os.rename(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half written; no other process may be writing there now."""
    for left in [*folder.glob(".*.tmp"), *folder.glob(".*.trash")]:
        _delete(left)


def remove_folder(path: Path) -> None:
    """Delete a folder, or a file of this name, so that no half of it keeps the name."""
    trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
    os.rename(path, trash)
    _delete(trash)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- reading -------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder whose every file is there and unchanged; otherwise None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        whole = bool(files) and all(
            (folder / name).stat().st_size == seal["size"]
            and sha256(folder / name) == seal["sha256"]
            for name, seal in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if whole else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of ours, or None where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of ours; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # the rest is empty, or a line cut short
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
