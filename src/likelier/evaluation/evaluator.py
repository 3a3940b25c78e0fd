"""Held-out pairs, scored while a run trains: what is logged of them, and the best model so far."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from likelier.base.files import read_manifest, remove_folder
from likelier.base.terminal import say
from likelier.data.records import TokenPair
from likelier.evaluation.metrics import held_out_metrics
from likelier.training.batches import Batcher
from likelier.training.logs import held_out_rows
from likelier.training.pair_log import PairLog
from likelier.training.run_folder import RunFolder
from likelier.training.step import located, step_values

FOLDER = "best"  # of a run folder
_LOSS, _ACCURACY = "eval_loss", "eval_rewards/accuracies"
_COLUMNS = {"eval_loss": _LOSS, "eval_accuracy": _ACCURACY}  # by the value of train.best

SaveModel = Callable[[Path, Mapping[str, Any]], None]  # into a folder, with facts for its manifest


class Evaluator:
    """Scores the held-out ``pairs`` of a run whenever it is asked to.

    Where ``train.best`` says so, the model of the best evaluation is kept by ``save``, beside the
    last one; the initial policy is the first to beat and is not saved. ``words`` is the newest
    evaluation as it stands beside a progress bar, "" before there is one.
    """

    def __init__(
        self, folder: RunFolder, batcher: Batcher, pairs: Sequence[TokenPair], save: SaveModel
    ):
        self.folder, self.batcher, self.pairs, self.save = folder, batcher, pairs, save
        self.log = PairLog(folder.path / "held_out", batcher.loss.beta, folder.writes)
        self._batches = batcher(pairs)
        self._rows: list[dict[str, float]] = []
        self._best: dict[str, float] = {}  # stays empty where no model is to be kept
        self._column = _COLUMNS.get(folder.config.train.best or "", "")
        self._is_lost = False  # the model of the best evaluation

    @property
    def words(self) -> str:
        """Loss in nats and accuracy of the newest evaluation."""
        if not self._rows:
            return ""
        loss, accuracy = self._rows[-1][_LOSS], self._rows[-1][_ACCURACY]
        return f"  held out: loss {loss:.4f}  accuracy {accuracy:.0%}"

    @property
    def is_over(self) -> bool:
        """Whether the best evaluation is ``train.patience`` evaluations ago."""
        patience = self.folder.config.train.patience
        return bool(self._best) and patience is not None and self._since >= patience

    @property
    def _since(self) -> int:
        """Evaluations behind the best one."""
        return sum(row["step"] > self._best["step"] for row in self._rows)

    def resume(self, step: int) -> None:
        """Begin where the logs end, ``step`` steps into the run; the initial policy is scored."""
        if not self.pairs:
            return
        team = self.batcher.policy.team
        self._rows, self._best = team.agreed(
            lambda: (held_out_rows(self.folder.path), _best_saved(self.folder.path / FOLDER))
        )
        if self._best:
            self._note_best()
        if step == 0:
            self._rows = []
            self(0)
        elif self.folder.config.train.best is not None and self._rows:
            best = max(self._rows, key=self._score)
            if not self._best or self._score(best) > self._score(self._best):
                self._best, self._is_lost = best, best["step"] > 0
        if self._is_lost:
            say(f"the best model, of step {int(self._best['step'])}, is damaged or gone")

    def __call__(self, step: int) -> None:
        """Score the pairs after ``step`` steps. Raises RunFailed where a number is not finite."""
        policy, loss, folder = self.batcher.policy, self.batcher.loss, self.folder
        policy.team.at(f"step {step}, held-out pairs")
        # Rescoring changes nothing unless reference.update_every is set.
        with located(f"held-out pairs after step {step}", self.pairs, folder.path / "checkpoints"):
            values = step_values(policy, self.batcher.rescored(self._batches), loss)
        self.log.add(step, [(None, pair) for pair in self.pairs], values)
        if step:  # who hears of it may look at its pairs; the first step waits for no library
            self.log.write()
        row = {"step": step, **held_out_metrics(self.pairs, values, loss.beta)}
        folder.log(row)
        self._rows.append(row)
        if self.folder.config.train.best is not None:
            self._compare(row)

    def _compare(self, row: dict[str, float]) -> None:
        """Keep the model where its evaluation is better than every one before."""
        if self._best and self._score(row) <= self._score(self._best):
            return
        self._best, self._is_lost, step = row, False, int(row["step"])
        if step == 0:
            return
        figures = {"step": step, _LOSS: row[_LOSS], _ACCURACY: row[_ACCURACY]}
        self.save(self.folder.path / FOLDER / f"step-{step:08d}", figures)
        self._note_best()

    def _score(self, row: Mapping[str, float]) -> float:
        """By how much an evaluation is good: more is better."""
        return row[self._column] if self._column == _ACCURACY else -row[self._column]

    def _note_best(self) -> None:
        """Write down the best model, and delete those that were the best before it."""
        step = int(self._best["step"])
        self.folder.write_record(best={"step": step, self._column: self._best[self._column]})
        for other in (self.folder.path / FOLDER).glob("step-*") if self.folder.writes else ():
            if other.name != f"step-{step:08d}":
                remove_folder(other)

    def say_best(self) -> None:
        """Say at the end of a run which model was the best, and where it lies."""
        if not self._best:
            return
        step = int(self._best["step"])
        figure = f"{self.folder.config.train.best} {self._best[self._column]:.4f}"
        if self.is_over:
            last = int(self._rows[-1]["step"])
            say(f"ended after step {last}: {self._since} evaluations were no better than the best")
        where = f"in {self.folder.path / FOLDER / f'step-{step:08d}'}"
        if step == 0:
            say(f"best: no evaluation was better than the initial policy ({figure})")
        else:
            say(f"best: step {step} ({figure}), {'lost' if self._is_lost else where}")


def _best_saved(folder: Path) -> dict[str, float]:
    """Step and figures of the best model that is whole; empty where there is none."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        manifest = read_manifest(path)
        if manifest is not None and all(key in manifest for key in ("step", _LOSS, _ACCURACY)):
            return {key: manifest[key] for key in ("step", _LOSS, _ACCURACY)}
    return {}
