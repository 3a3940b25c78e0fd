"""What `likelier check` is asked: by its options, or by the config of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likelier.base.errors import ConfigError
from likelier.checks.examine import Question
from likelier.config import Config
from likelier.data.check import Reading
from likelier.data.prepare import reading_of
from likelier.data.ranked import Ranking

HOW = ("best-worst", "best-rest", "all")


def by_options(
    data: Path,
    model: str | None,
    columns: Mapping[str, str],
    chat: bool,
    template: Mapping[str, Any],
    pairs: str | None,
    min_gap: float | None,
    held_out: str | None,
    max_length: int | None,
    score: int,
) -> Question:
    """The question of a command line.

    Raises ConfigError for an option that is none, or that nothing would read.
    """
    if pairs not in (None, *HOW):
        hint = f"use {', '.join(HOW)}"
        raise ConfigError(f"{pairs!r} is not a choice", where="--pairs", hint=hint)
    needing = {"--max-length": max_length, "--score": score, "--template": template}
    for option, given in needing.items():
        if given and model is None:
            raise ConfigError("would not be read without a model", where=option, hint="add --model")
    ranking = Ranking(pairs or HOW[0], min_gap or 0.0)  # type: ignore[arg-type]  # checked above
    return Question(
        str(data), Reading(columns, chat, ranking), model, held_out, max_length,
        template=template, score=score,
    )  # fmt: skip


def by_config(config: Config, score: int, options: Mapping[str, Any]) -> Question:
    """What the training data of a config are, mixtures too, as its model will see them.

    Raises ConfigError for an option that the config answers.
    """
    for option, given in options.items():
        if given is not None and given is not False:
            what = "would not be read: the config says it"
            raise ConfigError(what, where=option, hint="take it away, or change the config")
    data = config.data
    return Question(
        data.train, reading_of(data), config.model.path, data.eval_path, data.max_length,
        trim=data.overlong == "trim", template=data.template, today=data.today,
        revision=config.model.revision, score=score,
    )  # fmt: skip
