"""The pair log: a row for each pair and visit, in files that end where checkpoints do."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from likelier.base.files import read_table
from likelier.data.records import Completion, TokenPair
from likelier.losses.values import StepValues
from likelier.training import pair_log
from likelier.training.pair_log import PairLog


def pair(number: int) -> TokenPair:
    return TokenPair(
        (1,), Completion((2,), (True,)), Completion((3,), (True,)), f"자료.jsonl:{number}"
    )


def values(*losses: float) -> StepValues:
    """Log-ratios of 1 and -0.5 for every pair."""
    count = len(losses)
    return StepValues(
        policy_R=torch.tensor([-9.0, -20.5], dtype=torch.float64),
        reference_R=torch.tensor([-10.0, -20.0], dtype=torch.float64),
        length_R=torch.tensor([4, 7]),
        chosen_P=torch.zeros(count, dtype=torch.long),
        rejected_P=torch.ones(count, dtype=torch.long),
        loss_P=torch.tensor(losses, dtype=torch.float64),
    )


def hashed(form: str, *numbers: int) -> str:
    """The first sixteen digits of the SHA-256 of numbers as they lie in memory."""
    return hashlib.sha256(struct.pack(form, *numbers)).hexdigest()[:16]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts no writes on this system")
def test_a_file_is_written_in_few_pieces(tmp_path: Path) -> None:
    """On a network's file system each is a message."""
    book = PairLog(tmp_path / "pair_log", beta=0.2)
    book.add(3, [(0, pair(number)) for number in range(200)], values(*[0.25] * 200))
    before = _writes()
    book.write()
    assert _writes() - before <= 2 and book.seal()["steps-00000003-00000003.parquet"]["rows"] == 200


def _writes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["syscw"])


def test_what_a_row_holds(tmp_path: Path) -> None:
    book = PairLog(tmp_path / "pair_log", beta=0.2)
    book.add(3, [(0, pair(1)), (1, pair(2))], values(0.25, 0.5))
    assert not (tmp_path / "pair_log").exists()
    book.write()
    rows = pq.read_table(tmp_path / "pair_log" / "steps-00000003-00000003.parquet").to_pylist()
    assert rows[1] == {
        "step": 3,
        "epoch": 1,
        "source": "자료.jsonl:2",
        "pair": hashed("<6q2?", 1, 1, 1, 2, 1, 3, True, True),
        "prompt": hashed("<q", 1),
        "chosen_logp": -9.0,
        "rejected_logp": -20.5,
        "reference_chosen_logp": -10.0,
        "reference_rejected_logp": -20.0,
        "chosen_tokens": 4,
        "rejected_tokens": 7,
        "margin": pytest.approx(0.2 * 1.5),
        "loss": 0.5,
    }
    assert [row["source"] for row in rows] == ["자료.jsonl:1", "자료.jsonl:2"]


def test_a_number_that_is_not_as_it_was_written_is_not_read(tmp_path: Path) -> None:
    """By whoever reads the file, without the seal of run.json."""
    book = PairLog(tmp_path / "pair_log", beta=0.2)
    book.add(3, [(0, pair(1))], values(0.25))
    book.write()
    file = tmp_path / "pair_log" / "steps-00000003-00000003.parquet"
    assert read_table(file)["chosen_logp"].to_pylist() == [-9.0]
    written = file.read_bytes()
    file.write_bytes(written.replace(struct.pack("<d", -9.0), struct.pack("<d", -1.0)))
    with pytest.raises(OSError, match="CRC checksum"):
        read_table(file)


def test_the_same_content_has_the_same_name_wherever_it_stands(tmp_path: Path) -> None:
    """One prompt with two pairs; the second pair again in another file, held out."""
    other = TokenPair((1,), Completion((2,), (True,)), Completion((4,), (True,)), "a:7")
    book, held = PairLog(tmp_path / "pair_log", 0.1), PairLog(tmp_path / "held_out", 0.1)
    book.add(1, [(0, pair(1)), (0, other)], values(0.1, 0.2))
    held.add(0, [(None, replace(other, source="b:1"))], values(0.2))
    for log in (book, held):
        log.write()
    first, second = read(book.folder)
    (again,) = read(held.folder)
    assert "epoch" not in again and again["step"] == 0
    assert first["pair"] != second["pair"] == again["pair"]
    assert first["prompt"] == second["prompt"] == again["prompt"]


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]


def test_files_end_where_they_are_written(tmp_path: Path) -> None:
    book = PairLog(tmp_path, beta=0.1)
    for step in range(1, 6):
        book.add(step, [(0, pair(step))], values(0.5))
        if step in (2, 4):
            book.write()
    book.write()
    book.write()  # nothing waits: no file
    assert names(tmp_path) == [
        "steps-00000001-00000002.parquet",
        "steps-00000003-00000004.parquet",
        "steps-00000005-00000005.parquet",
    ]
    assert list(book.seal()) == names(tmp_path)
    seal = dict(list(book.seal().items())[:2])  # as it stood after step 4
    resumed = PairLog(tmp_path, beta=0.1)
    resumed.cut_back(4, seal)
    assert names(tmp_path) == list(resumed.seal()) == list(seal)
    (tmp_path / "of-a-user.parquet").write_text("")
    PairLog(tmp_path, beta=0.1).cut_back(0, {})
    assert names(tmp_path) == ["of-a-user.parquet"]


def test_files_that_are_lost(tmp_path: Path) -> None:
    """They are named, and one that is damaged is not read any more."""
    book = PairLog(tmp_path, beta=0.1)
    for step in range(1, 7):
        book.add(step, [(0, pair(step))], values(0.5))
        if step % 2 == 0:
            book.sync()
    seal = book.seal()
    assert [file["rows"] for file in seal.values()] == [2, 2, 2]
    assert book.lost(seal, 6) is None
    first, second, _ = (tmp_path / name for name in seal)
    first.unlink()
    content = second.read_bytes()
    second.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    assert book.lost(seal, 6) == f"{tmp_path.name}: the rows of step 1 to 2, 3 to 4 are lost"
    resumed = PairLog(tmp_path, beta=0.1)
    resumed.cut_back(6, seal)
    assert names(tmp_path) == [f"{second.name}.damaged", list(seal)[2]]
    assert resumed.lost(resumed.seal(), 6) == book.lost(seal, 6)  # said each time


def test_files_that_no_checkpoint_knows_go(tmp_path: Path) -> None:
    """Such as one that stands under another's name."""
    book = PairLog(tmp_path, beta=0.1)
    book.add(1, [(0, pair(1))], values(0.5))
    book.write()
    (name,) = book.seal()
    (tmp_path / "steps-00000001-00000003.parquet").write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "steps-00000001-00000004.parquet").mkdir()
    PairLog(tmp_path, beta=0.1).cut_back(4, book.seal())
    assert names(tmp_path) == [name]


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checkpoints the rows of a long run would fill the memory."""
    monkeypatch.setattr(pair_log, "MAX_STEPS_IN_MEMORY", 3)
    book = PairLog(tmp_path, beta=0.1)
    for step in range(1, 8):
        book.add(step, [(0, pair(step))], values(0.5))
    assert names(tmp_path) == ["steps-00000001-00000003.parquet", "steps-00000004-00000006.parquet"]
    assert len(book.rows) == 1


def test_nothing_to_cut(tmp_path: Path) -> None:
    PairLog(tmp_path / "nothing", beta=0.1).cut_back(5, {})
    assert not (tmp_path / "nothing").exists()
