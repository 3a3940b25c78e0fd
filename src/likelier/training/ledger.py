"""The ledger: one row a pair and visit, in Parquet files that end where checkpoints do."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from likelier.base.files import write_file
from likelier.data.records import TokenPair
from likelier.training.step import PairValues

_NAME = re.compile(r"steps-(\d{8})-(\d{8})\.parquet")
Row = dict[str, int | float | str]

MOST_STEPS = 1000  # in memory at once where there are no checkpoints


def ledger_rows(
    step: int, visits: Sequence[tuple[int, TokenPair]], values: PairValues, beta: float
) -> list[Row]:
    """Rows of one step: ``visits`` gives (epoch, pair) in the order of ``values``.

    Log-probs and loss in nats; ``margin`` is the reward margin, beta x log-ratio margin.
    """
    policy = values.policy_chosen - values.policy_rejected
    reference = values.reference_chosen - values.reference_rejected
    columns = {
        "chosen_logp": values.policy_chosen,
        "rejected_logp": values.policy_rejected,
        "reference_chosen_logp": values.reference_chosen,
        "reference_rejected_logp": values.reference_rejected,
        "chosen_tokens": values.chosen_tokens.long(),
        "rejected_tokens": values.rejected_tokens.long(),
        "margin": beta * (policy - reference),
        "loss": values.loss,
    }
    if values.label is not None:
        columns["label"] = values.label.long()
    listed = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "step": step,
            "epoch": epoch,
            "source": pair.source,
            **{name: column[place] for name, column in listed.items()},
        }
        for place, (epoch, pair) in enumerate(visits)
    ]


class Ledger:
    """Rows wait in memory until the next checkpoint, or for ``MOST_STEPS`` steps."""

    def __init__(self, folder: Path, beta: float):
        self.folder, self.beta = folder, beta
        self.rows: list[Row] = []

    def add(self, step: int, visits: Sequence[tuple[int, TokenPair]], values: PairValues) -> None:
        """Take the rows of a step; ``visits`` gives (epoch, pair) in the order of ``values``."""
        self.rows += ledger_rows(step, visits, values, self.beta)
        if step % MOST_STEPS == 0:
            self.write()

    def write(self) -> None:
        """Write the waiting rows as one file, whole or not at all."""
        if not self.rows:
            return
        self.folder.mkdir(exist_ok=True)
        name = f"steps-{self.rows[0]['step']:08d}-{self.rows[-1]['step']:08d}.parquet"
        table = pa.Table.from_pylist(self.rows)
        write_file(self.folder / name, lambda file: pq.write_table(table, file))
        self.rows = []

    def cut_back(self, step: int) -> None:
        """Delete files that reach past a step."""
        for file in self.folder.glob("*.parquet"):
            named = _NAME.fullmatch(file.name)
            if named and int(named[2]) > step:
                file.unlink()
