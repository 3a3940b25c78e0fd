"""`likelier export`: what a run trained, in the form that others run, and compared with the run."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from likelier.base.child import in_child
from likelier.base.errors import ConfigError, GateMissed, InputMissing, OutputError
from likelier.base.files import MANIFEST, must_be_apart, write_folder
from likelier.base.foreign import without_secrets
from likelier.base.terminal import say
from likelier.chat.apply import apply_template
from likelier.commands.verify import Trained, compared, print_comparisons, trained_by
from likelier.export import gguf
from likelier.export.card import model_card
from likelier.export.merge import save_merged
from likelier.export.ollama import Dialogue, modelfile
from likelier.export.push import must_be_able_to_push, push
from likelier.model.frozen import dtype_name
from likelier.model.load import load, parse_dtype
from likelier.model.policy import Policy


@dataclass(frozen=True)
class Wanted:
    """What of a run is to be written: its form, the dtype of its weights, and for GGUF the
    converter and the kind of rounding; and the repository that it goes to."""

    form: Literal["merged", "adapter", "gguf"] = "merged"
    dtype: str = "auto"
    converter: Path | None = None
    quantise: str | None = None
    push: str | None = None
    public: bool = False
    verify: bool = True


def export(run: Path, out: Path, wanted: Wanted) -> None:
    """Write what a run trained to ``out``, and compare it with the run.

    Raises InputMissing where there is no run or a tool is missing, ConfigError for options that go
    with another form, OutputError where ``out`` is there already, GateMissed where what was
    written is not what was trained; it stands then, and is not pushed.
    """
    _must_have_effect(wanted)
    trained = trained_by(run)
    if wanted.form == "adapter" and not trained.is_adapter:
        what, hint = "this run trained all weights, so there is no adapter", "use --to merged"
        raise ConfigError(what, where="--to adapter", hint=hint)
    if out.exists():
        raise OutputError("is there already", where=f"--out {out}", hint="name another folder")
    must_be_apart(out, f"--out {out}", [run, trained.config.model.path])
    if wanted.push:
        must_be_able_to_push(wanted.push)
    artefact = _write(trained, out, wanted)
    if wanted.verify:
        _must_be_what_was_trained(str(artefact), trained)
    if wanted.push:
        push(out, wanted.push, public=wanted.public)


def _must_have_effect(wanted: Wanted) -> None:
    """Raises ConfigError for an option that another form would ignore."""
    for option, given, forms in (
        ("--dtype", wanted.dtype != "auto", ("merged", "gguf")),
        ("--converter", wanted.converter is not None, ("gguf",)),
        ("--quantise", wanted.quantise is not None, ("gguf",)),
    ):
        if given and wanted.form not in forms:
            what = f"has no effect with --to {wanted.form}"
            raise ConfigError(what, where=option, hint=f"use --to {' or '.join(forms)}")
    if wanted.public and not wanted.push:
        raise ConfigError("has no effect without --push", where="--public", hint="add --push")


def _write(trained: Trained, out: Path, wanted: Wanted) -> Path:
    """Write it, whole or not at all, and return what is to be compared."""
    if wanted.form == "adapter":
        write_folder(out, partial(_copy_adapter, trained.weights), {"format": 2})
        say(f"adapter: {out}")
        return out
    command = gguf.converter(wanted.converter) if wanted.form == "gguf" else []
    tool = gguf.quantiser() if wanted.quantise not in (None, *gguf.BY_CONVERTER) else None
    config = trained.config
    quantise = config.model.quantise if trained.is_adapter else "none"
    policy = load(trained.weights, dtype=trained.dtype, frozen=True, quantise=quantise)
    base_dtype = policy.causal_lm.config.dtype
    dtype = base_dtype if wanted.dtype == "auto" else parse_dtype(wanted.dtype)
    assert isinstance(dtype, torch.dtype)
    if wanted.form == "merged":
        write_folder(out, partial(_merge, policy, trained, dtype), {"format": 2})
        say(f"merged, in {dtype_name(dtype)}: {out}")
        return out
    kind = wanted.quantise or gguf.CONVERTED.get(dtype_name(dtype), "f32")
    name = f"{out.name}-{kind}.gguf"

    def write(target: Path) -> None:
        merged = target / "merged"
        _merge(policy, trained, torch.float32 if wanted.quantise else dtype, merged)
        gguf.make_file(command, merged, target / name, kind, tool)
        shutil.rmtree(merged)
        (target / "Modelfile").write_text(_modelfile(policy, trained, name), encoding="utf-8")
        (target / "README.md").write_text(_card(policy, trained, "gguf"), encoding="utf-8")

    write_folder(out, write, {"format": 2})
    say(f"GGUF, {kind}, and a Modelfile for Ollama: {out / name}")
    return out / name


def _copy_adapter(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.iterdir() if path.name != MANIFEST):
        shutil.copyfile(file, target / file.name)


def _merge(policy: Policy, trained: Trained, dtype: torch.dtype, target: Path) -> None:
    save_merged(policy, dtype, target)
    (target / "README.md").write_text(_card(policy, trained, "model"), encoding="utf-8")


def _card(policy: Policy, trained: Trained, form: Literal["model", "gguf"]) -> str:
    return without_secrets(model_card(policy, trained.folder, form))


def _modelfile(policy: Policy, trained: Trained, name: str) -> str:
    encoder = policy.encoder(trained.config.data.template, trained.config.data.today)

    def render(turns: Dialogue) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(in_child(apply_template, encoder, messages, True))

    chats = bool(policy.tokenizer.chat_template)
    begin = str(policy.tokenizer.decode(list(encoder.leading)))
    return modelfile(name, render if chats else None, sorted(encoder.end_ids), begin)


def _must_be_what_was_trained(artefact: str, trained: Trained) -> None:
    try:
        found = compared(artefact, trained)
    except (ConfigError, InputMissing) as error:  # gone since, or in memory: nothing to compare
        say(f"not compared with what was trained: {error.what} ({error.where})")
        return
    print_comparisons(found)
    if other := [one.name for one in found if one.state == "differs"]:
        what = f"not what was trained: {', '.join(other)} differ"
        hint = "export it in more bits (--dtype float32), or report a bug with these lines"
        raise GateMissed(what, where=artefact, hint=hint)
