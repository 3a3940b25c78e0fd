"""The pair logs: one row for each pair and visit, in Parquet files that end where checkpoints do.

``pair_log`` holds the visits of the training, ``held_out`` those of pairs that no step sees: a file
an evaluation, the first in that of the second.

A file that is not as it was written is kept as ``….parquet.damaged``, and its rows are lost.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from likelier.base.files import (
    has_hash,
    make_folder,
    output_errors,
    remove_folder,
    sha256,
    write_file,
)
from likelier.data.records import TokenPair, content_hash
from likelier.losses.values import StepValues
from likelier.training.logs import Seal

_NAME = re.compile(r"steps-(\d{8})-(\d{8})\.parquet")

MAX_STEPS_IN_MEMORY = 1000  # where there are no checkpoints
_DIGITS = 16  # of a hash: two of a million pairs are the same once in 30 million runs


def arrow_table(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as a table of Arrow, whose libraries are loaded here: the first step does not wait."""
    import pyarrow.parquet

    return pyarrow.Table.from_pylist(rows)


def _write_table(table: Any, path: Path) -> None:
    """Parquet, in one piece: Arrow by itself makes about 55 writes of so small a file.

    A page has a checksum: whoever reads it knows whether it is as it was written.
    """
    from pyarrow.parquet import write_table

    with path.open("wb", buffering=2**20) as stream:
        write_table(table, stream, write_page_checksum=True)


def prompt_name(prompt: tuple[int, ...]) -> str:
    """The hash by which both logs name a prompt, of its token ids."""
    return hashlib.sha256(np.asarray(prompt, np.int64).tobytes()).hexdigest()[:_DIGITS]


def _visit(step: int, epoch: int | None, pair: TokenPair) -> dict[str, Any]:
    return {
        "step": step,
        **({} if epoch is None else {"epoch": epoch}),
        "source": pair.source,
        "pair": content_hash([pair])[:_DIGITS],
        "prompt": prompt_name(pair.prompt),
    }


class PairLog:
    """Rows wait in memory until the next checkpoint, or for ``MAX_STEPS_IN_MEMORY`` steps.

    Where it does not ``write``, another process of the run does, and rows go nowhere.
    """

    def __init__(self, folder: Path, beta: float, writes: bool = True):
        self.folder, self.beta, self.writes = folder, beta, writes
        self.name = folder.name
        self.rows: list[dict[str, Any]] = []
        self._seals: Seal = {}

    def add(
        self, step: int, visits: Sequence[tuple[int | None, TokenPair]], values: StepValues
    ) -> None:
        """Take the rows of a step; ``visits`` gives (epoch, pair) in the order of ``values``, of
        pairs that no epoch visits (None, pair).

        Log-probs and loss are in nats; ``margin`` is the reward margin, beta x log-ratio margin.
        ``pair`` and ``prompt`` are hashes of what the model reads, equal in all runs.
        """
        if not self.writes:
            return
        assert values.loss_P is not None  # the step made it
        chosen, rejected = values.chosen, values.rejected
        policy = chosen.policy_P - rejected.policy_P
        reference = chosen.reference_P - rejected.reference_P
        columns = {
            "chosen_logp": chosen.policy_P,
            "rejected_logp": rejected.policy_P,
            "reference_chosen_logp": chosen.reference_P,
            "reference_rejected_logp": rejected.reference_P,
            "chosen_tokens": chosen.tokens_P.long(),
            "rejected_tokens": rejected.tokens_P.long(),
            "margin": self.beta * (policy - reference),
            "loss": values.loss_P,
        }
        if values.label_P is not None:
            columns["label"] = values.label_P.long()
        figures = zip(*(column.tolist() for column in columns.values()), strict=True)
        self.rows += [
            _visit(step, epoch, pair) | dict(zip(columns, row, strict=True))
            for (epoch, pair), row in zip(visits, figures, strict=True)
        ]
        if step and step % MAX_STEPS_IN_MEMORY == 0:
            self.write()

    def write(self) -> None:
        """Write the waiting rows as one file, whole or not at all."""
        if not self.rows:
            return
        make_folder(self.folder)
        name = f"steps-{self.rows[0]['step']:08d}-{self.rows[-1]['step']:08d}.parquet"
        write_file(self.folder / name, partial(_write_table, arrow_table(self.rows)))
        with output_errors(self.folder / name):
            written = sha256(self.folder / name)
        self._seals[name] = {"rows": len(self.rows), "sha256": written}
        self.rows = []

    sync = write

    def seal(self) -> Seal:
        """The rows and the hash of every file."""
        return dict(self._seals)

    def lost(self, seal: Seal, step: int) -> str | None:
        """The rows of files that are not there, or not as they were."""
        ends = [_NAME.fullmatch(name) for name in seal if not self._is_whole(name, seal)]
        spans = ", ".join(f"{int(found[1])} to {int(found[2])}" for found in ends if found)
        return f"{self.name}: the rows of step {spans} are lost" if ends else None

    def _is_whole(self, name: str, seal: Seal) -> bool:
        sealed = seal[name]
        return isinstance(sealed, dict) and has_hash(self.folder / name, sealed.get("sha256"))

    def cut_back(self, step: int, seal: Seal) -> None:
        """Delete the files that are not in the seal, and set aside those that are damaged."""
        self._seals = dict(seal)
        for file in self.folder.glob("*.parquet"):
            if not _NAME.fullmatch(file.name):
                continue
            if file.name not in seal:
                remove_folder(file)
            elif not self._is_whole(file.name, seal):
                with output_errors(file):
                    os.replace(file, file.with_name(f"{file.name}.damaged"))
