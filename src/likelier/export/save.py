"""Saving what was trained: standard Hugging Face or PEFT files, tokenizer, template and card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from likelier.base.files import remove_folder, write_folder, write_json
from likelier.base.foreign import without_secrets
from likelier.export.card import adapters_of, model_card
from likelier.model.frozen import dtype_name
from likelier.model.load import quietly
from likelier.model.policy import Policy


def save_policy(
    policy: Policy,
    masters: Mapping[str, Tensor],
    save_dtype: str,
    run: Path,
    path: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model/`` or ``adapter/`` into a run folder, as plain ``from_pretrained`` loads it;
    or another ``path`` there, with ``facts`` in its manifest.

    Its card is made of what the run folder holds, so the logs are complete by then.
    ``masters`` are the float32 copies of what was trained. An adapter is saved as these; of a full
    model the weights come from them where ``save_dtype`` is wider than the compute dtype, and where
    the model itself is in parts: the masters are whole. ``auto`` is the compute dtype.

    Raises OutputError where the disk refuses; nothing half-written then stands there.
    """
    path = path or run / ("adapter" if policy.has_adapter else "model")
    if path.exists():  # written by a run that was killed before it could say that it finished
        remove_folder(path)
    wanted = policy.dtype if save_dtype == "auto" else getattr(torch, save_dtype)

    def write(target: Path) -> None:
        with quietly():
            if policy.has_adapter:
                model: Any = policy.model
                for config in adapters_of(policy).values():
                    _name_base(config, policy.causal_lm.name_or_path)
                    _order_sets(config)
                    _mask_secrets(config)
                weights = {**model.state_dict(), **masters}
                # Without False, peft asks the Hub whether the vocabulary grew.
                model.save_pretrained(target, state_dict=weights, save_embedding_layers=False)
            else:
                _save_model(policy, masters, wanted, target)
            policy.tokenizer.save_pretrained(target)
            card = without_secrets(model_card(policy, run))
        (target / "README.md").write_text(card, encoding="utf-8")  # in the place of peft's

    write_folder(path, write, {"format": 2, **(facts or {})})


def _name_base(config: Any, base: str | None) -> None:
    """Have an adapter name the folder of its base so that it is found from anywhere."""
    if base and Path(base).is_dir():
        config.base_model_name_or_path = str(Path(base).resolve())


def _order_sets(config: Any) -> None:
    """The order of a set changes with each process, and with it the bytes of the saved file."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))


def _mask_secrets(config: Any) -> None:
    """A path that holds one is not written down; who loads the adapter then names its base."""
    for name, value in vars(config).items():
        if type(value) is str:  # no member of an enum
            setattr(config, name, without_secrets(value))


def _save_model(
    policy: Policy, masters: Mapping[str, Tensor], save_dtype: torch.dtype, target: Path
) -> None:
    model = policy.causal_lm
    if save_dtype == model.dtype and not policy.in_parts:
        model.save_pretrained(target)
        return
    # A master has one name; the parameter that it belongs to has several where weights are tied.
    master_of = {id(p): masters[name] for name, p in model.named_parameters() if name in masters}
    cast: dict[int, Tensor] = {}  # by parameter, so that tied weights stay one tensor
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in cast:
            cast[id(tensor)] = master_of.get(id(tensor), tensor).detach().to(save_dtype)
        weights[name] = cast.get(id(tensor), tensor)
    model.save_pretrained(target, state_dict=weights)
    # It wrote the model's own dtype there, which would be loaded again.
    described = json.loads((target / "config.json").read_text(encoding="utf-8"))
    write_json(target / "config.json", _with_dtype(described, dtype_name(save_dtype)))


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration, and those inside it, whose ``dtype`` is another."""
    changed = {key: _with_dtype(v, name) if isinstance(v, dict) else v for key, v in config.items()}
    return {**changed, "dtype": name} if "dtype" in config else changed
