"""Files written whole or not at all, sealed with a hash, and read back only where they are ours.

Written: in a temporary folder, fsync, rename, fsync of the folder; a link at the end of a path is
not followed. Read: regular files of a bounded size, so that no pipe is waited for, no device read.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from likelier.base.errors import DISK_HINT, OutputError

MANIFEST = "MANIFEST.json"
MAX_RECORD_BYTES = 64 * 2**20  # of a JSON object of ours
MAX_FILE_BYTES = 4 * 2**30  # of a log, or of a file of the cache that is read whole
_LEFT = re.compile(r"\..+\.(tmp|trash)|\.tmp\w{6}")  # the last is what safetensors writes
_A_DAY = 86_400  # seconds
_MAX_HEAD = 1024  # bytes of the first line of a file of the cache
# Why a file of ours is not there: missing, a link, a folder, a device, too large.
_NOT_OURS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO,
             errno.EINVAL, errno.EFBIG)  # fmt: skip
_UNREADABLE_HINT = "run the same command again; where it says so again, move this file away"
# safetensors and tokenizers are written in Rust, and raise classes of their own for a full disk.
_RUST_OS_ERROR = re.compile(r"(?P<what>[^:]*) \(os error \d+\)")


def cache_dir() -> Path:
    """``$LIKELIER_CACHE``, or ``~/.cache/likelier``; it need not exist yet."""
    return Path(os.environ.get("LIKELIER_CACHE") or "~/.cache/likelier").expanduser()


# ---- writing -------------------------------------------------------------------------------


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
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


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, locked while it is used: all that a kill, here or in a library, can
    leave half written is in it, and `sweep` tells by the lock whether anybody still writes there.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ExitStack() as behind:
        behind.callback(_delete, folder)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        behind.callback(os.close, held)
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(held, fcntl.LOCK_SH)
        yield folder


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each of them known to the disk.

    Raises OutputError where it cannot be made.
    """
    with output_errors(path):
        if path.is_dir():
            return
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        with suppress(PermissionError):  # a folder that may be written, but not read
            sync(path.parent)


def must_be_apart(out: Path, where: str, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read, or into a folder that is read. Names of the Hub are none.

    Raises OutputError that names the key or option.
    """
    place = os.path.realpath(out)
    for read in inputs:
        if read is None or not os.path.exists(read):
            continue
        real = os.path.realpath(read)
        inside = os.path.isdir(real) and place.startswith(os.path.join(real, ""))
        if place == real or inside:
            what = f"this lies inside {read}" if inside else f"this is {read} itself"
            raise OutputError(f"{what}, which is read", where=where, hint="name another place")


def write_file(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Let ``write`` make a file under a temporary name, then put it in place of ``path``.

    Not ``durable``: whole for every process, but perhaps not there after a power cut.

    Raises OutputError where the disk refuses; what stood at ``path`` then still stands.
    """
    with output_errors(path), _workplace(path) as folder:
        temporary = folder / path.name
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        _set_mode(temporary, mode)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)


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
    """Add rows to the end of a JSONL file, in one write.

    Raises OutputError where the disk refuses, and where a link or no regular file stands there.
    """
    text = _as_lines(rows)  # before the file is opened: half a row is never written
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with output_errors(path), os.fdopen(open_own(path, flags), "ab") as stream:
        stream.write(text.encode())


