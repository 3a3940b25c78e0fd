"""The model card of a trained model: how to load it, what it was made of, how well it does."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData, hf_hub_download, metadata_load, try_to_load_from_cache
from jinja2 import Environment, StrictUndefined, Template

from likelier.base.files import read_json
from likelier.config import dump
from likelier.data.sources import hub_id
from likelier.model.policy import Policy
from likelier.pages.texts import percent, short
from likelier.training.logs import held_out_rows

_FIGURES = {
    "eval_loss": "loss",
    "eval_rewards/margins": "reward margin",
    "eval_logps/chosen": "log-prob of the chosen answer, nats",
    "eval_logps/rejected": "log-prob of the rejected answer, nats",
}
_LICENCE = ("license", "license_name", "license_link")


Form = Literal["adapter", "model", "gguf"]


@cache
def _template() -> Template:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8"))


def model_card(policy: Policy, run: Path, form: Form | None = None) -> str:
    """A README.md whose front matter the Hub reads, made of what a run folder holds.

    ``form`` is what lies beside it; None: what the run itself saves. The card names no path and no
    time: the same run has the same card, wherever and whenever it ran.
    """
    record = read_json(run / "run.json") or {}
    settings: dict[str, Any] = record["resolved"]
    base, revision = policy.causal_lm.name_or_path or "", settings["model"]["revision"]
    form = form or ("adapter" if policy.has_adapter else "model")
    library = {"adapter": "peft", "model": "transformers", "gguf": "gguf"}[form]
    method = "full tuning"
    if policy.has_adapter:
        adapter = next(iter(adapters_of(policy).values()))
        revision, method = adapter.revision, adapter.peft_type.value
    on_hub = _is_on_hub(base, revision)
    licence = _licence(base, revision, on_hub)
    train = settings["data"]["train"]
    names = [train] if isinstance(train, str) else list(train)
    loss = record["inputs"]["loss"]
    front: dict[str, Any] = {
        "base_model": base if on_hub else None,  # the Hub takes nothing but its own ids
        "base_model_relation": ("adapter" if form == "adapter" else "finetune") if on_hub else None,
        "datasets": sorted({found for name in names if (found := hub_id(name))}) or None,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["likelier", "dpo" if loss == "sigmoid" else loss]
        + ([method.lower()] if policy.has_adapter else []),
    }
    rows = held_out_rows(run)
    return _template().render(
        front_matter=ModelCardData(**front | licence).to_yaml(),
        base=_shown(base),
        revision=revision,
        on_hub=on_hub,
        licence=licence,
        kind={"gguf": "GGUF file"}.get(form, form),
        form=form,
        method=method,
        is_adapter=form == "adapter",
        is_chat=bool(policy.tokenizer.chat_template),
        arguments={name: repr(value) for name, value in settings["data"]["template"].items()},
        run=record,
        settings=_written(settings),
        data=[_shown(name) for name in names],
        held_out=_shown(settings["data"]["eval"] or ""),
        evaluations=[rows[0], rows[-1]] if rows else [],
        figures=_figures([rows[0], rows[-1]]) if rows else {},
    )


def adapters_of(policy: Policy) -> dict[str, Any]:
    """The configurations of a policy's adapters by their names, as peft keeps them."""
    adapters: Any = policy.model.peft_config
    return dict(adapters)


def _is_on_hub(base: str, revision: str | None) -> bool:
    """Whether a model came from the Hub: then it is in the Hub's cache, and no folder here."""
    if not base or Path(base).exists():
        return False
    with suppress(ValueError):  # no possible id
        return isinstance(try_to_load_from_cache(base, "config.json", revision=revision), str)
    return False


def _licence(base: str, revision: str | None, on_hub: bool) -> dict[str, str]:
    """What the card of the base model says of its licence; empty where that is not known."""
    card: dict[str, Any] = {}
    with suppress(Exception):  # no card, no network, no YAML: a run that is done must not fail here
        file = hf_hub_download(base, "README.md", revision=revision) if on_hub else None
        card = metadata_load(file or Path(base) / "README.md") or {}
    licence = {key: card[key] for key in _LICENCE if isinstance(card.get(key), str)}
    link = licence.get("license_link", "https://")
    if "://" not in link:  # a file beside the base model
        page = f"https://huggingface.co/{base}/blob/{revision or 'main'}/{link}"
        licence["license_link"] = page if on_hub else ""
    return {key: value for key, value in licence.items() if value}


def _shown(name: str) -> str:
    """A Hub id as it is, of a path the last part: where it lies is nobody's business."""
    path = Path(name)
    return path.resolve().name if name and (path.exists() or path.is_absolute()) else name


def _figures(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The cells of every line of the table of held-out preferences."""
    ends = ("", "_low", "_high")
    shares = [[percent(row[f"eval_rewards/accuracies{end}"]) for end in ends] for row in rows]
    found = {"accuracy (95% interval)": [f"{mid} ({low} to {high})" for mid, low, high in shares]}
    for key, name in _FIGURES.items():
        if all(key in row for row in rows):
            found[name] = [short(row[key]) for row in rows]
    return found


def _written(settings: Mapping[str, Any]) -> str:
    """The config of the run as YAML, without the names of folders and files."""
    tree = {name: dict(part) for name, part in settings.items() if isinstance(part, Mapping)}
    for section, key in (("model", "path"), ("data", "train"), ("data", "eval")):
        del tree[section][key]
    if other := tree["reference"].get("path"):
        tree["reference"]["path"] = _shown(other)
    return dump(tree)
