"""Files and folders that are written whole or not at all."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from likelier.base import files
from likelier.base.errors import OutputError
from likelier.base.files import (
    MANIFEST,
    append_lines,
    has_hash,
    make_folder,
    must_be_apart,
    open_own,
    open_regular,
    read_bytes,
    read_json,
    read_lines,
    read_manifest,
    read_sealed,
    remove_folder,
    sealed,
    sha256,
    sweep,
    write_file,
    write_folder,
    write_json,
    write_lines,
    write_sealed,
    write_text,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "메모.txt"
    write_text(path, "처음")
    write_text(path, "다음")
    assert path.read_text(encoding="utf-8") == "다음"
    assert names(tmp_path) == {"메모.txt"}


def test_what_stood_there_stands_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(path, half)
    assert path.read_text() == "before"
    assert names(tmp_path) == {"file"}


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "inner").mkdir()
    (folder / "inner" / "b.bin").write_bytes(b"")


def test_a_folder_and_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    write_folder(path, fill, {"step": 3})
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest["step"] == 3
    assert manifest["files"].keys() == {"a.bin", "inner/b.bin"}
    assert manifest["files"]["a.bin"] == {
        "size": 5,
        "sha256": "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8",
    }
    assert names(path.parent) == {"folder"}


def test_nothing_stands_where_filling_a_folder_fails(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "folder", half, {})
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin"])
@pytest.mark.parametrize("content", [b"alphA", b"alph", b"alpha!", None])
def test_a_changed_file_breaks_the_seal(tmp_path: Path, name: str, content: bytes | None) -> None:
    write_folder(tmp_path / "folder", fill, {})
    file = tmp_path / "folder" / name
    file.unlink() if content is None else file.write_bytes(content)
    assert read_manifest(tmp_path / "folder") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "3", '{"files": {}}', '{"files": []}', '{"files": {"a.bin": 1}}', "{",
     '{"files": {"a.bin": {"size": 5}}}', "[" * 100_000, '{"step": 4}', "\ud800"],
)  # fmt: skip
def test_a_manifest_of_nonsense_is_none(tmp_path: Path, content: str) -> None:
    write_folder(tmp_path / "folder", fill, {})
    data = content.encode(errors="surrogatepass")
    (tmp_path / "folder" / MANIFEST).write_bytes(data)
    assert read_manifest(tmp_path / "folder") is None


def test_no_folder_has_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "nothing") is None


def test_content_is_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that overtakes its content would, after a power cut, be a whole empty folder."""
    calls: list[str] = []
    rename, replace = os.rename, os.replace

    def logged(kind: str, call):
        def run(source: Path, target: Path) -> None:
            calls.append(f"{kind} {Path(target).name}")
            call(source, target)

        return run

    monkeypatch.setattr(files, "sync", lambda path: calls.append(f"sync {path.name}"))
    monkeypatch.setattr(os, "rename", logged("name", rename))
    monkeypatch.setattr(os, "replace", logged("name", replace))
    write_folder(tmp_path / "folder", fill, {})
    assert calls == [
        "sync a.bin", "sync b.bin", f"sync {MANIFEST}", "sync folder",
        "name folder", f"sync {tmp_path.name}",
    ]  # fmt: skip
    calls.clear()
    write_text(tmp_path / "file", "x")
    assert calls == ["sync file", "name file", f"sync {tmp_path.name}"]
    calls.clear()
    make_folder(tmp_path / "a" / "b")
    assert calls == [f"sync {tmp_path.name}", "sync a"]


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    """Whoever writes it, safetensors for its owner alone."""
    (tmp_path / "plain").touch()
    write_file(tmp_path / "ours", lambda path: path.chmod(0o600))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_synced_is_what_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    file = tmp_path / "a"
    file.touch()
    for path in (file, tmp_path):
        files.sync(path)
    assert synced == [file.stat().st_ino, tmp_path.stat().st_ino]


