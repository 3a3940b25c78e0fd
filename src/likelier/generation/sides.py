"""Who answers: the base model and what was trained from it, of a run folder or a model."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from likelier.base.errors import ConfigError, InputMissing
from likelier.base.model_files import base_of_adapter, describe_files, in_one_line, place_of
from likelier.base.terminal import say
from likelier.chat.tokenizer import Encoder
from likelier.config import Config, load_config
from likelier.model.adapters import adapters_off
from likelier.model.load import load
from likelier.model.policy import Policy

Name = Literal["base", "tuned", "model"]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ModelSide:
    """A model that answers. Two sides may be one policy, of which ``base`` is without its adapter;
    ``model`` is a model that was trained from nothing that is known here.
    """

    name: Name
    policy: Policy
    encoder: Encoder

    @property
    def path(self) -> str:
        """The folder or Hub id of the model that this side is."""
        base = self.policy.causal_lm.name_or_path
        return str(base if self.name == "base" else self.policy.path)

    @contextmanager
    def answering(self) -> Iterator[Policy]:
        """The policy as this side is. What it was is put back."""
        if self.name != "base":
            yield self.policy
            return
        with adapters_off(self.policy.model):
            yield self.policy


def run_config(target: str) -> Config | None:
    """The config of a run folder whose model is saved; None where ``target`` is no run folder.

    Raises InputMissing where the run has saved no model yet, ConfigError for a damaged config.
    """
    run = Path(target).expanduser()
    is_model = any((run / name).is_file() for name in ("config.json", "adapter_config.json"))
    if is_model or not (run / "config.yaml").is_file():
        return None
    if not ((run / "model").is_dir() or (run / "adapter").is_dir()):
        what = "this run has saved no model"
        raise InputMissing(what, where=target, hint="train it to its end")
    return load_config(run / "config.yaml")


def template_of(config: Config | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template: those given, and those of the run, of which it is told."""
    own = {} if config is None else dict(config.data.template)
    if kept := {name: value for name, value in own.items() if name not in given}:
        words = ", ".join(f"{name}={value}" for name, value in kept.items())
        say(f"the chat template is given what the run was trained with: {words}")
    return {**own, **given}


def open_sides(
    target: str,
    config: Config | None,
    template: Mapping[str, Any],
    only: Name | None = None,
    otherwise: tuple[Name, ...] = ("base", "tuned"),
) -> tuple[ModelSide, ...]:
    """Load who answers for a run folder with its ``config``, or for a model folder or Hub id.

    Of a run or an adapter these are the side that ``only`` names, or those ``otherwise``; they are
    one set of weights where an adapter was trained. A model alone has one side.

    Raises ConfigError for ``only`` of a model alone, InputMissing where a model, or the base of a
    run, is not there, and what `likelier.model.load.load` raises.
    """
    wanted = (only,) if only else otherwise
    run = Path(target).expanduser()
    settings: dict[str, Any] = {"frozen": True}
    today = None
    if config is not None:
        model, today = config.model, config.data.today
        settings |= {"dtype": model.dtype, "stream": model.stream}
        if (run / "model").is_dir():
            loaded = {name: _of_full_run(run, config, name, settings) for name in wanted}
            return tuple(
                ModelSide(name, policy, policy.encoder(template, today))
                for name, policy in loaded.items()
            )
        settings["quantise"] = model.quantise
        target = str(run / "adapter")
        if (Path(model.path).expanduser() / "adapter_config.json").is_file() and "base" in wanted:
            say(f"base is what lies under {model.path}, the adapter that this run continued")
    where = place_of(target)
    with in_one_line(where):
        base = base_of_adapter(where, None)
    if base is None and only is not None:
        what = f"{target} is one model, without a base and a tuned side"
        raise ConfigError(what, where=f"--only {only}", hint="leave it out")
    say(f"loading {describe_files(where)}")
    policy = load(where, **settings)
    encoder = policy.encoder(template, today)
    if base is None:
        return (ModelSide("model", policy, encoder),)
    return tuple(ModelSide(name, policy, encoder) for name in wanted)


def ask_in_turn(
    target: str,
    config: Config | None,
    template: Mapping[str, Any],
    ask: Callable[[ModelSide], Answer],
    sides: tuple[Name, ...] = ("base", "tuned"),
) -> dict[Name, Answer]:
    """What ``ask`` gives of each side, as `open_sides` opens them. Two models are never in memory
    together: the first is let go before the second is loaded.
    """
    both = config is not None and (Path(target).expanduser() / "model").is_dir()
    found: dict[Name, Answer] = {}
    for names in [(name,) for name in sides] if both else [sides]:
        opened = list(open_sides(target, config, template, None, names))
        while opened:
            found[opened[0].name] = ask(opened[0])
            del opened[0]
        gc.collect()  # a model is a circle of references, and would be waited for
    return found


def _of_full_run(run: Path, config: Config, name: Name, settings: Mapping[str, Any]) -> Policy:
    """One of the two models of a run that trained all weights."""
    if name == "tuned":
        say(f"loading tuned: {describe_files(run / 'model')}")
        return load(run / "model", **settings)
    path, revision = config.model.path, config.model.revision
    try:
        say(f"loading base: {describe_files(path, revision)}")
        return load(path, revision=revision, **settings)
    except InputMissing as error:
        what = f"the base of this run, {path}, cannot be had: {error.what}"
        hint = "--only tuned does without it"
        raise InputMissing(what, where=str(run), hint=hint) from error
