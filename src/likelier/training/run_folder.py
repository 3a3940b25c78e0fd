"""The run folder: whose it is, how far it got, and its logs. It stores and decides nothing."""

import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from likelier import __version__
from likelier.base.environment import QUANTISE, packages
from likelier.base.errors import ConfigError, OutputError, RunFailed
from likelier.base.files import (
    MANIFEST,
    changed_files,
    is_locked,
    make_folder,
    must_be_apart,
    open_own,
    open_regular,
    output_errors,
    read_json,
    read_lines,
    sealed,
    sweep,
    write_json,
    write_text,
)
from likelier.base.foreign import masked
from likelier.base.terminal import say
from likelier.config import Config, difference, dump, live
from likelier.data.records import TokenPair
from likelier.data.sources import names_of
from likelier.training.logs import Log

if TYPE_CHECKING:
    from likelier.model.team import Team  # imports torch

OnRow = Callable[[dict[str, float]], None]
_MODELS = ("model", "adapter")
_FILES_OF_MODELS = ("config.json", "adapter_config.json", "tokenizer.json")
_FOLDERS = ("checkpoints", "pair_log", "held_out", "best")
_OF_A_RUN = ("run.json", "metrics.jsonl", "checkpoints")  # of which one is there where it began
_WRITTEN = (
    "config.yaml", "report.html", "pair_texts.jsonl", "pair_tokens.jsonl", "samples.jsonl",
    "pair_log", "held_out", "best", *_MODELS,
)  # fmt: skip
_FORMAT = 2  # of run.json; that of format 1 has no seal
_SHAPE = {
    "asked": dict,
    "resolved": dict,
    "inputs": dict,
    "versions": dict,
    "step": int,
    "processes": dict,
}


def asked(config: Config) -> dict[str, Any]:
    """The live keys of a config, secrets masked; where a run and its weights lie, what shows its
    metrics, the answers that are looked at, the language of its report and the processes that share
    the work are no part of what it is.
    """
    beside = ("out", "eval", "parallel", "lang")
    keys = {key: value for key, value in live(config).items() if key not in beside}
    del keys["model"]["stream"]
    keys["track"] = "none"  # as it stands in runs from before there were others
    return masked(keys)


def as_begun(config: Config) -> Config:
    """A config as its run was asked for: ``config.yaml`` of a run is its resolved config, and names
    the run that wrote it. Any other config comes back as it is.
    """
    record = _read_record(config.out / "run.json")
    try:
        resolved = Config.model_validate(record.get("resolved"))
        if difference(asked(resolved), asked(config)) or not record["asked"]:
            return config
        now = live(config)
        beside = {key: now[key] for key in now.keys() - record["asked"].keys()}
        tree = {**record["asked"], **beside, "track": now["track"]}
        tree["model"] = {**tree["model"], "stream": now["model"]["stream"]}
        return Config.model_validate(tree)
    except (ValidationError, KeyError, ConfigError):
        return config


