"""`likelier train` before it trains: what keys, paths and the run folder say, without torch."""

from likelier.base.environment import needs_bitsandbytes, needs_extra
from likelier.base.model_files import describe_files, place_of
from likelier.base.terminal import say
from likelier.config import Config
from likelier.data.sources import describe_folders, must_be_there, names_of
from likelier.training.run_folder import RunFolder, must_be_free, sweep_run


def first_look(config: Config) -> bool:
    """Look at everything that needs no model; whether there is anything to train.

    Torch takes seconds to import, and a model to load: a wrong path is answered before.

    Raises InputMissing for data or a model that are not there, DataError for files that cannot be
    read, and OutputError where the run folder holds something else or is in use.
    """
    folder = RunFolder(config)
    if folder.finished():
        if not folder.lacks():
            sweep_run(config.out, alone=False)
            say(f"{config.out} is finished: {folder.what_to_do()}")
        return bool(folder.lacks())
    must_be_free(config.out)
    data = config.data
    for name in (*names_of(data.train), *([data.eval_path] if data.eval_path else [])):
        must_be_there(name)
    for line in describe_folders(data.train):
        say(line)
    for key, needs in (
        ("model.quantise", config.model.quantise == "nf4"),
        ("optim.kind", config.optim.kind == "adamw8bit"),
    ):
        if needs:
            needs_bitsandbytes(key)
    needs_extra(config.track, "track")
    if config.reference.path is not None:
        place_of(config.reference.path)
    say(f"loading {describe_files(config.model.path, config.model.revision)}")
    return True