def open_own(path: Path, flags: int) -> int:
    """An open descriptor of a file of ours, of which a pipe, a device or a folder is none.

    To write, a link is refused as well: what it points to is not ours. Raises OSError.
    """
    if flags & (os.O_WRONLY | os.O_RDWR):
        flags |= os.O_NOFOLLOW
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)  # waits for no pipe
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_folder(path: Path, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Let ``write`` fill a folder, seal it with a manifest of hashes, and put it at ``path``.

    ``facts`` go into the manifest. ``path`` must not exist.

    Raises OutputError where the disk refuses; ``path`` then still does not exist.
    """
    make_folder(path.parent)
    with output_errors(path), _workplace(path) as place:
        temporary = place / path.name
        temporary.mkdir()
        write(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        seals = {
            str(file.relative_to(temporary)): {"size": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        }
        manifest = json.dumps(sealed({**facts, "files": seals}), indent=2) + "\n"
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        for file in [*files, temporary / MANIFEST]:
            _set_mode(file, (temporary / MANIFEST).stat().st_mode)
            sync(file)
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)


def sweep(folder: Path, alone: bool = True, of: str = "") -> None:
    """Delete what killed processes left half written in a folder, or ``of`` one file in it.

    ``alone``: nobody else may be writing there now. Otherwise what somebody holds stays; where the
    file system knows no locks, what was touched within a day.
    """
    with suppress(OSError):
        for name in os.listdir(folder):
            ours = _LEFT.fullmatch(name) and name.startswith(f".{of}." if of else "")
            if ours and (alone or not _is_held(folder / name)):
                with suppress(OSError):
                    _delete(folder / name)


def _is_held(path: Path) -> bool:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError:  # a link, or gone meanwhile
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return is_locked(error) or time.time() - os.fstat(descriptor).st_mtime < _A_DAY
    finally:
        os.close(descriptor)


def is_locked(error: OSError) -> bool:
    """Whether a lock failed because somebody has it; otherwise the file system knows no locks."""
    return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def remove_folder(path: Path) -> None:
    """Delete a folder, or a file of this name, so that no half of it keeps the name.

    Raises OutputError where the disk refuses.
    """
    trash = path.with_name(f".{path.name}.{os.getpid()}.trash")
    with output_errors(path):
        os.rename(path, trash)
        _delete(trash)
        sync(path.parent)  # or it is back after a power cut


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():  # a disk may fail once
            shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- seals ---------------------------------------------------------------------------------


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a hash over all of it, as `read_json` wants it."""
    return {**content, "seal": _seal(content)}


def _seal(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, key: str, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file of a cache: one line with its key and the hash of the content, the content,
    which may come in pieces.

    Raises OutputError where the disk refuses. It is not synced: what a power cut leaves of it is
    known by its hash.
    """

    def write(temporary: Path) -> None:
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            file.write(_head(key, digest))
            for piece in (content,) if isinstance(content, bytes) else content:
                digest.update(piece)
                file.write(piece)
            file.seek(0)
            file.write(_head(key, digest))

    write_file(path, write, durable=False)


def _head(key: str, digest: Any) -> bytes:
    return f"{key} {digest.hexdigest()}\n".encode()


def open_sealed(path: Path, key: str) -> BufferedReader | None:
    """What `write_sealed` wrote under this key, open behind its first line; None where it is
    missing, damaged or another's. It is read through once, and not kept in memory.
    """
    try:
        with ExitStack() as unless_whole:
            stream = unless_whole.enter_context(open_regular(path))
            head = stream.readline(_MAX_HEAD)
            if head != _head(key, hashlib.file_digest(stream, "sha256")):
                return None
            stream.seek(len(head))
            unless_whole.pop_all()
            return stream
    except OSError:
        return None


def read_sealed(path: Path, key: str) -> bytes | None:
    """What `write_sealed` wrote under this key; None where it is missing, damaged or another's."""
    try:
        head, _, content = read_bytes(path).partition(b"\n")
    except OSError:
        return None
    whole = head + b"\n" == _head(key, hashlib.sha256(content))
    return content if whole else None


# ---- reading -------------------------------------------------------------------------------


def open_regular(path: Path) -> BufferedReader:
    """Open a file of ours to read it.

    Raises OSError where it is missing, unreadable or no regular file.
    """
    return os.fdopen(open_own(path, os.O_RDONLY), "rb")


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file of ours.

    Raises OSError as `open_regular`, and where it has more than ``most`` bytes.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, "Larger than any file of ours", str(path))
        return stream.read(size)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Tell what cannot be read now from what is not there: a disk that fails once must not have a
    whole file taken for a missing one, and then replaced.

    Raises OutputError for the first. The OSError of a file that is missing, damaged, or none of
    ours stays.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NOT_OURS or isinstance(error, FileNotFoundError):
            raise
        if error.errno is None and not _RUST_OS_ERROR.search(str(error)):
            raise  # Arrow's own: what it read is damaged
        what = f"cannot be read: {error.strerror or error}"
        raise OutputError(what, where=str(path), hint=_UNREADABLE_HINT) from error


def read_table(path: Path, columns: list[str] | None = None) -> Any:
    """The rows of a Parquet file of ours, whose pages have checksums, as a table of Arrow.

    Raises OSError where it is missing or damaged. Raises OutputError: see `read_errors`.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with read_errors(path), open_regular(path) as stream:
        try:
            with ParquetFile(stream, page_checksum_verification=True) as file:
                return file.read(columns)
        except (ArrowException, ValueError) as error:
            raise OSError(f"damaged: {error}") from error


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex. Raises OSError as `open_regular`."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def has_hash(path: Path, expected: Any) -> bool:
    """Whether a file of ours is there and has this hash. Raises OutputError: see `read_errors`."""
    try:
        with read_errors(path):
            return sha256(path) == expected
    except OSError:
        return False


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder where it is sealed and every file is unchanged; otherwise None.

    Raises OutputError: see `read_errors`.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None or not manifest.get("seal"):
        return None
    files = manifest.get("files")
    whole = isinstance(files, dict) and files and not changed_files(folder, files)
    return manifest if whole else None


def changed_files(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Those files of a manifest that are not there any more as it says.

    Raises OutputError: see `read_errors`.
    """
    return [name for name, seal in files.items() if not _is_whole(folder / name, seal)]


def _is_whole(file: Path, seal: Any) -> bool:
    try:
        return file.stat().st_size == seal["size"] and has_hash(file, seal["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of ours, or None where the file is missing or damaged.

    Damaged is one whose seal is broken, or whose last line has no end. Objects of format 1 and
    those without a format have none.

    Raises OutputError: see `read_errors`.
    """
    try:
        with read_errors(path):
            written = read_bytes(path, MAX_RECORD_BYTES)
        content = json.loads(written.decode())
        if not isinstance(content, dict):
            return None
        old = "seal" not in content and content.get("format", 1) == 1
        sealed_whole = not old and written.endswith(b"\n") and content["seal"] == _seal(content)
        return content if old or sealed_whole else None
    except (OSError, ValueError, KeyError, RecursionError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of ours; a line cut short by a kill, or damaged, is left out.

    Raises OutputError: see `read_errors`.
    """
    try:
        with read_errors(path):
            lines = read_bytes(path).split(b"\n")[:-1]  # the rest is empty, or a line cut short
    except OSError:
        return []
    parsed = [_parse(line) for line in lines]
    return [row for row in parsed if isinstance(row, dict)]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