class RunFolder:
    """The files of the run of a config. ``record`` is the content of ``run.json``, empty where it
    is missing or damaged.

    ``inputs`` are hashes of the content behind the run, which every checkpoint must agree with.
    ``on_row`` hears every row of the log, ``mirror`` those from before as well. Of a ``team`` the
    first process ``writes``; the others know what it read, and what they add goes nowhere. Raises
    OutputError where ``run.json`` cannot be read.
    """

    def __init__(self, config: Config, on_row: OnRow | None = None, team: "Team | None" = None):
        self.config, self.path, self.on_row = config, config.out, on_row
        self.writes = team is None or team.leads
        read = partial(_read_record, self.path / "run.json")
        self.record: dict[str, Any] = read() if team is None else team.agreed(read)
        self.inputs: dict[str, str] = {}
        self.mirror: Callable[[Sequence[dict[str, float]]], None] | None = None
        self.metrics = Log(self.path / "metrics.jsonl", config.train.log_every)
        self.timing = Log(self.path / "timing.jsonl", clock=("seconds",))

    @property
    def resumes(self) -> bool:
        """Whether a run began here before."""
        return bool(self.record)

    def finished(self) -> bool:
        """Whether the run reached its last step here and its model is saved.

        Raises OutputError where the folder holds a run of another config, or something else, and
        RunFailed where the model is not what was saved, or is gone and cannot be made again.
        """
        if self.resumes:
            different = difference(masked(self.record.get("asked", {})), asked(self.config))
            if different:
                more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
                raise OutputError(
                    f"this folder holds another run: {different[0]}{more}",
                    where=f"out: {self.path}",
                    hint="give another out folder, or the config of this run",
                )
            return self.record.get("status") == "finished" and self._model_stands()
        began = any((self.path / name).exists() for name in _OF_A_RUN)
        names = _FILES_OF_MODELS if began else (*_FILES_OF_MODELS, *_WRITTEN)
        other = [name for name in names if os.path.lexists(self.path / name)]
        if other or (self.path.exists() and not self.path.is_dir()):
            raise OutputError(
                f"this holds something else ({other[0] if other else 'a file'})",
                where=f"out: {self.path}",
                hint="give a folder that does not exist yet",
            )
        model, reference, data = (getattr(self.config, n) for n in ("model", "reference", "data"))
        read = (model.path, reference.path, data.eval_path, *names_of(data.train))
        must_be_apart(self.path, f"out: {self.path}", read)
        return False

    def _model_stands(self) -> bool:
        """Whether the saved model is there; its card may have been edited since."""
        folder = next((f for name in _MODELS if (f := self.path / name).is_dir()), None)
        if folder is None:
            if any((self.path / "checkpoints").glob("step-*")):
                return False  # it is made again
            raise RunFailed(
                "this run is finished, but its model is gone, and so are its checkpoints",
                where=f"out: {self.path}",
                hint="put the model back, or delete the folder to train again",
            )
        if not (folder / MANIFEST).exists():  # taken away, as before an upload
            return True
        manifest = read_json(folder / MANIFEST)
        files = (manifest or {MANIFEST: None}).get("files")
        damaged = changed_files(folder, files) if isinstance(files, dict) else [MANIFEST]
        if damaged := [name for name in damaged if name != "README.md"]:
            raise RunFailed(
                f"not as it was saved: {damaged[0]}",
                where=str(folder),
                hint="put it back, or delete this folder and run the same command again: "
                "the last checkpoint gives it once more",
            )
        return True

    def lacks(self) -> list[str]:
        """What a finished run ends with and is not there: it was killed, or somebody deleted it."""
        last = ["report.html"]
        if self.record.get("format") == _FORMAT:
            last.append("pair_texts.jsonl")
        return [name for name in last if not (self.path / name).exists()]

    def what_to_do(self) -> str:
        """What is left to do of a finished run, in words."""
        lacking = self.lacks()
        return f"{' and '.join(lacking)} to be written" if lacking else "nothing to do"

    def settings(self) -> dict[str, Any] | None:
        """The config as it was resolved when the run began; None where that is not known."""
        try:
            Config.model_validate(self.record.get("resolved"))
        except ValidationError:
            return None
        beside = {key: live(self.config)[key] for key in ("parallel", "track", "lang")}
        return {**self.record["resolved"], **beside}

    def must_hold(self, **inputs: str) -> None:
        """Note hashes of the content behind the run.

        Raises OutputError where one is another than when the run began.
        """
        self.inputs |= inputs
        before = self.record.get("inputs", {})
        changed = [name for name, value in inputs.items() if before.get(name, value) != value]
        if changed:
            raise OutputError(
                f"the {' and the '.join(changed)} changed since this run began",
                where=f"out: {self.path}",
                hint="give another out folder, or put back what was there",
            )

    def begin(self, settings: Mapping[str, Any], **facts: Any) -> None:
        """Write down what the run is: its ``settings``, without any ``auto``, and ``facts``."""
        import torch  # not above: a folder of another run is answered without it

        if self.record.get("status") == "finished":
            say(f"the model of {self.path} is gone: the last checkpoint gives it once more")
        versions = {one.name: one.installed for one in packages(QUANTISE) if one.installed}
        threads = torch.get_num_threads()
        processes = facts.get("processes", {}).get("number", 1)
        now = {"threads": threads, "processes": processes, **versions}
        self._say_if_bits_may_differ(now)
        settings = masked(settings)
        self.write_record(
            format=_FORMAT,
            likelier=__version__,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            status="running",
            step=self.record.get("step", 0),
            asked=asked(self.config),
            resolved=settings,
            inputs=self.inputs,
            versions=versions,
            threads=threads,
            **facts,
        )
        # Behind run.json: where that is missing, a config.yaml is somebody else's.
        if self.writes:
            write_text(self.path / "config.yaml", dump(settings))

    def _say_if_bits_may_differ(self, now: Mapping[str, Any]) -> None:
        """A run that resumes under other versions, threads or processes rounds otherwise from here
        on.
        """
        before = {**self.record, **self.record.get("versions", {})}
        if "processes" in before:
            before["processes"] = before["processes"].get("number")
        for name, value in now.items():
            if before.get(name, value) != value:
                say(
                    f"the run began with {name} {before[name]} and resumes with {value}: "
                    "its last bits may differ"
                )

    def resumed(self, step: int, lost: Sequence[str]) -> None:
        """Note the step that the run resumes from, and what of its logs is lost for good."""
        known = self.record.get("lost", []) if step else []
        self.write_record(step=step, lost=list(dict.fromkeys([*known, *lost])))
        if self.mirror is not None:
            self.mirror(read_lines(self.metrics.path))

    def finish(self, step: int) -> None:
        """The model is saved: this run is done. A report of before its end goes."""
        rows = read_lines(self.path / "timing.jsonl")
        names = {"plain": "plain_tokens", "tree": "tokens", "batches_over_budget": "over_budget"}
        tokens = {
            name: sum(row[column] for row in rows if type(row.get(column)) is int)
            for name, column in names.items()
        }
        with output_errors(self.path):
            (self.path / "report.html").unlink(missing_ok=True)
        for log in (self.metrics, self.timing):  # nothing would make the last rows again
            log.sync()
        self.write_record(status="finished", step=step, tokens=tokens)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to ``metrics.jsonl`` and tell whoever listens."""
        if not self.writes:
            return
        self.metrics.append(row)
        if self.mirror is not None:
            self.mirror([row])
        if self.on_row is not None:
            self.on_row(row)

    def time(
        self, step: int, seconds: float, computed: Sequence[int], pairs: Sequence[TokenPair]
    ) -> None:
        """Append a row to ``timing.jsonl``: the tokens ``computed``, of each batch, and what they
        would be unshared.
        """
        row = {
            "step": step,
            "seconds": round(seconds, 6),
            "tokens": sum(computed),
            "plain_tokens": sum(pair.num_tokens for pair in pairs),
            "pairs": len(pairs),
        }
        budget = self.record["resolved"]["train"]["tokens_per_batch"]
        over = sum(tokens > budget for tokens in computed)
        if over:  # a pair is never cut: these went alone
            row["over_budget"] = over
        if self.writes:
            self.timing.append(row)

    def write_record(self, **facts: Any) -> None:
        """Add facts to ``run.json``, whole or not at all; no secret stands in it."""
        self.record = masked({**self.record, **facts})
        if self.writes:
            write_json(self.path / "run.json", sealed(self.record))


def _read_record(path: Path) -> dict[str, Any]:
    """``run.json``; empty where it is missing, damaged, or says what it cannot mean.

    Raises OutputError where it cannot be read: a run that began there is never taken for none.
    """
    try:
        open_regular(path).close()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        what, hint = f"cannot be read: {error.strerror}", "give another out folder"
        raise OutputError(what, where=str(path), hint=hint) from error
    record = read_json(path) or {}
    fits = all(isinstance(record.get(name, kind()), kind) for name, kind in _SHAPE.items())
    return record if fits else {}


def must_be_free(path: Path) -> None:
    """Look whether a run could work in a folder; nothing is made.

    Raises OutputError where another process works in it, or where nothing can be written.
    """
    with _cannot_be_written(path):
        _must_be_writable(path)
        if os.path.lexists(path / ".lock"):
            lock = open_own(path / ".lock", os.O_RDWR)
            try:
                _hold(lock, path)
            finally:
                os.close(lock)


@contextmanager
def _cannot_be_written(path: Path) -> Iterator[None]:
    """Turn what a folder refuses into an OutputError that names the key."""
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        hint = "give another out folder, or clear what stands there"
        raise OutputError(what, where=f"out: {path}", hint=hint) from error


def _must_be_writable(path: Path) -> None:
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    folders = [there, *(path / name for name in _FOLDERS if (path / name).exists())]
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(
                f"cannot be written: {folder} is no folder",
                where=f"out: {path}",
                hint="give another out folder, or move this away",
            )
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            what = f"cannot be written: {folder} is not writable"
            hint = "give another out folder, or change its rights"
            raise OutputError(what, where=f"out: {path}", hint=hint)


def sweep_run(path: Path, alone: bool = True) -> None:
    """Delete what a kill, or a disk that failed, left half written in a run folder: see `sweep`."""
    for folder in (path, *(path / name for name in _FOLDERS)):
        sweep(folder, alone)


def _hold(lock: int, path: Path) -> bool:
    """Hold a folder by its open lock file until that is closed; whether there are locks at all."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if not is_locked(error):
            return False
        holder = os.read(lock, 200).decode(errors="replace").strip()
        raise OutputError(
            f"another process works in this folder ({holder})", where=f"out: {path}"
        ) from error


