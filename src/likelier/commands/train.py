"""`likelier train` before it trains: what keys, paths and the run folder say, without torch."""

import os
from collections.abc import Sequence

from likelier.base.environment import needs_bitsandbytes, needs_extra, processes_started
from likelier.base.model_files import describe_files, place_of
from likelier.base.terminal import say
from likelier.commands.launch import launch, processes_of
from likelier.config import Config
from likelier.data.sources import describe_folders, must_be_there, names_of
from likelier.training.run_folder import RunFolder, as_begun, must_be_free, sweep_run


def first_look(config: Config) -> bool:
    """Look at everything that needs no model; whether there is anything to train.

    Torch takes seconds to import, and a model to load: a wrong path is answered before.

    Raises InputMissing for data or a model that are not there, DataError for files that cannot be
    read, and OutputError where the run folder holds something else or is in use.
    """
    folder = RunFolder(as_begun(config))
    if folder.finished():
        if not folder.lacks():
            sweep_run(config.out, alone=False)
            say(f"{config.out} is finished: {folder.what_to_do()}")
        return bool(folder.lacks())
    must_be_ready(config)
    for line in describe_folders(config.data.train):
        say(line)
    say(f"loading {describe_files(config.model.path, config.model.revision)}")
    return True


def must_be_ready(config: Config) -> None:
    """Look whether a run could begin; nothing is said. Raises as `first_look`."""
    must_be_free(config.out)
    data = config.data
    for name in (*names_of(data.train), *([data.eval_path] if data.eval_path else [])):
        must_be_there(name)
    for key, needs in (
        ("model.quantise", config.model.quantise == "nf4"),
        ("optim.kind", config.optim.kind == "adamw8bit"),
    ):
        if needs:
            needs_bitsandbytes(key)
    needs_extra(config.track, "track")
    if config.reference.path is not None:
        place_of(config.reference.path)
    describe_files(config.model.path, config.model.revision)


def begin_train(config: Config, words: Sequence[str]) -> int | None:
    """What there is to do before a run trains in this process: None where it is to, else the exit
    code of the command ``words``, which is done or which several processes have done.

    Raises as `first_look`.
    """
    if processes_started() > 1:
        # The first looks once they have met: each would say it. Whom it lost is said in one line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        return None
    if not first_look(config):
        return 0
    number = processes_of(config)
    return launch(number, words) if number > 1 else None
