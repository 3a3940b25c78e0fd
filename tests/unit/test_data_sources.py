"""Folders of data: links, sets that `datasets` saved, and what is no file of rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest
from tests.support.data import load_pairs

from likelier.base.errors import DataError, InputMissing
from likelier.cli import main
from likelier.data.sources import describe_folders, files_of, hub_id

ROW = {"prompt": "우산은 왜 접히나요?", "chosen": "뼈대가 관절로 이어져요.", "rejected": "몰라."}


def file_of(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**ROW, "prompt": f"{number} {ROW['prompt']}"}), encoding="utf-8")
    return path


def test_a_linked_folder_is_entered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file_of(tmp_path / "big" / "disk" / "p.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to("../big/disk")
    assert files_of(tmp_path / "data") == [tmp_path / "data" / "train" / "p.jsonl"]
    assert files_of(f"{tmp_path / 'data'}:train") == files_of(tmp_path / "data")
    assert main(["check", str(tmp_path / "data")]) == 0
    assert "1 pair" in capsys.readouterr().out


def test_folders_that_link_in_a_circle_are_read_once(tmp_path: Path) -> None:
    file_of(tmp_path / "data" / "a" / "p.jsonl")
    (tmp_path / "data" / "a" / "up").symlink_to("..")
    (tmp_path / "data" / "self").symlink_to(".")
    (tmp_path / "data" / "b").mkdir()
    (tmp_path / "data" / "b" / "other").symlink_to("../c")
    (tmp_path / "data" / "c").mkdir()
    (tmp_path / "data" / "c" / "other").symlink_to("../b")
    assert files_of(tmp_path / "data") == [tmp_path / "data" / "a" / "p.jsonl"]


def test_a_folder_linked_twice_is_two_folders(tmp_path: Path) -> None:
    file_of(tmp_path / "big" / "p.jsonl")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / split).symlink_to("../big")
    for split in ("train", "test"):
        assert files_of(f"{tmp_path / 'data'}:{split}") == [tmp_path / "data" / split / "p.jsonl"]


@pytest.mark.parametrize("name", ["train", "train.jsonl"])
def test_a_link_to_nothing_is_no_silent_loss(name: str, tmp_path: Path) -> None:
    file_of(tmp_path / "data" / "more.jsonl")
    (tmp_path / "data" / name).symlink_to("/gone")
    with pytest.raises(InputMissing, match="leads nowhere") as caught:
        files_of(tmp_path / "data")
    assert str(tmp_path / "data" / name) in str(caught.value)
    (tmp_path / "data" / name).unlink()  # as the hint says
    assert files_of(tmp_path / "data") == [tmp_path / "data" / "more.jsonl"]


def saved(path: Path, names: list[str], rows: int = 3) -> Path:
    """A folder as ``save_to_disk`` writes it."""
    path.mkdir(parents=True)
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(
            [{**ROW, "prompt": f"{number}.{row} {ROW['prompt']}"} for row in range(rows)]
        )
        with pa.ipc.new_stream(path / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1"}
    (path / "state.json").write_text(json.dumps(state, indent=2))
    (path / "dataset_info.json").write_text(json.dumps({"features": {}}, indent=2))
    return path


def test_a_set_that_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "saved", ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])
    saved(tmp_path / "other", ["x.arrow"])
    (tmp_path / "other" / "x.arrow").rename(path / "cache-0123.arrow")  # of datasets' own cache
    loaded = load_pairs(path, {})
    assert [pair.source for pair in loaded.pairs] == [
        f"{path}/data-0000{file}-of-00002.arrow:{row}" for file in (0, 1) for row in (1, 2, 3)
    ]
    assert (loaded.rows, loaded.left_out) == (6, 0)
    assert main(["check", str(path)]) == 0
    assert "6 pairs" in capsys.readouterr().out
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").unlink()
    (path / "state.json").symlink_to("/dev/zero")  # has no end to be read to
    with pytest.raises(InputMissing, match=r"state\.json: this is no regular file"):
        files_of(path)
    (path / "state.json").unlink()
    (path / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{}]}))
    with pytest.raises(DataError, match="a selection of its rows"):
        files_of(path)
    (path / "state.json").write_text(json.dumps(state))
    (path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002\.arrow"):
        files_of(path)


def test_splits_that_were_saved(tmp_path: Path) -> None:
    for split in ("train", "test"):
        saved(tmp_path / "d" / split, ["data-00000-of-00001.arrow"])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (file,) = files_of(f"{tmp_path / 'd'}:test")
    assert file == tmp_path / "d" / "test" / "data-00000-of-00001.arrow"
    assert files_of(tmp_path / "d") == [tmp_path / "d" / "train" / "data-00000-of-00001.arrow"]


def test_what_datasets_itself_saves(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict  # slow to import

    rows = [{**ROW, "prompt": [{"role": "user", "content": f"{n}?"}]} for n in range(3)]
    chats = [{**row, **{side: [{"role": "assistant", "content": row[side]}]
              for side in ("chosen", "rejected")}} for row in rows]  # fmt: skip
    DatasetDict(train=Dataset.from_list(chats)).save_to_disk(str(tmp_path / "d"))
    loaded = load_pairs(tmp_path / "d", {})
    assert [pair.prompt[0]["content"] for pair in loaded.pairs] == ["0?", "1?", "2?"]
    assert not loaded.findings


@pytest.mark.parametrize("packed", [False, True])
def test_an_arrow_file_with_a_footer(packed: bool, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.arrow"
    table = pa.Table.from_pylist([ROW])
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    if packed:
        path = tmp_path / "a.arrow.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.arrow").read_bytes()))
    assert [pair.source for pair in load_pairs(path, {}).pairs] == [f"{path}:1"]


def test_a_damaged_arrow_file_is_never_read_as_a_short_one(tmp_path: Path) -> None:
    """Wherever it is cut: a stream without its end is read by pyarrow as a whole one."""
    path = saved(tmp_path / "saved", ["a.arrow"]) / "a.arrow"
    content = path.read_bytes()
    for length in range(4, len(content), 4):
        path.write_bytes(content[:length])
        found = load_pairs(path, {}).findings
        assert [f.code for f in found if f.severity == "error"] == ["arrow"], length
        assert found[-1].source.startswith(f"{path}:") and "\n" not in found[-1].message


def test_a_folder_without_data_names_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputMissing, match="holds no data file") as caught:
        files_of(tmp_path)
    assert ".arrow" in str(caught.value)


def test_the_hub_id_in_a_name_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path / "here" / "data" / "p.jsonl")
    for name in ("owner/name", "owner/name:train", "owner/name/folder", "owner/name/folder:test"):
        assert hub_id(name) == "owner/name"
    for name in (
        "here/data",
        "here/data:train",
        "owner/p.jsonl",
        "p",
        "/owner/name",
        "(in memory)",
    ):
        assert hub_id(name) is None


FULL = {
    "pairs.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
    "more.json": '[{"prompt": "a", "chosen": "d", "rejected": "e"}]',
    "one.json": '{"prompt": "a", "chosen": "f", "rejected": "g"}',
    "wrapped.json": '{"data": [{"prompt": "a", "chosen": "h", "rejected": "i"}]}',
    "README.md": "# Pairs",
    "metadata.json": '{"name": "pairs", "source": "us", "features": ["prompt"]}',
    "cover.png": "PNG",
    ".hidden.jsonl": "{",
    "images/1.jpg": "JPG",
}


def test_of_a_folder_the_data_files_are_read_and_the_others_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in FULL.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert main(["check", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "4 of 4 rows can be used" in captured.out
    assert captured.err.splitlines()[0] == (
        f"{tmp_path}: reading more.json, one.json, pairs.jsonl, wrapped.json, "
        "not .hidden.jsonl, README.md, cover.png, images/1.jpg, metadata.json"
    )


def test_a_folder_of_metadata_alone_holds_no_data(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(FULL["metadata.json"])
    with pytest.raises(InputMissing, match="holds no data file"):
        files_of(tmp_path)
    assert list(describe_folders("a/file.jsonl")) == []


def test_files_of_another_split_are_said(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(FULL["pairs.jsonl"])
    assert list(describe_folders(str(tmp_path))) == [
        f"{tmp_path}: reading train.jsonl, not test.jsonl"
    ]
    assert list(describe_folders({f"{tmp_path}:test": 1.0})) == [
        f"{tmp_path}: reading test.jsonl, not train.jsonl"
    ]
