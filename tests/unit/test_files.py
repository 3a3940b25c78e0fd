"""Files and folders that are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from likelier.base import files
from likelier.base.errors import OutputError
from likelier.base.files import (
    MANIFEST,
    append_lines,
    read_json,
    read_lines,
    read_manifest,
    remove_folder,
    sweep,
    write_file,
    write_folder,
    write_json,
    write_lines,
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
    temporary = f".folder.{os.getpid()}.tmp"
    assert calls == [
        "sync a.bin", "sync b.bin", f"sync {MANIFEST}", f"sync {temporary}",
        "name folder", f"sync {tmp_path.name}",
    ]  # fmt: skip
    calls.clear()
    write_text(tmp_path / "file", "x")
    assert calls == [f"sync .file.{os.getpid()}.tmp", "name file", f"sync {tmp_path.name}"]


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
    for name in (".c.3.tmp", "kept.tmp", ".lock", "file"):
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
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        append_lines(tmp_path / "metrics.jsonl", [{"step": 1}])


def test_json_is_plain(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"a": {"b": 1}})
    assert json.loads((tmp_path / "x").read_text()) == {"a": {"b": 1}}
    assert (tmp_path / "x").read_text().endswith("}\n")