@contextmanager
def open_folder(
    config: Config, on_row: OnRow | None = None, team: "Team | None" = None
) -> Iterator[RunFolder]:
    """Make the folder of a run and hold it alone; of a ``team``, the first process does.

    Raises OutputError where it cannot be made or another process works in it, or where not all
    processes of a team see it.
    """
    hold = partial(held_folder, config.out)
    lock = hold() if team is None else team.agreed(hold)
    try:
        if team is not None:
            _must_be_shared(config.out, team)
        yield RunFolder(config, on_row, team)
    finally:
        if team is None or team.leads:
            os.close(lock)  # the lock goes with it; the empty file stays: nobody locks a stale one


def _must_be_shared(path: Path, team: "Team") -> None:
    sees = team.gathered((path / ".lock").exists())
    if not all(sees):
        raise OutputError(
            f"process {sees.index(False)} does not see the folder that process 0 made",
            where=f"out: {path}",
            hint="give a folder on a file system that all machines share",
        )


def held_folder(path: Path) -> int:
    """The open lock of the folder of a run, which is made where it is not there."""
    with _cannot_be_written(path):
        _must_be_writable(path)
        make_folder(path)
        lock = open_own(path / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        if not _hold(lock, path):
            say(f"{path}: this file system has no locks: nothing keeps a second process out")
        with _cannot_be_written(path):
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        sweep_run(path)
    except BaseException:
        os.close(lock)
        raise
    return lock
