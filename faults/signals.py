"""Signals at random instants, to a run and to every other command."""

import os
import random
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tests.support import children
from tests.support.runs import bytes_of

from faults import Options
from faults.lab import KINDS, Lab, every, make_lab
from faults.table import Row

INSTANTS = 100  # of runs; of the other commands, together
# How a run may end: by its code, by the signal where there was nothing to finish, or done already.
ENDS = {signal.SIGINT: (0, 130), signal.SIGTERM: (0, 75, -15), signal.SIGHUP: (0, 75, -1)}


@dataclass
class _Runs:
    """Runs that are sent signals, then started again."""

    lab: Lab
    seed: int

    def __call__(self, number: int) -> list[str]:
        """What is wrong after one run was stopped; what is sent and when follows from the seed."""
        draw = random.Random(f"signals-{self.seed}-{number}")
        trial = self.lab.trial(draw.choice(list(KINDS)))
        sent = draw.choice(list(ENDS))
        then = draw.choice((None, None, sent, signal.SIGKILL))
        child = trial.start()
        code = child.code_within(draw.random() * 1.2 * self.lab.seconds)
        if code is None:
            child.wait_for(child.log)  # before that it is Python that starts
            child.send(sent)
            if then is not None and child.code_within(draw.random() * 0.3) is None:
                child.send(then)
            code = trial.ended(child)
            also = {signal.SIGKILL: (-9,), None: ()}.get(then, (130,))
            if code not in (*ENDS[sent], *also):
                return [f"{sent.name}: exit {code}: {trial.said()}"]
        wrong = ["a traceback"] if "Traceback" in child.output else []
        wrong += ["an error"] if "error: " in child.output else []
        wrong += trial.unless(0, trial.train(), "the next start")
        # A stop takes a checkpoint more, where the pair logs are cut and run.json seals it.
        varies = ("checkpoints/", "pair_log/", "held_out/", "run.json")
        wrong += [one for one in trial.wrong() if not one.startswith(varies)]
        whole = _visits(self.lab.whole[trial.kind, trial.keep])
        wrong += [] if _visits(bytes_of(trial.out)) == whole else ["a pair log differs"]
        trial.remove()
        return [f"{trial.kind}, {sent.name}: {'; '.join(wrong)}"] if wrong else []


def _visits(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The rows of the pair logs, however they were cut into files."""
    both = ("pair_log/", "held_out/")
    logs = [BytesIO(files[name]) for name in sorted(files) if name.startswith(both)]
    return [row for log in logs for row in pq.read_table(log).to_pylist()]


@dataclass
class _Commands:
    """Commands that are sent Ctrl-C, from a folder that they may not change."""

    lab: Lab
    seed: int

    def __call__(self, number: int) -> list[str]:
        """What is wrong after one command was interrupted."""
        draw = random.Random(f"commands-{self.seed}-{number}")
        place, folder = self.lab.place, self.lab.folder / f"command-{number}"
        folder.mkdir()
        data, base, out = str(place.data), str(place.base), str(folder / "out")
        words = draw.choice(
            [
                ["check", data],
                ["check", data, "--model", base, "--html", out],
                ["show", data, "--model", base],
                ["score", data, "--model", base, "--out", out],
                ["plan", str(self._config(folder))],
                ["demo", "--out", out],
                ["report", str(self._finished(folder))],
            ]
        )
        cache = folder / "cache"
        child = children.start(children.command, *words, log=folder / "log", cache=cache)
        code = child.code_within(draw.random() * self.lab.seconds)
        if code is None:
            child.wait_for(child.log)
            child.send(signal.SIGINT)
            code = child.code_within(60)
        last = [line for line in child.output.splitlines() if line.strip()][-1:]  # no paths
        wrong = [] if code in (0, 130) else [f"exit {code}: {''.join(last)[:200]}"]
        wrong += ["a traceback"] if "Traceback" in child.output else []
        if words[0] != "demo" and os.path.exists(out) and code != 0:  # asked behind its last write
            words = [str(folder / "whole") if word == out else word for word in words]
            again = children.start(children.command, *words, log=folder / "again", cache=cache)
            again.code_within(60)
            wrong += [] if _same(out, folder / "whole") else ["a file is there, and not whole"]
        shutil.rmtree(folder)
        return [f"{words[0]}: {'; '.join(wrong)}"] if wrong else []

    def _config(self, folder: Path) -> Path:
        trial = self.lab.trial("full")
        return Path(shutil.copy(trial.config, folder / "config.json"))

    def _finished(self, folder: Path) -> Path:
        """A copy of a run that ended."""
        runs = self.lab.folder.glob("*/work/out")
        done = next(path for path in runs if (path / "report.html").exists())
        return Path(shutil.copytree(done, folder / "run"))


def _same(file: str, other: Path) -> bool:
    return other.is_file() and Path(file).read_bytes() == other.read_bytes()


def run(options: Options) -> list[Row]:
    """Runs that are asked to stop and may be killed, and commands that are interrupted."""
    lab = make_lab(options)
    print(f"  seed {options.seed}", flush=True)
    numbers = {f"instant {number}": number for number in range(INSTANTS)}
    rows = [
        every("signals to a run", numbers, _Runs(lab, options.seed), options),
        every("signals to other commands", numbers, _Commands(lab, options.seed), options),
    ]
    return [replace(row, of=None) for row in rows]  # drawn from more than can be tried