def test_removing_leaves_no_half(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", fill, {})
    remove_folder(tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    remove_folder(tmp_path / "file")
    assert names(tmp_path) == set()


def test_sweeping(tmp_path: Path) -> None:
    for name in (".a.1.tmp", ".b.2.trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    for name in (".c.3.tmp", ".tmpA1b2C3", "kept.tmp", ".lock", "file"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    sweep(tmp_path / "nothing")
    assert names(tmp_path) == {"kept.tmp", ".lock", "file"}


def test_rows_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    append_lines(path, [{"가": 1}, {"b": 0.1}])
    append_lines(path, [{"c": None}])
    assert read_lines(path) == [{"가": 1}, {"b": 0.1}, {"c": None}]
    assert "가" in path.read_text(encoding="utf-8")
    write_lines(path, [{"d": 1}])
    assert read_lines(path) == [{"d": 1}]


@pytest.mark.parametrize("cut", ["{", '{"step": 2, "lo', "\0\0\0\0", '{"step": 2}{"st', "\xed\x95"])
def test_a_last_line_cut_short_is_left_out(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + cut.encode("latin-1"))
    assert read_lines(path) == [{"step": 1}]
    append_lines(path, [{"step": 2}])  # behind it, in the same line
    append_lines(path, [{"step": 3}])
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert read_json(path) is None
    write_json(path, {"이름": [1, 2]})
    assert read_json(path) == {"이름": [1, 2]}
    for content in ('{"a": ', "[]", "3", "", "[" * 100_000):
        path.write_text(content)
        assert read_json(path) is None


def full_disk(path: Path) -> None:
    raise OSError(28, "No space left on device")


def rust_full_disk(path: Path) -> None:
    raise ValueError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [full_disk, rust_full_disk])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, write) -> None:
    for attempt in (
        lambda: write_file(tmp_path / "x", write),
        lambda: write_folder(tmp_path / "x", write, {}),
    ):
        with pytest.raises(OutputError) as found:
            attempt()
        assert found.value.exit_code == 73
        assert str(found.value) == (
            f"{tmp_path / 'x'}: cannot write: No space left on device\n"
            "  make room or choose another folder; what was complete is kept"
        )
        assert names(tmp_path) == set()


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    def bug(path: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_folder(tmp_path / "x", bug, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_log_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open_own", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(OutputError, match="No space left"):
        append_lines(tmp_path / "metrics.jsonl", [{"step": 1}])


def test_json_is_plain(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"a": {"b": 1}})
    assert json.loads((tmp_path / "x").read_text()) == {"a": {"b": 1}}
    assert (tmp_path / "x").read_text().endswith("}\n")


# Seals.


def flipped(content: bytes) -> Iterator[bytes]:
    """The content without its last byte, and with each changed in one bit, one at a time."""
    yield content[:-1]
    for place, byte in enumerate(content):
        yield content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :]


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    """What the files hold, what they are called, and what was written beside them."""
    write_folder(tmp_path / "folder", fill, {"figures": {"shift": 0.125}, "step": 3})
    manifest = tmp_path / "folder" / MANIFEST
    assert read_manifest(tmp_path / "folder") is not None
    for content in flipped(manifest.read_bytes()):
        manifest.write_bytes(content)
        assert read_manifest(tmp_path / "folder") is None, content


def test_a_manifest_without_a_seal_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", fill, {"format": 1})
    manifest = tmp_path / "folder" / MANIFEST
    content = json.loads(manifest.read_text())
    del content["seal"]
    write_json(manifest, content)
    assert read_manifest(tmp_path / "folder") is None


def test_every_byte_of_a_record_counts(tmp_path: Path) -> None:
    record = {"format": 2, "이름": 0.1, "b": [1, None, {"c": -0.25}], "nan": float("nan")}
    path = tmp_path / "run.json"
    write_json(path, sealed(record))
    assert json.dumps(read_json(path)) == json.dumps(sealed(record))
    for content in flipped(path.read_bytes()):
        path.write_bytes(content)
        assert read_json(path) is None, content


@pytest.mark.parametrize("record", [{"format": 1, "a": 2}, {"a": 2}])
def test_records_of_older_versions_have_no_seal(tmp_path: Path, record: dict) -> None:
    write_json(tmp_path / "run.json", record)
    assert read_json(tmp_path / "run.json") == record
    write_json(tmp_path / "run.json", record | {"format": 2})
    assert read_json(tmp_path / "run.json") is None


def test_a_file_of_a_cache_holds_its_key_and_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_sealed(path, "abc", b"content\n\x00")
    assert read_sealed(path, "abc") == b"content\n\x00"
    assert read_sealed(path, "abd") is None  # another's, under this name
    whole = path.read_bytes()
    for content in (*flipped(whole), b"", whole[:-1], whole + b"x", whole[:5]):
        path.write_bytes(content)
        assert read_sealed(path, "abc") is None, content
    assert read_sealed(tmp_path / "nothing", "abc") is None


# What is no file of ours.


def folder_there(path: Path) -> None:
    path.mkdir()


def pipe_there(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def vast(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def itself(path: Path) -> None:
    path.symlink_to(path)


NO_FILE = [folder_there, pipe_there, endless, vast, itself]


@pytest.mark.parametrize("put", NO_FILE)
def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """At once: nothing is waited for, and nothing without an end is read."""
    put(tmp_path / "file")
    with pytest.raises(OSError):
        read_bytes(tmp_path / "file")
    assert read_json(tmp_path / "file") is None
    assert read_lines(tmp_path / "file") == []
    assert read_sealed(tmp_path / "file", "key") is None
    if put is not vast:
        with pytest.raises(OSError):
            sha256(tmp_path / "file")


@pytest.mark.parametrize("put", NO_FILE)
def test_what_is_no_file_breaks_the_seal(tmp_path: Path, put: Callable[[Path], None]) -> None:
    for name in ("a.bin", MANIFEST):
        write_folder(tmp_path / name, fill, {})
        (tmp_path / name / name).unlink()
        put(tmp_path / name / name)
        assert read_manifest(tmp_path / name) is None


def test_a_manifest_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("/dev/zero", "../folder"):
        seal = {"size": Path("/dev/zero").stat().st_size, "sha256": "0"}
        write_json(tmp_path / "folder" / MANIFEST, sealed({"files": {name: seal}}))
        assert read_manifest(tmp_path / "folder") is None


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Neither added to nor emptied: what it points to is not ours."""
    target = tmp_path / "target"
    target.write_text("theirs")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OutputError, match="cannot write"):
        append_lines(link, [{"a": 1}])
    with pytest.raises(OSError):
        open_own(link, os.O_RDWR | os.O_CREAT)
    write_text(link, "ours")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("theirs", "ours", False)
    link.unlink()
    link.symlink_to(tmp_path)
    (tmp_path / ".link.1.trash").symlink_to(tmp_path)
    sweep(tmp_path)
    remove_folder(link)
    assert names(tmp_path) == {"target"}


@pytest.mark.parametrize("put", [folder_there, pipe_there, endless, itself])
def test_nothing_is_added_to_what_is_no_file(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "metrics.jsonl")
    with pytest.raises(OutputError, match="cannot write"):
        append_lines(tmp_path / "metrics.jsonl", [{"step": 1}])


def test_a_planted_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write here could guess it."""
    target = tmp_path / "target"
    target.mkdir()

    def write(temporary: Path) -> None:
        temporary.write_text("x")

    places: list[Path] = []
    write_file(tmp_path / "file", lambda path: (places.append(path.parent), write(path)))
    places[0].symlink_to(target)
    with pytest.raises(OutputError):
        write_file(tmp_path / "file", write)
    assert names(target) == set()


def test_what_a_library_leaves_is_inside(tmp_path: Path) -> None:
    """safetensors writes under a name of its own beside the file that it was asked for."""
    beside: list[Path] = []
    write_file(tmp_path / "file", lambda path: beside.append(path.parent))
    assert beside[0].parent == tmp_path and names(tmp_path) == {"file"}


def test_sweeping_where_others_write(tmp_path: Path) -> None:
    """What a living process holds stays, what a dead one left goes."""
    for name in (".dead.1.2.tmp", ".held.1.3.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / ".tmpA1b2C3").write_text("x")
    held = os.open(tmp_path / ".held.1.3.tmp", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    seen: list[set[str]] = []

    def write(path: Path) -> None:
        sweep(tmp_path, alone=False)
        seen.append(names(tmp_path) - {path.parent.name})
        path.write_text("whole")

    write_file(tmp_path / "file", write)
    assert seen == [{".held.1.3.tmp"}]
    assert (tmp_path / "file").read_text() == "whole"
    os.close(held)
    sweep(tmp_path, alone=False)
    assert names(tmp_path) == {"file"}


def test_sweeping_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then age decides."""
    for name in (".old.1.2.tmp", ".new.1.3.tmp"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".old.1.2.tmp", (0, 0))

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_text(tmp_path / "file", "x")
    sweep(tmp_path, alone=False)
    assert names(tmp_path) == {".new.1.3.tmp", "file"}


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have every read of files of a name fail, as a disk does that breaks."""

    def break_(name: str) -> None:
        def fails(path: Path) -> Any:
            if path.name == name:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return open_regular(path)

        monkeypatch.setattr(files, "open_regular", fails)

    return break_


def test_what_cannot_be_read_now_is_not_taken_for_missing(
    tmp_path: Path, broken_disk: Callable[[str], None]
) -> None:
    write_folder(tmp_path / "folder", fill, {})
    write_lines(tmp_path / "folder" / "rows", [{"a": 1}])
    broken_disk("a.bin")
    for read in (
        partial(read_manifest, tmp_path / "folder"),
        partial(has_hash, tmp_path / "folder" / "a.bin", "0"),
        partial(read_json, tmp_path / "folder" / "a.bin"),
        partial(read_lines, tmp_path / "folder" / "a.bin"),
    ):
        with pytest.raises(OutputError, match="cannot be read: Input/output error") as found:
            read()
        assert found.value.where == str(tmp_path / "folder" / "a.bin")
    assert read_lines(tmp_path / "folder" / "rows") == [{"a": 1}]
    assert not has_hash(tmp_path / "nothing", "0")


@pytest.mark.parametrize("out", ["data", "data/out", "data/a/b", "link/out", "data.jsonl"])
def test_nothing_is_written_over_what_is_read(tmp_path: Path, out: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data.jsonl").touch()
    (tmp_path / "link").symlink_to("data")
    read = [None, "org/name", tmp_path / "data", tmp_path / "data.jsonl"]
    with pytest.raises(OutputError, match="which is read") as found:
        must_be_apart(tmp_path / out, "--out", read)
    assert found.value.where == "--out"
    for apart in (tmp_path, tmp_path / "data2", tmp_path / "data.jsonl.out"):
        must_be_apart(apart, "--out", read)


def test_a_workplace_that_cannot_be_held_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Any, flags: int, *mode: int, **named: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return os_open(path, flags, *mode, **named)

    os_open = os.open
    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(OutputError, match="Permission denied"):
        write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == set()


def test_a_deletion_that_fails_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def fails_once(path: Path, **named: Any) -> None:
        calls.append(path)
        if len(calls) > 2:  # the first looks for what an earlier process left
            rmtree(path, **named)

    rmtree = files.shutil.rmtree
    monkeypatch.setattr(files.shutil, "rmtree", fails_once)
    write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == {"a.txt"} and len(calls) == 3
